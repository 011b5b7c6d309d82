"""Files of an earlier ifedicl (tests/fixtures/README.md) load and give its numbers, or are refused with a remedy."""

from __future__ import annotations

import json
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ifedicl import runs
from ifedicl.adapter import Adapter
from ifedicl.backbone.load import Backbone
from ifedicl.errors import ConfigError
from ifedicl.inspection import inspect_adapter
from ifedicl.kinds.classify import as_classification
from ifedicl.ledger.ledger import REPLY, Ledger, read
from ifedicl.ledger.receipts import check_heads, read_heads
from ifedicl.ledger.usage import History
from ifedicl.personal import personalise
from ifedicl.settings import load_settings
from ifedicl.store import open_store
from ifedicl.store.records import TaskKey
from tests.support import tiny

OLD = Path(__file__).parents[1] / "fixtures" / "old"
EXPECTED: dict[str, Any] = json.loads((OLD / "expected.json").read_text())
FORMATS = ("format-1", "format-2")
# Equal to the last bit where the processor is the one that wrote them; another one may round float32 products elsewhere.
CLOSE = 1e-5


@pytest.fixture(scope="module")
def old_model() -> Backbone:
    return tiny.load(OLD / "model")


def assert_same_adapter(adapter: Adapter, name: str, backbone: Backbone) -> None:
    """Every tensor bit for bit, and the log-probabilities to 1e-6."""
    written = Adapter.load(OLD / name)
    np.testing.assert_array_equal(adapter.context.vectors, written.context.vectors)
    np.testing.assert_array_equal(adapter.coefficients.scales, written.coefficients.scales)
    assert adapter.context.first_layer == written.context.first_layer
    logs = adapter.classifier(backbone).log_probabilities(EXPECTED["texts"])
    np.testing.assert_allclose(logs, EXPECTED["adapters"][name]["log_probabilities"], rtol=0, atol=CLOSE)


def test_the_stored_model_has_the_fingerprint_that_it_had(old_model: Backbone) -> None:
    assert old_model.fingerprint == EXPECTED["fingerprint"]


@pytest.mark.parametrize("name", FORMATS)
def test_an_adapter_gives_the_log_probabilities_that_it_gave(name: str, old_model: Backbone) -> None:
    adapter = Adapter.load(OLD / name)
    assert adapter.provenance == EXPECTED["adapters"][name]["provenance"]
    assert_same_adapter(adapter, name, old_model)


def test_format_2_begins_above_the_first_layer_with_subspace_and_readout() -> None:
    adapter = Adapter.load(OLD / "format-2")
    assert (adapter.context.first_layer, adapter.context.rank) == (2, 2)
    assert adapter.readout is not None
    assert adapter.readout.pooled_layers == (3,)


@pytest.mark.parametrize("name", FORMATS)
def test_an_adapter_saved_again_keeps_its_tensors_and_provenance(name: str, tmp_path: Path) -> None:
    Adapter.load(OLD / name).save(tmp_path / "again")
    assert (tmp_path / "again" / "adapter.safetensors").read_bytes() == (OLD / name / "adapter.safetensors").read_bytes()
    assert Adapter.load(tmp_path / "again").provenance == EXPECTED["adapters"][name]["provenance"]


@pytest.mark.parametrize("name", FORMATS)
def test_an_adapter_with_old_settings_is_described_personalised_and_stored(
    name: str, old_model: Backbone, tmp_path: Path
) -> None:
    adapter = Adapter.load(OLD / name)
    assert inspect_adapter(OLD / name)["provenance"] == adapter.provenance
    personal = personalise(adapter, tiny.examples(16, seed=5), old_model, steps=4)
    assert personal.trained > 0
    store = open_store(str(tmp_path / "tasks.sqlite"))
    store.put(TaskKey.of_adapter("clinics", adapter), adapter)
    assert [entry.task for entry in store.entries()] == ["mood"]
    store.close()


def restored(name: str, folder: Path) -> str:
    """A SQLite file from a dump."""
    path = folder / "old.sqlite"
    with sqlite3.connect(path) as connection:
        connection.executescript((OLD / name).read_text())
    connection.close()
    return str(path)


def test_a_store_of_revision_0002_gives_every_adapter_signature_and_figure(old_model: Backbone, tmp_path: Path) -> None:
    store = open_store(restored("store-0002.sql", tmp_path))
    for row in EXPECTED["store"]:
        stored = store.get(row["id"])
        assert (stored.entry.key, stored.entry.version) == (row["key"], row["version"])
        assert stored.entry.metrics == {"rounds": 3, "from": row["adapter"]}
        assert stored.signature is not None
        np.testing.assert_array_equal(stored.signature, np.asarray(row["signature"], np.float32))
        assert_same_adapter(stored.adapter, row["adapter"], old_model)
    store.close()


def test_a_present_request_finds_what_an_earlier_ifedicl_stored(old_model: Backbone, tmp_path: Path) -> None:
    store = open_store(restored("store-0002.sql", tmp_path))
    usual = EXPECTED["usual"]
    key = TaskKey.of("clinics", old_model.fingerprint, tiny.TASK, tiny.method())
    assert key.digest == usual["key"]
    found = store.latest(key)
    assert found is not None
    logs = found.adapter.classifier(old_model).log_probabilities(EXPECTED["texts"])
    np.testing.assert_allclose(logs, usual["log_probabilities"], rtol=0, atol=CLOSE)
    upper = tiny.method(
        vectors={"read_position": "prompt"},
        injection={"from_depth": 0.5},
        subspace={"rank": 2},
        readout={"pooled_depths": [0.75]},
    )
    key, row = TaskKey.of("clinics", old_model.fingerprint, tiny.TASK, upper), EXPECTED["store"][1]
    assert key.digest == row["key"]
    nearest = store.nearest(key, np.asarray(row["signature"], np.float32), 1)
    assert [(item.entry.id, round(item.cosine, 6)) for item in nearest] == [(row["id"], 1.0)]
    store.close()


@pytest.mark.parametrize("mode", EXPECTED["ledgers"])
def test_a_ledger_is_whole_counts_as_it_counted_and_goes_on(mode: str, tmp_path: Path) -> None:
    expected, folder = EXPECTED["ledgers"][mode], OLD / "ledgers" / mode
    entries, torn = read(folder / "north.jsonl")
    assert (len(entries), entries[-1].digest, torn) == (expected["entries"], expected["digest"], b"")
    history = History.of(entries)
    assert history.jobs == {expected["job"]}
    spent = history.spent(expected["job"])
    assert (spent.rounds, spent.bytes, spent.epsilon) == (expected["rounds"], expected["bytes"], expected["epsilon"])
    assert check_heads(entries, read_heads(folder / "heads.jsonl"))[1] == 0
    shutil.copyfile(folder / "north.jsonl", tmp_path / "north.jsonl")
    facts = next(entry.facts for entry in reversed(entries) if entry.event == REPLY)
    Ledger(tmp_path / "north.jsonl", "north").append(REPLY, facts)
    again, _ = read(tmp_path / "north.jsonl")
    assert again[-1].previous == expected["digest"]


@pytest.mark.parametrize("more_rounds", [0, 1], ids=["resume", "more rounds"])
def test_a_run_of_the_old_format_is_refused_with_its_remedy_and_left_alone(more_rounds: int, tmp_path: Path) -> None:
    folder = shutil.copytree(OLD, tmp_path / "old") / "run"
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and "ledgers" not in path.parts}
    settings = load_settings(folder / "config.toml")
    remedy = (
        r"checkpoint: received run format 1; allowed: run format 5\. Finish the run with .* or start again in another folder"
    )
    with pytest.raises(ConfigError, match=remedy):
        runs.run(settings, folder, resume=not more_rounds, more_rounds=more_rounds)
    assert {path: path.read_bytes() for path in before} == before


def test_the_adapter_of_an_old_run_still_labels(old_model: Backbone) -> None:
    adapter = Adapter.load(OLD / "run" / "adapter")
    [prediction] = adapter.classifier(old_model).classify(EXPECTED["texts"][:1])
    assert prediction.label in as_classification(adapter.task, "a test").labels
