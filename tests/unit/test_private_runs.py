"""Whole runs in private mode: the ε in adapter and ledger, restarts, and configs that guarantee nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ifedicl import runs
from ifedicl.backbone.load import Backbone, load_backbone
from ifedicl.errors import ConfigError, TooFewClientsError
from ifedicl.federation import messages
from ifedicl.federation.events import Delivered, Event
from ifedicl.federation.run_folder import RunFolder
from ifedicl.federation.secure.quantised import SUMS, Sum
from ifedicl.ledger.ledger import SUMMED, Ledger, read
from ifedicl.ledger.usage import History
from ifedicl.runs import local_run
from ifedicl.secagg.fixed_point import FixedPoint
from ifedicl.settings import ModelSettings, RunSettings, load_settings
from ifedicl.settings.describe import mode_of, what_leaves
from tests.support import tiny
from tests.support.private import PUBLIC, private_method, private_run
from tests.support.stopping import StopError, stop_when


def test_a_private_federation_says_what_it_tells_in_adapter_and_ledger(backbone: Backbone, tmp_path: Path) -> None:
    federated = private_run(backbone, private_method(), tmp_path)
    stated = federated.adapter.provenance["privacy"]
    assert 1.99 < stated["epsilon"] <= 2.0
    assert stated["delta"] == 1e-5
    spent = [
        entry.facts["epsilon"] for entry in Ledger(tmp_path / "ledgers" / "ward-0.jsonl", "ward-0") if entry.event == SUMMED
    ]
    assert spent[0] == 0.0  # vectors of public text
    assert spent == sorted(spent)
    assert spent[-1] == pytest.approx(stated["epsilon"], abs=1e-3)


def test_the_sum_that_the_coordinator_gets_is_noisy(backbone: Backbone, tmp_path: Path) -> None:
    adapters = [private_run(backbone, private_method(), tmp_path / str(number)).adapter for number in range(2)]
    first, second = (adapter.coefficients.scales for adapter in adapters)
    assert not np.array_equal(first, second)  # the noise is never drawn twice
    np.testing.assert_array_equal(adapters[0].context.vectors, adapters[1].context.vectors)


def test_more_rounds_than_were_promised_are_refused_and_a_restart_forgets_nothing(backbone: Backbone, tmp_path: Path) -> None:
    run = private_method()
    private_run(backbone, run, tmp_path)
    with pytest.raises(TooFewClientsError):
        private_run(backbone, run, tmp_path, more_rounds=1)


def test_a_private_run_that_was_killed_within_a_round_ends_with_the_rounds_that_its_budget_allows(
    backbone: Backbone, tmp_path: Path
) -> None:
    """The gradients of the round that was lost are spent, so the last round of three cannot be had."""

    def is_gradient(event: Event) -> bool:
        return isinstance(event, Delivered) and (event.traffic.step, event.traffic.round) == ("gradient", 1)

    with pytest.raises(StopError):
        private_run(backbone, private_method(), tmp_path, observer=stop_when(is_gradient))
    federated = private_run(backbone, private_method(), tmp_path, resume=True)
    assert federated.outcome.chosen_round == federated.outcome.state.round == 2
    assert 1.99 < federated.adapter.provenance["privacy"]["epsilon"] <= 2.0


@pytest.mark.parametrize(
    ("sections", "field"),
    [
        ({"rounds": {"select_by": "loss"}, "holdout": {"selection": 0.2}}, "rounds.select_by"),
        ({"server": {"update": "local"}}, "server.update"),
        ({"privacy": {"mode": "secure"}}, "noise"),
        ({"privacy": {"noise": None}}, "noise"),
        ({"privacy": {"colluders": 3}}, "colluders"),
    ],
)
def test_a_config_whose_mode_would_guarantee_nothing_is_an_error(sections: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError, match=field):
        private_method(**sections)


CONFIG = """
weighting = "examples"
[task]
name = "mood"
labels = ["good", "bad"]
template = "Text: {{text}}\\nMood:"
[model]
source = "{model}"
dtype = "float32"
device = "cpu"
[data]
train = "train.jsonl"
split = {{ clients = 4, alpha = 100.0 }}
public = "public.txt"
[holdout]
selection = 0.0
[rounds]
rounds = 2
select_by = "last"
[server]
update = "gradient"
[privacy]
mode = "private"
min_examples = 2
[privacy.noise]
epsilon = 3.0
"""


def settings_of(tmp_path: Path, model: Path, *, dtype: str = "float32") -> RunSettings:
    tiny.write_rows(tmp_path / "train.jsonl", tiny.rows(24, seed=0))
    (tmp_path / "public.txt").write_text("".join(text + "\n" for text in PUBLIC))
    (tmp_path / "config.toml").write_text(CONFIG.format(model=model).replace('dtype = "float32"', f'dtype = "{dtype}"'))
    return load_settings(tmp_path / "config.toml")


def test_a_config_in_private_mode_runs_says_so_and_does_not_go_on_for_free(tmp_path: Path, llama_folder: Path) -> None:
    settings = settings_of(tmp_path, llama_folder)
    assert mode_of(settings.method).startswith("private: ")
    assert any("noise" in sentence for sentence in what_leaves(settings.method))
    result = runs.run(settings, tmp_path / "run")
    assert result.federated is not None
    assert result.federated.adapter.provenance["privacy"]["epsilon"] <= 3.0
    run = result.federated.outcome.state.run
    ledgers = [read(path)[0] for path in RunFolder(tmp_path / "run").ledgers.glob("*.jsonl")]
    assert len(ledgers) == len(result.clients)
    assert {History.of(entries).spent(run).rounds for entries in ledgers} == {2}
    with pytest.raises(TooFewClientsError):
        runs.run(settings, tmp_path / "run", more_rounds=1)


def test_private_mode_computes_in_float32_where_auto_would_take_bfloat16(
    tmp_path: Path, llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = list[str]()

    def on_units_of_bfloat16(model: ModelSettings) -> Backbone:
        loaded.append(model.dtype)
        return load_backbone(model)

    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"amx_bf16": True, "avx512_bf16": True})
    monkeypatch.setattr(local_run, "load_backbone", on_units_of_bfloat16)
    settings = settings_of(tmp_path, llama_folder, dtype="auto")
    assert load_backbone(settings.model).dtype == "bfloat16"
    result = runs.run(settings, tmp_path / "run")
    assert loaded == ["float32"]
    assert result.federated is not None
    assert result.federated.outcome.chosen_round == 2


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_private_mode_in_half_precision_is_an_error_before_anything_is_read(
    tmp_path: Path, llama_folder: Path, dtype: str
) -> None:
    settings = settings_of(tmp_path, llama_folder, dtype=dtype)
    with pytest.raises(ConfigError, match=rf'model\.dtype: received "{dtype}"; allowed: "float32" or "auto" .* leave it out'):
        runs.run(settings, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_clients_in_half_precision_take_no_part_in_a_private_federation(llama_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.dtype"):
        private_run(tiny.load(llama_folder, dtype="bfloat16"), private_method(), tmp_path)


def test_private_mode_without_public_text_is_an_error(tmp_path: Path, llama_folder: Path) -> None:
    (tmp_path / "config.toml").write_text(CONFIG.format(model=llama_folder).replace('public = "public.txt"\n', ""))
    with pytest.raises(ConfigError, match=r"data\.public"):
        load_settings(tmp_path / "config.toml")


def test_numbers_that_do_not_fit_the_sum_are_no_reason_to_refuse(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether they fit depends on the examples, and on one client's share of the noise alone: a code would tell of them."""
    asked = messages.GradientRequest
    monkeypatch.setitem(SUMS, asked, Sum(SUMS[asked].rule, FixedPoint(24, 24)))  # from -0.5 to 0.5, for all clients together
    traffic = private_run(backbone, private_method(), tmp_path).outcome.state.traffic
    assert not [item for item in traffic if item.failure]
    assert sum(item.step == "gradient" for item in traffic) == 3 * 4
    np.testing.assert_array_equal(
        FixedPoint(16, 8).bounded(np.array([1e9, -np.inf, np.nan, 0.5]), 2), [16383, -16384 + 1, 0, 128]
    )
