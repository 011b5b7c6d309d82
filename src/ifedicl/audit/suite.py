"""Runs all attacks on data that are computed once."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Self

import numpy as np

from ifedicl import seeds
from ifedicl.audit.defence import DELTA, Defence, budgets
from ifedicl.audit.differencing import attack_difference
from ifedicl.audit.guessing import one_run
from ifedicl.audit.membership import Outsider, insider, play_membership
from ifedicl.audit.mix import class_means, mix_attack
from ifedicl.audit.public_frame import PublicFrame
from ifedicl.audit.victims import Victims, rare_words, word_tokens
from ifedicl.audit.words import Attacker, Inverter, best_layer, lens, nearest_word, recover_words, word_directions
from ifedicl.backbone.load import Backbone
from ifedicl.backbone.scoring import Scorer
from ifedicl.calibrate import example_gradients
from ifedicl.core.coefficients import Form, cold_start
from ifedicl.core.subspace import Context
from ifedicl.core.vectors import Array32, Array64
from ifedicl.kinds.examples import AnyExample
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
    """Data of the attacks. They stay on the owner's machine.

    Attributes:
        private: the owner's texts.
        public: public texts with the same prompt; attackers learn from them.
        private_updates: ``(N', D)``: gradients of the coefficients at the start of calibration, one row for each of the first
            ``N'`` texts of the owner.
        public_updates: ``(M, D)``, for the first ``M`` public texts.
    """

    private: Victims
    public: Victims
    private_updates: Array32
    public_updates: Array32

    @classmethod
    def of(
        cls,
        scorer: Scorer,
        private: Sequence[AnyExample],
        public: Sequence[AnyExample],
        method: Method,
        *,
        updates: int,
        on_progress: Callable[[int], None] = lambda _done: None,
    ) -> Self:
        """One forward pass for each text, and one backward pass for the first ``updates`` private and public texts."""
        texts = [Victims.of(scorer, rows, method, on_progress) for rows in (private, public)]
        mean = texts[1].vectors.mean(axis=0, dtype=np.float64).astype(np.float32)
        context = Context(mean, first_layer=texts[1].first_layer)
        gradients = [first_gradients(scorer, rows[:updates], context, method, on_progress) for rows in (private, public)]
        return cls(texts[0], texts[1], gradients[0], gradients[1])


def first_gradients(
    scorer: Scorer,
    rows: Sequence[AnyExample],
    context: Context,
    method: Method,
    on_progress: Callable[[int], None] = lambda _done: None,
) -> Array32:
    """``(N, D)``: the update of each single example in the first round."""
    start = cold_start(Form(len(context.layers)), method.injection)
    result = np.zeros((len(rows), *start.scales.shape), dtype=np.float32)
    for batch, arrays in example_gradients(scorer, scorer.encoded(rows), context, start, method, range(len(rows))):
        result[batch] = arrays["scales"]
        on_progress(len(batch))
    return result.reshape(len(rows), -1)


def run_attacks(
    evidence: Evidence, backbone: Backbone, *, trials: int, seed: int, epsilons: Sequence[float] = EPSILONS
) -> dict[str, list[Row]]:
    """Tables of figures by attack; they contain no text and no tokens.

    Args:
        evidence: data of the attacks.
        backbone: the model, known to all attackers.
        trials: trials of each membership game.
        seed: seed of all draws, noise included: an audit can be repeated.
        epsilons: privacy budgets to try.
    """
    attacks = _Attacks(evidence, backbone, seed, epsilons)
    return {
        "words": attacks.words(),
        "membership": attacks.membership(trials),
        "updates": attacks.updates(),
        "mix": attacks.mix(),
        "differencing": attacks.differencing(),
    }


class _Attacks:
    """The attacks, with the data that they share."""

    def __init__(self, evidence: Evidence, backbone: Backbone, seed: int, epsilons: Sequence[float]) -> None:
        self._evidence, self._backbone = evidence, backbone
        self._draw = partial(seeds.generator, seed, "audit")
        self._frame = PublicFrame.of(evidence.public.vectors)
        self._rows = self._frame.to_rows(evidence.private.vectors).astype(np.float32)
        self._public = self._frame.to_rows(evidence.public.vectors).astype(np.float32)
        self._epsilons = epsilons
        self._defences = budgets(epsilons, self._public)
        # Gradients of different coefficients differ in size; public text gives the size of each.
        size = np.sqrt(np.square(evidence.public_updates, dtype=np.float64).mean(axis=0))
        self._sizes = np.maximum(size, max(float(np.median(size)) / 10, 1e-30))
        self._classes = int(max(evidence.private.labels.max(), evidence.public.labels.max())) + 1

    def words(self) -> list[Row]:
        """Attack 1: every attacker against every defence."""
        public, private = self._evidence.public, self._evidence.private
        template = frozenset.intersection(*public.tokens)
        candidates = np.flatnonzero(rare_words(word_tokens(self._backbone), public, template))
        directions = word_directions(self._backbone, candidates)
        makers: dict[str, Callable[[int, bool], Attacker]] = {
            "unembedding": partial(lens, self._backbone, candidates, self._frame.centre),
            "nearest token": partial(nearest_word, directions, self._frame.centre),
        }
        attackers: dict[str, tuple[Attacker, str]] = {}
        for name, maker in makers.items():
            (layer, cumulated), _ = best_layer(maker, public, candidates)
            where = f"layer {public.first_layer + layer + 1}{' and all below' if cumulated else ''}"
            attackers[name] = maker(layer, cumulated), where
        attackers["trained inverter"] = Inverter(directions, candidates, public, self._frame.sizes), "all layers"
        table = []
        for examples in [size for size in _SIZES if size <= len(private)]:
            draw = self._draw("words", examples)
            groups = [draw.choice(len(private), size=examples, replace=False) for _ in range(_GROUPS)]
            texts = [frozenset().union(*(private.tokens[int(row)] for row in group)) for group in groups]
            for defence in self._defences:
                rows = defence.clipped(self._rows)
                means = np.stack([self._frame.to_vector(defence.noisy_sum(rows[group], draw) / examples) for group in groups])
                for name, (attacker, where) in attackers.items():
                    found = recover_words(attacker, means, texts, candidates, examples)
                    table.append({"attacker": name, "where": where, **_of(defence), **asdict(found)})
        return table

    def membership(self, trials: int) -> list[Row]:
        """Attack 2 on vectors."""
        outsider = Outsider(self._public)
        sizes = [size for size in _SIZES if size < len(self._rows)]
        table = []
        for defence in self._defences:
            rows = defence.clipped(self._rows)
            games = [("outsider", examples, outsider.filters(rows, examples)) for examples in sizes]
            # The number of other examples does not matter to an insider.
            games.append(("insider", max(size for size in sizes if size <= _INSIDE), insider(rows)))
            for name, examples, attacker in games:
                draw = self._draw("membership", name, examples, str(defence.epsilon))
                game = play_membership(rows, examples, defence, attacker, trials=trials, draw=draw)
                table.append({"attacker": name, "examples": examples, **_of(defence), **asdict(game)})
        return table

    def updates(self) -> list[Row]:
        """Attack 2 on updates: one run that includes each canary with probability 1/2; all other examples are known."""
        rows = self._scaled(self._evidence.private_updates)
        canaries, table = min(_CANARIES, len(rows)), []
        for rounds in (1, 10):
            for defence in budgets(self._epsilons, self._scaled(self._evidence.public_updates), rounds):
                draw = self._draw("one run", rounds, str(defence.epsilon))
                clipped = defence.clipped(rows[:canaries])
                present = draw.random(canaries) < 0.5
                # Rounds have the same gradients and different noise; the attacker uses the mean.
                sums = [defence.noisy_sum(clipped[present], draw) for _ in range(rounds)]
                scores = _canary_scores(clipped, np.mean(sums, axis=0), defence, rounds)
                right = float(((scores > 0.5) == present).mean())
                bound = one_run(scores, present, DELTA)
                table.append({"rounds": rounds, "canaries": canaries, **_of(defence), "right": right, "bound": bound})
        return table

    def mix(self) -> list[Row]:
        """Attack 3 on vectors and on updates, of one client and of a secure sum of ten clients."""
        private, public = self._evidence.private, self._evidence.public
        updates, public_updates = self._scaled(self._evidence.private_updates), self._scaled(self._evidence.public_updates)
        kinds: Mapping[str, tuple[Any, Any, list[Defence]]] = {
            "vectors": (self._rows, self._public, self._defences),
            "updates": (updates, public_updates, budgets(self._epsilons, public_updates)),
        }
        table = []
        for kind, (rows, public_rows, defences) in kinds.items():
            labels = private.labels[: len(rows)]
            means = class_means(public_rows, public.labels[: len(public_rows)], self._classes)
            for examples in (16, 64):
                for clients in (1, _CLIENTS):
                    for defence in defences:
                        draw = self._draw("mix", kind, examples, clients, str(defence.epsilon))
                        guess = mix_attack(rows, labels, means, examples, defence, groups=_GROUPS, draw=draw, clients=clients)
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
                    found = attack_difference(self._rows, centre, examples, added, defence, trials=_GROUPS, draw=draw)
                    table.append({**_of(defence), **asdict(found)})
        return table

    def _scaled(self, rows: Array32) -> Array64:
        return np.asarray(rows.astype(np.float64) / self._sizes)


def _canary_scores(clipped: Array32, mean: Array64, defence: Defence, rounds: int) -> Array64:
    """``(m,)``: weight of each canary in the sum, by ridge regression with a penalty for the noise."""
    gram = clipped @ clipped.T
    variance = 0.0 if defence.is_none else (defence.multiplier * defence.clip) ** 2 / rounds
    ridge = 4 * variance + 1e-9 * float(np.trace(gram)) / len(gram)  # the variance of a fair coin is 1/4
    return 0.5 + np.linalg.solve(gram + ridge * np.eye(len(gram)), clipped @ mean - gram.sum(axis=1) / 2)


def _of(defence: Defence) -> Row:
    """The ε column: None without a defence, since JSON has no infinity."""
    return {"epsilon": None if math.isinf(defence.epsilon) else defence.epsilon}
