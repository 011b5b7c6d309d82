"""How often a job and a policy let replies out, over restarts and runs, and that no deleted file brings a limit back."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ifedicl.backbone.model_shape import ModelShape
from ifedicl.core.coefficients import Coefficients
from ifedicl.core.subspace import Context
from ifedicl.errors import LedgerError
from ifedicl.federation import messages
from ifedicl.federation.manifest import Limits, Manifest, context_id
from ifedicl.federation.messages import Failure, FailureCode, StepRequest
from ifedicl.ledger.ledger import REPLY, read
from ifedicl.owner.endpoint import build_endpoint
from ifedicl.owner.own_files import forget_ledger, open_ledger, restore_ledger, secret_of, split_key_of
from ifedicl.owner.policy import LedgerSettings
from tests.support.command_line import run
from tests.support.endpoints import Asked
from tests.support.guarded import (
    LAYERS,
    METHOD,
    MODEL,
    ONE,
    QUICK,
    SAME,
    SECURE,
    WIDTH,
    code,
    guarded,
    rules,
    scripted_client,
    summed,
)
from tests.support.jobs import job_of
from tests.support.readouts import asked_products

COUNTED = {
    "update": "updates",
    "gradient": "updates",
    "evaluate": "figures",
    "compare": "figures",
    "vectors": "sums",
    "statistics": "sums",
    "products": "sums",
    "context": "contexts",
}
"""The limit of each kind of request."""
PLENTY = 50


def job(seed: int = 0, **limits: int) -> Manifest:
    """A job of run ``seed`` with these limits and many of all else."""
    plenty = dict.fromkeys(Limits.model_fields, PLENTY)
    method = METHOD.model_copy(update={"seed": seed})
    return replace(job_of(method, ModelShape(MODEL, LAYERS, WIDTH)), limits=Limits(**plenty | limits))


def request_of(kind: str, manifest: Manifest, number: int) -> StepRequest:
    """A request of this kind; another ``number`` asks for other numbers."""
    name = context_id(manifest.digest, ONE)
    moved = Coefficients(SAME.scales + np.float32(number))
    requests: Mapping[str, Callable[[], StepRequest]] = {
        "update": lambda: messages.UpdateRequest(name, number, 0, PLENTY, SAME),
        "gradient": lambda: messages.GradientRequest(name, number, SAME),
        "evaluate": lambda: messages.EvaluateRequest(name, moved),
        "compare": lambda: messages.CompareRequest(name, moved, None),
        "statistics": lambda: messages.StatisticsRequest(name, moved),
        "products": lambda: messages.ProductsRequest(name, moved, asked_products(8)),
        "vectors": lambda: messages.VectorsRequest(manifest.digest, f"{number}:{'0' * 32}" if number else ""),
        "context": lambda: messages.ContextRequest(manifest.digest, Context(ONE.vectors * (number + 1)), "float32"),
    }
    return requests[kind]()


def begun(guard: Asked, manifest: Manifest) -> Callable[[str, int], FailureCode | None]:
    """Send the job; the result asks for a kind and a number, and returns the code of a failure."""
    assert code(guard.handle(messages.JobRequest(manifest))) is None
    return lambda kind, number: code(guard.handle(request_of(kind, manifest, number)))


@pytest.mark.parametrize(("kind", "limit"), COUNTED.items())
def test_a_job_gets_as_many_replies_of_each_kind_as_its_limits_say(tmp_path: Path, kind: str, limit: str) -> None:
    """Also after a restart. What may not leave is not computed."""
    manifest = job(**{limit: 2})
    guard, client = guarded(tmp_path)
    ask = begun(guard, manifest)
    assert [ask(kind, number) for number in range(3)] == [None, None, FailureCode.SPENT]
    guard, client = guarded(tmp_path)
    assert begun(guard, manifest)(kind, 2) is FailureCode.SPENT
    assert [request.kind for request in client.asked] == ["job"]


@pytest.mark.parametrize(("kind", "limit"), COUNTED.items())
def test_the_same_request_again_counts_once(tmp_path: Path, kind: str, limit: str) -> None:
    """As after a reply that got lost, or a run that was resumed. Its numbers are known already."""
    manifest = job(**{limit: 2})
    for _ in range(2):
        ask = begun(guarded(tmp_path)[0], manifest)
        assert [ask(kind, number) for number in (0, 0, 0, 1, 0, 1)] == [None] * 6
    assert ask(kind, 2) is FailureCode.SPENT


@pytest.mark.parametrize("kind", ["update", "gradient", "evaluate", "compare", "vectors", "statistics"])
def test_with_noise_the_same_request_again_counts_twice(tmp_path: Path, kind: str) -> None:
    """The noise is drawn again, and the mean of two such replies has less of it."""
    guard, client = guarded(tmp_path)
    noisy: Any = client
    noisy.spent_epsilon = 0.5
    ask = begun(guard, job(**{COUNTED[kind]: 2}))
    assert [ask(kind, 0) for _ in range(3)] == [None, None, FailureCode.SPENT]


@pytest.mark.parametrize("kind", ["update", "gradient", "evaluate", "compare", "vectors", "statistics"])
def test_in_a_sum_the_same_request_again_counts_again(tmp_path: Path, kind: str) -> None:
    """It can be summed over other clients, and the difference of the two sums is theirs. Global vectors are not summed."""
    manifest = replace(job(**{COUNTED[kind]: 3, "contexts": 1}), method=SECURE)
    ask = begun(summed(tmp_path, rules())[0], manifest)
    assert [ask("context", 0), ask("context", 0), ask(kind, 0), ask(kind, 0)] == [None] * 4
    ask = begun(summed(tmp_path, rules())[0], manifest)  # after a restart
    assert [ask("context", 0), ask(kind, 0), ask(kind, 0)] == [None, None, FailureCode.SPENT]


@pytest.mark.parametrize(("first", "second"), [("update", "gradient"), ("evaluate", "compare"), ("vectors", "statistics")])
def test_kinds_that_tell_the_same_share_a_limit(tmp_path: Path, first: str, second: str) -> None:
    ask = begun(guarded(tmp_path)[0], job(**{COUNTED[first]: 2}))
    assert [ask(first, 0), ask(second, 0)] == [None, None]
    assert [ask(first, 1), ask(second, 1)] == [FailureCode.SPENT] * 2


def test_a_reply_that_failed_does_not_count(tmp_path: Path) -> None:
    guard, client = guarded(tmp_path)
    ask = begun(guard, job(updates=1))
    client.rule = lambda request: Failure(FailureCode.INTERNAL)
    assert [ask("update", number) for number in range(3)] == [FailureCode.INTERNAL] * 3
    client.rule = lambda request: None
    assert [ask("update", 0), ask("update", 1)] == [None, FailureCode.SPENT]


def test_a_job_with_other_limits_is_the_same_run_and_resets_no_count(tmp_path: Path) -> None:
    guard, _ = guarded(tmp_path)
    ask = begun(guard, job(figures=2))
    assert [ask("evaluate", number) for number in range(2)] == [None, None]
    more = begun(guard, job(figures=3))
    assert [more("evaluate", number) for number in (2, 3)] == [None, FailureCode.SPENT]


@QUICK
@given(
    asked=st.lists(st.tuples(st.sampled_from(sorted(COUNTED)), st.integers(0, 4)), max_size=25),
    restarts=st.sets(st.integers(0, 24)),
)
def test_no_more_different_replies_leave_than_the_limits_say(
    tmp_path_factory: pytest.TempPathFactory, asked: list[tuple[str, int]], restarts: set[int]
) -> None:
    folder, manifest = tmp_path_factory.mktemp("site"), job(updates=2, figures=3, sums=1, contexts=2)
    ask, left = begun(guarded(folder)[0], manifest), set[tuple[str, int]]()
    for place, (kind, number) in enumerate(asked):
        if place in restarts:
            ask = begun(guarded(folder)[0], manifest)
        spent = Counter(COUNTED[name] for name, _ in left)
        may_leave = (kind, number) in left or spent[COUNTED[kind]] < getattr(manifest.limits, COUNTED[kind])
        assert ask(kind, number) is (None if may_leave else FailureCode.SPENT)
        if may_leave:
            left.add((kind, number))


# The policy's own limits


@pytest.mark.parametrize(("name", "limit"), [("rounds", 10), ("figures", 10), ("sums", 10), ("contexts", 10)])
def test_a_job_that_asks_for_more_than_the_policy_says_is_refused(tmp_path: Path, name: str, limit: int) -> None:
    guard, client = guarded(tmp_path, rules(most={name: limit}))
    assert code(guard.handle(messages.JobRequest(job(**{name: limit + 1})))) is FailureCode.REFUSED
    assert not client.asked
    begun(guard, job(**{name: limit}))


@pytest.mark.parametrize("kind", ["update", "gradient"])
def test_no_more_updates_leave_than_the_policy_has_rounds_even_if_the_job_repeats_some(tmp_path: Path, kind: str) -> None:
    ask = begun(guarded(tmp_path, rules(most={"rounds": 2}))[0], job(rounds=2, updates=4))
    assert [ask(kind, number) for number in (0, 1, 1, 2)] == [None, None, None, FailureCode.SPENT]


@pytest.mark.parametrize(("kind", "limit"), [("update", "total_rounds"), ("gradient", "total_rounds")])
@pytest.mark.parametrize("restarts", [False, True])
def test_rounds_of_all_runs_together_have_a_limit(tmp_path: Path, kind: str, limit: str, restarts: bool) -> None:
    over_runs(tmp_path, kind, limit, restarts=restarts)


@pytest.mark.parametrize(("kind", "limit"), [("evaluate", "total_figures"), ("compare", "total_figures")])
@pytest.mark.parametrize("restarts", [False, True])
def test_figures_of_all_runs_together_have_a_limit(tmp_path: Path, kind: str, limit: str, restarts: bool) -> None:
    over_runs(tmp_path, kind, limit, restarts=restarts)


def over_runs(folder: Path, kind: str, limit: str, *, restarts: bool) -> None:
    """Two runs get two replies each, then a third gets the fifth and last one."""
    policy = rules(most={limit: 5})
    guard, _ = guarded(folder, policy)
    for seed, expected in ((0, [None, None]), (1, [None, None]), (2, [None, FailureCode.SPENT])):
        if restarts:
            guard, _ = guarded(folder, policy)
        ask = begun(guard, job(seed))
        assert [ask(kind, number) for number in range(2)] == expected
    first = begun(guard, job(0))
    assert [first(kind, 0), first(kind, 2)] == [None, FailureCode.SPENT]


def test_without_a_ledger_limits_hold_too(tmp_path: Path) -> None:
    """As in a simulation."""
    client: Any = scripted_client()
    ask = begun(Asked(build_endpoint(client, rules(), None, None, {})), job(updates=1, figures=1))
    assert [ask("update", number) for number in (0, 0, 1)] == [None, None, FailureCode.SPENT]
    assert [ask("evaluate", number) for number in (0, 0, 1)] == [None, None, FailureCode.SPENT]


# The ledger's file


@pytest.fixture
def own(tmp_path: Path) -> LedgerSettings:
    """The files of an owner whose ledger has two replies' lines."""
    paths = {name: str(tmp_path / f"{name}.of-owner") for name in ("file", "secret", "approved")}
    settings = LedgerSettings(**paths)
    add_reply(settings)
    add_reply(settings)
    return settings


def add_reply(settings: LedgerSettings) -> None:
    """One more figure in the ledger."""
    ledger = open_ledger(settings, "north")
    number = ledger.head.entries
    facts = {"kind": "evaluate_reply", "run": "r", "asked": f"{number}", "epsilon": None, "bytes": 1, "engine_bytes": 0}
    ledger.append(REPLY, facts)


def figures(settings: LedgerSettings) -> int:
    """How many figures count after a start."""
    return open_ledger(settings, "north").history.spent("r").figures


def test_a_ledger_that_was_deleted_ends_the_start_with_what_to_do(own: LedgerSettings) -> None:
    Path(own.file).unlink()
    for _ in range(2):
        with pytest.raises(LedgerError, match=r"is missing.*ifedicl ledger restore COPY.*ifedicl ledger forget"):
            open_ledger(own, "north")
    assert not Path(own.file).exists()


def test_a_copy_that_is_restored_counts_what_it_has(own: LedgerSettings, tmp_path: Path) -> None:
    copy = shutil.copy(own.file, tmp_path / "copy")
    Path(own.file).unlink()
    assert restore_ledger(own, Path(copy)) == 3
    assert Path(own.file).stat().st_mode & 0o077 == 0
    assert figures(own) == 2


def test_only_a_newer_copy_of_the_same_ledger_takes_its_place(own: LedgerSettings, tmp_path: Path) -> None:
    older = Path(shutil.copy(own.file, tmp_path / "older"))
    add_reply(own)
    newer = Path(shutil.copy(own.file, tmp_path / "newer"))
    with pytest.raises(LedgerError, match=r"does not continue .*, which has 4 lines"):
        restore_ledger(own, older)
    assert figures(own) == 3
    shutil.copy(older, own.file)
    assert restore_ledger(own, newer) == 4
    assert figures(own) == 3
    changed = tmp_path / "changed"
    changed.write_bytes(newer.read_bytes().replace(b'"bytes":1', b'"bytes":2', 1))
    with pytest.raises(LedgerError, match="line 2"):
        restore_ledger(own, changed)
    other = LedgerSettings(file=str(tmp_path / "other"), secret=str(tmp_path / "other-secret"))
    open_ledger(other, "north")
    with pytest.raises(LedgerError, match="does not continue"):
        restore_ledger(own, Path(other.file))
    assert figures(own) == 3


def test_after_a_restore_on_a_new_machine_the_ledger_may_not_be_deleted_either(own: LedgerSettings, tmp_path: Path) -> None:
    fresh = LedgerSettings(file=str(tmp_path / "new"), secret=str(tmp_path / "new-secret"))
    restore_ledger(fresh, Path(own.file))
    Path(fresh.file).unlink()
    with pytest.raises(LedgerError, match="is missing"):
        open_ledger(fresh, "north")


def test_a_ledger_that_is_forgotten_is_kept_and_a_new_one_counts_from_nothing(own: LedgerSettings) -> None:
    secret, key, before = secret_of(own), split_key_of(own), read(Path(own.file))[0]
    kept = forget_ledger(own)
    assert kept is not None
    assert read(kept)[0] == before
    assert figures(own) == 0
    assert not open_ledger(own, "north").knows(before[-1].head)
    assert (secret_of(own), split_key_of(own)) == (secret, key)  # so examples are divided as before
    Path(own.file).unlink()
    with pytest.raises(LedgerError, match="is missing"):
        open_ledger(own, "north")


def test_a_lost_ledger_can_be_forgotten(own: LedgerSettings) -> None:
    Path(own.file).unlink()
    assert forget_ledger(own) is None
    assert figures(own) == 0


@pytest.fixture
def client_file(tmp_path: Path) -> Path:
    """A ``client.toml`` whose ledger has one reply's line."""
    path = tmp_path / "client.toml"
    path.write_text('[data]\nfile = "rows.jsonl"\n[model]\nsource = "nowhere"\n')
    add_reply(of_folder(tmp_path))
    return path


def of_folder(folder: Path) -> LedgerSettings:
    """The usual files of a folder."""
    return LedgerSettings(**{name: str(folder / field.default) for name, field in LedgerSettings.model_fields.items()})


def test_the_command_that_restores(client_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = client_file.parent
    copy = folder / "copy.jsonl"
    shutil.copy(folder / "ledger.jsonl", copy)
    add_reply(of_folder(folder))
    assert run("ledger", "restore", copy, client_file) == LedgerError.exit_code
    assert "does not continue" in capsys.readouterr().err
    (folder / "ledger.jsonl").unlink()
    assert run("ledger", "restore", copy, client_file) == 0
    assert "2 lines" in capsys.readouterr().out
    assert figures(of_folder(folder)) == 1


def test_the_command_that_forgets_says_what_it_costs_first(client_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = client_file.parent
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert run("ledger", "forget", client_file) == 2
    out = capsys.readouterr().out
    assert "nothing was changed" in out
    assert "--yes" in out
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert run("ledger", "forget", client_file, "--yes") == 0
    (kept,) = folder.glob("ledger.jsonl.*")
    assert str(kept) in capsys.readouterr().out
    assert kept.read_bytes() == before["ledger.jsonl"]
    assert figures(of_folder(folder)) == 0
