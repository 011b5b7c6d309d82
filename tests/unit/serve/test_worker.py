"""The model's thread: batches, waiting, giving up, failing and stopping."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest

from ifedicl.backbone.load import Backbone
from ifedicl.errors import BusyError, DataError, ServeError, StoppedError
from ifedicl.serve import worker as worker_module
from ifedicl.serve.worker import Scored, Worker
from tests.support import tiny
from tests.support.placed import placed_of
from tests.support.serve import TEXTS, PausedPasses, questions

# The model's thread


def test_requests_of_several_adapters_get_what_each_says_alone(worker: Worker, backbone: Backbone) -> None:
    adapters = [
        tiny.drawn_adapter(backbone, task, rank=rank, seed=rank) for task, rank in ((tiny.TASK, 4), (tiny.MANY_TOKENS, 2))
    ]
    classifiers = [adapter.classifier(backbone) for adapter in adapters]
    placed = [placed_of(classifier)[0] for classifier in classifiers]
    tasks = [adapter.task for adapter in adapters]
    futures = [worker.submit([placed[at % 2]], questions([text], tasks[at % 2])) for at, text in enumerate(TEXTS)]
    answers = [future.result(10).scores[0][0] for future in futures]
    for number, classifier in enumerate(classifiers):
        expected = classifier.log_probabilities(TEXTS[number::2])
        np.testing.assert_allclose(np.stack(answers[number::2]), expected, atol=1e-5)


def test_whatever_waits_is_mixed_into_one_pass(worker: Worker, backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    model = PausedPasses(monkeypatch)
    adapters = [placed_of(tiny.drawn_adapter(backbone, seed=seed).classifier(backbone))[0] for seed in (1, 2)]
    first = worker.submit([adapters[0]], questions(TEXTS[:1]))
    assert model.begun.wait(10)
    rest = [worker.submit([adapters[number % 2]], questions([text])) for number, text in enumerate(TEXTS[1:])]
    model.resume()
    for future in (first, *rest):
        future.result(10)
    assert model.passes == [1, len(rest)]


def test_a_long_request_does_not_hold_up_a_short_one(
    worker: Worker, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "_WINDOW", 4)
    model = PausedPasses(monkeypatch)
    placed = placed_of(tiny.drawn_adapter(backbone).classifier(backbone))[0]
    worker.submit([placed], questions(TEXTS[:1]))
    assert model.begun.wait(10)
    ended: list[str] = []
    long, short = worker.submit([placed], questions(TEXTS * 2)), worker.submit([placed], questions(TEXTS[:1]))
    long.add_done_callback(lambda _: ended.append("long"))
    short.add_done_callback(lambda _: ended.append("short"))
    model.resume()
    long.result(10)
    assert ended == ["short", "long"]


def test_more_than_may_wait_is_refused_and_there_is_room_again_after(
    worker: Worker, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = PausedPasses(monkeypatch)
    placed, raw = placed_of(tiny.drawn_adapter(backbone).classifier(backbone))
    futures = [worker.submit([placed, raw], questions()), worker.submit([placed], questions())]  # 16 and 8 rows
    with pytest.raises(BusyError, match="the queue holds 24 texts, 1 more are over its limit of 24"):
        worker.submit([placed], questions(TEXTS[:1]))
    model.resume()
    for future in futures:
        future.result(10)
    assert worker.submit([placed], questions(TEXTS[:1])).result(10).truncated == 0
    assert worker.waiting == 0


def test_a_request_that_was_given_up_is_not_worked_on_and_frees_its_place(
    worker: Worker, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = PausedPasses(monkeypatch)
    placed = placed_of(tiny.drawn_adapter(backbone).classifier(backbone))[0]
    first = worker.submit([placed], questions(TEXTS[:1]))
    assert model.begun.wait(10)
    given_up = worker.submit([placed], questions())
    assert given_up.cancel()
    model.resume()
    first.result(10)
    worker.call(lambda: None).result(10)
    assert model.passes == [1]
    assert worker.waiting == 0


def test_a_failing_pass_fails_its_requests_and_no_others(
    worker: Worker, backbone: Backbone, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    placed = placed_of(tiny.drawn_adapter(backbone).classifier(backbone))[0]
    nothing: dict[str, Any] = {}
    with monkeypatch.context() as patch:
        patch.setattr(worker_module, "scores_of", lambda backbone, turns, on_pass: nothing["secret text"])
        with pytest.raises(ServeError, match="the model failed on this request"):
            worker.submit([placed], questions()).result(10)
    assert "secret" not in caplog.text
    assert len(worker.submit([placed], questions()).result(10).scores[0]) == len(TEXTS)
    with pytest.raises(DataError, match="text number 2 has no tokens"):
        worker.submit([placed], questions(["fine", ""])).result(10)


def test_an_answer_that_cannot_be_put_together_fails_its_own_request_and_the_thread_goes_on(
    worker: Worker, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    placed = placed_of(tiny.drawn_adapter(backbone).classifier(backbone))[0]
    with monkeypatch.context() as patch:
        patch.setattr(
            worker_module,
            "scores_of",
            lambda backbone, turns, on_pass: [np.zeros((1, turn.work + at)) for at, turn in enumerate(turns)],
        )
        with pytest.raises(ServeError, match="the model failed on this request"):
            worker.submit([placed], questions(TEXTS[:2])).result(10)
    assert worker.waiting == 0
    assert len(worker.submit([placed], questions()).result(10).scores[0]) == len(TEXTS)


def test_stopping_answers_what_is_here_and_takes_nothing_new(backbone: Backbone) -> None:
    worker = Worker(backbone, most_waiting=100, on_pass=lambda rows, seconds: None)
    placed = placed_of(tiny.drawn_adapter(backbone).classifier(backbone))[0]
    futures: list[Future[Scored]] = [worker.submit([placed], questions()) for _ in range(5)]
    worker.stop()
    assert [len(future.result(0).scores[0]) for future in futures] == [8] * 5
    assert not worker.is_open
    with pytest.raises(StoppedError):
        worker.submit([placed], questions())
