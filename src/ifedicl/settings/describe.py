"""The privacy modes, said plainly."""

from __future__ import annotations

from ifedicl.settings import Method


def mode_of(method: Method) -> str:
    """Who sees what in a run with these settings, in a sentence."""
    if method.privacy is None or not method.sums_only:
        return "open: the coordinator sees each client's replies"
    noise = method.privacy.noise
    if noise is not None:
        return (
            f"private: the coordinator sees noisy sums over at least {method.privacy.min_survivors} clients; of one example "
            f"all of it together tells at most ε = {noise.epsilon:g} at δ = {noise.delta:g}, also if {noise.colluders} of the "
            "clients collude with it"
        )
    return (
        f"secure: the coordinator sees sums over at least {method.privacy.min_survivors} clients and no single client's "
        "numbers; it knows who takes part in which step"
    )
