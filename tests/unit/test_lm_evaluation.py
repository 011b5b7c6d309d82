"""lm-evaluation-harness: its figures on an adapter's task are our own, and all that it asks runs under the injection."""

from __future__ import annotations

import json
import tomllib
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.registry import Registry, model_registry
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoTokenizer

from ifedicl.adapter import Adapter
from ifedicl.backbone.load import Backbone
from ifedicl.errors import ConfigError, FingerprintError, InputError, TaskError
from ifedicl.kinds.classify import Example, Task
from ifedicl.lm_evaluation.__main__ import NAME, TARGET, main
from ifedicl.lm_evaluation.adapter_lm import AdapterLM
from ifedicl.lm_evaluation.task_file import write_task
from tests.support import choices, passages, tiny
from tests.support.command_line import run
from tests.support.exports import head

WORDS = Task(
    name="home or out?",
    labels=("1", "2", "3"),
    label_words=("at home", "out", "wet shoes"),
    template='{"note": "{text}",\n {{"where":',
    separator=" ",
)
"""Braces that mean something in Jinja, and label words of several tokens."""
CHAT = Task(name="mood", labels=("good", "bad"), template="Which mood?\n{text}", turn="chat", separator=" ")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose tokenizer has a chat template, and an end token: the harness needs one."""
    saved = tiny.save_model(tmp_path_factory.mktemp("ended"))
    tokenizer = tiny.tokenizer()
    tokenizer.add_special_tokens({"eos_token": "<pad>"})
    tokenizer.chat_template = "{% for turn in messages %}[{{ turn['content'] | trim }}]{% endfor %} Mood:"
    tokenizer.save_pretrained(saved)
    return saved


@pytest.fixture(scope="module")
def ended(folder: Path) -> Backbone:
    return tiny.load(folder)


def _saved(backbone: Backbone, folder: Path, task: Task = tiny.TASK, *, with_readout: bool = False) -> Adapter:
    adapter = tiny.drawn_adapter(backbone, task, rank=4, source=backbone.source)
    if with_readout:
        adapter = replace(adapter, readout=head(backbone.width, len(task.labels), intercept=0.1))
    adapter.save(folder)
    return adapter


def _evaluated(lm: AdapterLM, name: str, folder: Path) -> tuple[float, np.ndarray[Any, Any]]:
    """The harness's accuracy, and its ``(N, C)`` log-likelihoods of the choices."""
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    found = simple_evaluate(lm, tasks=[name], task_manager=manager, bootstrap_iters=0, log_samples=True)
    samples = sorted(found["samples"][name], key=lambda sample: sample["doc_id"])
    logs = np.array([[response[0][0] for response in sample["resps"]] for sample in samples])
    return found["results"][name]["acc,none"], logs


def _among(logs: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Log-probabilities among the choices."""
    kept: np.ndarray[Any, Any] = logs - np.logaddexp.reduce(logs, axis=1, keepdims=True)
    return kept


@pytest.mark.parametrize(
    ("task", "batch_size"), [(tiny.TASK, 5), (WORDS, 1), (CHAT, 3)], ids=["one token", "several tokens", "chat"]
)
def test_the_harness_finds_our_accuracy_and_log_probabilities(
    task: Task, batch_size: int, ended: Backbone, tmp_path: Path
) -> None:
    adapter, rows = _saved(ended, tmp_path / "adapter", task), tiny.examples(30, task=task)
    name = write_task(adapter, rows, tmp_path / "tasks")
    accuracy, logs = _evaluated(AdapterLM(str(tmp_path / "adapter"), batch_size=batch_size), name, tmp_path / "tasks")
    ours = adapter.classifier(ended)
    expected = ours.log_probabilities([row.text for row in rows])
    np.testing.assert_allclose(_among(logs), expected, atol=1e-4)
    assert accuracy == pytest.approx(ours.evaluate(rows).accuracy, abs=1e-9)
    raw = replace(adapter, coefficients=adapter.coefficients.identity(adapter.coefficients.form)).classifier(ended)
    assert np.abs(raw.log_probabilities([row.text for row in rows]) - expected).max() > 0.01


def test_with_its_readout_an_adapter_has_its_own_figures_in_the_harness(ended: Backbone, tmp_path: Path) -> None:
    adapter, rows = _saved(ended, tmp_path / "adapter", with_readout=True), tiny.examples(30)
    name = write_task(adapter, rows, tmp_path / "tasks")
    lms = [AdapterLM(str(tmp_path / "adapter"), use_readout=used) for used in (True, False)]
    with_it, without = (_evaluated(lm, name, tmp_path / "tasks") for lm in lms)
    ours = adapter.classifier(ended)
    np.testing.assert_allclose(with_it[1], ours.log_probabilities([row.text for row in rows]), atol=1e-4)
    assert with_it[0] == pytest.approx(ours.evaluate(rows).accuracy, abs=1e-9)
    bare = replace(adapter, readout=None).classifier(ended)
    np.testing.assert_allclose(_among(without[1]), bare.log_probabilities([row.text for row in rows]), atol=1e-4)
    assert np.abs(_among(without[1]) - with_it[1]).max() > 0.05


def _asked(context: str, continuation: str, text: str = "warm soup") -> Instance:
    return Instance("loglikelihood", {"text": text}, (context, continuation), 0)


def test_a_readout_answers_nothing_but_the_adapters_own_questions(ended: Backbone, tmp_path: Path) -> None:
    _saved(ended, tmp_path / "adapter", with_readout=True)
    lm = AdapterLM(str(tmp_path / "adapter"), use_readout=True)
    prompt = tiny.TASK.prompt("warm soup")
    assert [greedy for _, greedy in lm.loglikelihood([_asked(prompt, " good"), _asked(prompt, " bad")])].count(True) == 1
    for context, word in ((f"Text: a\nMood: bad\n\n{prompt}", " good"), (prompt, " fair"), (prompt, "good")):
        with pytest.raises(InputError, match="without examples in the prompt") as refused:
            lm.loglikelihood([_asked(context, word)])
        assert "soup" not in str(refused.value)
    rolling = Instance("loglikelihood_rolling", {}, ("warm soup",), 0)
    with pytest.raises(InputError, match="Leave use_readout out"):
        lm.loglikelihood_rolling([rolling])
    with pytest.raises(InputError, match="Leave use_readout out"):
        lm.generate_until([Instance("generate_until", {}, ("warm", {"max_gen_toks": 4, "until": ["."]}), 0)])


def test_a_readout_that_is_not_there_is_refused(ended: Backbone, tmp_path: Path) -> None:
    _saved(ended, tmp_path / "adapter")
    with pytest.raises(InputError, match="use_readout: received true, but the adapter has no readout"):
        AdapterLM(str(tmp_path / "adapter"), use_readout=True)


def test_any_task_runs_under_the_injection_as_the_folded_checkpoint_does(ended: Backbone, tmp_path: Path) -> None:
    """Generation in batches, with padding at the left, and the likelihood of whole texts."""
    adapter = _saved(ended, tmp_path / "adapter")
    adapter.export(tmp_path / "folded", ended)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "folded")
    ours = AdapterLM(str(tmp_path / "adapter"), batch_size=4)
    theirs = HFLM(str(tmp_path / "folded"), tokenizer=tokenizer, device="cpu", dtype="float32", batch_size=4)
    plain = HFLM(ended.source, device="cpu", dtype="float32", batch_size=4)
    wanted = {"max_gen_toks": 12, "until": ["zzz"]}
    continued = [Instance("generate_until", {}, (text, wanted), 0) for text in tiny.SENTENCES]
    whole = [Instance("loglikelihood_rolling", {}, (text,), 0) for text in tiny.SENTENCES]
    assert ours.generate_until(continued) == theirs.generate_until(continued)
    assert ours.generate_until(continued) != plain.generate_until(continued)
    np.testing.assert_allclose(ours.loglikelihood_rolling(whole), theirs.loglikelihood_rolling(whole), atol=1e-3)
    after = [module for module in ended.model.modules() if module._forward_hooks]
    assert after == []


def test_the_harness_is_told_which_adapter_and_no_path(ended: Backbone, tmp_path: Path) -> None:
    adapter = _saved(ended, tmp_path / "adapter")
    about = AdapterLM(str(tmp_path / "adapter"), device="cuda:0").get_model_info()  # the harness's default, without a GPU
    assert about["adapter"]["model_fingerprint"] == adapter.fingerprint
    assert str(tmp_path) not in json.dumps(about, default=str)
    assert str(Path(ended.source).parent) not in json.dumps(about, default=str)


def test_another_model_and_a_wrong_dtype_are_refused(ended: Backbone, tmp_path: Path) -> None:
    _saved(ended, tmp_path / "adapter")
    other = tiny.save_model(tmp_path / "other", "gpt2")
    with pytest.raises(FingerprintError):
        AdapterLM(str(tmp_path / "adapter"), backbone=str(other))
    with pytest.raises(ConfigError, match="dtype"):
        AdapterLM(str(tmp_path / "adapter"), dtype="float8")


def test_the_entry_point_is_the_model() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    ((name, target),) = project["entry-points"]["lm_eval.models"].items()
    assert (name, target) == (NAME, TARGET)
    registry: Any = Registry("model")
    registry.register(name, target=EntryPoint(name, target, "lm_eval.models"))
    assert registry.get(name) is AdapterLM
    assert NAME not in model_registry  # the harness's own names are not taken


def test_what_is_wrong_is_said_in_a_line_and_with_its_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names: list[bool] = []

    def asked() -> None:
        names.extend(name in model_registry for name in (NAME, "hf"))
        AdapterLM("nowhere")

    monkeypatch.setattr("lm_eval.__main__.cli_evaluate", asked)
    monkeypatch.setattr(model_registry, "_objs", dict(model_registry.items()))
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 5
    assert capsys.readouterr().err.startswith("error: nowhere is not an adapter")
    assert names == [True, True]


def test_a_task_file_asks_every_text_as_it_stands(ended: Backbone, tmp_path: Path) -> None:
    adapter = replace(tiny.drawn_adapter(ended, WORDS), model=tiny.drawn_adapter(ended).model)
    texts = ("{{ 7 * 7 }} {% raw %}", 'a "quoted"\nline\u2028and 😀', "{text}", "2024-05-01")
    rows = [Example(text, label) for text in texts for label in WORDS.labels]
    name = write_task(adapter, rows, tmp_path)
    assert name == "ifedicl_home_or_out"
    task = TaskManager(include_path=str(tmp_path), include_defaults=False).load([name])["tasks"][name]
    documents = list(task.test_docs())
    assert [task.doc_to_text(document) for document in documents] == [WORDS.prompt(row.text) for row in rows]
    assert [task.doc_to_target(document) for document in documents] == [WORDS.index(row.label) for row in rows]
    assert task.doc_to_choice(documents[0]) == list(WORDS.label_words)
    kept = {path.parts[len(tmp_path.parts)] for path in tmp_path.rglob("*")}
    assert kept == {f"{name}.yaml", f"{name}.jsonl", "cache"}  # all copies of the rows are here


def test_the_task_by_hand_of_the_page_is_what_is_written(ended: Backbone, tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "integrations.md").read_text()
    by_hand = yaml.safe_load(page.partition("```yaml\n")[2].partition("```")[0])
    name = write_task(tiny.drawn_adapter(ended), tiny.examples(4), tmp_path)
    written = yaml.safe_load((tmp_path / f"{name}.yaml").read_text())
    assert set(by_hand.pop("dataset_kwargs")) == set(written["dataset_kwargs"])
    assert by_hand == {field: written[field] for field in by_hand}
    assert set(written) - set(by_hand) == {"dataset_kwargs", "target_delimiter", "num_fewshot", "metadata"}


@pytest.mark.parametrize("answer_by", ["option", "letter"])
def test_choices_are_asked_with_their_own_options(answer_by: str, ended: Backbone, tmp_path: Path) -> None:
    task = choices.TASK.model_copy(update={"normalise_length": False, "answer_by": answer_by})
    adapter, rows = replace(tiny.drawn_adapter(ended, rank=4, source=ended.source), task=task), choices.choices(18)
    adapter.save(tmp_path / "adapter")
    name = write_task(adapter, rows, tmp_path / "tasks")
    lm, manager = (
        AdapterLM(str(tmp_path / "adapter")),
        TaskManager(include_path=str(tmp_path / "tasks"), include_defaults=False),
    )
    found = simple_evaluate(lm, tasks=[name], task_manager=manager, bootstrap_iters=0, log_samples=True)
    ours = adapter.on_model(ended)
    assert found["results"][name]["acc,none"] == pytest.approx(ours.evaluate(rows).accuracy, abs=1e-9)
    for sample in found["samples"][name]:
        logs = np.array([[response[0][0] for response in sample["resps"]]])
        (expected,) = ours.answers([rows[sample["doc_id"]]])
        np.testing.assert_allclose(np.exp(_among(logs))[0], expected.facts["probabilities"], atol=1e-4)
    with pytest.raises(InputError, match="use_readout"):
        AdapterLM(str(tmp_path / "adapter"), use_readout=True)


def test_a_kind_without_choices_is_refused(ended: Backbone, tmp_path: Path) -> None:
    adapter = replace(tiny.drawn_adapter(ended), task=passages.TASK)
    with pytest.raises(TaskError, match=r"task\.kind: received 'extract'.*`ifedicl evaluate`"):
        write_task(adapter, passages.passages(3), tmp_path)


def test_a_task_that_divides_by_tokens_is_refused(ended: Backbone, tmp_path: Path) -> None:
    task = WORDS.model_copy(update={"normalise_length": True})
    with pytest.raises(TaskError, match=r"task\.normalise_length: .*`ifedicl evaluate`"):
        write_task(tiny.drawn_adapter(ended, task), [Example("a", "1")], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_command_writes_the_task_of_a_table(ended: Backbone, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _saved(ended, tmp_path / "adapter")
    (tmp_path / "a.csv").write_text("note,mood\nwarm soup,good\ncold room,bad\n")
    columns = ("--text-column", "note", "--label-column", "mood")
    assert run("harness", tmp_path / "adapter", tmp_path / "a.csv", tmp_path / "tasks", *columns) == 0
    assert "--tasks ifedicl_mood --include_path" in capsys.readouterr().out
    rows = (tmp_path / "tasks" / "ifedicl_mood.jsonl").read_text().splitlines()
    assert [json.loads(row) for row in rows] == [
        {"text": "warm soup", "choices": ["good", "bad"], "right": 0},
        {"text": "cold room", "choices": ["good", "bad"], "right": 1},
    ]
    assert yaml.safe_load((tmp_path / "tasks" / "ifedicl_mood.yaml").read_text())["doc_to_choice"] == "choices"
