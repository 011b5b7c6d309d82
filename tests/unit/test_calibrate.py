"""Calibration: gradients, single steps computed by hand, schedules, and what must not move."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.optim import AdamW

from ifedicl import calibrate as room
from ifedicl.backbone.load import Backbone
from ifedicl.backbone.passes import PassBudget
from ifedicl.backbone.scoring import Scorer
from ifedicl.calibrate import ClientRound, LocalUpdate, batches_of, calibrate, gradient_sum
from ifedicl.core.coefficients import ACTIVATION, CONTEXT, Coefficients, Form
from ifedicl.core.injection import inject
from ifedicl.core.subspace import Context
from ifedicl.settings import Method
from tests.support import oracle, tiny

EXAMPLES = tiny.examples(6)
LABELS = [tiny.TASK.index(example.label) for example in EXAMPLES]


def initial(layers: range, *, context_scale: float, activation_scale: float) -> Coefficients:
    start = Coefficients.identity(Form(3))
    start.scales[list(layers)] = context_scale, activation_scale
    return start


NO_BASIS, NO_CORE = torch.zeros(3, 2, 0, 32), torch.zeros(3, 2, 0, 0)
VECTORS = (0.3 * torch.randn(3, 2, 32, generator=torch.Generator().manual_seed(2))).numpy()
START = initial(range(3), context_scale=0.2, activation_scale=0.9)
FIRST = ClientRound("clinic", round=0, phase_start=0, phase_rounds=1)


@pytest.fixture
def scorer(backbone: Backbone) -> Scorer:
    return Scorer(backbone, tiny.TASK)


def _run(scorer: Scorer, method: Method, turn: ClientRound = FIRST, start: Coefficients = START) -> LocalUpdate:
    return calibrate(scorer, scorer.encoded(EXAMPLES), Context(VECTORS), start, method, turn)


def _plain(**calibration: Any) -> Method:
    base = {"schedule": "constant", "weight_decay": 0.0, "local_steps": 1, "batch_size": 6}
    return tiny.method(calibration={**base, **calibration})


# --- the injection formula ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 5, 8), (7, 8)], ids=["(B, T, d)", "(B·T, d)"])
def test_gradients_of_the_injection_equal_plain_autograd(shape: tuple[int, ...]) -> None:
    draws = torch.Generator().manual_seed(0)
    vector, outer = torch.randn(8, generator=draws), torch.randn(shape, generator=draws)

    def gradients(formula: Any) -> tuple[Tensor, ...]:
        write = torch.randn(shape, generator=torch.Generator().manual_seed(1)).requires_grad_()
        scales = [torch.tensor(value, requires_grad=True) for value in (0.3, 1.7)]
        result = formula(write, vector, *scales)
        return (result, *torch.autograd.grad((result * outer).square().sum(), (write, *scales)))

    plain = gradients(lambda write, v, context, activation: activation * write + context * v)
    ours_at = gradients(lambda write, v, context, activation: inject(write, context * v, activation))
    for ours, expected in zip(ours_at, plain, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)


def test_gradients_of_the_injection_equal_finite_differences() -> None:
    vector, write = torch.tensor([0.5, -1.0, 2.0]), torch.tensor([[1.0, 2.0, -0.5], [0.3, 0.1, 0.7]])

    def loss(context: float, activation: float) -> float:
        return float(inject(write, context * vector, torch.tensor(activation)).square().sum())

    context, activation = torch.tensor(0.4, requires_grad=True), torch.tensor(1.2, requires_grad=True)
    inject(write, context * vector, activation).square().sum().backward()
    step = 1e-2
    for ours, expected in (
        (context.grad, (loss(0.4 + step, 1.2) - loss(0.4 - step, 1.2)) / (2 * step)),
        (activation.grad, (loss(0.4, 1.2 + step) - loss(0.4, 1.2 - step)) / (2 * step)),
    ):
        assert ours is not None
        assert float(ours) == pytest.approx(expected, rel=1e-3)


def test_a_scale_just_above_one_is_not_rounded_away_in_bfloat16() -> None:
    # The largest bfloat16 below 2. Times 1.003 it is nearer to 2; times bfloat16(1.003) = 1 it would not move.
    write = torch.full((1, 1, 4), 1.9921875, dtype=torch.bfloat16)
    assert float(torch.tensor(1.003).bfloat16()) == 1.0
    result = inject(write, torch.zeros(4), torch.tensor(1.003))
    assert result.dtype == torch.bfloat16
    assert result.unique().tolist() == [2.0]


def test_gradients_of_the_scales_are_float32_in_a_bfloat16_model() -> None:
    draws = torch.Generator().manual_seed(0)
    write = torch.randn(4, 300, 16, generator=draws).bfloat16()
    outer = torch.randn(4, 300, 16, generator=draws).bfloat16()
    vector = torch.randn(16, generator=draws)
    context, activation = torch.tensor(0.1, requires_grad=True), torch.tensor(1.0, requires_grad=True)
    inject(write, context * vector, activation).backward(outer)
    assert context.grad is not None
    assert activation.grad is not None
    assert context.grad.dtype == activation.grad.dtype == torch.float32
    exact = (outer.double() * vector.double()).sum(), (outer.double() * write.double()).sum()
    assert float(context.grad) == pytest.approx(float(exact[0]), rel=1e-4)
    assert float(activation.grad) == pytest.approx(float(exact[1]), rel=1e-4)


# --- one step ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["vocabulary", "labels"])
def test_a_step_in_several_passes_equals_a_step_in_one(scorer: Scorer, loss: str) -> None:
    method = _plain(learning_rate=0.5, loss=loss)
    whole = _run(scorer, method)
    scorer.budget = PassBudget(tokens=1, overhead=0, remembered=16)
    apart = _run(scorer, method)
    np.testing.assert_allclose(apart.coefficients.scales, whole.coefficients.scales, rtol=1e-4, atol=1e-6)
    assert apart.loss == pytest.approx(whole.loss, rel=1e-5)
    assert not np.array_equal(whole.coefficients.scales, START.scales)


@pytest.mark.parametrize("decay", [0.0, 0.2])
@pytest.mark.parametrize("loss", ["vocabulary", "labels"])
def test_one_step_equals_plain_autograd_through_a_naive_injection(scorer: Scorer, loss: str, decay: float) -> None:
    method = _plain(learning_rate=0.5, loss=loss, weight_decay=decay, batch_size=3)
    update = _run(scorer, method)
    (chosen,) = batches_of(0, 1, len(EXAMPLES), 3, 0, "clinic")
    scales = torch.from_numpy(START.scales).clone().requires_grad_()
    losses = []
    with oracle.edited(scorer.backbone, oracle.injection(torch.from_numpy(VECTORS), scales, NO_BASIS, NO_CORE)):
        for place in chosen:
            example = EXAMPLES[place]
            prompt = scorer.backbone.tokenizer(tiny.TASK.prompt(example.text))["input_ids"]
            words = [scorer.backbone.tokenizer(" " + word)["input_ids"][0] for word in tiny.TASK.label_words]
            logits = scorer.backbone.model(torch.tensor([prompt])).logits[0, -1]
            own = words[tiny.TASK.index(example.label)]
            against = logits if loss == "vocabulary" else logits[words]
            losses.append(against.logsumexp(dim=0) - logits[own])
    mean = torch.stack(losses).mean()
    mean.backward()
    assert scales.grad is not None
    assert scales.grad.abs().max() > 1e-3
    sums = gradient_sum(scorer, scorer.encoded(EXAMPLES), Context(VECTORS), START, method, chosen)
    torch.testing.assert_close(torch.from_numpy(sums.arrays["scales"]) / 3, scales.grad, rtol=1e-4, atol=1e-6)
    identity = torch.tensor([0.0, 1.0])
    deviation = (torch.from_numpy(START.scales) - identity).requires_grad_()
    deviation.grad = scales.grad
    AdamW([deviation], 0.5, weight_decay=decay).step()
    torch.testing.assert_close(
        torch.from_numpy(update.coefficients.scales), deviation.detach() + identity, rtol=1e-4, atol=1e-6
    )
    assert update.loss == pytest.approx(mean.item(), rel=1e-4)


def test_several_steps_are_those_of_adamw_on_the_gradient_of_each_batch(scorer: Scorer) -> None:
    method = _plain(local_steps=3, batch_size=2, weight_decay=0.1)
    identity = torch.tensor([0.0, 1.0])
    deviation, losses = (torch.from_numpy(START.scales) - identity).requires_grad_(), []
    optimizer = AdamW([deviation], method.calibration.learning_rate, weight_decay=0.1)
    for rows in batches_of(0, 3, len(EXAMPLES), 2, 0, "clinic"):
        now = Coefficients((deviation.detach() + identity).numpy())
        sums = gradient_sum(scorer, scorer.encoded(EXAMPLES), Context(VECTORS), now, method, rows)
        deviation.grad = torch.from_numpy(sums.arrays["scales"]) / 2
        losses.append(sums.loss / 2)
        optimizer.step()
    together = _run(scorer, method)
    expected = (deviation.detach() + identity).numpy()
    np.testing.assert_allclose(together.coefficients.scales, expected, rtol=1e-5, atol=1e-6)
    assert together.loss == pytest.approx(float(np.mean(losses)), rel=1e-5)


def test_weight_decay_pulls_beta_to_one_and_lambda_to_zero(scorer: Scorer) -> None:
    start = initial(range(3), context_scale=0.5, activation_scale=1.5)
    # The deviation from identity shrinks by 1 - rate · decay = 0.9; the gradient adds next to nothing at this rate.
    settings = _plain(learning_rate=1e-6, weight_decay=1e5)
    scales = _run(scorer, settings, start=start).coefficients.scales
    np.testing.assert_allclose(scales[..., CONTEXT], 0.45, atol=1e-4)
    np.testing.assert_allclose(scales[..., ACTIVATION], 1.45, atol=1e-4)


def test_layers_that_are_not_injected_never_move(scorer: Scorer) -> None:
    method = tiny.method(injection={"from_depth": 0.4}, calibration={"weight_decay": 0.5, "local_steps": 3})
    start = initial(method.injection.active_layers(3), context_scale=0.2, activation_scale=0.9)
    scales = _run(scorer, method, start=start).coefficients.scales
    assert method.injection.active_layers(3) == range(1, 3)
    moved = scales != start.scales
    assert moved[1:].all()
    assert not moved[0].any()
    assert scales[0].tolist() == [[0.0, 1.0], [0.0, 1.0]]


def test_the_depth_chooses_layers_and_always_at_least_one() -> None:
    def layers(low: float) -> range:
        return tiny.method(injection={"from_depth": low}).injection.active_layers(10)

    assert layers(0.0) == range(10)
    assert layers(0.5) == range(5, 10)
    assert layers(0.99) == range(9, 10)


# --- which examples -----------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 23), st.integers(1, 30), st.integers(1, 9), st.integers(0, 5))
def test_no_example_is_twice_in_a_step_and_all_come_before_any_comes_again(
    examples: int, batch_size: int, steps: int, update: int
) -> None:
    batches = batches_of(update, steps, examples, batch_size, 0, "clinic")
    assert len(batches) == steps
    for rows in batches:
        assert len(set(rows)) == len(rows) == min(batch_size, examples)
    walk = [row for rows in batches for row in rows]
    for start in range(0, len(walk), examples):
        turn = walk[start : start + examples]
        assert len(set(turn)) == len(turn)
        assert set(turn) <= set(range(examples))


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 40), st.integers(1, 10), st.integers(1, 4), st.integers(0, 3))
def test_updates_walk_through_all_examples_that_fill_an_update_before_any_comes_again(
    examples: int, batch_size: int, steps: int, turn: int
) -> None:
    taken = steps * min(batch_size, examples)
    in_a_pass = examples // taken
    updates = [
        [row for rows in batches_of(turn * in_a_pass + number, steps, examples, batch_size, 0, "clinic") for row in rows]
        for number in range(in_a_pass)
    ]
    walk = [row for rows in updates for row in rows]
    assert len(set(walk)) == len(walk) == in_a_pass * taken
    assert len(walk) > examples - taken or not in_a_pass, "fewer are left than an update takes"


def test_batches_depend_on_seed_client_and_update_alone() -> None:
    reference = [batches_of(update, 2, 40, 4, 0, "clinic") for update in range(10)]
    assert batches_of(7, 2, 40, 4, 0, "clinic") == reference[7]
    assert batches_of(7, 2, 40, 4, 1, "clinic") != reference[7]
    assert batches_of(7, 2, 40, 4, 0, "ward") != reference[7]
    assert reference[:5] != reference[5:], "the second walk goes another way than the first"
    few = [batches_of(update, 3, 4, 3, 0, "clinic") for update in range(4)]
    assert few[0] != few[1] != few[2], "so does each update that takes more examples than there are"


def test_each_round_takes_its_own_steps(scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []

    def spy(update: int, steps: int, *rest: Any) -> list[list[int]]:
        asked.append((update, steps))
        return batches_of(update, steps, *rest)

    monkeypatch.setattr(room, "batches_of", spy)
    for number in (0, 1, 5):
        _run(scorer, _plain(local_steps=2), ClientRound("clinic", number, 0, 6))
    assert asked == [(0, 2), (1, 2), (5, 2)]


# --- rates -------------------------------------------------------------------------------------------------------------


def _rates(
    scorer: Scorer, monkeypatch: pytest.MonkeyPatch, *, phase_start: int = 0, rounds: int = 4, **calibration: Any
) -> list[float]:
    """The rate of every step of a whole phase."""
    seen: list[float] = []

    class Recorder(AdamW):
        def step(self, closure: Any = None) -> Any:
            seen.append(float(self.param_groups[0]["lr"]))

    monkeypatch.setattr(room, "AdamW", Recorder)
    method = _plain(learning_rate=0.8, batch_size=1, local_steps=2, **calibration)
    for number in range(phase_start, phase_start + rounds):
        _run(scorer, method, ClientRound("clinic", number, phase_start, rounds))
    return seen


def test_a_constant_rate_stays(scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _rates(scorer, monkeypatch, schedule="constant") == [0.8] * 8


@pytest.mark.parametrize("phase_start", [0, 3], ids=["first phase", "a later phase starts afresh"])
def test_a_cosine_rate_falls_from_full_towards_zero(scorer: Scorer, monkeypatch: pytest.MonkeyPatch, phase_start: int) -> None:
    rates = _rates(scorer, monkeypatch, schedule="cosine", phase_start=phase_start)
    assert rates == pytest.approx([0.4 * (1 + math.cos(math.pi * step / 8)) for step in range(8)])
    assert rates[0] == 0.8
    assert 0 < rates[-1] < 0.05


# --- the whole ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["vocabulary", "labels"])
@pytest.mark.parametrize("task", [tiny.TASK, tiny.MANY_TOKENS], ids=["one token", "several"])
def test_both_losses_go_down(task: Any, loss: str) -> None:
    backbone = tiny.family_backbone("llama")  # its weights are large enough to be worth steering
    scorer = Scorer(backbone, task)
    examples = tiny.examples(6, task=task)
    method = tiny.method(
        calibration={"loss": loss, "batch_size": 6, "local_steps": 6, "learning_rate": 0.1, "schedule": "constant"}
    )
    now, losses = START, []
    for number in range(3):
        update = calibrate(scorer, scorer.encoded(examples), Context(VECTORS), now, method, ClientRound("clinic", number, 0, 3))
        now = update.coefficients
        losses.append(update.loss)
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.98 * losses[0]
    assert now.is_finite


def test_the_model_is_left_as_it_was(scorer: Scorer) -> None:
    model = scorer.backbone.model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    vectors, start = VECTORS.copy(), START.scales.copy()
    _run(scorer, tiny.method(calibration={"local_steps": 3}))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in model.parameters())
    assert not any(module._forward_hooks for layer in scorer.backbone.writes for module in layer)
    assert not model.training
    assert np.array_equal(vectors, VECTORS)
    assert np.array_equal(start, START.scales)


def test_a_run_can_be_repeated_bit_for_bit(scorer: Scorer) -> None:
    method = tiny.method(calibration={"local_steps": 3})
    first, second = _run(scorer, method), _run(scorer, method)
    assert np.array_equal(first.coefficients.scales, second.coefficients.scales)
    assert first.loss == second.loss


def test_a_bfloat16_model_calibrates_float32_coefficients(llama_folder: Any) -> None:
    backbone = tiny.load(llama_folder, dtype="bfloat16")
    assert backbone.model.dtype == torch.bfloat16
    scorer = Scorer(backbone, tiny.TASK)
    update = _run(scorer, _plain(learning_rate=1e-4))
    scales = update.coefficients.scales
    assert scales.dtype == np.float32
    # Adam's first step is the rate itself; in bfloat16 0.9 ± 0.0001 would be 0.9 again.
    np.testing.assert_allclose(np.abs(scales - START.scales), 1e-4, rtol=1e-2)
