"""Limits and ε that come back: a file is deleted, the coordinator leaves out the ledger's head, or a run is resumed."""

from __future__ import annotations

from pathlib import Path

import pytest

from ifedicl import cli, runs
from ifedicl.backbone.load import Backbone
from ifedicl.errors import LedgerError
from ifedicl.federation.driver import RunOptions
from ifedicl.federation.messages import FailureCode, UpdateRequest
from ifedicl.ledger.ledger import read
from ifedicl.ledger.usage import CountedLedger, History
from ifedicl.owner.own_files import open_ledger
from ifedicl.owner.policy import LedgerSettings, load_client_settings
from ifedicl.owner.site import open_site
from ifedicl.settings import ModelSettings
from tests.support import private, tiny
from tests.support.attacker import TRAINED, Overheard, code, default_rules, job, owner, place_of

ONE_ROUND = tiny.method(calibration={"batch_size": 4, "local_steps": 4}, rounds={"rounds": 1})


def asked(victim: Overheard, backbone: Backbone) -> FailureCode | None:
    """The code of a whole run of one round, brought as a new coordinator would."""
    manifest = job(backbone, ONE_ROUND)
    if (failed := code(victim.begin(manifest))) is not None:
        return failed
    values = manifest.identity
    values.scales[:] += len(victim.name) / 100  # other numbers than any request before
    return code(victim.handle(UpdateRequest(place_of(manifest), 0, 0, 1, values)))


def site_file(folder: Path, model: Path) -> Path:
    """The file of an owner with the default rules."""
    folder.mkdir(parents=True, exist_ok=True)
    tiny.write_rows(folder / "rows.jsonl", tiny.rows(40, seed=0))
    path = folder / "client.toml"
    path.write_text(
        f'[data]\nfile = "rows.jsonl"\n[model]\nsource = "{model}"\ndevice = "cpu"\ndtype = "float32"\n'
        '[allow]\ntasks = ["any"]\nmodels = ["any"]\n'
    )
    return path


@pytest.mark.parametrize("over_flare", [False, True])
def test_a_deleted_ledger_brings_no_limit_back(
    backbone: Backbone, llama_folder: Path, tmp_path: Path, over_flare: bool
) -> None:
    path = site_file(tmp_path, llama_folder)
    assert asked(Overheard(open_site(path, "clinic"), over_flare=over_flare), backbone) is None
    settings = load_client_settings(path).ledger
    Path(settings.file).rename(tmp_path / "copy.jsonl")
    with pytest.raises(LedgerError, match="ifedicl ledger restore"):
        open_site(path, "clinic")
    # Without the defence: a new ledger counts from 0.
    fresh = CountedLedger(tmp_path / "fresh.jsonl", "clinic")
    assert fresh.history.total.rounds == 0
    # The way back: the newest copy.
    with pytest.raises(SystemExit) as stop:
        cli.main(["ledger", "restore", str(tmp_path / "copy.jsonl"), str(path)])
    assert not stop.value.code
    again = Overheard(open_site(path, "clinic"), over_flare=over_flare)
    again.name = "another"  # other coefficients
    assert asked(again, backbone) is FailureCode.SPENT


def test_to_forget_a_ledger_says_what_it_costs_and_keeps_the_old_one(
    llama_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = site_file(tmp_path, llama_folder)
    settings = load_client_settings(path).ledger
    open_ledger(settings, "clinic")
    with pytest.raises(SystemExit) as stop:
        cli.main(["ledger", "forget", str(path)])
    assert stop.value.code == 2
    assert "every ε from 0" in capsys.readouterr().out
    assert Path(settings.file).exists()
    with pytest.raises(SystemExit) as stop:
        cli.main(["ledger", "forget", str(path), "--yes"])
    assert not stop.value.code
    assert not Path(settings.file).exists()
    assert list(tmp_path.glob("ledger.jsonl.*"))
    open_ledger(settings, "clinic")


def test_a_copy_that_is_older_or_anothers_takes_no_ledgers_place(tmp_path: Path) -> None:
    settings = LedgerSettings(**{name: str(tmp_path / name) for name in ("file", "secret", "approved")})
    ledger = open_ledger(settings, "clinic")
    old = Path(settings.file).read_bytes()
    ledger.append("refused", {"codes": {}})
    (tmp_path / "old.jsonl").write_bytes(old)
    CountedLedger(tmp_path / "other.jsonl", "clinic")
    for copy in ("old.jsonl", "other.jsonl"):
        with pytest.raises(SystemExit) as stop:
            cli.main(["ledger", "restore", str(tmp_path / copy), str(_with(settings, tmp_path))])
        assert stop.value.code == 6


@pytest.mark.parametrize("over_flare", [False, True])
def test_a_request_without_the_ledgers_head_is_refused(backbone: Backbone, tmp_path: Path, over_flare: bool) -> None:
    victim, manifest = owner(backbone, tmp_path, over_flare=over_flare), job(backbone)
    assert code(victim.begin(manifest)) is None
    request = UpdateRequest(place_of(manifest), 0, 0, 3, manifest.identity)
    assert code(victim.handle(request, states_head=False)) is FailureCode.LEDGER
    assert code(victim.handle(request)) is None
    # A ledger that was set back to an older copy does not know the head.
    file = tmp_path / "clinic.jsonl"
    first = file.read_bytes().splitlines(keepends=True)[0]
    file.write_bytes(first)
    back = owner(backbone, tmp_path, over_flare=over_flare)
    back.head = victim.head
    assert code(back.begin(manifest)) is None  # the head of this ledger comes with the reply
    back.head = victim.head
    assert code(back.handle(request)) is FailureCode.LEDGER


def test_two_jobs_in_place_of_one_share_the_limits_of_all_runs(backbone: Backbone, tmp_path: Path) -> None:
    policy = default_rules(most={"total_rounds": 4})
    codes = []
    for seed in range(3):
        victim = owner(backbone, tmp_path, policy=policy)  # and a restart in between
        manifest = job(backbone, TRAINED.model_copy(update={"seed": seed}))
        assert code(victim.begin(manifest)) is None
        for number in range(2):
            values = manifest.identity
            values.scales[:] += number
            codes.append(code(victim.handle(UpdateRequest(place_of(manifest), number, 0, 3, values))))
    assert codes == [None] * 4 + [FailureCode.SPENT] * 2
    history = History.of(read(tmp_path / "clinic.jsonl")[0])
    assert history.total.rounds == 4


def test_a_finished_private_run_that_is_resumed_keeps_its_epsilon(backbone: Backbone, tmp_path: Path) -> None:
    method = private.private_method()
    hands = {f"ward-{number}": tiny.examples(8, seed=number) for number in range(3)}

    def adapter_of(*, resume: bool) -> float:
        federated = runs.federate(
            runs.simulate(backbone, tiny.TASK, hands),
            ModelSettings(source="tiny"),
            tiny.TASK,
            method,
            ledgers=tmp_path / "ledgers",
            public=private.PUBLIC,
            options=RunOptions(checkpoint=tmp_path / "state", resume=resume),
        )
        return float(federated.adapter.provenance["privacy"]["epsilon"])

    spent = adapter_of(resume=False)
    assert spent > 0
    assert adapter_of(resume=True) == spent


def _with(settings: LedgerSettings, folder: Path) -> Path:
    """A client.toml with these files."""
    path = folder / "client.toml"
    names = "".join(f'{name} = "{getattr(settings, name)}"\n' for name in ("file", "secret", "approved"))
    path.write_text(f'[data]\nfile = "rows.jsonl"\n[model]\nsource = "tiny"\n[ledger]\n{names}')
    return path
