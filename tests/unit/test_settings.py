"""Config files: what is read, and what every mistake is told."""

from __future__ import annotations

import re
import tomllib
from importlib import resources
from pathlib import Path

import pytest

from ifedicl.bench.plan import load_plan
from ifedicl.errors import ConfigError
from ifedicl.federation.assignment import run_digest
from ifedicl.owner.policy import load_client_settings
from ifedicl.settings import (
    Method,
    NoiseSettings,
    PrivacySettings,
    ReadoutSettings,
    RobustSettings,
    RunSettings,
    SubspaceSettings,
    load_preset,
    load_settings,
    method_of,
    presets,
    validated,
)

GOOD = """
[task]
name = "mood"
labels = ["good", "bad"]
[model]
source = "some/model"
[data]
train = "train.jsonl"
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "config.toml"
    path.write_text(text)
    return path


def faults_of(folder: Path, text: str) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        load_settings(written(folder, text))
    return {fault.field: str(fault) for fault in caught.value.faults}


def test_a_short_config_is_enough_and_paths_are_taken_from_its_folder(tmp_path: Path) -> None:
    settings = load_settings(written(tmp_path, GOOD))
    assert settings.data.train == str(tmp_path / "train.jsonl")
    assert settings.task.label_words == ("good", "bad")
    assert settings.model.source == "some/model"


def test_all_faults_are_reported_at_once_with_field_received_allowed_and_remedy(tmp_path: Path) -> None:
    faults = faults_of(
        tmp_path,
        GOOD + '[calibration]\nbatch_size = 0\nlerning_rate = 0.1\nloss = "lion"\n[rounds]\nclient_fraction = 1.5\n',
    )
    assert set(faults) == {
        "calibration.batch_size",
        "calibration.lerning_rate",
        "calibration.loss",
        "rounds.client_fraction",
    }
    assert "received 0; allowed: examples a step; 1 or more" in faults["calibration.batch_size"]
    assert "Did you mean 'learning_rate'?" in faults["calibration.lerning_rate"]
    assert "received 'lion'" in faults["calibration.loss"]
    assert "'vocabulary' or 'labels'" in faults["calibration.loss"]


def test_a_missing_section_is_named(tmp_path: Path) -> None:
    faults = faults_of(tmp_path, '[task]\nname = "x"\nlabels = ["a", "b"]\n')
    assert {"model", "data"} == set(faults)
    assert "received nothing; allowed: a section [model] with source, revision, dtype" in faults["model"]
    assert faults["model"].endswith(". Add it.")


def test_a_value_in_place_of_a_section_is_told_what_the_section_holds(tmp_path: Path) -> None:
    faults = faults_of(tmp_path, "holdout = 3\n" + GOOD)
    assert "holdout: received 3; allowed: a section [holdout] with selection, gate." in faults["holdout"]


@pytest.mark.parametrize(
    ("text", "field", "remedy"),
    [
        ("[rounds]\nrounds = true\n", "rounds.rounds", "Write a number; true and false are none"),
        ('[rounds]\nrounds = "3"\n', "rounds.rounds", "Write a number, without quotes"),
        ('[calibration]\nlearning_rate = "0.1"\n', "calibration.learning_rate", "Write a number, without quotes"),
        ("[holdout]\nselection = false\n", "holdout.selection", "Write a number; true and false are none"),
        ("[injection]\nfrom_depth = false\n", "injection.from_depth", "Write a number; true and false are none"),
        ("[data.split]\npool = true\n", "data.split.pool", "Write a number; true and false are none"),
    ],
)
def test_true_and_words_are_no_numbers(tmp_path: Path, text: str, field: str, remedy: str) -> None:
    (fault,) = faults_of(tmp_path, GOOD + text).items()
    assert fault[0] == field
    assert fault[1].endswith(f". {remedy}.")


def test_a_whole_number_stands_for_a_fraction_and_false_takes_out_a_section(tmp_path: Path) -> None:
    settings = load_settings(written(tmp_path, 'readout = false\npreset = "subspace"\n' + GOOD + "[holdout]\nselection = 0\n"))
    assert settings.readout is None
    assert settings.holdout.selection == 0.0


def test_words_and_numbers_are_neither_true_nor_false(tmp_path: Path) -> None:
    for value in ('"yes"', "1", '"true"'):
        (tmp_path / "client.toml").write_text(f"[allow]\nclass_counts = {value}\n")
        with pytest.raises(ConfigError, match=r"allow\.class_counts: .*Write true or false, without quotes"):
            load_client_settings(tmp_path / "client.toml")
    faults = faults_of(tmp_path, GOOD.replace('name = "mood"', 'name = "mood"\nnormalise_length = "no"'))
    assert "received 'no'" in faults["task.normalise_length"]


def test_numbers_in_lists_are_numbers(tmp_path: Path) -> None:
    plan = 'name = "p"\n[models]\nm = {source = "demo"}\n[sets]\ns = "demo"\n[[grids]]\nmethods = ["zero-shot"]\n'
    for line in ("seeds = [0, true]", 'alphas = ["0.5"]'):
        (tmp_path / "plan.toml").write_text(plan + line)
        with pytest.raises(ConfigError, match="Write a number"):
            load_plan(str(tmp_path / "plan.toml"))


def test_a_byte_order_mark_means_nothing(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_bytes(b"\xef\xbb\xbf" + GOOD.encode())
    assert load_settings(tmp_path / "config.toml").task.name == "mood"
    plan = 'name = "p"\n[models]\nm = {source = "demo"}\n[sets]\ns = "demo"\n[[grids]]\nmethods = ["zero-shot"]\n'
    (tmp_path / "plan.toml").write_bytes(b"\xef\xbb\xbf" + plan.encode())
    assert load_plan(str(tmp_path / "plan.toml")).name == "p"


def test_what_is_allowed_is_never_a_complaint(tmp_path: Path) -> None:
    fault = faults_of(tmp_path, GOOD + "[holdout]\nselection = 0.6\ngate = 0.5\n")["holdout"]
    assert "; allowed: settings that go together. selection + gate is 1.1; keep it below 1" in fault


def test_duplicate_label_words_are_named(tmp_path: Path) -> None:
    text = GOOD.replace('labels = ["good", "bad"]', 'labels = ["good", "bad"]\nlabel_words = ["yes", "yes"]')
    assert "label_words holds 'yes' more than once" in faults_of(tmp_path, text)["task"]


def test_a_template_without_text_is_named(tmp_path: Path) -> None:
    text = GOOD.replace('name = "mood"', 'name = "mood"\ntemplate = "Mood:"')
    assert "template holds {text} 0 times" in faults_of(tmp_path, text)["task"]


def test_a_torn_config_says_where(tmp_path: Path) -> None:
    faults = faults_of(tmp_path, GOOD.replace("[data]", "[data"))
    assert "line 7" in faults["file"]
    assert "ifedicl init" in faults["file"]


def test_an_absent_config_says_how_to_write_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Write one with: ifedicl init"):
        load_settings(tmp_path / "no.toml")


def test_both_sources_of_data_are_refused(tmp_path: Path) -> None:
    text = GOOD.replace('train = "train.jsonl"', 'train = "train.jsonl"\nclients = {a = "a.jsonl"}')
    assert "not both and not neither" in faults_of(tmp_path, text)["data"]


def test_no_client_has_the_name_of_a_sum(tmp_path: Path) -> None:
    text = GOOD.replace('train = "train.jsonl"', 'clients = {"all clients" = "a.jsonl", b = "b.jsonl"}')
    assert 'may not be called "all clients"' in faults_of(tmp_path, text)["data"]


def test_held_out_fractions_must_leave_something(tmp_path: Path) -> None:
    faults = faults_of(tmp_path, GOOD + "[holdout]\nselection = 0.6\ngate = 0.5\n")
    assert "keep it below 1" in faults["holdout"]


def test_a_preset_is_the_base_and_the_config_overrides_it(tmp_path: Path) -> None:
    settings = load_settings(written(tmp_path, 'preset = "paper"\n' + GOOD + "[rounds]\nrounds = 2\n"))
    paper = load_preset("paper")
    assert settings.rounds.rounds == 2
    assert settings.calibration == paper.calibration
    assert settings.vectors == paper.vectors


def test_an_unknown_preset_names_the_known_ones(tmp_path: Path) -> None:
    assert "paper" in faults_of(tmp_path, 'preset = "papers"\n' + GOOD)["preset"]


def test_the_paper_preset_shows_every_choice() -> None:
    shown = tomllib.loads((resources.files("ifedicl") / "presets" / "paper.toml").read_text())
    for section, model in Method.model_fields.items():
        if section != "seed" and model.default is not None:  # what the paper does not have is absent
            assert set(shown[section]) == set(type(getattr(Method(), section)).model_fields), section


@pytest.mark.parametrize("name", presets())
def test_every_preset_is_valid(name: str) -> None:
    assert isinstance(load_preset(name), Method)


def test_the_written_config_shows_every_setting_with_its_default() -> None:
    text = (resources.files("ifedicl") / "templates" / "config.toml").read_text()
    given = tomllib.loads(text)
    assert given.pop("preset") in presets()
    hidden = (
        "# train",
        "# split",
        "# test",
        "# public",
        "# label_words",
        "# max_prompt",
        "# revision",
        "# writes = { l",
    )
    lines = [
        line.removeprefix("# ") if re.match(r"# (\w+ = |\[)", line) and not line.startswith(hidden) else line
        for line in text.splitlines()
    ]
    uncommented = tomllib.loads("\n".join(lines))
    del uncommented["preset"]
    assert uncommented["privacy"].pop("noise") == NoiseSettings().model_dump()
    uncommented["privacy"]["noise"] = None  # its section belongs to one mode only
    for model in (PrivacySettings, SubspaceSettings, ReadoutSettings, RobustSettings):  # off unless they are there
        name = model.__name__.removesuffix("Settings").lower()
        assert uncommented.pop(name) == model().model_dump(), name
    defaults = validated(RunSettings, given, "template")
    shown = validated(RunSettings, uncommented, "template")
    assert shown == defaults
    for section in ("holdout", "vectors", "injection", "calibration", "rounds", "coordination"):
        assert set(uncommented[section]) == set(type(getattr(defaults, section)).model_fields), section


@pytest.mark.parametrize(
    "line",
    ["seed = " + "9" * 5000, "preset = 0x" + "f" * 5000, "seed = " + "[" * 3000 + "]" * 3000],
    ids=["digits", "hexadecimal", "nesting"],
)
def test_numbers_and_nesting_beyond_reason_are_faults(tmp_path: Path, line: str) -> None:
    file = tmp_path / "c.toml"
    file.write_text(line + GOOD)
    with pytest.raises(ConfigError):
        load_settings(file)


@pytest.mark.parametrize("source", ["~nosuchuser/x", "x" * 300], ids=["user", "length"])
def test_paths_that_cannot_be_are_faults(tmp_path: Path, source: str) -> None:
    file = tmp_path / "c.toml"
    file.write_text(GOOD.replace("some/model", source))
    with pytest.raises(ConfigError, match=r"path|model\.source"):
        load_settings(file)


@pytest.mark.parametrize("change", [{"rank": 257}, {"rank": 0}, {"source": "shards"}])
def test_a_subspace_has_bounds(change: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(change))):
        validated(Method, {"subspace": change}, "t")


def test_an_adapter_of_an_earlier_version_states_a_method_that_is_read() -> None:
    subspace = {"rank": 4, "source": "shards", "parts": 3}
    stated = method_of({"method": {"seed": 7, "subspace": subspace, "readout": None, "gone": {"a": 1}}})
    assert stated == Method(seed=7, subspace=SubspaceSettings(rank=4))
    with pytest.raises(ConfigError, match=r"subspace\.rank"):
        method_of({"method": {"subspace": {"rank": 0, "source": "shards"}}})


SECURE = GOOD + '[privacy]\nmode = "secure"\n[vectors]\nweighting = "examples"\n'


def test_every_setting_that_contradicts_secure_mode_is_named_with_its_remedy(tmp_path: Path) -> None:
    text = SECURE.replace('"examples"', '"uniform"') + "[rounds]\nclient_fraction = 0.5\n"
    (fault,) = faults_of(tmp_path, text).values()
    for field in ("vectors.weighting", "rounds.weighting", "rounds.client_fraction"):
        assert field in fault, field


def test_of_a_sum_no_number_of_replies_can_be_asked_for(tmp_path: Path) -> None:
    text = SECURE + '[rounds]\nweighting = "examples"\n[coordination]\nmin_clients = 2\n'
    (fault,) = faults_of(tmp_path, text).values()
    assert "coordination.min_clients must be 1" in fault
    assert "privacy.min_clients takes its place" in fault


def test_how_a_run_is_driven_is_no_part_of_its_method(tmp_path: Path) -> None:
    driven = "[coordination]\ndeadline_seconds = 5.0\nmin_clients = 2\npatience = 3\n"
    plain, other = (load_settings(written(tmp_path, text)) for text in (GOOD, GOOD + driven))
    assert plain.coordination != other.coordination
    digests = {run_digest(settings.task, settings.method, "f" * 64) for settings in (plain, other)}
    assert len(digests) == 1, "a resume may change it"


def test_secure_mode_needs_clients_to_hide_among(tmp_path: Path) -> None:
    text = SECURE + '[rounds]\nweighting = "examples"\n'
    assert load_settings(written(tmp_path, text)).sums_only
    few = text.replace('train = "train.jsonl"', 'clients = {a = "a.jsonl", b = "b.jsonl"}')
    (fault,) = faults_of(tmp_path, few).values()
    assert "2 clients are fewer than privacy.min_clients, 3" in fault


def test_more_than_half_of_a_sums_clients_must_last_whatever_the_settings() -> None:
    for clients in range(2, 60):
        for drop_out in (0.0, 0.3, 0.499):
            assert PrivacySettings(mode="secure", min_clients=2, drop_out=drop_out).threshold(clients) > clients / 2


def test_open_mode_is_what_it_was(tmp_path: Path) -> None:
    settings = load_settings(written(tmp_path, GOOD + '[privacy]\nmode = "open"\n'))
    assert not settings.sums_only
    assert load_settings(written(tmp_path, GOOD)).privacy is None
