"""The model's thread with adapters of several kinds: what runs together, taking turns, and giving up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from ifedicl.backbone import answer_scoring, generation
from ifedicl.backbone.load import Backbone
from ifedicl.backbone.multi_adapter import Apart, Placed
from ifedicl.errors import BusyError, DataError
from ifedicl.kinds.any_task import AnyTask
from ifedicl.kinds.choices import Choice
from ifedicl.kinds.passages import Passage
from ifedicl.serve import worker as worker_module
from ifedicl.serve.worker import Worker
from tests.support import choices, label_sets, passages, tiny
from tests.support.serve import TEXTS, PausedPasses, questions

CHOICES = choices.choices(6)  # of 3, 2, 4, 3, 2 and 4 options


def placed(backbone: Backbone, task: AnyTask, seed: int = 1) -> Placed | Apart:
    """An adapter of random numbers."""
    return replace(tiny.drawn_adapter(backbone, seed=seed), task=task).on_model(backbone).placed()[0]


def test_choices_of_several_requests_for_one_adapter_run_together_and_labels_beside_them(
    worker: Worker, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = PausedPasses(monkeypatch)
    one, other = placed(backbone, choices.TASK), placed(backbone, choices.TASK, seed=2)
    labels, sets = placed(backbone, tiny.TASK), placed(backbone, label_sets.TASK)
    futures = [worker.submit([labels], questions(TEXTS[:1]))]
    assert model.begun.wait(10)
    futures += [worker.submit([one], CHOICES[:1]), worker.submit([other], CHOICES[:1]), worker.submit([one], CHOICES[1:3])]
    futures += [worker.submit([labels], questions(TEXTS[:2])), worker.submit([sets], label_sets.examples(1))]
    model.resume()
    for future in futures:
        future.result(10)
    # First label words, in passes of their layouts; then one adapter's choices after the other's.
    assert model.passes == [1, 2, 1, 3, 1]
    assert len(futures[3].result().scores[0]) == 2 + 4  # a row for each option


@pytest.mark.parametrize("long_kind", ["choose", "classify"])
def test_a_long_request_of_either_kind_does_not_hold_up_a_short_one(
    worker: Worker, backbone: Backbone, monkeypatch: pytest.MonkeyPatch, long_kind: str
) -> None:
    monkeypatch.setattr(worker_module, "_WINDOW", 6)
    model = PausedPasses(monkeypatch)
    labels, chosen = placed(backbone, tiny.TASK), placed(backbone, choices.TASK)
    worker.submit([labels], questions(TEXTS[:1]))
    assert model.begun.wait(10)
    ended: list[str] = []
    asked: dict[str, Callable[[int], Any]] = {
        "choose": lambda count: worker.submit([chosen], CHOICES[:count]),
        "classify": lambda count: worker.submit([labels], questions((TEXTS * 2)[:count])),
    }
    short_kind = next(kind for kind in asked if kind != long_kind)
    long = asked[long_kind](6 if long_kind == "choose" else 12)
    short = asked[short_kind](1)
    long.add_done_callback(lambda _: ended.append("long"))
    short.add_done_callback(lambda _: ended.append("short"))
    model.resume()
    long.result(10)
    assert ended == ["short", "long"]
    assert max(model.passes) <= 6


def test_waiting_options_are_counted_and_a_question_wider_than_the_window_runs_alone(
    worker: Worker, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "_WINDOW", 2)
    model = PausedPasses(monkeypatch)
    chosen = placed(backbone, choices.TASK)
    future = worker.submit([chosen, chosen], CHOICES[:3])
    assert worker.waiting == 2 * (3 + 2 + 4)
    with pytest.raises(BusyError, match="the queue holds 18 texts, 9 more are over its limit of 24"):
        worker.submit([chosen], CHOICES[:3])
    model.resume()
    assert [len(scores) for scores in future.result(10).scores] == [9, 9]
    assert model.passes == [1] * 6
    assert worker.waiting == 0


def test_an_option_without_tokens_fails_its_request_with_its_number(worker: Worker, backbone: Backbone) -> None:
    chosen = placed(backbone, choices.TASK)
    with pytest.raises(DataError, match="text number 2 has no tokens"):
        worker.submit([chosen], [CHOICES[0], Choice("", ("good", "bad"))]).result(10)
    assert worker.waiting == 0
    assert len(worker.submit([chosen], CHOICES[:1]).result(10).scores[0]) == 3


def test_choices_that_were_given_up_are_not_worked_on(
    worker: Worker, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, run = PausedPasses(monkeypatch), list[int]()
    scores = Apart.scores

    def counted(self: Apart, examples: Any, on_pass: Callable[[], None]) -> Any:
        run.append(len(examples.labels))
        return scores(self, examples, on_pass)

    monkeypatch.setattr(Apart, "scores", counted)
    chosen = placed(backbone, choices.TASK)
    first, second = worker.submit([chosen], CHOICES[:2]), worker.submit([chosen], CHOICES[:1])
    assert model.begun.wait(10)
    assert first.cancel()
    second.cancel()
    model.resume()
    worker.call(lambda: None).result(10)
    assert run == []
    assert worker.waiting == 0


def test_writing_ends_at_the_next_token_once_nobody_waits(
    worker: Worker, backbone: Backbone, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    steps, write, futures = list[int](), generation.write, list[Any]()

    def leaving(backbone: Backbone, prompts: Any, ends: Any, most: int, on_step: Callable[[], None]) -> Sequence[Any]:
        def step() -> None:
            steps.append(1)
            if len(steps) == 3:
                futures[0].cancel()
            on_step()

        return write(backbone, prompts, ends, most, step)

    monkeypatch.setattr(answer_scoring, "write", leaving)
    written = placed(backbone, passages.TASK)
    with worker._wake:  # nothing begins before the list has it
        futures.append(worker.submit([written], [Passage("the soup was warm")]))
    worker.call(lambda: None).result(10)
    assert worker.submit([placed(backbone, tiny.TASK)], questions(TEXTS[:1])).result(10).truncated == 0
    assert len(steps) == 3
    assert worker.waiting == 0
    assert caplog.text == ""
