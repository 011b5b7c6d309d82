"""Plans and data sets."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ifedicl.bench.datasets import load_set
from ifedicl.bench.estimate import estimates
from ifedicl.bench.methods import METHODS
from ifedicl.bench.methods.base import Scope
from ifedicl.bench.plan import SetSettings, load_plan
from ifedicl.bench.plan_file import shipped
from ifedicl.errors import ConfigError, DataError
from ifedicl.kinds.classify import as_classification
from tests.support import tiny
from tests.support.bench import plan_of, write_set
from tests.support.command_line import run

# --- plans -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_plan_loads_and_has_cells(name: str) -> None:
    plan = load_plan(name)
    assert plan.name == name
    assert plan.cells()


def test_the_cpu_plan_spends_what_its_description_says() -> None:
    plan, words = load_plan("cpu"), {"three": 3, "six": 6}
    stated = re.search(r"on (\w+) sets, (\w+) seeds; about ([\d,]+) example passes", plan.about)
    assert stated is not None
    sets, seeds, passes = words[stated[1]], words[stated[2]], int(stated[3].replace(",", ""))
    assert len({cell.set for cell in plan.cells()}) == sets
    assert {len(grid.seeds) for grid in plan.grids} == {seeds}
    assert plan.training.passes(plan.clients) == passes


def test_our_method_and_federated_lora_are_compared_on_the_same_splits() -> None:
    splits: dict[str, set[tuple[Any, ...]]] = {}
    for cell in load_plan("cpu").cells():
        splits.setdefault(cell.method, set()).add((cell.model, cell.set, cell.seed, cell.alpha))
    assert splits["ifed-icl"] == splits["ifed-icl-subspace"] == splits["fedavg-lora"]
    assert len({alpha for *_, alpha in splits["ifed-icl"]}) > 1


@pytest.mark.parametrize("name", ["cpu", "one-message", "pools", "finance", "many-labels", "choose", "extract", "multi-label"])
def test_no_set_on_which_settings_are_chosen_is_reported(name: str) -> None:
    chosen_on, reported = load_plan("dev").sets, load_plan(name).sets
    assert chosen_on
    assert not set(chosen_on) & set(reported)
    assert not {item.source for item in chosen_on.values()} & {item.source for item in reported.values()}


def test_a_method_is_run_once_for_what_moves_it(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, tmp_path, METHODS, grids=[{"methods": list(METHODS), "alphas": [0.5, 9.0], "seeds": [0, 1]}])
    count = {Scope.SET: 1, Scope.SEED: 2, Scope.SPLIT: 4}
    for name, method in METHODS.items():
        assert len([cell for cell in plan.cells() if cell.method == name]) == count[method.scope]


def test_a_grid_may_name_some_of_the_sets(tmp_path: Path) -> None:
    sets = {"one": str(tmp_path), "two": str(tmp_path)}
    grids = [{"methods": ["ifed-icl"]}, {"methods": ["ifed-icl"], "alphas": [9.0], "sets": ["two"]}]
    cells = plan_of(tmp_path, tmp_path, METHODS, sets=sets, grids=grids).cells()
    assert {(cell.set, cell.alpha) for cell in cells} == {("one", 0.5), ("two", 0.5), ("two", 9.0)}


def test_the_first_seed_of_everything_comes_before_the_second(tmp_path: Path) -> None:
    sets = {"one": str(tmp_path), "two": str(tmp_path)}
    plan = plan_of(tmp_path, tmp_path, METHODS, sets=sets, grids=[{"methods": list(METHODS), "seeds": [4, 2]}])
    seeds = [cell.seed for cell in plan.cells()]
    assert seeds == sorted(seeds, key=lambda seed: [None, 4, 2].index(seed))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grids": [{"methods": ["zero-shoot"]}]}, "zero-shoot"),
        ({"clients": 0}, "clients"),
        ({"sets": {}}, "sets"),
        ({"training": {"rounds": 0}}, "training.rounds"),
        ({"pol": 3}, "Did you mean 'pool'"),
        ({"grids": [{"methods": ["zero-shot"], "sets": ["modes"]}]}, "grids.sets: received 'modes'"),
    ],
)
def test_a_wrong_plan_names_the_field(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_of(tmp_path, tmp_path, ["zero-shot"], **change)


def test_a_variant_is_our_federation_with_other_settings(tmp_path: Path) -> None:
    """Its own settings have the last word; those that it does not name are the plan's."""
    settings = {"injection": {"from_depth": 0.5}, "rounds": {"rounds": 3}}
    variants = {"upper": {"preset": "subspace", "settings": settings}}
    plan = plan_of(tmp_path, tmp_path, ["upper", "ifed-icl-subspace"], variants=variants)
    variant, shipped = plan.method("upper", 7), plan.method("ifed-icl-subspace", 7)
    assert (variant.injection.from_depth, variant.rounds.rounds, variant.seed) == (0.5, 3, 7)
    assert variant.calibration == shipped.calibration
    assert variant.subspace == shipped.subspace
    first, second = plan.cells()[:2]
    assert plan.decides(first) != plan.decides(second)


def test_lora_may_run_with_other_rounds_beside_itself(tmp_path: Path) -> None:
    long = {"method": "fedavg-lora", "preset": "paper", "settings": {"rounds": {"rounds": 7}}}
    plan = plan_of(tmp_path, tmp_path, ["fedavg-lora", "long"], variants={"long": long})
    assert type(plan.methods["long"]) is type(METHODS["fedavg-lora"])
    assert (plan.methods["long"].name, plan.method("long", 3).rounds.rounds, plan.method("fedavg-lora", 3).rounds.rounds) == (
        "long",
        7,
        2,
    )
    ours = plan_of(tmp_path, tmp_path, ["long"], variants={"long": {**long, "method": None}})
    assert ours.decides(ours.cells()[0]) != plan.decides(plan.cells()[1]), "another method under the same name"


def test_one_shot_keeps_no_rounds_and_trains_nothing(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, tmp_path, ["one-shot", "ifed-icl-readout"])
    assert plan.method("one-shot", 0).is_one_shot
    assert plan.methods["one-shot"].passes(plan.size("moods")).training == 0
    assert (
        plan.methods["one-shot"].passes(plan.size("moods")).forward
        < plan.methods["ifed-icl-readout"].passes(plan.size("moods")).forward
    )


def test_long_prompts_of_a_set_count_in_a_dry_run_and_nowhere_else(tmp_path: Path) -> None:
    models = {"tiny": {"source": str(tmp_path), "tokens_per_second": 100.0}}
    short, long = (
        plan_of(tmp_path, tmp_path, ["zero-shot"], models=models, tokens=10, sets={"one": {"source": str(tmp_path), **more}})
        for more in ({}, {"tokens": 30})
    )
    (few,), (many,) = estimates(short), estimates(long)
    assert few.hours is not None
    assert many.hours == pytest.approx(3 * few.hours)
    assert short.decides(short.cells()[0]) == long.decides(long.cells()[0])


@pytest.mark.parametrize(
    ("variants", "message"),
    [
        ({"upper": {"preset": "no such"}}, "no such"),
        ({"upper": {"preset": "paper", "settings": {"rounds": {"rounds": 0}}}}, "rounds.rounds"),
        ({"ridge-probe": {"preset": "paper"}}, "ridge-probe"),
    ],
)
def test_a_variant_that_cannot_be_is_refused(tmp_path: Path, variants: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_of(tmp_path, tmp_path, list(variants), variants=variants)


def test_a_plan_that_is_not_there_names_the_shipped_ones() -> None:
    with pytest.raises(ConfigError, match=r"choose, cpu, dev, .*, multi-label, one-message, paper, pools, servable, smoke"):
        load_plan("cpv")


def test_a_plan_that_is_not_toml_says_so(tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_text("name = ")
    with pytest.raises(ConfigError, match=r"plan\.toml"):
        load_plan(str(tmp_path / "plan.toml"))


def test_folders_of_a_plan_are_taken_from_its_own_folder_or_from_the_one_given(tmp_path: Path) -> None:
    text = 'name = "p"\n[models]\nm = {source = "demo"}\n[sets]\nmoods = "moods"\nfar = "hub:someone/far"\n'
    (tmp_path / "plan.toml").write_text(text + '[[grids]]\nmethods = ["zero-shot"]\n')
    assert load_plan(str(tmp_path / "plan.toml")).sets["moods"].source == str(tmp_path / "moods")
    there = load_plan(str(tmp_path / "plan.toml"), Path("/elsewhere"))
    assert there.sets["moods"].source == "/elsewhere/moods"
    assert there.sets["far"].source == "hub:someone/far"


def test_a_dry_run_of_the_paper_plan_gives_memory_and_hours() -> None:
    for estimate in estimates(load_plan("paper")):
        assert estimate.memory_gb is not None
        assert 15 < estimate.memory_gb < 30
        assert estimate.hours is not None
        assert 1 < estimate.hours < 200
        assert "GB" in str(estimate)


# --- data sets ---------------------------------------------------------------------------------------------------------


def test_a_folder_is_a_data_set_with_or_without_meta(tmp_path: Path) -> None:
    with_meta = load_set("moods", SetSettings(source=str(write_set(tmp_path / "with"))))
    without = load_set("moods", SetSettings(source=str(write_set(tmp_path / "without", meta=False))))
    assert with_meta.task.template == tiny.TASK.template
    assert as_classification(with_meta.task, "a test").labels == ("good", "bad")
    assert as_classification(without.task, "a test").labels == ("bad", "good")
    assert without.train == with_meta.train
    assert without.digest != with_meta.digest


def test_a_hub_name_is_a_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {"hub:someone/moods/train": tiny.examples(6), "hub:someone/moods/test": tiny.examples(4, seed=1)}

    def read(source: str, columns: object = None) -> Iterator[tuple[int, dict[str, str]]]:
        yield from ((number, {"text": row.text, "label": row.label}) for number, row in enumerate(rows[source]))

    monkeypatch.setattr("ifedicl.data.rows_of", read)
    monkeypatch.setattr("ifedicl.bench.datasets.rows_of", read)
    data = load_set("moods", SetSettings(source="hub:someone/moods"))
    assert (len(data.train), len(data.test), as_classification(data.task, "a test").labels) == (6, 4, ("bad", "good"))


def test_a_missing_folder_and_torn_meta_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--data"):
        load_set("moods", SetSettings(source=str(tmp_path / "nowhere")))
    (write_set(tmp_path / "torn") / "meta.json").write_text('{"labels": [')
    with pytest.raises(DataError, match=r"meta\.json"):
        load_set("moods", SetSettings(source=str(tmp_path / "torn")))


def test_a_set_has_files_of_any_kind_that_run_takes_and_the_dry_run_names_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written = write_set(tmp_path / "moods", meta=False)
    rows = [json.loads(line) for line in (written / "test.jsonl").read_text().splitlines()]
    quoted = "".join(f'"{row["text"]}",{row["label"]}\n' for row in rows)
    (written / "test.csv").write_text(f"text,label\n{quoted}")
    expected = load_set("moods", SetSettings(source=str(written)))
    (written / "test.jsonl").unlink()
    assert load_set("moods", SetSettings(source=str(written))) == expected
    (written / "test.csv").unlink()
    with pytest.raises(DataError, match="no train or no test file"):
        load_set("moods", SetSettings(source=str(written)))
    plan = tmp_path / "plan.toml"
    plan.write_text(
        'name = "p"\n[models]\nm = { source = "demo" }\n[sets]\nmoods = "moods"\n[[grids]]\nmethods = ["zero-shot"]\n'
    )
    assert run("bench", plan, "--dry-run") == 0
    assert "missing, so the run will be refused: moods: " in capsys.readouterr().out
    assert run("bench", plan) == 3
    assert "1 files are not there" in capsys.readouterr().err
