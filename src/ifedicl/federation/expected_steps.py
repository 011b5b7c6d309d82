"""The steps of an undisturbed run for one client: what each reply is, how often it is asked for, and its bytes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ifedicl.federation.manifest import Manifest
from ifedicl.federation.messages import Envelope, Reply, Request, RequestMessage
from ifedicl.federation.sample_exchange import Exchange
from ifedicl.federation.secure import named_missing_packages
from ifedicl.ledger.entries import Head

_HEAD = Head(100, "0" * 64)

STEP_WORDS: Mapping[str, str] = {
    "job": "nothing: it takes the job",
    "vectors": "means of what the model's layers write",
    "context": "nothing: it takes the global vectors",
    "update": "coefficients, a count, a mean loss",
    "gradient": "a sum of gradients, a count, a loss",
    "evaluate": "counts right and losses on held-out examples",
    "statistics": "sums for the readout",
    "products": "products of the readout's features with the directions that it needs",
    "noisy_statistics": "noisy sums for the readout; where its features lie in public text",
    "readouts": "counts right of the readout's candidates",
    "compare": "figures of adapter and raw model at the gate",
}
"""What leaves in the reply to a step, in a few words; ``settings/describe.py`` has the sentences."""


@dataclass(frozen=True)
class ExpectedStep:
    """One kind of step, for one client that takes part in each round.

    Attributes:
        step: its name, a key of :data:`STEP_WORDS`.
        times: how often, in a run that nothing interrupts.
        bytes_down: of a request, without what the transport adds.
        bytes_up: of a reply.
    """

    step: str
    times: int
    bytes_down: int
    bytes_up: int

    @property
    def what(self) -> str:
        """What leaves, in words."""
        return STEP_WORDS[self.step]

    @property
    def when(self) -> str:
        """How often, in words."""
        if self.step in ("update", "gradient"):
            return "each round"
        if self.step == "evaluate":
            return "each evaluation"
        return "once" if self.times == 1 else f"{self.times} times"


def expected_steps(manifest: Manifest, sizes: Mapping[str, tuple[int, int]]) -> tuple[ExpectedStep, ...]:
    """The steps of a job, in the order of a run.

    Args:
        manifest: of the job.
        sizes: bytes of request and reply, by step.
    """
    rounds = manifest.method.rounds
    often = {
        "update": rounds.rounds,
        "gradient": rounds.rounds,
        "evaluate": 1 + math.ceil(rounds.rounds / rounds.evaluate_every),  # the raw model first
        "products": manifest.method.refinements,
    }
    return tuple(ExpectedStep(step, often.get(step, 1), down, up) for step, (down, up) in sizes.items())


def step_sizes(
    manifest: Manifest, steps: Mapping[str, Exchange], clients: Sequence[str], *, most: bool = False
) -> dict[str, tuple[int, int]]:
    """Bytes of request and reply of each step, for one client; in a secure sum those of all its messages together.

    Args:
        manifest: of the job.
        steps: a sample of each step, from :func:`~ifedicl.federation.sample_exchange.sample_exchange`.
        clients: names of all clients; a secure sum's messages grow with them.
        most: the most bytes of a sum, in which other clients are ready than were expected.

    Raises:
        ConfigError: a package that the job's privacy mode needs is not installed.
    """
    privacy = manifest.method.privacy
    if privacy is None or not manifest.method.sums_only:
        return {name: (_size(request), _size(reply)) for name, (request, reply) in steps.items()}
    with named_missing_packages(privacy):
        from ifedicl.federation.secure.sample_sum import sample_sum
    sums = {name: sample_sum(*step, clients, manifest.method, most=most) for name, step in steps.items()}
    return {name: (sum(map(_size, requests)), sum(map(_size, replies))) for name, (requests, replies) in sums.items()}


def _size(message: Request | Reply) -> int:
    is_bare = isinstance(message, RequestMessage) and not message.carries_head
    return Envelope.of(message, None if is_bare else _HEAD).size
