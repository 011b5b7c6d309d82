"""A new `client.toml` for a job holds what the job needs as comments; without them, the shipped templates refuse each other."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ifedicl import files
from ifedicl.backbone.model_shape import ModelShape
from ifedicl.federation.manifest import Manifest
from ifedicl.kinds.any_task import AnyTask
from ifedicl.kinds.choose import ChooseTask
from ifedicl.kinds.extraction import ExtractTask
from ifedicl.ledger.usage import History
from ifedicl.owner.needs import needs_of
from ifedicl.owner.new_file import new_client_file, prompt_lines
from ifedicl.owner.policy import ClientSettings, Policy, load_client_settings
from ifedicl.owner.rules import broken_rules
from ifedicl.settings import Method, changed, load_settings
from tests.support import tiny
from tests.support.command_line import run

SHAPE = ModelShape("a" * 64, layers=2, width=8)
GRADIENTS = {"update": "gradient", "optimizer": "adam"}


def manifest(**sections: Any) -> Manifest:
    return Manifest.of(tiny.TASK, changed(Method(), sections, "test"), SHAPE)


def read(folder: Path, text: str) -> ClientSettings:
    (folder / "client.toml").write_text(text)
    return load_client_settings(folder / "client.toml")


def allowed(text: str) -> str:
    """What an owner does who allows all: the two characters before each line that the job needs are removed."""
    return re.sub(r"^(# The job needs the next line\..*\n)# (?=[a-z])", r"\1", text, flags=re.MULTILINE)


@pytest.mark.parametrize(
    ("task", "kind"), [(tiny.TASK, "classify"), (ChooseTask(name="x"), "choose"), (ExtractTask(name="x"), "extract")]
)
def test_the_file_names_the_kind_of_the_jobs_task(task: AnyTask, kind: str, tmp_path: Path) -> None:
    text = new_client_file(Manifest.of(task, Method(), SHAPE)).text
    assert read(tmp_path, text).data.kind == kind
    assert (f'\nkind = "{kind}"' in text) is (kind != "classify")


@pytest.mark.parametrize(
    ("sections", "named"),
    [
        ({}, set()),
        ({"subspace": {}}, {"class_counts"}),
        ({"vectors": {"balance": "class"}}, {"class_counts"}),
        ({"readout": {}}, {"class_counts", "readout_sums"}),
        ({"holdout": {"gate": 0.2}}, {"class_counts"}),
        ({"server": GRADIENTS}, {"gradient_sums"}),
        ({"calibration": {"batch_size": 2, "local_steps": 2}}, {"step", "examples"}),
        ({"calibration": {"local_steps": 2000}}, {"steps"}),
        ({"rounds": {"rounds": 300}}, {"rounds", "figures"}),
    ],
)
def test_the_commented_lines_are_those_that_the_rules_ask_for_and_with_them_every_step_is_answered(
    sections: dict[str, Any], named: set[str], tmp_path: Path
) -> None:
    job = manifest(**sections)
    made = new_client_file(job)
    assert {need.name for need in made.needs} == named
    asis = read(tmp_path, made.text)
    assert asis.policy == replace_ids(Policy(), job)  # nothing is allowed but by the owner
    after = read(tmp_path, allowed(made.text)).policy
    assert needs_of(job, after) == ()
    assert broken_rules(after, job, History(), approved=False) == []
    for need in made.needs:  # none of them is too much
        one = getattr(after, need.section).model_copy(update={need.name: getattr(getattr(Policy(), need.section), need.name)})
        assert needs_of(job, after.model_copy(update={need.section: one})) != ()


def replace_ids(policy: Policy, job: Manifest) -> Policy:
    ids = {"tasks": (job.task.digest,), "models": (job.model.fingerprint,)}
    return policy.model_copy(update={"allow": policy.allow.model_copy(update=ids)})


def test_the_shipped_config_and_the_shipped_policy_fit_after_what_init_says_is_done(
    tmp_path: Path, llama_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, client = tmp_path / "config.toml", tmp_path / "client.toml"
    shipped = files.template("config.toml")
    config.write_text(shipped.replace("HuggingFaceTB/SmolLM2-135M-Instruct", str(llama_folder)))
    tiny.write_rows(
        tmp_path / "tickets.jsonl", [{"text": f"lift {n}", "label": ("urgent", "normal")[n % 2]} for n in range(80)]
    )
    assert run("policy", "init", client, "--config", config) == 0
    said = capsys.readouterr().out
    assert "Ticket: (one of your texts)" in said
    assert "class_counts = true" in said
    settings = load_client_settings(client)
    assert settings.model.source == str(llama_folder)  # not another model than the fingerprint's
    assert run("policy", "approve", config, client) == 2
    assert "allow.class_counts is false" in capsys.readouterr().out
    assert run("policy", "check", client, "--config", config) == 2
    said = capsys.readouterr().out
    assert "refused, all of it:" in said
    assert "allow.class_counts is false" in said
    half = client.read_text().replace("# class_counts = true", "class_counts = true")
    client.write_text(half)
    assert run("policy", "check", client, "--config", config) == 2
    said = capsys.readouterr().out
    assert "REFUSED" in said
    assert "refused, sums for the readout: allow.readout_sums" in said
    client.write_text(allowed(half))
    assert run("policy", "check", client, "--config", config) == 0
    table = capsys.readouterr().out
    assert "REFUSED" not in table
    assert "each round" in table
    assert "{" not in table
    assert run("policy", "approve", config, client) == 0
    said = capsys.readouterr().out
    assert "refuse these steps" not in said
    assert load_settings(config).task.digest in client.read_text()


def test_a_job_file_is_enough_for_an_owner_who_has_not_the_coordinators_model(tmp_path: Path) -> None:
    job = manifest(readout={})
    (tmp_path / "job.manifest.json").write_text(json.dumps(job.to_json()))
    assert run("policy", "init", tmp_path / "client.toml", "--config", tmp_path / "job.manifest.json") == 0
    text = (tmp_path / "client.toml").read_text()
    assert SHAPE.fingerprint in text
    assert "# readout_sums = true" in text


def test_a_prompt_that_moves_the_cursor_is_shown_as_text_and_stays_a_comment(tmp_path: Path) -> None:
    task = tiny.TASK.model_copy(update={"template": 'Say\r[allow]\u2028x = 1\x1b[2K\n"{text}":'})
    made = new_client_file(replace(manifest(), task=task))
    assert read(tmp_path, made.text).policy.allow.class_counts is False
    assert all(line.isprintable() for line in prompt_lines(task))
    assert made.text.count("#   | ") == len(prompt_lines(task)) == 4


def test_a_file_that_exists_is_named_in_one_plain_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (("init",), ("policy", "init")):
        path = tmp_path / f"{len(command)}.toml"
        assert run(*command, path) == 0
        capsys.readouterr()
        assert run(*command, path) == 2
        assert capsys.readouterr().err == f"error: {path} exists already. Choose another name, or replace it with --force\n"
        assert run(*command, path, "--force") == 0
