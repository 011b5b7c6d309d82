"""Describes the privacy modes in sentences."""

from __future__ import annotations

from ifedicl.settings import Method


def mode_of(method: Method) -> str:
    """A sentence on who sees what in a run with these settings."""
    if method.privacy is None or not method.sums_only:
        return "open: the coordinator sees each client's replies"
    noise = method.privacy.noise
    if noise is not None:
        return (
            f"private: the coordinator sees noisy sums over at least {method.privacy.min_survivors} clients; for one example, "
            f"all rounds together have ε = {noise.epsilon:g} at δ = {noise.delta:g}, even if {noise.colluders} of the clients "
            "collude with the coordinator"
        )
    return (
        f"secure: the coordinator sees sums over at least {method.privacy.min_survivors} clients and no single client's "
        "numbers; it knows who takes part in which step"
    )
