"""The benchmark on a tiny model: every method, what it costs, and that nothing finished is run again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ifedicl import runs
from ifedicl.backbone.load import Backbone
from ifedicl.backbone.scoring import Scorer
from ifedicl.bench import runner
from ifedicl.bench.analytic import table_1
from ifedicl.bench.cells import Record, load_records, save_records
from ifedicl.bench.costs import Meter, PeakMemory
from ifedicl.bench.datasets import load_set
from ifedicl.bench.estimate import estimates
from ifedicl.bench.html_page import write_page
from ifedicl.bench.methods import METHODS, affine, ridge
from ifedicl.bench.methods.base import Scope
from ifedicl.bench.methods.lora import lora_layers
from ifedicl.bench.methods.raw import with_demonstrations
from ifedicl.bench.plan import Cell, Plan, SetSettings, load_plan, shipped
from ifedicl.bench.runner import RESULTS, Standing, Watcher, run_plan, standing
from ifedicl.bench.setup import Setup
from ifedicl.bench.tables import markdown
from ifedicl.data import Example, Role, split_roles
from ifedicl.errors import ConfigError, DataError, StorageError
from ifedicl.federation.messages import encode
from ifedicl.settings import ModelSettings, validated
from tests import tiny

POOL, TEST = 24, 10


def write_set(folder: Path, *, meta: bool = True, train: int = 40, test: int = 16) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("train", tiny.examples(train)), ("test", tiny.examples(test, seed=5))):
        lines = [json.dumps({"text": row.text, "label": row.label}) for row in rows]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    if meta:
        about = {"labels": list(tiny.TASK.labels), "template": tiny.TASK.template, "source": "ours"}
        (folder / "meta.json").write_text(json.dumps(about))
    return folder


def plan_of(model: Path, folder: Path, methods: Iterable[str], **values: Any) -> Plan:
    base = {
        "name": "tiny",
        "models": {"tiny": {"source": str(model)}},
        "sets": {"moods": str(folder)},
        "clients": 3,
        "pool": POOL,
        "test_rows": TEST,
        "training": {"rounds": 2, "local_steps": 2, "batch_size": 2, "evaluate_every": 1},
        "grids": [{"methods": list(methods), "seeds": [0]}],
    }
    return validated(Plan, base | values, "tiny")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_set(tmp_path / "moods")


@pytest.fixture
def setup(backbone: Backbone, folder: Path) -> Setup:
    data = load_set("moods", SetSettings(source=str(folder)))
    examples = {name: data.train[start : start + 8] for name, start in (("a", 0), ("b", 8), ("c", 16))}
    method = plan_of(folder, folder, ["zero-shot"]).method("ifed-icl", 0)
    return Setup(backbone, ModelSettings(source="tiny"), data.task, examples, data.test[:TEST], method)


# --- plans -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_plan_loads_and_has_cells(name: str) -> None:
    plan = load_plan(name)
    assert plan.name == name
    assert plan.cells()


def test_the_cpu_plan_is_as_it_was_agreed() -> None:
    plan = load_plan("cpu", Path("data"))
    assert set(plan.sets) == {"subj", "emoc", "agnews", "sst2", "trec", "snips"}
    assert plan.sets["subj"].source == "data/subj"
    assert (plan.clients, plan.pool, plan.test_rows) == (10, 400, 300)
    assert plan.training.passes(plan.clients) == 1_280
    assert {cell.alpha for cell in plan.cells() if cell.method == "ifed-icl"} == {0.1, 0.5, 100.0}
    assert {cell.method for cell in plan.cells()} >= set(METHODS) - {"ifed-icl-readout", "ifed-icl-subspace"}


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
        ({"grids": [{"methods": ["zero-shot"], "sets": ["modes"]}]}, "'modes', which"),
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
    with pytest.raises(ConfigError, match="cpu, dev, paper, smoke"):
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
    assert with_meta.task.labels == ("good", "bad")
    assert without.task.labels == ("bad", "good")
    assert without.train == with_meta.train
    assert without.digest != with_meta.digest


def test_a_hub_name_is_a_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {"hub:someone/moods/train": tiny.examples(6), "hub:someone/moods/test": tiny.examples(4, seed=1)}

    def read(source: str) -> Iterator[tuple[int, dict[str, str]]]:
        yield from ((number, {"text": row.text, "label": row.label}) for number, row in enumerate(rows[source]))

    monkeypatch.setattr("ifedicl.data.rows_of", read)
    monkeypatch.setattr("ifedicl.bench.datasets.rows_of", read)
    data = load_set("moods", SetSettings(source="hub:someone/moods"))
    assert (len(data.train), len(data.test), data.task.labels) == (6, 4, ("bad", "good"))


def test_a_missing_folder_and_torn_meta_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--data"):
        load_set("moods", SetSettings(source=str(tmp_path / "nowhere")))
    (write_set(tmp_path / "torn") / "meta.json").write_text('{"labels": [')
    with pytest.raises(DataError, match=r"meta\.json"):
        load_set("moods", SetSettings(source=str(tmp_path / "torn")))


# --- methods -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_every_method_labels_every_test_row_and_leaves_the_model_as_it_was(setup: Setup, name: str) -> None:
    tokens = torch.arange(6).reshape(1, 6)
    before, modules = setup.backbone.hidden_states(tokens), [type(module) for module in setup.backbone.model.modules()]
    measured = METHODS[name].run(setup)
    for evaluation in measured.evaluations.values():
        assert len(evaluation.truth) == TEST
        assert evaluation.labels == setup.task.labels
    assert torch.equal(setup.backbone.hidden_states(tokens), before)
    assert [type(module) for module in setup.backbone.model.modules()] == modules
    assert not any(parameter.requires_grad for parameter in setup.backbone.model.parameters())
    assert measured.costs.test_seconds > 0


@pytest.mark.parametrize("name", METHODS)
def test_every_method_gives_the_same_figures_twice(setup: Setup, name: str) -> None:
    first, second = (METHODS[name].run(replace(setup)).evaluations for _ in range(2))
    assert [evaluation.predicted.tolist() for evaluation in first.values()] == [
        evaluation.predicted.tolist() for evaluation in second.values()
    ]


@pytest.mark.parametrize("name", ["ifed-icl", "ifed-icl-subspace", "i2cl-pooled", "client-alone", "fedavg-lora"])
def test_every_trained_method_gets_the_same_number_of_example_passes(
    setup: Setup, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[int] = []

    def counted(scorer: Scorer, prompts: Sequence[Any], labels: Sequence[int]) -> Tensor:
        trained.append(len(labels))
        return losses(scorer, prompts, labels)

    losses = Scorer.label_losses
    monkeypatch.setattr(Scorer, "label_losses", counted)
    monkeypatch.setattr("ifedicl.calibrate._LOSSES", {"labels": counted})
    METHODS[name].run(replace(setup, choices={"learning_rate": 1e-3}))
    assert sum(trained) == 2 * 2 * 2 * 3


def test_other_methods_hold_out_the_same_examples_as_our_clients(setup: Setup) -> None:
    for hand, own in zip(setup.hands, setup.examples.values(), strict=True):
        roles = split_roles(own, selection=0.15, gate=0.0, seed=0)
        assert len(hand.train.labels) == len(roles[Role.TRAIN])
        assert hand.selection.prompts == setup.scorer.encoder.prompts([row.text for row in roles[Role.SELECTION]])


def test_a_client_without_training_examples_keeps_the_raw_model_when_alone(setup: Setup) -> None:
    held_out = next(
        example for example in tiny.examples(200) if split_roles([example], selection=0.15, gate=0.0, seed=0)[Role.SELECTION]
    )
    with_poor = replace(setup, examples={**setup.examples, "d": (held_out,)})
    alone = METHODS["client-alone"].run(with_poor).evaluations["d"]
    assert alone.predicted.tolist() == METHODS["zero-shot"].run(setup).evaluations["all"].predicted.tolist()
    assert METHODS["fedavg-lora"].run(with_poor).evaluations


def test_demonstrations_are_balanced_and_end_in_their_label_words(setup: Setup) -> None:
    task, count = with_demonstrations(setup, setup.pool, "pooled")
    shown = task.template.removesuffix(setup.task.template).split("\n\n")[:-1]
    assert len(shown) == count
    assert 0 < count <= 16
    ends = [demonstration.rsplit(" ", 1)[1] for demonstration in shown]
    assert abs(ends.count("good") - ends.count("bad")) <= 1
    assert len(setup.backbone.tokenizer(task.template)["input_ids"]) <= setup.backbone.context_window // 2 + 20


def test_a_text_that_holds_the_place_of_the_text_is_no_demonstration(setup: Setup) -> None:
    task, count = with_demonstrations(setup, [Example("a {text} of its own", "good"), Example("plain", "bad")], "x")
    assert count == 1
    assert "plain" in task.template


def test_lora_layers_are_gone_after_an_exception(backbone: Backbone) -> None:
    modules = [type(module) for module in backbone.model.modules()]
    with pytest.raises(RuntimeError, match="on purpose"), lora_layers(backbone):
        raise RuntimeError("on purpose")
    assert [type(module) for module in backbone.model.modules()] == modules


def test_lora_trains_its_layers_and_chooses_the_rate_with_the_lowest_held_out_loss(setup: Setup) -> None:
    searched = METHODS["fedavg-lora"].run(setup)
    assert searched.choices["learning_rate"] in searched.settings["rates"]
    best = min(point.loss for point in searched.curve)
    for rate in searched.settings["rates"]:
        other = METHODS["fedavg-lora"].run(replace(setup, choices={"learning_rate": rate}))
        assert min(point.loss for point in other.curve) >= best - 1e-6
    assert len({point.loss for point in searched.curve}) > 1, "weights that stay where they are would not be training"


def test_the_ridge_probe_is_ridge_regression_on_pooled_features(setup: Setup) -> None:
    parts = [hand.train for hand in setup.hands]
    features = np.concatenate([ridge._features(setup, part) for part in parts])
    target = np.eye(2)[[label for part in parts for label in part.labels]]
    solutions = ridge._solutions(features.T @ features, features.T @ target)
    unit = np.mean(np.sum(features[:, :-1] ** 2, axis=0))
    for strength, ours_ in zip(ridge._STRENGTHS, solutions, strict=True):
        penalty = np.sqrt(strength * unit) * np.eye(features.shape[1])
        penalty[-1, -1] = 0.0
        stacked = np.concatenate([features, penalty]), np.concatenate([target, np.zeros((features.shape[1], 2))])
        np.testing.assert_allclose(ours_, np.linalg.lstsq(*stacked, rcond=None)[0], rtol=1e-3, atol=1e-4)


def test_gradient_sums_of_the_affine_map_are_those_of_finite_differences() -> None:
    draw = np.random.default_rng(0)
    inputs, truth, weights = draw.normal(size=(7, 4)), (0, 2, 1, 1, 0, 2, 2), draw.normal(size=(3, 4))
    _, gradient = affine._sums(inputs, truth, weights)
    step = 1e-6
    for place in np.ndindex(*weights.shape):
        moved = weights.copy()
        moved[place] += step
        difference = (affine._sums(inputs, truth, moved)[0] - affine._sums(inputs, truth, weights)[0]) / step
        assert gradient[place] == pytest.approx(difference, abs=1e-4)


def test_the_affine_map_lowers_the_training_loss_of_zero_shot(setup: Setup) -> None:
    train = [(affine._inputs(setup, hand.train), hand.train.labels) for hand in setup.hands]
    fit = affine._fit(setup, train, [], 1e-3)
    identity = np.eye(2, 3)
    before = sum(affine._sums(inputs, truth, identity)[0] for inputs, truth in train)
    after = sum(affine._sums(inputs, truth, fit.weights)[0] for inputs, truth in train)
    assert after < before


# --- costs -------------------------------------------------------------------------------------------------------------


def test_bytes_of_a_cell_are_the_bytes_that_the_engine_counted(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes: list[runs.Federated] = []

    def kept(*arguments: Any, **options: Any) -> runs.Federated:
        outcomes.append(federate(*arguments, **options))
        return outcomes[-1]

    federate = runs.federate
    monkeypatch.setattr(runs, "federate", kept)
    costs = METHODS["ifed-icl"].run(setup).costs
    traffic = outcomes[0].outcome.state.traffic
    for side, counted in (("bytes_up", costs.bytes_up), ("bytes_down", costs.bytes_down)):
        for stage, mean in counted.items():
            assert mean == sum(getattr(item, side) for item in traffic if item.step == stage) / 3
        assert sum(counted.values()) == sum(getattr(item, side) for item in traffic) / 3
    assert set(costs.bytes_up) == {"vectors", "context", "update", "evaluate"}


def test_what_a_client_does_by_itself_sends_nothing(setup: Setup) -> None:
    for name in ("client-alone", "i2cl-pooled", "icl-local", "icl-pooled", "zero-shot"):
        costs = METHODS[name].run(setup).costs
        assert (dict(costs.bytes_up), dict(costs.bytes_down)) == ({}, {})


def test_lora_sends_its_weights_once_a_round_and_receives_them_once_more(setup: Setup) -> None:
    costs = METHODS["fedavg-lora"].run(replace(setup, choices={"learning_rate": 1e-3})).costs
    with lora_layers(setup.backbone) as layers:
        weights = sum(array.nbytes for array in layers.state().values())
    up, down = sum(costs.bytes_up.values()), sum(costs.bytes_down.values())
    assert 2 * weights < up < 2 * weights + 8_000  # two rounds and their headers
    assert 3 * weights < down < 3 * weights + 12_000


def test_messages_arrive_as_they_were_sent_and_are_counted() -> None:
    meter = Meter(["a", "b"])
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.testing.assert_array_equal(meter.up("x", {}, {"array": array})["array"], array)
    meter.down("x", {}, {"array": array})
    with meter.working("x"):
        sum(range(200_000))
    costs = meter.costs()
    assert costs.bytes_up["x"] == costs.bytes_down["x"] > array.nbytes / 2
    assert costs.cpu_seconds["x"] > 0


def test_peak_memory_sees_what_was_freed_again() -> None:
    with PeakMemory(torch.device("cpu")) as memory:
        for _ in range(3):
            held = np.ones(20_000_000)  # 153 MiB
            held += 1
            del held
    assert 140 < memory.mib < 320


def test_table_1_is_near_the_papers_where_both_count_the_same() -> None:
    rows = {row.what: row for row in table_1()}
    for start, tolerance in (("vectors up, once (float16)", 0.01), ("vectors down, once (float16)", 0.01), ("LoRA", 0.01)):
        row = next(row for what, row in rows.items() if what.startswith(start))
        assert row.ours == pytest.approx(row.paper, rel=tolerance)
    assert rows["coefficients up, a round"].ours < 1_024


def test_table_1_gives_the_bytes_of_real_messages(setup: Setup) -> None:
    rows = {row.what: row.ours for row in table_1(layers=3, width=32, key_value_width=16)}
    costs = METHODS["ifed-icl"].run(setup).costs
    assert costs.bytes_up["update"] / 2 == pytest.approx(rows["coefficients up, a round"], abs=24)  # numbers of other lengths
    assert costs.bytes_up["vectors"] == pytest.approx(rows["vectors up, once (float32)"], abs=24)
    lora = METHODS["fedavg-lora"].run(replace(setup, choices={"learning_rate": 1e-3})).costs
    assert lora.bytes_up["update"] / 2 == pytest.approx(next(v for k, v in rows.items() if k.startswith("LoRA")), abs=24)


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


def test_encode_is_what_the_analytic_table_uses() -> None:
    assert table_1.__globals__["encode"] is encode


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


def test_lora_trains_in_float32_whatever_the_model_computes_in(tmp_path: Path) -> None:
    backbone = tiny.load(tiny.save_model(tmp_path / "m", "llama"), dtype="bfloat16")
    with lora_layers(backbone) as layers:
        assert {parameter.dtype for parameter in layers.parameters.values()} == {torch.float32}
        scorer = Scorer(backbone, tiny.TASK)
        scorer.label_losses(scorer.encoder.prompts(["a fine day"]).tokens, [0]).sum().backward()
        assert any(parameter.grad is not None for parameter in layers.parameters.values())


@pytest.mark.parametrize("hits", [{}, {"a": "102"}, {"a": "10", "b": "1"}, {"a": ""}])
def test_a_record_with_impossible_hits_is_refused(tmp_path: Path, hits: dict[str, str]) -> None:
    model, folder = tiny.save_model(tmp_path / "m", "llama"), write_set(tmp_path / "set")
    (record,) = run_plan(plan_of(model, folder, ["zero-shot"]), tmp_path)
    line = {**record.model_dump(mode="json"), "hits": hits}
    (tmp_path / RESULTS).write_text(json.dumps(line) + "\n")
    with pytest.raises(StorageError, match="line 1"):
        load_records(tmp_path / RESULTS)
