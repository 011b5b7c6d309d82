"""The fused injection: its kernels, in Triton's interpreter, and its operations against the plain formula."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from torch import Tensor

from ifedicl.backbone import load
from ifedicl.backbone.load import Backbone
from ifedicl.backbone.scoring import Scorer
from ifedicl.calibrate import ClientRound, calibrate, example_gradients
from ifedicl.core import fused_injection as fused
from ifedicl.core.coefficients import Form, cold_start
from ifedicl.core.injection import plain_changes
from ifedicl.core.subspace import Context
from tests.support import tiny
from tests.support.injection_oracle import assert_equals_oracle, drawn


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton comes with torch's build for CUDA")
def test_kernels_equal_the_oracle_in_tritons_interpreter() -> None:
    """In a process of its own: the interpreter is chosen when Triton is imported."""
    command = [sys.executable, "-m", "tests.support.interpreted_kernels"]
    done = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["30", "cases", "equal", "the", "oracle"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rank", [0, 1, 5])
def test_the_operations_equal_the_oracle(rank: int, dtype: torch.dtype) -> None:
    given = drawn((3, 7, 48), rank, dtype)
    assert_equals_oracle((fused.forward(*given[1:]), *fused.backward(*given)), given)


@pytest.mark.parametrize("rank", [0, 4])
def test_changes_are_those_of_the_plain_formula(rank: int) -> None:
    draw = torch.Generator().manual_seed(0)
    writes, width = 3, 24
    vectors, scales = torch.randn(writes, width, generator=draw), torch.randn(writes, 2, generator=draw)
    basis = torch.randn(writes, rank, width, generator=draw) if rank else None
    core = torch.randn(writes, rank, rank, generator=draw) if rank else None
    inputs = torch.randn(writes, 5, width, generator=draw)
    found = []
    for of in (plain_changes, fused.changes):
        leaves = [leaf.clone().requires_grad_() for leaf in (inputs, scales, core) if leaf is not None]
        changes = of(vectors, leaves[1], basis, leaves[2] if rank else None)
        results = torch.stack([change(write) for change, write in zip(changes, leaves[0], strict=True)])
        with torch.no_grad():
            again = torch.stack([change(write) for change, write in zip(changes, leaves[0], strict=True)])
        torch.testing.assert_close(again, results.detach())
        found.append([results.detach(), *torch.autograd.grad(results.square().sum(), leaves)])
    for plain, fast in zip(*found, strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-5, atol=1e-5)


@pytest.fixture
def everywhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Injections are fused on a CPU, too."""
    monkeypatch.setattr(load, "FUSED_ON", frozenset({"cpu"}))
    fused.is_sound.cache_clear()
    yield
    fused.is_sound.cache_clear()


def _context(backbone: Backbone, rank: int) -> Context:
    draw, shape = np.random.default_rng(0), (backbone.layers, 2)
    basis = np.linalg.qr(draw.normal(size=(*shape, backbone.width, rank)))[0].swapaxes(2, 3)
    vectors = draw.normal(size=(*shape, backbone.width)).astype(np.float32)
    return Context(vectors, np.ascontiguousarray(basis, dtype=np.float32) if rank else None)


@pytest.mark.usefixtures("everywhere")
@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "gemma2"])
@pytest.mark.parametrize("rank", [0, 4])
def test_a_fused_update_is_the_plain_one(family: str, rank: int) -> None:
    backbone, found = tiny.family_backbone(family), []
    for launches in ("plain", "auto"):
        scorer = Scorer(replace(backbone, launches=launches), tiny.TASK)
        method = tiny.method(calibration={"batch_size": 4, "local_steps": 4})
        start = cold_start(Form(backbone.layers, rank), method.injection)
        turn = ClientRound("clinic", round=0, phase_start=0, phase_rounds=1)
        update = calibrate(scorer, scorer.encoded(tiny.examples(8)), _context(backbone, rank), start, method, turn)
        examples = scorer.encoded(tiny.examples(3))
        single = example_gradients(scorer, examples, _context(backbone, rank), start, method, range(3), alone=True)
        found.append((update.coefficients.arrays, [arrays for _, arrays in single]))
    (plain, plain_single), (fast, fast_single) = found
    for name, array in plain.items():
        np.testing.assert_allclose(fast[name], array, rtol=0, atol=2e-5)
    for expected, given in zip(plain_single, fast_single, strict=True):
        for name, array in expected.items():
            np.testing.assert_allclose(given[name], array, rtol=1e-4, atol=1e-4 * np.abs(array).max())


@pytest.mark.usefixtures("everywhere")
def test_a_device_whose_kernels_give_other_numbers_or_fail_uses_the_plain_formula(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fast = replace(backbone, launches="auto")
    with torch.inference_mode():
        assert fast.changes_of(0) is fused.changes
    assert replace(backbone, launches="plain").changes_of(0) is plain_changes
    assert fast.changes_of(fused.LARGEST_RANK + 1) is plain_changes
    assert not caplog.records

    def broken(*_given: object) -> Tensor:
        raise RuntimeError("no image for this architecture")

    def wrong(write: Tensor, *_given: object) -> Tensor:
        return write * 1.01

    for kernel, words in ((broken, "no image for this architecture"), (wrong, "result differ")):
        fused.is_sound.cache_clear()
        caplog.clear()
        monkeypatch.setattr(fused, "forward", kernel)
        with caplog.at_level(logging.WARNING):
            assert [fast.changes_of(0), fast.changes_of(0)] == [plain_changes] * 2
        (warning,) = caplog.records
        assert words in warning.getMessage()
