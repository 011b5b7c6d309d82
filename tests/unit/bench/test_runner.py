"""Stopped and changed runs: nothing finished is run again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from ifedicl.bench import runner
from ifedicl.bench.cells import Record, load_records, save_records
from ifedicl.bench.costs import Meter
from ifedicl.bench.html_page import write_page
from ifedicl.bench.methods import METHODS
from ifedicl.bench.plan import Cell, Plan
from ifedicl.bench.runner import RESULTS, Standing, Watcher, run_plan, standing
from ifedicl.bench.setup import Setup
from ifedicl.bench.tables import markdown
from ifedicl.errors import ConfigError, StorageError
from tests.support import tiny
from tests.support.bench import TEST, plan_of, write_set

# --- runs --------------------------------------------------------------------------------------------------------------


class Stopping(Watcher):
    """Ends the run at the start of a cell, as a kill would."""

    def __init__(self, before: int) -> None:
        self.before = before
        self.seen: list[Standing] = []

    def started(self, cell: Cell, standing: Standing) -> None:
        self.seen.append(standing)
        if len(self.seen) > self.before:
            raise KeyboardInterrupt


def counting(monkeypatch: pytest.MonkeyPatch) -> list[Cell]:
    ran: list[Cell] = []

    def counted(plan: Plan, cell: Cell, *rest: Any) -> Record:
        ran.append(cell)
        return run_cell(plan, cell, *rest)

    run_cell = runner._run_cell
    monkeypatch.setattr(runner, "_run_cell", counted)
    return ran


def test_a_stopped_run_goes_on_and_repeats_no_finished_cell(
    llama_folder: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(llama_folder, folder, ["zero-shot", "ridge-probe", "ifed-icl"])
    ran = counting(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        run_plan(plan, tmp_path, Stopping(before=2))
    assert len(load_records(tmp_path / RESULTS)) == 2
    records = run_plan(plan, tmp_path)
    assert [record.cell for record in records] == plan.cells()
    assert ran == plan.cells()
    assert standing(plan, tmp_path).left == ()
    run_plan(plan, tmp_path)
    assert ran == plan.cells()


def test_hours_left_come_from_finished_cells_of_the_same_method(llama_folder: Path, folder: Path, tmp_path: Path) -> None:
    plan = plan_of(llama_folder, folder, ["ridge-probe"], grids=[{"methods": ["ridge-probe"], "seeds": [0, 1, 2]}])
    watcher = Stopping(before=2)
    with pytest.raises(KeyboardInterrupt):
        run_plan(plan, tmp_path, watcher)
    assert watcher.seen[0].seconds_left is None
    first = load_records(tmp_path / RESULTS)[0].wall_seconds
    assert watcher.seen[1].seconds_left == pytest.approx(2 * first)


def test_cells_under_other_settings_or_on_other_rows_are_run_again(llama_folder: Path, folder: Path, tmp_path: Path) -> None:
    plan = plan_of(llama_folder, folder, ["zero-shot", "ifed-icl"])
    run_plan(plan, tmp_path)
    longer = plan.model_copy(update={"training": plan.training.model_copy(update={"rounds": 3})})
    assert len(standing(longer, tmp_path).left) == 2
    more = plan.model_copy(update={"grids": (*plan.grids, plan.grids[0].model_copy(update={"seeds": (1,)}))})
    assert [cell.seed for cell in standing(more, tmp_path).left] == [1]
    write_set(folder, train=41)
    assert len(standing(plan, tmp_path).left) == 2
    run_plan(plan, tmp_path)
    assert len(load_records(tmp_path / RESULTS)) == 2


def test_later_cells_take_over_what_the_first_one_chose(
    llama_folder: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(llama_folder, folder, ["fedavg-lora"], grids=[{"methods": ["fedavg-lora"], "seeds": [0, 1]}])
    seen: list[dict[str, float]] = []

    def watched(setup: Setup) -> Any:
        seen.append(dict(setup.choices))
        return run(setup)

    run = METHODS["fedavg-lora"].run
    monkeypatch.setattr(METHODS["fedavg-lora"], "run", watched)
    with pytest.raises(KeyboardInterrupt):
        run_plan(plan, tmp_path, Stopping(before=1))
    first, second = run_plan(plan, tmp_path)
    assert seen == [{}, dict(first.choices)]
    assert second.choices == first.choices


def test_all_methods_see_the_same_test_rows_and_a_record_holds_a_hit_or_miss_for_each(
    llama_folder: Path, folder: Path, tmp_path: Path
) -> None:
    plan = plan_of(llama_folder, folder, METHODS)
    records = run_plan(plan, tmp_path)
    assert {len(row) for record in records for row in record.hits.values()} == {TEST}
    for record in records:
        assert record.accuracy == pytest.approx(float(record.mean_hits.mean()))
    text = markdown(plan, records)
    for name in METHODS:
        assert f"| {name} |" in text
    assert f"{len(METHODS)} of {len(METHODS)} cells" in text
    write_page(plan, records, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert page.count("<svg") == 4
    assert "http" not in page.replace("http://www.w3.org", "").replace("http://creativecommons.org", "").replace(
        "http://purl.org", ""
    ).replace("https://matplotlib.org", "")


def test_tables_of_an_unfinished_plan_have_gaps(llama_folder: Path, folder: Path, tmp_path: Path) -> None:
    plan = plan_of(llama_folder, folder, ["zero-shot", "ifed-icl"])
    with pytest.raises(KeyboardInterrupt):
        run_plan(plan, tmp_path, Stopping(before=1))
    records = load_records(tmp_path / RESULTS)
    assert "1 of 2 cells" in markdown(plan, records)
    write_page(plan, records, tmp_path / "page.html")
    assert "0 of 2 cells" in markdown(plan, [])


def test_a_torn_results_file_names_the_line(tmp_path: Path) -> None:
    (tmp_path / "results.jsonl").write_text('{"cell": \n')
    with pytest.raises(StorageError, match="line 1"):
        load_records(tmp_path / "results.jsonl")


def test_records_survive_being_written_and_read(llama_folder: Path, folder: Path, tmp_path: Path) -> None:
    records = run_plan(plan_of(llama_folder, folder, ["ifed-icl"]), tmp_path / "a")
    save_records(records, tmp_path / "b" / "results.jsonl")
    assert load_records(tmp_path / "b" / "results.jsonl") == records


def test_rows_moved_from_training_to_test_are_other_data() -> None:
    from ifedicl.bench.datasets import DataSet

    rows = tiny.examples(20)
    assert DataSet(tiny.TASK, rows[:15], rows[15:]).digest != DataSet(tiny.TASK, rows[:5], rows[5:]).digest


def test_a_model_that_changed_behind_its_name_is_refused(tmp_path: Path) -> None:
    model, folder = tiny.save_model(tmp_path / "m", "llama"), write_set(tmp_path / "set")
    run_plan(plan_of(model, folder, ["zero-shot"]), tmp_path / "out")
    shutil.rmtree(model)
    tiny.save_model(model, "gpt2")
    with pytest.raises(ConfigError, match=r"models\.tiny.*fingerprint"):
        run_plan(plan_of(model, folder, ["zero-shot", "ridge-probe"]), tmp_path / "out")


def test_cells_of_another_run_in_the_same_folder_are_kept(tmp_path: Path) -> None:
    model, folder, out = tiny.save_model(tmp_path / "m", "llama"), write_set(tmp_path / "set"), tmp_path / "out"

    class Other(Watcher):
        """Finishes a cell while this run's is under way."""

        def started(self, cell: Cell, standing: Standing) -> None:
            if cell.method == "ridge-probe":
                run_plan(plan_of(model, folder, ["icl-pooled"]), out)

    run_plan(plan_of(model, folder, ["zero-shot", "ridge-probe"]), out, Other())
    assert {record.cell.method for record in load_records(out / RESULTS)} == {"zero-shot", "ridge-probe", "icl-pooled"}


def test_a_diverged_round_is_not_preferred() -> None:
    from ifedicl.bench.methods.base import Point
    from ifedicl.bench.methods.lora import _Trained

    points = [Point(4, 0.5, 0.3), Point(8, 0.6, 0.2), Point(12, 0.1, float("nan"))]
    assert _Trained({}, Meter(["a"]), tuple(points), 0.1).best.round == 8
    assert _Trained({}, Meter(["a"]), (Point(4, 0.5, float("nan")), Point(8, 0.5, float("nan"))), 0.1).best.round == 8


@pytest.mark.parametrize("hits", [{}, {"a": "102"}, {"a": "10", "b": "1"}, {"a": ""}])
def test_a_record_with_impossible_hits_is_refused(tmp_path: Path, hits: dict[str, str]) -> None:
    model, folder = tiny.save_model(tmp_path / "m", "llama"), write_set(tmp_path / "set")
    (record,) = run_plan(plan_of(model, folder, ["zero-shot"]), tmp_path)
    line = {**record.model_dump(mode="json"), "hits": hits}
    (tmp_path / RESULTS).write_text(json.dumps(line) + "\n")
    with pytest.raises(StorageError, match="line 1"):
        load_records(tmp_path / RESULTS)
