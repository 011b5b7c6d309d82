"""After a forgetting, sums equal those of a run that never held the removed text, bit for bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ifedicl.backbone.load import Backbone
from ifedicl.core.coefficients import Coefficients
from ifedicl.core.readout_sums import ReadoutSums
from ifedicl.errors import ConfigError
from ifedicl.federation.coordinator import Coordinator, Outcome
from ifedicl.federation.forgetting import Forgetting
from ifedicl.federation.messages import StatisticsReply
from ifedicl.federation.reply_sums import Total
from ifedicl.kinds.classify import Example
from ifedicl.runs import RunOptions, federate, simulate
from ifedicl.settings import Method, ModelSettings, NoiseSettings, PrivacySettings, load_preset
from tests.support import tiny
from tests.support.endpoints import engine_of
from tests.support.local_runs import HANDS, Hands, real, run_real, shape_of
from tests.support.readouts import drawn_sums

HOLDOUT = {"selection": 0.25, "gate": 0.2}
METHODS = {
    "each client's vectors": tiny.method(holdout=HOLDOUT, readout={"pooled_depths": [0.5]}),
    "one sum, with a subspace": tiny.method(
        weighting="examples",
        holdout=HOLDOUT,
        rounds={"select_by": "last"},  # evidence would go back to the raw model on so few examples
        subspace={"rank": 3},
        vectors={"balance": "class"},
        readout={"pooled_depths": []},
    ),
    "robust": tiny.method(holdout=HOLDOUT, robust={"rule": "median"}),
}
SECURE = tiny.method(
    weighting="examples",
    holdout=HOLDOUT,
    subspace={"rank": 3},
    readout={"pooled_depths": [0.5]},
    privacy={"mode": "secure", "min_survivors": 2, "colluders": 0, "min_examples": 1},
)
PRIVATE = PrivacySettings(mode="private", noise=NoiseSettings())
FOUR: Hands = {**HANDS, "d": tiny.examples(8, seed=9)}
WITHOUT: Hands = {name: hand for name, hand in FOUR.items() if name != "b"}
LEFT = Forgetting(frozenset(WITHOUT), left=frozenset({"b"}), rounds=2)


def _forget(backbone: Backbone, method: Method, hands: Hands, checkpoint: Path, forgetting: Forgetting) -> Outcome:
    engine = engine_of(real(backbone, hands))
    coordinator = Coordinator(engine, tiny.TASK, method, shape_of(backbone), checkpoint_file=checkpoint)
    return coordinator.run(forgetting=forgetting)


def _assert_never_held(outcome: Outcome, other: Outcome) -> None:
    """Vectors, basis, global vectors and the raw model's figures are those of the other run, bit for bit."""
    ours, theirs = outcome.state, other.state
    assert ours.client_vectors.keys() == theirs.client_vectors.keys()
    for name, vectors in ours.client_vectors.items():
        np.testing.assert_array_equal(vectors.means, theirs.client_vectors[name].means)
        np.testing.assert_array_equal(vectors.counts, theirs.client_vectors[name].counts)
    assert outcome.context.digest == other.context.digest
    assert ours.zero_shot == theirs.zero_shot


@pytest.mark.parametrize("name", METHODS)
def test_sums_without_a_client_are_those_that_never_held_it(name: str, backbone: Backbone, tmp_path: Path) -> None:
    method = METHODS[name]
    before = run_real(backbone, method, FOUR, checkpoint=tmp_path / "state")
    outcome = _forget(backbone, method, WITHOUT, tmp_path / "state", LEFT)
    never = run_real(backbone, method, WITHOUT)
    _assert_never_held(outcome, never)
    assert before.context.digest != outcome.context.digest
    assert outcome.state.round == before.state.round + 2
    assert outcome.state.best_round not in range(1, before.state.round + 1), (
        "no earlier round can be chosen; 0 is the raw model"
    )
    assert all("b" not in record.by_client for record in outcome.state.history)


def test_the_readout_sums_at_the_same_coefficients_are_those_that_never_held_the_client(
    backbone: Backbone, tmp_path: Path
) -> None:
    """A readout is fitted from sums that are collected for it. Of the raw model they depend on the text alone."""
    method = load_preset("one-shot").model_copy(update={"holdout": METHODS["robust"].holdout})
    moods = {"good": "so kind and warm", "bad": "broken, cold and late"}  # the text tells the label, so a readout is chosen
    four: Hands = {
        name: tuple(Example(f"{moods[row.label]} {row.text}", row.label) for row in tiny.examples(20, seed=ord(name)))
        for name in FOUR
    }
    without = {name: hand for name, hand in four.items() if name != "b"}
    run_real(backbone, method, four, checkpoint=tmp_path / "state")
    outcome = _forget(backbone, method, without, tmp_path / "state", replace(LEFT, rounds=0))
    never = run_real(backbone, method, without)
    assert outcome.readout is not None
    assert never.readout is not None
    np.testing.assert_array_equal(outcome.readout.weights, never.readout.weights)
    assert outcome.gate == never.gate
    assert outcome.state.zero_shot == never.state.zero_shot


@pytest.mark.parametrize("name", METHODS)
def test_a_removed_example_leaves_nothing_in_the_sums(name: str, backbone: Backbone, tmp_path: Path) -> None:
    method = METHODS[name]
    run_real(backbone, method, FOUR, checkpoint=tmp_path / "state")
    shorter = {**FOUR, "c": FOUR["c"][:3] + FOUR["c"][4:]}
    outcome = _forget(
        backbone, method, shorter, tmp_path / "state", Forgetting(frozenset(shorter), changed=frozenset({"c"}), rounds=1)
    )
    _assert_never_held(outcome, run_real(backbone, method, shorter))


def test_coefficients_go_on_from_where_they_were(backbone: Backbone, tmp_path: Path) -> None:
    """The core within the new directions, and λ and β as they are; the rounds then move them."""
    method = METHODS["one sum, with a subspace"]
    before = run_real(backbone, method, FOUR, checkpoint=tmp_path / "state").state
    context = run_real(backbone, method, WITHOUT).context
    initial = Coefficients.identity(before.best.form)
    start = LEFT.starter(before, context, initial)
    assert start is not None
    np.testing.assert_array_equal(start.coefficients.scales, before.best.scales)
    assert start.rounds == 2
    assert start.core_kept is not None
    assert 0 < start.core_kept < 1
    after = _forget(backbone, method, WITHOUT, tmp_path / "state", LEFT).state
    assert np.abs(after.coefficients.scales - before.best.scales).max() > 0


def _secure_run(backbone: Backbone, hands: Hands, **options: Any) -> Outcome:
    clients = simulate(backbone, tiny.TASK, hands)
    model = ModelSettings(source=backbone.source)
    return federate(clients, model, tiny.TASK, SECURE, options=RunOptions(**options)).outcome


def test_a_secure_sum_without_a_client_is_the_one_that_never_held_it(backbone: Backbone, tmp_path: Path) -> None:
    """Sums in fixed point are exact. Of a single client the owners must agree: the two sums differ by its share."""
    checkpoint = tmp_path / "state"
    _secure_run(backbone, FOUR, checkpoint=checkpoint)
    with pytest.raises(ConfigError, match="differ by their share alone"):
        _secure_run(backbone, WITHOUT, checkpoint=checkpoint, forgetting=LEFT)
    outcome = _secure_run(backbone, WITHOUT, checkpoint=checkpoint, forgetting=replace(LEFT, agreed=True))
    _assert_never_held(outcome, _secure_run(backbone, WITHOUT))


def test_noisy_sums_forget_nothing(backbone: Backbone, tmp_path: Path) -> None:
    noisy = SECURE.model_copy(update={"privacy": PRIVATE})
    with pytest.raises(ConfigError, match="not given back"):
        LEFT.check(run_real(backbone, METHODS["robust"], FOUR).state, noisy)


@pytest.mark.parametrize(
    ("forgetting", "words"),
    [
        (Forgetting(frozenset(FOUR), rounds=1), "Name who left"),
        (Forgetting(frozenset(FOUR), left=frozenset({"x"}), rounds=1), "took part"),
        (Forgetting(frozenset(FOUR), left=frozenset({"b"}), rounds=1), "Remove them from"),
        (Forgetting(frozenset("ad"), left=frozenset({"b"}), rounds=1), "Bring them back"),
        (Forgetting(frozenset(WITHOUT), changed=frozenset({"b"}), rounds=1), "Bring them back"),
        (Forgetting(frozenset(WITHOUT), left=frozenset({"b"})), "1 or more"),
    ],
)
def test_what_cannot_be_forgotten_is_refused_and_nothing_changes(
    forgetting: Forgetting, words: str, backbone: Backbone, tmp_path: Path
) -> None:
    method = METHODS["each client's vectors"]
    run_real(backbone, method, FOUR, checkpoint=tmp_path / "state")
    before = (tmp_path / "state").read_bytes()
    with pytest.raises(ConfigError, match=words):
        _forget(backbone, method, FOUR, tmp_path / "state", forgetting)
    assert (tmp_path / "state").read_bytes() == before


def test_a_forgotten_run_remembers_that_it_forgot(backbone: Backbone, tmp_path: Path) -> None:
    method = METHODS["one sum, with a subspace"]
    run_real(backbone, method, FOUR, checkpoint=tmp_path / "state")
    outcome = _forget(backbone, method, WITHOUT, tmp_path / "state", LEFT)
    again = run_real(backbone, method, WITHOUT, checkpoint=tmp_path / "state", resume=True)
    (note,) = again.state.forgotten
    assert (note.left, note.changed, note.more_rounds) == (("b",), (), 2)
    assert again.context.digest == outcome.context.digest


def test_who_left_earlier_need_not_be_named_again(backbone: Backbone, tmp_path: Path) -> None:
    method = METHODS["each client's vectors"]
    run_real(backbone, method, FOUR, checkpoint=tmp_path / "state")
    _forget(backbone, method, WITHOUT, tmp_path / "state", LEFT)
    two: Hands = {name: hand for name, hand in WITHOUT.items() if name != "a"}
    outcome = _forget(backbone, method, two, tmp_path / "state", Forgetting(frozenset(two), left=frozenset({"a"}), rounds=1))
    assert [note.left for note in outcome.state.forgotten] == [("b",), ("a",)]
    _assert_never_held(outcome, run_real(backbone, method, two))


def test_who_left_earlier_hides_nobody_in_a_secure_sum(backbone: Backbone, tmp_path: Path) -> None:
    """Naming it once more does not make the difference of the two sums one of two clients."""
    state = replace(run_real(backbone, SECURE, FOUR).state, forgotten=(LEFT.note(2),))
    left = Forgetting(frozenset("cd"), left=frozenset("ab"), rounds=1)
    with pytest.raises(ConfigError, match="differ by their share alone"):
        left.check(state, SECURE)
    left.check(replace(state, forgotten=()), SECURE)


def test_readout_sums_that_lose_a_client_are_exact_in_any_order() -> None:
    replies = [StatisticsReply(drawn_sums(examples)) for examples in (5, 6, 7, 8)]

    def total(order: list[int]) -> ReadoutSums:
        together: Total[StatisticsReply] = Total(StatisticsReply)
        for place in order:
            together.add(replies[place])
        assert together.reply is not None
        return together.reply.sums

    first, second = total([0, 2, 3]), total([3, 0, 2])
    np.testing.assert_array_equal(first.sketch, second.sketch)
    np.testing.assert_array_equal(first.moment, second.moment)
