"""Describes in sentences who sees what, and what a client sends."""

from __future__ import annotations

from ifedicl.kinds import USUAL
from ifedicl.kinds.any_task import AnyTask
from ifedicl.settings import Method


def mode_of(method: Method) -> str:
    """A sentence on who sees what in a run with these settings."""
    if method.privacy is None or not method.sums_only:
        return "open: the coordinator sees each client's replies"
    noise = method.privacy.noise
    if noise is not None:
        return (
            f"private: the coordinator sees noisy sums over at least {method.privacy.min_survivors} clients; for one example, "
            f"all rounds together have ε = {noise.epsilon:g} at δ = {noise.delta:g}, even if {method.privacy.colluders} of the "
            "clients collude with the coordinator"
        )
    return (
        f"secure: the coordinator sees sums over at least {method.privacy.min_survivors} clients and no single client's "
        "numbers; it knows who takes part in which step"
    )


def what_leaves(method: Method, kind: type[AnyTask] = USUAL) -> list[str]:
    """All that a client of this run sends, in words; for sums, what goes into them. ``kind`` is that of its task."""
    masked = (
        "everything below goes into sums over clients: each client sends its numbers masked, and a public key, corrections, "
        "tags and secrets that take the masks off the sum alone. Only the layout, the dtype, and a code if it takes no part can"
        " be read"
    )
    return [
        *([masked] if method.sums_only else []),
        *(_sent_with_noise(method) if method.promises_noise else _sent_without_noise(method, kind)),
        "with every reply: the number of entries in its ledger, and the digest of the last one",
        "after a failure or a refusal: one code of a fixed list, never a text",
    ]


def _sent_with_noise(method: Method) -> list[str]:
    vectors = "once: vectors of public text, the same from every client; its own progress, which only it can read"
    rounds = (
        f"each of {method.rounds.rounds} rounds, with its share of noise: the sum of the clipped gradients of the training "
        "examples that it draws"
    )
    readout = (
        "once, with its share of noise: sums over its training examples of bounded features by label, and of products of their "
        "leading coordinates; without noise, where features lie in public text"
    )
    figures = (
        "each evaluation, with its share of noise: the number of held-out examples, and how many were right; at the gate also "
        "on how many the adapter and the raw model disagree"
    )
    return [
        *([] if method.is_one_shot else [vectors, rounds]),
        *([readout] if method.readout else []),
        *([figures] if method.holdout.selection + method.holdout.gate > 0 else []),
    ]


def _sent_without_noise(method: Method, kind: type[AnyTask]) -> list[str]:
    number = "and their number"
    if method.classes_apart:
        number = f"by {kind.groups_are}, and the number of each"
    products = (
        f"once, after the rounds: sums of hidden states {kind.rows_are} over its training examples, and of their products "
        "along a few directions"
    )
    more = (
        f"after them {method.refinements} times: sums of products of hidden states along a few more directions, those that the "
        "readout of all clients' sums depends on"
    )
    refined = [more] if method.refinements else []
    readout = [products, *refined] if method.readout else []
    moved = (
        "each round: the gradient of the loss summed over the training examples that it draws, their number, their summed loss"
        if method.takes_gradients
        else "each round: its coefficients, its number of training examples, its mean training loss"
    )
    compared = (
        "once, at the end: on the gate examples, how many the adapter and the raw model get right, sums of their losses and of "
        f"squared differences, on how many they disagree, {kind.counts_are}"
    )
    at_the_gate = [compared] if method.holdout.gate > 0 else []
    if method.is_one_shot:
        products = (
            f"once: sums of the raw model's hidden states {kind.rows_are} over its training examples, and of their "
            "products along a few directions"
        )
        measured = "once: of the raw model, the number of held-out examples, how many were right, their summed loss"
        tried = "once: for each readout that is tried, the number of held-out examples, how many were right, their summed loss"
        return [*([measured] if method.measures_first else []), products, *refined, tried, *at_the_gate]
    lowest = method.injection.from_depth
    above = "" if lowest == 0 else f" above {lowest:g} of its depth"
    return [
        f"once, and for added examples again with --more-rounds: the mean over its training examples of what the model's layers"
        f"{above} write at one token, {number}; a keyed digest of the examples; the dtype it computes in",
        moved,
        "each evaluation: the number of held-out examples, how many were right, the sum of their losses",
        *readout,
        *at_the_gate,
    ]
