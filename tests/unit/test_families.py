"""The table of writes against decoder layers re-run by hand (``tests/oracle.py``)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ifedicl.backbone.families import FAMILIES, write_modules, writes_of
from ifedicl.backbone.hooks import injected, record
from ifedicl.backbone.load import Backbone
from ifedicl.core.injection import fold
from ifedicl.core.subspace import ContextTensors
from ifedicl.core.vectors import WRITES
from ifedicl.errors import BackboneError, UnknownFamilyError
from tests.support import oracle, tiny

ALL = np.ones((3, 2), dtype=np.bool_)
ROWS = ((5, 17, 3, 99, 250, 42, 8, 31, 77, 12), (9, 4, 200, 61), (120,))


@pytest.fixture(params=sorted(tiny.FAMILY_CASES))
def family(request: pytest.FixtureRequest) -> Backbone:
    return tiny.family_backbone(request.param)


@pytest.fixture
def tokens() -> Tensor:
    padded = torch.zeros(len(ROWS), max(map(len, ROWS)), dtype=torch.int64)
    for number, row in enumerate(ROWS):
        padded[number, : len(row)] = torch.tensor(row)
    return padded


@pytest.fixture
def last() -> Tensor:
    return torch.tensor([len(row) - 1 for row in ROWS])


def _random_injection(seed: int = 3) -> tuple[ContextTensors, Tensor, Tensor]:
    """Context, scales and core."""
    draws = torch.Generator().manual_seed(seed)
    vectors = torch.randn(3, 2, 32, generator=draws)
    scales = torch.stack([torch.randn(3, 2, generator=draws) * 0.3, 0.5 + torch.rand(3, 2, generator=draws)], dim=-1)
    basis = torch.linalg.qr(torch.randn(3, 2, 32, 4, generator=draws)).Q.mT.contiguous()
    return ContextTensors(vectors, basis), scales, torch.randn(3, 2, 4, 4, generator=draws) * 0.4


def _by_hand(context: ContextTensors, scales: Tensor, core: Tensor) -> oracle.Edit:
    assert context.basis is not None
    return oracle.injection(context.vectors, scales, context.basis, core)


def _hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def test_every_family_of_the_table_is_among_the_cases() -> None:
    assert {model_type for model_type, _ in tiny.FAMILY_CASES.values()} == set(FAMILIES)


@torch.no_grad()
def test_layers_rerun_by_hand_without_edits_are_the_model(family: Backbone, tokens: Tensor) -> None:
    plain = family.hidden_states(tokens)
    with oracle.edited(family, lambda layer, write, y: y):
        by_hand = family.hidden_states(tokens)
    torch.testing.assert_close(by_hand, plain, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_rows_behind_a_remembered_beginning_are_as_if_run_whole(family: Backbone, tokens: Tensor) -> None:
    beginning = [7, 130, 22, 3, 65, 11, 204, 90]
    context, scales, core = _random_injection()
    whole_rows = torch.cat([torch.tensor([beginning]).expand(len(tokens), -1), tokens], dim=1)
    with injected(family, context, scales, ALL, core=core):
        whole = family.hidden_states(whole_rows)[:, len(beginning) :]
        prefix = family.prefix(beginning)
        for _ in range(2):  # it is not used up
            torch.testing.assert_close(family.hidden_states(tokens, prefix), whole, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_recorded_writes_are_what_joins_the_residual_stream(family: Backbone, tokens: Tensor, last: Tensor) -> None:
    expected = oracle.writes(family, tokens)[:, :, torch.arange(len(ROWS)), last]  # (L, 2, B, d)
    with record(family) as recording:
        recording.positions = last
        family.hidden_states(tokens)
    recorded = recording.stacked()
    torch.testing.assert_close(recorded, expected, rtol=1e-4, atol=1e-5)
    assert (expected.norm(dim=-1) > 0.01).all(), "writes near zero would prove nothing"
    assert (expected[:, 0] - expected[:, 1]).norm(dim=-1).min() > 0.01, "two writes alike would hide a mix-up"


# Elsewhere the residual stream itself is normalised on its way; the test above re-computes it there.
@pytest.mark.parametrize("case", sorted({*tiny.FAMILY_CASES} - {"opt-post-norm", "bloom-post-norm-residual"}))
@torch.no_grad()
def test_recorded_writes_sum_to_what_each_layer_changes(case: str, tokens: Tensor, last: Tensor) -> None:
    family = tiny.family_backbone(case)
    added: list[Tensor] = []

    def keep(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        before = args[0] if args else kwargs["hidden_states"]
        after = output[0] if isinstance(output, tuple) else output
        added.append((after - before)[torch.arange(len(ROWS)), last])

    handles = [layer.register_forward_hook(keep, with_kwargs=True) for layer in oracle.layers_of(family)]
    try:
        with record(family) as recording:
            recording.positions = last
            family.hidden_states(tokens)
    finally:
        for handle in handles:
            handle.remove()
    torch.testing.assert_close(recording.stacked().sum(dim=1), torch.stack(added), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("which", [(0,), (1,), (0, 1)], ids=["attention", "mlp", "both"])
@torch.no_grad()
def test_injection_equals_layers_edited_by_hand(family: Backbone, tokens: Tensor, which: tuple[int, ...]) -> None:
    context, scales, core = _random_injection()
    active = np.zeros((3, 2), dtype=np.bool_)
    active[:, list(which)] = True
    chosen = torch.from_numpy(active)[..., None]
    only = torch.where(chosen, scales, torch.tensor([0.0, 1.0])), core * chosen[..., None]
    with oracle.edited(family, _by_hand(context, *only)):
        expected = family.hidden_states(tokens)
    with injected(family, context, scales, active, core=core):
        changed = family.hidden_states(tokens)
    torch.testing.assert_close(changed, expected, rtol=1e-4, atol=1e-4)
    assert (changed - family.hidden_states(tokens)).abs().max() > 0.05


def test_gradients_of_all_coefficients_equal_plain_autograd_by_hand(family: Backbone, tokens: Tensor) -> None:
    context, *start = _random_injection()
    weights = torch.randn(32, generator=torch.Generator().manual_seed(5))

    def gradients(change: Any) -> list[Tensor]:
        scales, core = (values.clone().requires_grad_() for values in start)
        with change(scales, core):
            (family.hidden_states(tokens) @ weights).square().mean().backward()
        assert scales.grad is not None
        assert core.grad is not None
        return [scales.grad, core.grad]

    expected = gradients(lambda scales, core: oracle.edited(family, _by_hand(context, scales, core)))
    ours = gradients(lambda scales, core: injected(family, context, scales, ALL, core=core))
    torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-4)
    assert all((values != 0).all() for values in expected)


def test_without_a_core_the_basis_is_not_used(family: Backbone, tokens: Tensor) -> None:
    context, scales, _ = _random_injection()
    with torch.no_grad(), injected(family, ContextTensors(context.vectors, None), scales, ALL):
        expected = family.hidden_states(tokens)
    with torch.no_grad(), injected(family, context, scales, ALL):
        assert torch.equal(family.hidden_states(tokens), expected)


@torch.no_grad()
def test_identity_scales_change_no_bit(family: Backbone, tokens: Tensor) -> None:
    context, scales, core = _random_injection()
    scales[..., 0], scales[..., 1] = 0.0, 1.0
    core.zero_()
    with injected(family, context, scales, ALL, core=core):
        changed = family.hidden_states(tokens)
    assert torch.equal(changed, family.hidden_states(tokens))


@torch.no_grad()
def test_injection_equals_folding_into_the_projections(tokens: Tensor) -> None:
    context, scales, core = _random_injection()
    foldable = [case for case in tiny.FAMILY_CASES if not case.startswith(("gemma2", "gemma3", "olmo2"))]
    for case in foldable:
        family = tiny.family_backbone(case)
        with injected(family, context, scales, ALL, core=core):
            expected = family.hidden_states(tokens)
        with _folded(family, context, scales, core):
            torch.testing.assert_close(family.hidden_states(tokens), expected, rtol=1e-4, atol=1e-4, msg=case)


class _folded:  # noqa: N801 - a context manager
    """``W ← (βI + UᵀΓU) W``, ``b ← (βI + UᵀΓU) b + λv`` in every projection, undone at the end."""

    def __init__(self, family: Backbone, context: ContextTensors, scales: Tensor, core: Tensor) -> None:
        self._family, self._context, self._scales, self._core = family, context, scales, core
        self._before: list[tuple[nn.Module, Any, Any]] = []

    def __enter__(self) -> None:
        assert self._context.basis is not None
        for layer, pair in enumerate(self._family.writes):
            for write, module in enumerate(pair):
                weight: Any = module.weight
                bias: Any = module.bias
                self._before.append((module, weight, bias))
                turned = not isinstance(module, nn.Linear)  # GPT-2 keeps its weights the other way round
                context_scale, activation_scale = self._scales[layer, write].tolist()
                folded, shift = fold(
                    weight.T if turned else weight,
                    bias,
                    self._context.vectors[layer, write],
                    context_scale,
                    activation_scale,
                    self._context.basis[layer, write],
                    self._core[layer, write],
                )
                module.weight = nn.Parameter(folded.T if turned else folded, requires_grad=False)
                module.bias = nn.Parameter(shift, requires_grad=False)

    def __exit__(self, *error: object) -> None:
        for module, weight, bias in self._before:
            module.weight, module.bias = weight, bias


@torch.no_grad()
def test_writes_left_inactive_run_as_they_are(backbone: Backbone, tokens: Tensor, last: Tensor) -> None:
    context, scales, core = _random_injection()
    active = np.zeros((3, 2), dtype=np.bool_)
    active[2, 1] = True
    with record(backbone) as plain:
        plain.positions = last
        backbone.hidden_states(tokens)
    with injected(backbone, context, scales, active, core=core), record(backbone) as changed:
        changed.positions = last
        backbone.hidden_states(tokens)
    before, after = plain.stacked(), changed.stacked()
    different = (before != after).flatten(2).any(dim=-1)
    assert different.tolist() == active.tolist()
    expected = _by_hand(context, scales, core)(2, 1, before[2, 1])
    torch.testing.assert_close(after[2, 1], expected)


def test_hooks_are_gone_afterwards(family: Backbone, tokens: Tensor, last: Tensor) -> None:
    context, scales, core = _random_injection()
    family.hidden_states(tokens)  # transformers may place hooks of its own at the first run
    before = _hooks(family.model)
    with injected(family, context, scales, ALL, core=core), record(family) as recording:
        assert _hooks(family.model) == before + 12
        recording.positions = last
        family.hidden_states(tokens)
    assert _hooks(family.model) == before


def test_hooks_are_gone_after_an_exception(backbone: Backbone, tokens: Tensor) -> None:
    context, scales, core = _random_injection()
    before = _hooks(backbone.model)
    plain = backbone.hidden_states(tokens)
    with (
        pytest.raises(RuntimeError, match=r"recording\.positions"),
        injected(backbone, context, scales, ALL, core=core),
        record(backbone),
    ):
        backbone.hidden_states(tokens)  # positions were never set
    assert _hooks(backbone.model) == before
    assert torch.equal(backbone.hidden_states(tokens), plain)


def test_hooks_are_gone_when_placing_them_fails_half_way(backbone: Backbone) -> None:
    before = _hooks(backbone.model)
    broken = replace(backbone, writes=(*backbone.writes[:2], (backbone.writes[2][0], object())))  # type: ignore[arg-type]
    with pytest.raises(AttributeError), record(broken):
        pass
    assert _hooks(backbone.model) == before


@pytest.fixture
def granite(tmp_path: Path) -> Path:
    """A model with a Llama's paths, of a type that only transformers knows."""
    return tiny.save_model(tmp_path / "m", "granite")


def test_an_unknown_family_names_the_known_ones_and_the_way_out(granite: Path) -> None:
    with pytest.raises(UnknownFamilyError) as caught:
        tiny.load(granite)
    message = str(caught.value)
    assert "'granite'" in message
    assert all(name in message for name in FAMILIES)
    assert 'writes = {layers = "layers", attention = "self_attn.o_proj", mlp = "mlp.down_proj"}' in message


def test_settings_name_the_writes_of_an_unknown_family(granite: Path, tokens: Tensor, last: Tensor) -> None:
    paths = {"layers": "layers", "attention": "self_attn.o_proj", "mlp": "mlp.down_proj"}
    backbone = tiny.load(granite, writes=paths)
    assert backbone.layers == 3
    assert backbone.writes[1] == (backbone.model.model.layers[1].self_attn.o_proj, backbone.model.model.layers[1].mlp.down_proj)
    with record(backbone) as recording:
        recording.positions = last
        backbone.hidden_states(tokens)
    assert recording.stacked().shape == (3, len(WRITES), len(ROWS), 32)


def test_an_override_wins_over_the_table() -> None:
    own = writes_of("llama", {"layers": "h", "attention": "a", "mlp": "m"})
    assert (own.layers, own.attention, own.mlp) == ("h", "a", "m")


@pytest.mark.parametrize(
    "paths", [{"layers": "layers", "attention": "a"}, {"layers": "l", "attention": "a", "mlp": "m", "x": "y"}]
)
def test_an_override_with_other_names_is_refused(paths: dict[str, str]) -> None:
    with pytest.raises(BackboneError, match="allowed: exactly layers, attention and mlp") as caught:
        writes_of("llama", paths)
    assert ", ".join(sorted(paths)) in str(caught.value)


@pytest.mark.parametrize(
    ("paths", "where", "children"),
    [
        ({"layers": "decoder.layers"}, "the model has no module 'decoder.layers'", "embed_tokens, layers, norm"),
        ({"attention": "attn.o_proj"}, "layer 0 has no module 'attn.o_proj'", "self_attn, mlp, input_layernorm"),
        ({"mlp": "mlp.down"}, "layer 0 has no module 'mlp.down'", "self_attn, mlp, input_layernorm"),
    ],
)
def test_a_path_that_leads_nowhere_names_the_children(
    backbone: Backbone, paths: dict[str, str], where: str, children: str
) -> None:
    right = {"layers": "layers", "attention": "self_attn.o_proj", "mlp": "mlp.down_proj"}
    with pytest.raises(BackboneError) as caught:
        write_modules(backbone.model.base_model, writes_of("llama", {**right, **paths}))
    assert where in str(caught.value)
    assert children in str(caught.value)
