"""Labels that are steps of a scale: figures against scikit-learn's, and digests and files that do not change."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as reference

from ifedicl.kinds.classify import Task
from ifedicl.kinds.scale import OrderedEvaluation


def test_labels_of_a_scale_have_a_distance_and_a_quadratic_kappa() -> None:
    task = Task(name="stars", labels=tuple("12345"), ordered=True)
    draw = np.random.default_rng(5)
    truth = draw.integers(5, size=120)
    logs = np.log(draw.dirichlet(np.ones(5), size=120) + np.eye(5)[truth] * (draw.random((120, 1)) < 0.5))
    result = task.evaluation(logs, list(map(int, truth)))
    assert isinstance(result, OrderedEvaluation)
    kappa = reference.cohen_kappa_score(truth, logs.argmax(axis=1), weights="quadratic")
    distance = reference.mean_absolute_error(truth, logs.argmax(axis=1))
    assert result.summary()["quadratic_kappa"] == pytest.approx(kappa)
    assert result.summary()["mean_absolute_error"] == pytest.approx(distance)
    assert tuple(result.numbers) == ("mean absolute error", "quadratic kappa")
    assert task.evaluation(logs[:1], [int(logs[0].argmax())]).summary()["quadratic_kappa"] is None


def test_an_ordered_task_is_asked_as_any_other_and_files_name_no_default() -> None:
    plain, ordered = Task(name="m", labels=("a", "b")), Task(name="m", labels=("a", "b"), ordered=True)
    assert plain.digest == ordered.digest
    assert "ordered" not in plain.model_dump()
    assert Task.model_validate(ordered.model_dump()).ordered
    assert plain.evaluation(np.log([[0.4, 0.6]]), [1]).numbers == {}
