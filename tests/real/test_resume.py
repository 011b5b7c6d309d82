"""Killed at any moment, a run resumes and ends as if nothing had happened."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ifedicl import runs
from ifedicl.core.coefficients import Coefficients
from ifedicl.core.readout import Readout
from ifedicl.core.subspace import Context
from ifedicl.core.vectors import Array32, ContextVectors
from ifedicl.errors import ConfigError, FederationError, StorageError
from ifedicl.federation import checkpoint
from ifedicl.federation.messages import pack
from ifedicl.federation.run_folder import RunFolder
from ifedicl.federation.state import RoundRecord, State, Traffic
from ifedicl.ledger.entries import Head
from ifedicl.ledger.ledger import read
from ifedicl.ledger.receipts import check_heads, read_heads
from ifedicl.metrics import Tally
from ifedicl.settings import RunSettings, load_settings
from tests.support import tiny
from tests.support.run_folders import contents, history, short_run

KILLS = 10


@pytest.fixture
def settings(tmp_path: Path, llama_folder: Path) -> RunSettings:
    return load_settings(short_run(tmp_path, llama_folder))


@pytest.mark.soak
def test_a_run_killed_ten_times_ends_with_the_same_adapter_byte_for_byte(tmp_path: Path, llama_folder: Path) -> None:
    rounds = 20
    config = short_run(tmp_path, llama_folder, rounds=rounds)
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": os.pathsep.join(sys.path)}
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.killed_run", str(config), str(whole), str(broken), str(KILLS), "0"],
        capture_output=True, text=True, env=environment, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])

    # The kills did land, and nearly all of them between two checkpoints of a run that had begun. The eleventh aims at the
    # moment in which the adapter is written, and may come too late.
    assert report["killed"][:KILLS] == [True] * KILLS, report
    during = [number for number in report["rounds"][1:KILLS] if 0 < number < rounds]
    assert len(during) >= KILLS - 3, report
    assert len(set(during)) >= 6, report
    assert max(during) - min(during) > rounds / 2, report

    assert set(contents(RunFolder(broken).adapter)) == {"adapter.json", "adapter.safetensors", "README.md"}
    assert contents(RunFolder(broken).adapter) == contents(RunFolder(whole).adapter)
    assert history(broken) == history(whole)
    assert len(history(whole)) == rounds
    assert_ledgers_fit(broken)


def test_a_run_writes_checkpoint_adapter_and_metrics_and_reads_the_test_file(settings: RunSettings, tmp_path: Path) -> None:
    result = runs.run(settings, tmp_path / "run")
    parts = {"checkpoint", "adapter", "metrics.jsonl", "ledgers"}
    assert {path.name for path in (tmp_path / "run").iterdir()} == parts
    lines = [json.loads(line) for line in RunFolder(tmp_path / "run").metrics.read_text().splitlines()]
    assert [line["round"] for line in lines if line["event"] == "round"] == [1, 2]
    assert result.federated is not None
    assert sum(line["event"] == "exchange" for line in lines) == len(result.federated.outcome.state.traffic)
    assert result.test is not None
    assert result.zero_shot is not None
    assert result.test.examples == result.zero_shot.examples == 11


def test_equal_runs_give_equal_adapters_whatever_their_folder(settings: RunSettings, tmp_path: Path) -> None:
    runs.run(settings, tmp_path / "one")
    runs.run(settings, tmp_path / "two")
    assert contents(RunFolder(tmp_path / "one").adapter) == contents(RunFolder(tmp_path / "two").adapter)


def test_a_folder_with_a_run_in_it_is_refused_and_left_as_it_is(settings: RunSettings, tmp_path: Path) -> None:
    runs.run(settings, tmp_path / "run")
    before = RunFolder(tmp_path / "run").checkpoint.read_bytes(), contents(RunFolder(tmp_path / "run").adapter)
    with pytest.raises(ConfigError, match=r"run.*--resume.*--out"):
        runs.run(settings, tmp_path / "run")
    assert (RunFolder(tmp_path / "run").checkpoint.read_bytes(), contents(RunFolder(tmp_path / "run").adapter)) == before


def test_resuming_a_run_that_died_before_its_first_checkpoint_starts_it_again(settings: RunSettings, tmp_path: Path) -> None:
    runs.run(settings, tmp_path / "plain")
    with pytest.raises(ConfigError, match=r"allowed: the folder of a run that has begun\. Name the run's folder with --out"):
        runs.run(settings, tmp_path / "run", resume=True)
    (tmp_path / "run").mkdir()
    RunFolder(tmp_path / "run").metrics.write_text('{"event": "run"')
    runs.run(settings, tmp_path / "run", resume=True)
    assert contents(RunFolder(tmp_path / "run").adapter) == contents(RunFolder(tmp_path / "plain").adapter)


def test_resuming_a_finished_run_gives_the_same_adapter(settings: RunSettings, tmp_path: Path) -> None:
    runs.run(settings, tmp_path / "run")
    before = contents(RunFolder(tmp_path / "run").adapter)
    runs.run(settings, tmp_path / "run", resume=True)
    assert contents(RunFolder(tmp_path / "run").adapter) == before


@pytest.mark.parametrize("part", ["method", "task", "model"])
def test_a_checkpoint_of_another_run_is_refused_with_a_remedy(settings: RunSettings, tmp_path: Path, part: str) -> None:
    runs.run(settings, tmp_path / "run")
    before = RunFolder(tmp_path / "run").checkpoint.read_bytes()
    values = settings.model_dump()
    if part == "method":
        values["calibration"]["learning_rate"] = 0.04
    elif part == "task":
        values["task"]["template"] = "Note: {text}\nFeeling:"
    else:
        values["model"]["source"] = str(tiny.save_model(tmp_path / "other", num_hidden_layers=2))
    with pytest.raises(ConfigError, match=r"checkpoint: received one of run .*have changed\. Restore them"):
        runs.run(RunSettings.model_validate(values), tmp_path / "run", resume=True)
    assert RunFolder(tmp_path / "run").checkpoint.read_bytes() == before


def test_a_full_disk_in_the_middle_of_a_run_loses_only_the_round_it_was_in(
    settings: RunSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs.run(settings, tmp_path / "plain")
    # Replies, vectors, zero-shot and the first round are written.
    with monkeypatch.context() as patch:
        fill_up(patch, "state.safetensors", after=4)
        with pytest.raises(StorageError, match=r"state\.safetensors: the disk is full"):
            runs.run(settings, tmp_path / "run")
    assert [record.round for record in history(tmp_path / "run")] == [1]
    assert {path.name for path in RunFolder(tmp_path / "run").checkpoint.parent.iterdir()} == {
        "state.safetensors",
        "heads.jsonl",
    }
    runs.run(settings, tmp_path / "run", resume=True)
    assert contents(RunFolder(tmp_path / "run").adapter) == contents(RunFolder(tmp_path / "plain").adapter)


def fill_up(patch: pytest.MonkeyPatch, name: str, *, after: int) -> None:
    """The disk is full for files of this name after a number of writes."""
    calls, fsync = [0], os.fsync

    def full(handle: int) -> None:
        if name in str(Path(f"/proc/self/fd/{handle}").readlink()):
            calls[0] += 1
            if calls[0] > after:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(handle)

    patch.setattr(os, "fsync", full)


@pytest.mark.parametrize("name", ["ledgers/", "heads.jsonl"])
def test_what_no_ledger_can_take_does_not_leave_and_a_resume_goes_on(
    settings: RunSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    runs.run(settings, tmp_path / "plain")
    with monkeypatch.context() as patch:
        fill_up(patch, name, after=10 if name == "ledgers/" else 3)
        with pytest.raises((FederationError, StorageError), match=r"ledger|disk is full"):
            runs.run(settings, tmp_path / "run")
    runs.run(settings, tmp_path / "run", resume=True)
    assert contents(RunFolder(tmp_path / "run").adapter) == contents(RunFolder(tmp_path / "plain").adapter)
    assert_ledgers_fit(tmp_path / "run")


def assert_ledgers_fit(folder: Path) -> None:
    """Every line of what left is there, and the coordinator's heads are of these ledgers."""
    heads = read_heads(RunFolder(folder).checkpoint.with_name("heads.jsonl"))
    for name in ("a", "b", "c"):
        entries, torn = read(RunFolder(folder).ledgers / f"{name}.jsonl")
        checked, _ = check_heads(entries, heads)
        assert torn == b""
        assert checked > 0


# The checkpoint itself


def drawn(seed: int, *shape: int) -> Array32:
    """Random numbers of a seed."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


STATE = State(
    run="0" * 64,
    round=2,
    phase_start=1,
    phase_rounds=4,
    coefficients=Coefficients(drawn(6, 3, 2, 2)),
    best=Coefficients(drawn(7, 3, 2, 2), drawn(8, 3, 2, 2, 2)),
    best_round=1,
    stale=1,
    client_vectors={
        "clinic/Ä": ContextVectors(drawn(4, 2, 3, 2, 4).astype(np.float64), np.array([3, 0])),
        "b": ContextVectors(drawn(5, 2, 3, 2, 4).astype(np.float64), np.array([1, 2])),
    },
    cursors={"clinic/Ä": "3:ab", "b": "3:cd"},
    heads={"b": Head(3, "0" * 64)},
    context=Context(drawn(9, 3, 2, 4), drawn(10, 3, 2, 2, 4)),
    readout=Readout(drawn(11, 2, 7)),
    readout_round=1,
    zero_shot_by_client={"a": Tally(5, 3, 0.1 + 0.2)},
    history=(RoundRecord(1, ("b", "clinic/Ä"), 0.5, {"b": Tally(5, 4, 1 / 3)}), RoundRecord(2, ("b",), None)),
    traffic=(Traffic("b", "vectors", 0, 10, 20, 0.125, "late"), Traffic("clinic/Ä", "update", 1, 10, 20, 0.1)),
)


def assert_same_state(first: State, second: State) -> None:
    for name, value in vars(first).items():
        other = getattr(second, name)
        if isinstance(value, Coefficients | Context):
            assert value.arrays.keys() == other.arrays.keys()
            for key, array in value.arrays.items():
                np.testing.assert_array_equal(array, other.arrays[key])
        elif isinstance(value, Readout):
            np.testing.assert_array_equal(value.weights, other.weights)
        elif name == "client_vectors":
            assert value.keys() == other.keys()
            for client, vectors in value.items():
                np.testing.assert_array_equal(vectors.sums, other[client].sums)
                np.testing.assert_array_equal(vectors.counts, other[client].counts)
        else:
            assert value == other, name


def test_a_checkpoint_comes_back_bit_for_bit(tmp_path: Path) -> None:
    checkpoint.save(STATE, tmp_path / "state")
    loaded = checkpoint.load(tmp_path / "state")
    assert loaded is not None
    assert_same_state(STATE, loaded)


def test_the_first_checkpoint_of_a_run_has_no_vectors_yet(tmp_path: Path) -> None:
    fresh = State("0" * 64, 0, 0, 4, STATE.coefficients, STATE.best)
    checkpoint.save(fresh, tmp_path / "state")
    loaded = checkpoint.load(tmp_path / "state")
    assert loaded is not None
    assert_same_state(fresh, loaded)


def test_where_there_is_no_checkpoint_there_is_nothing_to_load(tmp_path: Path) -> None:
    assert checkpoint.load(tmp_path / "state") is None


def test_a_torn_checkpoint_is_refused_with_a_remedy(tmp_path: Path) -> None:
    file = tmp_path / "state"
    checkpoint.save(STATE, file)
    whole = file.read_bytes()
    for length in (*range(0, len(whole), 61), len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(StorageError, match=r"not a whole checkpoint.*remove it to start the run again"):
            checkpoint.load(file)


def test_a_torn_checkpoint_stops_a_resume_and_is_left_as_it_is(settings: RunSettings, tmp_path: Path) -> None:
    runs.run(settings, tmp_path / "run")
    file = RunFolder(tmp_path / "run").checkpoint
    file.write_bytes(file.read_bytes()[:-1])
    before = file.read_bytes()
    with pytest.raises(StorageError, match="remove it to start the run again"):
        runs.run(settings, tmp_path / "run", resume=True)
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    ("header", "arrays"),
    [({}, {}), ({"history": [], "traffic": [], "zero_shot": None}, {}), ({"history": 1, "traffic": 1}, {"best": np.zeros(1)})],
    ids=["empty", "no arrays", "wrong types"],
)
def test_a_frame_that_lacks_fields_is_no_checkpoint(tmp_path: Path, header: dict[str, Any], arrays: dict[str, Any]) -> None:
    (tmp_path / "state").write_bytes(pack("checkpoint", {"format": checkpoint.RUN_FORMAT, **header}, arrays))
    with pytest.raises(StorageError, match="not a whole checkpoint"):
        checkpoint.load(tmp_path / "state")


def test_a_message_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "state").write_bytes(pack("update_reply", {"examples": 1, "loss": 0.1}, {"scales": STATE.best.scales}))
    with pytest.raises(StorageError, match="a update_reply frame"):
        checkpoint.load(tmp_path / "state")


def test_a_checkpoint_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    with pytest.raises(StorageError, match=r"cannot read the checkpoint .*state"):
        checkpoint.load(tmp_path / "state")


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.save(STATE, tmp_path / "state")

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(StorageError, match="Free some space"):
            checkpoint.save(replace(STATE, round=3), tmp_path / "state")
    loaded = checkpoint.load(tmp_path / "state")
    assert loaded is not None
    assert_same_state(STATE, loaded)
    assert [path.name for path in tmp_path.iterdir()] == ["state"]
