"""The upper layers alone on kept states: the same as the whole model, in less work."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ifedicl.backbone.hooks import injected
from ifedicl.backbone.layer_cache import Shelf, UpperLayers
from ifedicl.backbone.layout import Row, states_of
from ifedicl.backbone.load import Backbone
from ifedicl.backbone.scoring import Scorer
from ifedicl.core.subspace import ContextTensors
from tests.support import tiny
from tests.support.families import SOME_FAMILIES
from tests.support.local_runs import run_real

ROWS = tuple(map(Row, ((5, 17, 3, 99, 250, 42), (9, 4, 200), (120,), (9, 4, 200))))


def _counted(backbone: Backbone, layer: int) -> list[int]:
    """The rows of each pass through a layer, as they happen."""
    rows: list[int] = []

    def count(_module: nn.Module, _inputs: object, output: torch.Tensor) -> None:
        rows.append(len(output))

    backbone.writes[layer][0].register_forward_hook(count)
    return rows


def _injection(first: int) -> tuple[ContextTensors, torch.Tensor, np.ndarray[Any, Any]]:
    draws = torch.Generator().manual_seed(3)
    vectors = torch.randn(3, 2, 32, generator=draws)
    scales = torch.stack([torch.randn(3, 2, generator=draws) * 0.3, 0.5 + torch.rand(3, 2, generator=draws)], dim=-1)
    active = np.zeros((3, 2), dtype=np.bool_)
    active[first:] = True
    return ContextTensors(vectors, None), scales, active


@pytest.mark.parametrize("name", SOME_FAMILIES)
@pytest.mark.parametrize("first", [1, 2])
def test_kept_states_give_what_the_whole_model_gives(name: str, first: int) -> None:
    backbone = tiny.family_backbone(name)
    context, scales, active = _injection(first)
    upper = UpperLayers(backbone, first)
    with torch.no_grad(), injected(backbone, context, scales, active):
        whole = states_of(backbone, ROWS)
        for _ in range(2):  # computed, then kept
            alone = upper.hidden_states(ROWS)
            for place, row in enumerate(ROWS):
                length = len(row.tokens)
                torch.testing.assert_close(alone[place, :length], whole[place, :length], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(states_of(backbone, ROWS), whole)  # and leave the model as it was


def test_gradients_are_those_of_the_whole_model() -> None:
    backbone = tiny.family_backbone("llama")
    context, scales, active = _injection(1)
    upper = UpperLayers(backbone, 1)
    gradients = []
    for states in (lambda: states_of(backbone, ROWS[:1]), lambda: upper.hidden_states(ROWS[:1])):
        leaf = scales.clone().requires_grad_()
        with injected(backbone, context, leaf, active):
            states().square().sum().backward()
        assert leaf.grad is not None
        gradients.append(leaf.grad)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-5)
    assert bool((gradients[0][1:] != 0).all())


def test_lower_layers_run_once_for_each_sequence_however_it_is_batched() -> None:
    backbone = tiny.family_backbone("llama")
    calls, upper = _counted(backbone, 0), UpperLayers(backbone, 2)
    for rows in (ROWS[:2], ROWS[1:], ROWS):
        upper.hidden_states(rows)
    assert sum(calls) == len(set(ROWS))


def test_what_finds_no_room_is_run_again_and_nothing_kept_is_dropped() -> None:
    backbone = tiny.family_backbone("llama")
    room = len(ROWS[0].tokens) * backbone.width * 4
    calls, upper = _counted(backbone, 0), UpperLayers(backbone, 2, shelves=[Shelf(room)])
    for _ in range(3):
        upper.hidden_states(ROWS[:2])
    assert sum(calls) == 4


@pytest.mark.parametrize("name", SOME_FAMILIES)
def test_no_batch_mate_no_order_and_no_history_changes_a_bit_of_what_enters(name: str) -> None:
    backbone, draws = tiny.family_backbone(name), np.random.default_rng(1)
    rows = [Row(tuple(map(int, draws.integers(1, tiny.VOCABULARY, draws.integers(3, 40))))) for _ in range(12)]
    alone = {row: UpperLayers(backbone, 1).entering([row])[0] for row in rows}
    for most_bytes in (2**30, 2_000):  # all is kept, nearly nothing is
        for _ in range(2):
            upper = UpperLayers(backbone, 1, shelves=[Shelf(most_bytes)])
            for batch in np.array_split(draws.permutation(len(rows)), 4) * 2:
                mates = [rows[place] for place in batch]
                for row, states in zip(mates, upper.entering(mates), strict=True):
                    assert torch.equal(states[: len(row.tokens)], alone[row])
                    assert not states[len(row.tokens) :].any()


def test_a_failing_layer_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = tiny.family_backbone("llama")
    upper = UpperLayers(backbone, 1)
    plain = states_of(backbone, ROWS)

    def broken(*_inputs: object, **_options: object) -> None:
        raise RuntimeError("of the test")

    with monkeypatch.context() as patched:
        patched.setattr(backbone.blocks[2], "forward", broken)
        with pytest.raises(RuntimeError, match="of the test"):
            upper.hidden_states(ROWS)
    torch.testing.assert_close(states_of(backbone, ROWS), plain)


def test_a_federation_of_the_upper_layers_is_the_same_on_kept_states(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    subspace = {"rank": 4}
    method = tiny.method(rounds={"rounds": 3}, injection={"from_depth": 0.4, "context_scale": 0.1}, subspace=subspace)
    kept = run_real(backbone, method)

    def whole_model(_self: object, rows: tuple[Row, ...], _prefix: object) -> torch.Tensor:
        return states_of(backbone, rows)

    monkeypatch.setattr(Scorer, "states", whole_model)
    whole = run_real(backbone, method)
    assert not kept.state.coefficients.is_identity
    for name, array in kept.state.coefficients.arrays.items():
        np.testing.assert_allclose(array, whole.state.coefficients.arrays[name], atol=1e-3)
