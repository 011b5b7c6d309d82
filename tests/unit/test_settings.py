"""Config files: what is read, and the error of each mistake."""

from __future__ import annotations

import re
import tomllib
from importlib import resources
from itertools import product
from pathlib import Path

import pytest

from ifedicl.backbone.model_shape import ModelShape
from ifedicl.bench.plan import load_plan
from ifedicl.errors import ConfigError
from ifedicl.federation.manifest import Manifest
from ifedicl.kinds.classify import as_classification
from ifedicl.owner.policy import ClientSettings, load_client_settings
from ifedicl.settings import (
    Method,
    NoiseSettings,
    PrivacySettings,
    RobustSettings,
    RunSettings,
    SubspaceSettings,
    load_preset,
    load_settings,
    method_of,
    presets,
    validated,
)
from ifedicl.settings.moved import REMEDIES
from ifedicl.settings.validation import section_in
from tests.support.settings import settings_of

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
    assert as_classification(settings.task, "a test").label_words == ("good", "bad")
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
    assert "received 0; allowed: examples in a step; 1 to 100000" in faults["calibration.batch_size"]
    assert "Did you mean 'learning_rate'?" in faults["calibration.lerning_rate"]
    assert "received 'lion'" in faults["calibration.loss"]
    assert "'vocabulary' or 'labels'" in faults["calibration.loss"]


def test_a_missing_section_is_named(tmp_path: Path) -> None:
    faults = faults_of(tmp_path, '[task]\nname = "x"\nlabels = ["a", "b"]\n')
    assert {"model", "data"} == set(faults)
    assert "received nothing; allowed: a section [model] with source, revision, dtype" in faults["model"]
    assert faults["model"].endswith(". Add it.")


def test_a_value_in_place_of_a_section_is_refused_with_the_settings_of_the_section(tmp_path: Path) -> None:
    faults = faults_of(tmp_path, "holdout = 3\n" + GOOD)
    assert "holdout: received 3; allowed: a section [holdout] with selection, gate." in faults["holdout"]


@pytest.mark.parametrize(
    ("text", "field", "remedy"),
    [
        ("[rounds]\nrounds = true\n", "rounds.rounds", "Write a number, not true or false"),
        ('[rounds]\nrounds = "3"\n', "rounds.rounds", "Write a number, without quotes"),
        ('[calibration]\nlearning_rate = "0.1"\n', "calibration.learning_rate", "Write a number, without quotes"),
        ("[holdout]\nselection = false\n", "holdout.selection", "Write a number, not true or false"),
        ("[injection]\nfrom_depth = false\n", "injection.from_depth", "Write a number, not true or false"),
        ("[data.split]\npool = true\n", "data.split.pool", "Write a number, not true or false"),
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
    assert "; allowed: settings that do not contradict each other. selection + gate is 1.1; keep it below 1" in fault


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
    assert "give exactly one of clients" in faults_of(tmp_path, text)["data"]


def test_no_client_has_the_name_of_a_sum(tmp_path: Path) -> None:
    text = GOOD.replace('train = "train.jsonl"', 'clients = {"all clients" = "a.jsonl", b = "b.jsonl"}')
    assert '"all clients" is the name of sums' in faults_of(tmp_path, text)["data"]


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
    for name, field in Method.model_fields.items():
        if field.default is None:  # what the paper does not have is absent
            assert name not in shown
        elif (section := section_in(field.annotation)) is not None:
            assert set(shown[name]) == set(section.model_fields), name
        else:
            assert name in shown


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
        "# max_p",  # max_pass_tokens, max_prompt_tokens
        "# device_map",
        "# quantisation",
        "# revision",
        "# writes = { l",
    )
    lines = [
        line.removeprefix("# ") if re.match(r"# (\w+ = |\[)", line) and not line.startswith(hidden) else line
        for line in text.splitlines()
    ]
    uncommented = tomllib.loads("\n".join(lines))
    del uncommented["preset"]
    assert uncommented["privacy"].pop("noise") == NoiseSettings().model_dump()  # its section belongs to one mode only
    assert uncommented["readout"].pop("pooled_depths") == [0.2, 0.5, 0.8]  # None: these, and other ones with noise
    optional = {name: field for name, field in RunSettings.model_fields.items() if not field.is_required()}
    sections = {name: (field, section_in(field.annotation)) for name, field in optional.items()}
    for name, (field, model) in sections.items():
        if model is not None and field.default is None:  # off unless it is there
            assert model(**uncommented.pop(name)) == model(), name
    defaults = validated(RunSettings, given, "template")
    shown = validated(RunSettings, uncommented, "template")
    assert shown == defaults
    for name, (field, model) in sections.items():
        if model is None:
            assert name == "preset" or name in uncommented, name
        elif field.default is not None:
            assert set(uncommented[name]) == set(model.model_fields), name


@pytest.mark.parametrize("name", REMEDIES)
def test_a_setting_of_an_earlier_version_is_refused_with_what_to_do_instead(name: str, tmp_path: Path) -> None:
    section, field = name.rsplit(".", 1)
    path = tmp_path / "old.toml"
    path.write_text((GOOD if section != "sums" else "[sums.peers]\n") + f"[{section}]\n{field} = 1\n")
    with pytest.raises(ConfigError) as caught:
        (load_client_settings if section == "sums" else load_settings)(path)
    (fault,) = [fault for fault in caught.value.faults if fault.field == name]
    assert str(fault).endswith(REMEDIES[name])


def test_remedies_name_settings_that_exist() -> None:
    known = {*settings_of(RunSettings), *settings_of(ClientSettings), "sums.min_survivors", "sums.dropout"}
    for remedy in REMEDIES.values():
        for named in re.findall(r"\b[a-z]+\.[a-z_]+\b", remedy):
            assert named in known, remedy


def test_an_earlier_method_is_read_under_the_present_names() -> None:
    stated = {
        "vectors": {"weighting": "examples", "refresh_every": 3},
        "rounds": {"rounds": 7, "weighting": "examples", "deadline_seconds": 5.0},
        "privacy": {"mode": "secure", "min_clients": 4, "drop_out": 0.1, "bits": 48},
    }
    expected = {"weighting": "examples", "rounds": {"rounds": 7}}
    privacy = {"mode": "secure", "min_survivors": 4, "dropout": 0.1}
    assert method_of({"method": stated}) == Method.model_validate({**expected, "privacy": privacy})
    robust = {"updates": "trimmed", "vectors": "median", "liars": 0.1, "bound": 2.0}
    found = method_of({"method": {"robust": robust}})
    assert found.robust == RobustSettings(rule="trimmed", liars=0.1)


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


@pytest.mark.parametrize(
    ("section", "field", "fits", "beyond"),
    [
        ("calibration", "learning_rate", 1.0, 1.01),
        ("calibration", "learning_rate", 1e-6, 9e-7),
        ("calibration", "local_steps", 10_000, 10_001),
        ("calibration", "batch_size", 100_000, 100_001),
        ("rounds", "rounds", 100_000, 100_001),
    ],
)
def test_what_no_run_needs_is_no_setting(tmp_path: Path, section: str, field: str, fits: float, beyond: float) -> None:
    assert getattr(getattr(load_settings(written(tmp_path, f"{GOOD}[{section}]\n{field} = {fits}\n")), section), field) == fits
    (fault,) = faults_of(tmp_path, f"{GOOD}[{section}]\n{field} = {beyond}\n").items()
    assert fault[0] == f"{section}.{field}"
    assert f"received {beyond}" in fault[1]


def test_a_step_that_would_wipe_out_the_steps_before_it_is_refused(tmp_path: Path) -> None:
    rates = "[calibration]\nlearning_rate = 0.5\nweight_decay = "
    assert load_settings(written(tmp_path, f"{GOOD}{rates}0.2\n")).calibration.weight_decay == 0.2
    fault = faults_of(tmp_path, f"{GOOD}{rates}0.3\n")["calibration"]
    assert "learning_rate * weight_decay is 0.15; keep it at most 0.1" in fault


SECURE = 'weighting = "examples"\n' + GOOD + '[privacy]\nmode = "secure"\n'


def test_every_setting_that_contradicts_secure_mode_is_named_with_its_remedy(tmp_path: Path) -> None:
    text = SECURE.replace('"examples"', '"uniform"') + "[rounds]\nclient_fraction = 0.5\n"
    (fault,) = faults_of(tmp_path, text).values()
    for field in ("weighting", "rounds.client_fraction"):
        assert field in fault, field


def test_of_a_sum_no_number_of_replies_can_be_asked_for(tmp_path: Path) -> None:
    text = SECURE + "[coordination]\nmin_clients = 2\n"
    (fault,) = faults_of(tmp_path, text).values()
    assert "coordination.min_clients must be 1" in fault
    assert "privacy.min_survivors takes its place" in fault


def test_how_a_run_is_driven_is_no_part_of_its_method(tmp_path: Path) -> None:
    driven = "[coordination]\ndeadline_seconds = 5.0\nmin_clients = 2\npatience = 3\n"
    plain, other = (load_settings(written(tmp_path, text)) for text in (GOOD, GOOD + driven))
    assert plain.coordination != other.coordination
    model = ModelShape("f" * 64, 3, 32)
    manifests = [Manifest.of(settings.task, settings.method, model) for settings in (plain, other)]
    assert len({manifest.run for manifest in manifests}) == 1, "a resume may change it"
    assert len({manifest.digest for manifest in manifests}) == 1, "the owners approve it once"


def test_secure_mode_needs_clients_to_hide_among(tmp_path: Path) -> None:
    assert load_settings(written(tmp_path, SECURE)).sums_only
    few = SECURE.replace('train = "train.jsonl"', 'clients = {a = "a.jsonl", b = "b.jsonl"}')
    (fault,) = faults_of(tmp_path, few).values()
    assert "2 clients, fewer than privacy.min_survivors, 3" in fault


def test_more_than_half_of_a_sums_clients_and_of_its_colluders_must_last_whatever_the_settings() -> None:
    for clients, dropout, colluders in product(range(2, 60), (0.0, 0.3, 0.499), (0, 1, 5)):
        rules = PrivacySettings(mode="secure", min_survivors=colluders + 2, dropout=dropout, colluders=colluders)
        assert 2 * rules.threshold(clients) > clients + colluders


@pytest.mark.parametrize(("survivors", "colluders"), [(2, 1), (3, 2), (10, 9)])
def test_a_sum_of_fewer_than_two_honest_clients_is_refused(tmp_path: Path, survivors: int, colluders: int) -> None:
    (fault,) = faults_of(tmp_path, SECURE + f"min_survivors = {survivors}\ncolluders = {colluders}\n").values()
    assert "Raise min_survivors, or lower colluders" in fault


def test_open_mode_is_what_it_was(tmp_path: Path) -> None:
    settings = load_settings(written(tmp_path, GOOD + '[privacy]\nmode = "open"\n'))
    assert not settings.sums_only
    assert load_settings(written(tmp_path, GOOD)).privacy is None
