"""Personal coefficients: they fit their owner's text, never leave, and stay only where they help."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from ifedicl.adapter import Adapter
from ifedicl.backbone.load import Backbone
from ifedicl.cli import app
from ifedicl.errors import DataError, FingerprintError
from ifedicl.kinds.classify import Example
from ifedicl.personal import personalise
from ifedicl.runs import federate, simulate
from ifedicl.settings import ModelSettings
from tests.support import tiny
from tests.support.local_runs import HANDS

ONE_SIDED = tuple(Example(f"word {number} of many", "bad") for number in range(40))
"""An owner whose text has one label only: easily learnt, and not what the federation learnt."""


@pytest.fixture(scope="module")
def adapter(backbone: Backbone, llama_folder: Path) -> Adapter:
    method = tiny.method(rounds={"rounds": 2}, subspace={"rank": 4}, calibration={"learning_rate": 0.2, "batch_size": 8})
    model = ModelSettings(source=str(llama_folder))
    return federate(simulate(backbone, tiny.TASK, HANDS, seed=0), model, tiny.TASK, method).adapter


def test_an_owner_whose_text_differs_gets_coefficients_of_its_own(adapter: Adapter, backbone: Backbone) -> None:
    seen: list[int] = []
    result = personalise(adapter, ONE_SIDED, backbone, steps=30, on_progress=seen.append)
    assert result.is_used
    assert seen == [4] * 8
    assert result.comparison.adapter.loss < result.comparison.zero_shot.loss
    assert result.trained + result.comparison.adapter.examples == len(ONE_SIDED)
    assert np.abs(result.adapter.coefficients.scales - adapter.coefficients.scales).max() > 0
    assert result.adapter.context.digest == adapter.context.digest
    assert result.adapter.provenance["personal"]["steps"] == 32


def test_what_is_no_better_is_not_used(adapter: Adapter, backbone: Backbone) -> None:
    draws = np.random.default_rng(0)
    luck = [Example(f"text {number}", str(draws.choice(tiny.TASK.labels))) for number in range(40)]
    result = personalise(adapter, luck, backbone, steps=8)
    assert not result.is_used
    assert result.adapter is adapter


def test_it_repeats(adapter: Adapter, backbone: Backbone) -> None:
    first, second = (personalise(adapter, ONE_SIDED, backbone, steps=8, seed=3) for _ in range(2))
    assert first.comparison == second.comparison


def test_too_few_examples_are_refused(adapter: Adapter, backbone: Backbone) -> None:
    with pytest.raises(DataError, match="Give more"):
        personalise(adapter, ONE_SIDED[:2], backbone)


def test_another_model_is_refused(adapter: Adapter, backbone: Backbone) -> None:
    with pytest.raises(FingerprintError):
        personalise(replace(adapter, fingerprint="0" * 64), ONE_SIDED, backbone)


def test_the_command_writes_an_adapter_that_labels(adapter: Adapter, tmp_path: Path) -> None:
    adapter.save(tmp_path / "global")
    rows = "".join(f'{{"text": "{row.text}", "label": "{row.label}"}}\n' for row in ONE_SIDED)
    (tmp_path / "own.jsonl").write_text(rows)
    arguments = ["personalise", str(tmp_path / "global"), str(tmp_path / "own.jsonl"), "--out", str(tmp_path / "own")]
    done = CliRunner().invoke(app, [*arguments, "--steps", "32"])
    assert done.exit_code == 0, done.output
    assert "wrote" in done.output
    labels = [prediction.label for prediction in Adapter.load(tmp_path / "own").classify([row.text for row in ONE_SIDED[:5]])]
    assert labels == ["bad"] * 5
