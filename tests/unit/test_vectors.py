"""Context vectors against means taken by hand from single runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from ifedicl.backbone.load import Backbone
from ifedicl.backbone.passes import PassBudget
from ifedicl.backbone.scoring import Scorer
from ifedicl.core.aggregation import AGGREGATE_VECTORS
from ifedicl.core.vectors import ContextVectors, pooled_mean, uniform_mean
from ifedicl.extract import context_vectors
from ifedicl.federation.messages import VectorsReply, decode_reply, encode
from ifedicl.kinds.classify import Task
from ifedicl.settings import Method
from tests.support import tiny

TEXTS = tuple(example.text for example in tiny.examples(9))


def _method(**vectors: Any) -> Method:
    return Method.model_validate({"vectors": vectors})


def _by_hand(backbone: Backbone, sequence: tuple[int, ...]) -> npt.NDArray[np.float64]:
    """``(L, 2, d)``: what attention and MLP of each layer put out at the last token of one sequence, alone."""
    seen: list[torch.Tensor] = []

    def keep(module: Any, inputs: Any, output: Any) -> None:
        seen.append((output[0] if isinstance(output, tuple) else output)[0, -1])

    handles = [
        block.register_forward_hook(keep) for layer in backbone.model.model.layers for block in (layer.self_attn, layer.mlp)
    ]
    try:
        with torch.no_grad():
            backbone.model(torch.tensor([sequence]))
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack(seen).reshape(3, 2, -1).double().numpy()


def _sequences(backbone: Backbone, task: Task, labels: list[int], position: str) -> list[tuple[int, ...]]:
    rows = []
    for text, label in zip(TEXTS, labels, strict=True):
        ending = task.separator + task.label_words[label] if position == "label" else ""
        rows.append(tuple(backbone.tokenizer(task.prompt(text) + ending)["input_ids"]))
    return rows


@pytest.mark.parametrize("position", ["label", "prompt"])
@pytest.mark.parametrize("task", [tiny.TASK, tiny.MANY_TOKENS], ids=["one token", "several"])
def test_vectors_are_means_of_single_runs_at_the_read_position(backbone: Backbone, task: Task, position: Any) -> None:
    scorer = Scorer(backbone, task)
    scorer.budget = PassBudget(tokens=60, overhead=0, remembered=960)  # several batches, with padding
    labels = [0, 1, 1, 0, 0, 0, 1, 0, 1]
    prompts = scorer.encoder.prompts(TEXTS).tokens
    assert len(set(map(len, prompts))) > 2
    vectors = context_vectors(scorer, prompts, labels, _method(read_position=position))
    expected = np.mean([_by_hand(backbone, row) for row in _sequences(backbone, task, labels, position)], axis=0)
    np.testing.assert_allclose(vectors.mean(), expected, rtol=1e-4, atol=1e-6)
    assert vectors.counts.tolist() == [9]
    assert vectors.sums.shape == (1, 3, 2, 32)


def test_the_two_read_positions_differ(backbone: Backbone) -> None:
    scorer = Scorer(backbone, tiny.TASK)
    prompts = scorer.encoder.prompts(TEXTS).tokens
    at = {
        position: context_vectors(scorer, prompts, [0] * 9, _method(read_position=position)).mean()
        for position in ("label", "prompt")
    }
    assert np.abs(at["label"] - at["prompt"]).max() > 1e-3


def test_balanced_vectors_are_kept_by_class(backbone: Backbone) -> None:
    scorer = Scorer(backbone, tiny.MANY_TOKENS)
    labels = [0, 0, 0, 0, 0, 0, 0, 1, 1]  # nobody is out
    prompts = scorer.encoder.prompts(TEXTS).tokens
    vectors = context_vectors(scorer, prompts, labels, _method(balance="class"))
    single = [_by_hand(backbone, row) for row in _sequences(backbone, tiny.MANY_TOKENS, labels, "label")]
    classes = np.mean(single[:7], axis=0), np.mean(single[7:], axis=0)
    assert vectors.counts.tolist() == [7, 2, 0]
    np.testing.assert_allclose(vectors.means[:2], classes, rtol=1e-4, atol=1e-6)
    assert not vectors.means[2].any()
    np.testing.assert_allclose(pooled_mean([vectors]), np.mean(classes, axis=0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(uniform_mean([vectors]), np.mean(classes, axis=0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(vectors.mean(), np.mean(single, axis=0), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("balance", ["none", "class"])
def test_vectors_of_parts_combine_to_those_of_all(backbone: Backbone, balance: Any) -> None:
    scorer = Scorer(backbone, tiny.TASK)
    settings = _method(balance=balance)
    labels = [0, 1, 1, 0, 0, 0, 1, 0, 1]
    prompts = scorer.encoder.prompts(TEXTS).tokens
    whole = context_vectors(scorer, prompts, labels, settings)
    parts = [context_vectors(scorer, prompts[a:b], labels[a:b], settings) for a, b in ((0, 4), (4, 8), (8, 9))]
    combined = parts[0].combine(parts[1]).combine(parts[2])
    np.testing.assert_allclose(combined.sums, whole.sums, rtol=1e-5, atol=1e-6)
    assert combined.counts.tolist() == whole.counts.tolist()
    np.testing.assert_allclose(pooled_mean(parts), pooled_mean([whole]), rtol=1e-5, atol=1e-6)


def test_vectors_of_no_example_are_zero_and_combine_to_the_other(backbone: Backbone) -> None:
    scorer = Scorer(backbone, tiny.TASK)
    nothing = context_vectors(scorer, [], [], _method())
    some = context_vectors(scorer, scorer.encoder.prompts(TEXTS).tokens, [0] * 9, _method())
    assert nothing.examples == 0
    assert not nothing.mean().any()
    assert np.array_equal(nothing.combine(some).sums, some.sums)


def _vectors(means: list[float], counts: list[int]) -> ContextVectors:
    """Vectors with one layer and width 1: attention holds the mean, the MLP its negative."""
    return ContextVectors.from_wire(np.array([[[[mean], [-mean]]] for mean in means]), np.array(counts))


def test_uniform_aggregation_counts_clients_and_pooled_aggregation_counts_examples() -> None:
    clients = [_vectors([1.0], [1]), _vectors([4.0], [9]), _vectors([7.0], [2])]
    assert AGGREGATE_VECTORS["uniform"](clients).ravel().tolist() == [4.0, -4.0]  # (1 + 4 + 7) / 3
    pooled = AGGREGATE_VECTORS["examples"](clients).ravel()
    np.testing.assert_allclose(pooled, [51 / 12, -51 / 12], rtol=1e-6)  # (1·1 + 9·4 + 2·7) / 12


def test_class_means_are_averaged_over_the_clients_that_hold_the_class() -> None:
    # Class 0: clients with means 2 (1 example) and 6 (3 examples). Class 1: one client, 10. Class 2: nobody.
    clients = [_vectors([2.0, 0.0, 0.0], [1, 0, 0]), _vectors([6.0, 10.0, 0.0], [3, 5, 0])]
    assert uniform_mean(clients).ravel().tolist() == [7.0, -7.0]  # mean of (2 + 6) / 2 and 10
    assert pooled_mean(clients).ravel().tolist() == [7.5, -7.5]  # mean of (2 + 18) / 4 and 10


@pytest.mark.parametrize("wire_dtype", ["float32", "float16"])
def test_means_and_counts_arrive_as_the_bytes_of_a_reply_hold_them(backbone: Backbone, wire_dtype: str) -> None:
    scorer = Scorer(backbone, tiny.TASK)
    prompts = scorer.encoder.prompts(TEXTS).tokens
    vectors = context_vectors(scorer, prompts, [0, 1, 1, 0, 0, 0, 1, 0, 1], _method(balance="class"))
    data = encode(VectorsReply(vectors, "9:x", True, "float32", wire_dtype))
    arrived = decode_reply(data)
    assert isinstance(arrived, VectorsReply)
    assert arrived.vectors.counts.tolist() == vectors.counts.tolist() == [5, 4]
    rounded = vectors.means.astype(wire_dtype)
    assert rounded.tobytes() in data, "the means travel as they are rounded"
    np.testing.assert_array_equal(arrived.vectors.means.astype(wire_dtype), rounded)
    np.testing.assert_allclose(
        arrived.vectors.sums, rounded.astype(np.float64) * vectors.counts[:, None, None, None], rtol=1e-6
    )


@pytest.mark.parametrize(
    ("sums", "counts"), [((1, 3, 2), (1,)), ((1, 3, 3, 4), (1,)), ((2, 3, 2, 4), (1,))], ids=["rank", "writes", "groups"]
)
def test_sums_of_another_shape_are_refused(sums: tuple[int, ...], counts: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"allowed: \(G, L, 2, d\) and \(G,\)"):
        ContextVectors(np.zeros(sums), np.zeros(counts, dtype=np.int64))


def test_numbers_that_are_none_are_noticed() -> None:
    assert _vectors([1.0], [1]).is_finite
    assert not _vectors([float("nan")], [1]).is_finite
    assert not _vectors([float("inf")], [1]).is_finite
    assert not _vectors([1.0], [-1]).is_finite
