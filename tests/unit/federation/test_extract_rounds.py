"""Federations that learn to write: as all others, resumed bit for bit, in sums, and with no word of an answer in a message."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ifedicl.backbone.load import Backbone
from ifedicl.data import Role
from ifedicl.errors import ConfigError
from ifedicl.federation.client import Client
from ifedicl.federation.coordinator import Coordinator, Outcome
from ifedicl.federation.events import Event, ignore
from ifedicl.federation.manifest import Manifest
from ifedicl.federation.messages import CompareReply, EvaluateReply, Reply, Request, VectorsReply
from ifedicl.settings import Method, RunSettings, changed, load_preset, validated
from tests.support import tiny
from tests.support.endpoints import engine_of
from tests.support.local_runs import assert_same_result, shape_of
from tests.support.passages import TASK, passages
from tests.support.stopping import StopError, stop_behind

SECTIONS: dict[str, Any] = {
    "readout": False,
    "holdout": {"selection": 0.3, "gate": 0.2},
    "rounds": {"rounds": 2, "evaluate_every": 1},
    "calibration": {"batch_size": 2, "local_steps": 2},
    "subspace": {"rank": 4},
}
MOMENTS = 6


def method(**sections: Any) -> Method:
    """The preset with a subspace, without a readout, shorter."""
    return changed(load_preset("subspace"), {**SECTIONS, **sections}, "test")


class Watched(Client):
    """A client whose replies are kept."""

    seen: list[Reply]

    def handle(self, request: Request, /) -> Reply:
        reply = super().handle(request)
        self.seen.append(reply)
        return reply


def clients(backbone: Backbone) -> list[Watched]:
    """Three of them."""
    made = [Watched(name, passages(12, first=50 * number), backbone, secret=name.encode()) for number, name in enumerate("abc")]
    for client in made:
        client.seen = []
    return made


def run(
    backbone: Backbone, chosen: Method, *, own: list[Watched] | None = None, resume: bool = False, **options: Any
) -> Outcome:
    """A whole run."""
    engine = engine_of(own or clients(backbone))
    observer, file = options.get("observer", ignore), options.get("file")
    return Coordinator(engine, TASK, chosen, shape_of(backbone), observer=observer, checkpoint_file=file).run(resume=resume)


@pytest.mark.parametrize("from_depth", [0.0, 0.5])
def test_a_run_stopped_anywhere_and_resumed_ends_bit_for_bit_the_same(
    backbone: Backbone, tmp_path: Path, from_depth: float
) -> None:
    events: list[Event] = []
    chosen = method(injection={"from_depth": from_depth})
    whole = run(backbone, chosen, observer=events.append)
    assert not whole.state.coefficients.is_identity
    assert whole.gate is not None
    for moment in np.linspace(1, len(events) - 1, MOMENTS, dtype=int):
        file = tmp_path / f"stopped-{moment}"
        with pytest.raises(StopError):
            run(backbone, chosen, file=file, observer=stop_behind(int(moment)))
        assert_same_result(whole, run(backbone, chosen, file=file, resume=file.exists()))


def test_one_mean_leaves_and_the_same_few_counts_as_of_other_kinds(backbone: Backbone) -> None:
    own = clients(backbone)
    run(backbone, method(), own=own)
    for client in own:
        replies = {type(reply): reply for reply in client.seen}
        vectors, compared, evaluated = (replies[kind] for kind in (VectorsReply, CompareReply, EvaluateReply))
        assert isinstance(vectors, VectorsReply)
        assert vectors.vectors.means.shape[0] == 1
        assert isinstance(compared, CompareReply)
        count = client.count(Role.GATE)
        assert (compared.comparison.truth, compared.comparison.answers) == ((count,), (count,))
        assert isinstance(evaluated, EvaluateReply)
        words = {own.text.split()[1] for own in client.examples}  # which are the answers
        assert not [word for word in words for reply in client.seen if len(word) > 3 and word in repr(reply)]


@pytest.mark.parametrize(
    "sections",
    [
        {"server": {"update": "gradient", "draw": 0.5}},
        {"injection": {"context_scale": "none", "from_depth": 0.0}, "server": {"optimizer": "adam", "learning_rate": 0.03}},
        {"calibration": {"loss": "vocabulary", "batch_size": 2, "local_steps": 2}},
        {"vectors": {"read_position": "label"}},
    ],
    ids=["gradients", "core alone", "vocabulary", "read at the answer"],
)
def test_other_ways_of_learning_learn(backbone: Backbone, sections: dict[str, Any]) -> None:
    state = run(backbone, method(**sections)).state
    assert not state.coefficients.is_identity
    assert all(record.held_out is not None and np.isfinite(record.held_out.loss) for record in state.history)


def test_both_losses_are_the_same(backbone: Backbone) -> None:
    calibration = {"batch_size": 2, "local_steps": 2}
    first, second = (run(backbone, method(calibration={"loss": loss, **calibration})) for loss in ("labels", "vocabulary"))
    np.testing.assert_array_equal(first.state.coefficients.scales, second.state.coefficients.scales)


def test_a_readout_and_noise_are_refused_with_the_reason() -> None:
    file = {
        "preset": "subspace",
        "task": {"kind": "extract", "name": "x"},
        "model": {"source": "m"},
        "data": {"train": "t.jsonl", "public": "p.txt"},
    }
    with pytest.raises(ConfigError, match=r'task\.kind "extract" has no readout'):
        validated(RunSettings, {**file, **load_preset("subspace").model_dump(exclude_none=True)}, "a file")
    private = {
        "weighting": "examples",
        "privacy": {"mode": "private", "noise": {"epsilon": 4.0}},
        "server": {"update": "gradient"},
        "rounds": {"select_by": "accuracy"},
    }
    with pytest.raises(ConfigError, match=r'task\.kind "extract" has no sums with noise'):
        validated(RunSettings, {**file, **private}, "a file")


def test_a_client_with_labels_refuses_a_job_that_writes(backbone: Backbone) -> None:
    client = Client("a", tiny.examples(6), backbone, secret=b"a")
    with pytest.raises(Exception, match="allowed: Passage"):
        client.prepare(Manifest.of(TASK, method(), shape_of(backbone)))
