"""All attacks in turn, on evidence that is computed once."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from ifedicl import seeds
from ifedicl.audit.defence import DELTA, Defence, budgets
from ifedicl.audit.differencing import differenced
from ifedicl.audit.guessing import one_run
from ifedicl.audit.membership import Outsider, insider, played
from ifedicl.audit.mix import class_means, mix_attack
from ifedicl.audit.public_frame import PublicFrame
from ifedicl.audit.victims import Victims, rare_words, word_tokens
from ifedicl.audit.words import Attacker, Inverter, best_layer, lens, nearest, recovered
from ifedicl.backbone.load import Backbone
from ifedicl.backbone.scoring import Scorer
from ifedicl.calibrate import example_gradients
from ifedicl.core.coefficients import Form, cold_start
from ifedicl.core.subspace import Context
from ifedicl.core.vectors import Array32, Array64
from ifedicl.data import Example
from ifedicl.settings import Method

EPSILONS = (1.0, 4.0, 8.0)
_SIZES = (1, 4, 16, 64, 256)
_INSIDE = 16
_GROUPS, _CANARIES = 60, 100
_CLIENTS = 10
_BEFORE, _ADDED = (4, 64), (1, 4)
Row = dict[str, Any]


@dataclass(frozen=True)
class Evidence:
    """What the attacks look at. It never leaves the owner's machine.

    Attributes:
        private: the owner's texts.
        public: other people's texts under the same prompt, for attackers to learn from.
        private_updates: ``(N', D)``: gradients of the coefficients at the start of calibration, one row an example, of the
            first ``N'`` of the owner's texts.
        public_updates: ``(M, D)``, of the first ``M`` public texts.
    """

    private: Victims
    public: Victims
    private_updates: Array32
    public_updates: Array32

    @classmethod
    def of(
        cls,
        scorer: Scorer,
        private: Sequence[Example],
        public: Sequence[Example],
        method: Method,
        *,
        updates: int,
        on_progress: Callable[[int], None] = lambda _done: None,
    ) -> Self:
        """One forward pass for each text, and one backward pass for the first ``updates`` of both."""
        own, others = (Victims.of(scorer, rows, method, on_progress) for rows in (private, public))
        mean = others.vectors.mean(axis=0, dtype=np.float64).astype(np.float32)
        context = Context(mean, first_layer=others.first_layer)
        own_updates, other_updates = (
            first_gradients(scorer, rows[:updates], context, method, on_progress) for rows in (private, public)
        )
        return cls(own, others, own_updates, other_updates)


def first_gradients(
    scorer: Scorer,
    rows: Sequence[Example],
    context: Context,
    method: Method,
    on_progress: Callable[[int], None] = lambda _done: None,
) -> Array32:
    """``(N, D)``: what each example alone would send in the first round."""
    start = cold_start(Form(len(context.layers)), method.injection)
    result = np.zeros((len(rows), *start.scales.shape), dtype=np.float32)
    for places, arrays in example_gradients(scorer, scorer.encoded(rows), context, start, method, range(len(rows))):
        result[places] = arrays["scales"]
        on_progress(len(places))
    return result.reshape(len(rows), -1)


def attacked(
    evidence: Evidence, backbone: Backbone, *, trials: int, seed: int, epsilons: Sequence[float] = EPSILONS
) -> dict[str, list[Row]]:
    """Tables of figures by attack; no text and no token is in them.

    Args:
        evidence: of :meth:`Evidence.of`.
        backbone: the model that everyone has.
        trials: of each membership game.
        seed: of all draws, the noise included: an audit can be repeated.
        epsilons: budgets of the noise that is tried.
    """
    scene = _Scene(evidence, backbone, seed, epsilons)
    return {
        "words": scene.words(),
        "membership": scene.membership(trials),
        "updates": scene.updates(),
        "mix": scene.mix(),
        "differencing": scene.differencing(),
    }


class _Scene:
    """What the attacks share."""

    def __init__(self, evidence: Evidence, backbone: Backbone, seed: int, epsilons: Sequence[float]) -> None:
        self._evidence, self._backbone = evidence, backbone
        self._draw = partial(seeds.generator, seed, "audit")
        self._frame = PublicFrame.of(evidence.public.vectors)
        self._rows = self._frame.measured(evidence.private.vectors).astype(np.float32)
        self._public = self._frame.measured(evidence.public.vectors).astype(np.float32)
        self._defences = budgets(epsilons, self._public)
        # Gradients differ in size from coefficient to coefficient; public text says how large each is.
        size = np.sqrt(np.square(evidence.public_updates, dtype=np.float64).mean(axis=0))
        self._sizes = np.maximum(size, max(float(np.median(size)) / 10, 1e-30))
        self._classes = int(max(evidence.private.labels.max(), evidence.public.labels.max())) + 1

    def words(self) -> list[Row]:
        """Attack 1: every attacker without a defence, the best of them against each defence."""
        public, private = self._evidence.public, self._evidence.private
        template = frozenset.intersection(*public.tokens)
        candidates = np.flatnonzero(rare_words(word_tokens(self._backbone), public, template))
        attackers: dict[str, tuple[Attacker, str]] = {}
        for name, make in (("unembedding", lens), ("nearest token", nearest)):
            maker = partial(make, self._backbone, candidates, self._frame.centre)
            (layer, cumulated), _ = best_layer(maker, public, candidates)
            where = f"layer {public.first_layer + layer + 1}{' and all below' if cumulated else ''}"
            attackers[name] = maker(layer, cumulated), where
        attackers["trained inverter"] = Inverter(self._backbone, candidates, public, self._frame.sizes), "all layers"
        table = []
        for examples in self._sizes_up_to(len(private)):
            draw = self._draw("words", examples)
            places = [draw.choice(len(private), size=examples, replace=False) for _ in range(_GROUPS)]
            texts = [frozenset().union(*(private.tokens[int(row)] for row in own)) for own in places]
            for defence in self._defences:
                kept = defence.kept(self._rows)
                means = np.stack([self._frame.restored(defence.released(kept[own], draw) / examples) for own in places])
                for name, (attacker, where) in attackers.items():
                    found = recovered(attacker, means, texts, candidates, examples)
                    table.append({"attacker": name, "where": where, **_of(defence), **asdict(found)})
        return table

    def membership(self, trials: int) -> list[Row]:
        """Attack 2 on vectors."""
        outsider = Outsider(self._public)
        sizes = self._sizes_up_to(len(self._rows) - 1)
        table = []
        for defence in self._defences:
            kept = defence.kept(self._rows)
            games = [("outsider", examples, outsider.filters(kept, examples)) for examples in sizes]
            # What an insider is left with does not depend on how many others there are.
            games.append(("insider", max(size for size in sizes if size <= _INSIDE), insider(kept)))
            for name, examples, attacker in games:
                draw = self._draw("membership", name, examples, str(defence.epsilon))
                game = played(kept, examples, defence, attacker, trials=trials, draw=draw)
                table.append({"attacker": name, "examples": examples, **_of(defence), **asdict(game)})
        return table

    def updates(self) -> list[Row]:
        """Attack 2 on updates: one run, every canary in or out by its own coin, all other examples known."""
        rows = self._scaled(self._evidence.private_updates)
        canaries, table = min(_CANARIES, len(rows)), []
        for rounds in (1, 10):
            for defence in budgets(
                [d.epsilon for d in self._defences[1:]], self._scaled(self._evidence.public_updates), rounds
            ):
                draw = self._draw("one run", rounds, str(defence.epsilon))
                kept = defence.kept(rows[:canaries])
                present = draw.random(canaries) < 0.5
                # The same gradients each round: what differs is the noise, and the attacker takes the mean.
                sums = [defence.released(kept[present], draw) for _ in range(rounds)]
                scores = _unmixed(kept, np.mean(sums, axis=0), defence, rounds)
                right = float(((scores > 0.5) == present).mean())
                bound = one_run(scores, present, DELTA)
                table.append({"rounds": rounds, "canaries": canaries, **_of(defence), "right": right, "bound": bound})
        return table

    def mix(self) -> list[Row]:
        """Attack 3 on vectors and on updates, of one client and of a secure sum over ten."""
        private, public = self._evidence.private, self._evidence.public
        updates, labels = self._scaled(self._evidence.private_updates), private.labels[: len(self._evidence.private_updates)]
        public_updates = self._scaled(self._evidence.public_updates)
        kinds: Mapping[str, tuple[Any, npt.NDArray[np.int64], Any, npt.NDArray[np.int64], list[Defence]]] = {
            "vectors": (self._rows, private.labels, self._public, public.labels, self._defences),
            "updates": (
                updates,
                labels,
                public_updates,
                public.labels[: len(public_updates)],
                budgets([d.epsilon for d in self._defences[1:]], public_updates),
            ),
        }
        table = []
        for kind, (rows, own, known, known_labels, defences) in kinds.items():
            means = class_means(known, known_labels, self._classes)
            for examples in (16, 64):
                for clients in (1, _CLIENTS):
                    for defence in defences:
                        draw = self._draw("mix", kind, examples, clients, str(defence.epsilon))
                        guess = mix_attack(rows, own, means, examples, defence, groups=_GROUPS, draw=draw, clients=clients)
                        table.append({"of": kind, "clients": clients, **_of(defence), **asdict(guess)})
        return table

    def differencing(self) -> list[Row]:
        """Attack 4."""
        centre = self._public.mean(axis=0, dtype=np.float64)
        table = []
        for examples in [size for size in _BEFORE if size + max(_ADDED) <= len(self._rows)]:
            for added in _ADDED:
                for defence in self._defences:
                    draw = self._draw("differencing", examples, added, str(defence.epsilon))
                    found = differenced(self._rows, centre, examples, added, defence, trials=_GROUPS, draw=draw)
                    table.append({**_of(defence), **asdict(found)})
        return table

    def _scaled(self, rows: Array32) -> Array64:
        scaled: Array64 = rows.astype(np.float64) / self._sizes
        return scaled

    @staticmethod
    def _sizes_up_to(most: int) -> list[int]:
        return [size for size in _SIZES if size <= most]


def _unmixed(kept: Array32, mean: Array64, defence: Defence, rounds: int) -> Array64:
    """``(m,)``: how much of each canary is in the sum, by least squares with as much ridge as there is noise."""
    gram = kept @ kept.T
    variance = 0.0 if defence.is_none else (defence.multiplier * defence.clip) ** 2 / rounds
    ridge = 4 * variance + 1e-9 * float(np.trace(gram)) / len(gram)  # a coin's own variance is 1/4
    scores: Array64 = 0.5 + np.linalg.solve(gram + ridge * np.eye(len(gram)), kept @ mean - gram.sum(axis=1) / 2)
    return scores


def _of(defence: Defence) -> Row:
    """JSON knows no infinity: no ε is no defence."""
    return {"epsilon": None if math.isinf(defence.epsilon) else defence.epsilon}
