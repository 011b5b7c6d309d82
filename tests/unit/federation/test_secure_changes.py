"""Updates travel in secure sums as weighted changes, in few bits: the mean is open mode's, and nothing overflows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ifedicl.core.coefficients import Coefficients, Form
from ifedicl.errors import SecureSumError, TooFewClientsError
from ifedicl.federation.messages import (
    BeginRequest,
    MaskReply,
    Reply,
    RevealReply,
    UpdateReply,
    UpdateRequest,
    decode_request,
    encode,
)
from ifedicl.federation.secure import sum_steps
from ifedicl.federation.secure.changes import Changes, reach_of
from ifedicl.federation.secure.short_form import OtherFormError
from ifedicl.federation.secure.sum_engine import SecureEngine
from ifedicl.settings import TOGETHER, CalibrationSettings
from tests.support.engines import RecordingEngine
from tests.support.secure import REPEATABLE, REQUESTS, RULES, behind, drawn_client, secure_job, total_in_form

SETTINGS = CalibrationSettings(batch_size=4, local_steps=2, schedule="constant")
FORM = Form(3, rank=4)


def start(seed: int = 0, size: float = 0.3) -> Coefficients:
    draw = np.random.default_rng(seed)
    arrays = {name: draw.normal(scale=size, size=shape).astype(np.float32) for name, shape in FORM.shapes.items()}
    return Coefficients.of(arrays).rounded


def request(before: Coefficients, weight_bits: int = 7) -> UpdateRequest:
    asked = REQUESTS["update"]
    assert isinstance(asked, UpdateRequest)
    return replace(asked, coefficients=before, weight_bits=weight_bits)


def moved(before: Coefficients, seed: int, examples: int, by: float = 0.09) -> UpdateReply:
    """An update that moves each number by up to ``by``, as it would arrive in open mode."""
    draw = np.random.default_rng(seed)
    arrays = {name: (array + draw.uniform(-by, by, array.shape)).astype(np.float32) for name, array in before.arrays.items()}
    return UpdateReply(Coefficients.of(arrays).rounded, examples, float(draw.random()))


def mean_of(replies: list[UpdateReply]) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float64]]]:
    counts = [reply.examples for reply in replies]
    names = replies[0].coefficients.arrays
    return {
        name: np.average([reply.coefficients.arrays[name].astype(np.float64) for reply in replies], axis=0, weights=counts)
        for name in names
    }


def form_of(before: Coefficients, weight_bits: int, settings: CalibrationSettings = SETTINGS) -> Changes:
    changes = Changes.of(settings, request(before, weight_bits))
    assert changes is not None
    return changes


@REPEATABLE
@given(st.integers(1, 60), st.integers(0, 1000), st.sampled_from((1, 8, 1000, 60_000)))
def test_the_mean_is_that_of_open_mode_to_a_few_steps_however_the_examples_are_spread(count: int, seed: int, most: int) -> None:
    before, draw = start(seed), np.random.default_rng(seed)
    replies = [moved(before, seed + place, int(draw.integers(1, most + 1))) for place in range(count)]
    examples = sum(reply.examples for reply in replies)
    total = total_in_form(form_of(before, max(1, (examples - 1).bit_length())), replies)
    assert total.examples == examples
    for name, mean in mean_of(replies).items():
        atol = count * (2.0**-16 if name == "core" else 2.0**-24)  # half a step of each client, weights of at least 1/2
        np.testing.assert_allclose(total.coefficients.arrays[name], mean, atol=atol, rtol=1e-6, err_msg=name)


def test_a_round_of_the_usual_settings_takes_two_bytes_for_each_number_of_the_core() -> None:
    form = form_of(start(), 12).form({})
    assert {name: grid.bits for name, (_, grid) in form.parts.items()} == {"examples": 40, "loss": 40, "scales": 24, "core": 16}
    assert form.parts["core"][1].step <= 2.0**-16


def test_extreme_changes_of_all_clients_do_not_overflow() -> None:
    """All of them at the bound, in the same direction, with weights that sum to 1."""
    before = start(size=0.0)
    reach = reach_of(SETTINGS, request(before))
    for sign in (-1, 1):
        arrays = {name: (array + sign * 0.99999 * reach).astype(np.float32) for name, array in before.arrays.items()}
        replies = [UpdateReply(Coefficients.of(arrays), 1024, 0.5)] * 64
        total = total_in_form(form_of(before, 16), replies)
        np.testing.assert_allclose(total.coefficients.arrays["core"], sign * reach, rtol=0.01)


@pytest.mark.parametrize("by", [float("nan"), float("inf"), 0.2])
def test_a_change_that_no_honest_update_makes_is_refused(by: float) -> None:
    before = start(size=0.0)
    arrays = {name: np.full_like(array, by) for name, array in before.arrays.items()}
    with pytest.raises(SecureSumError, match="allowed"):
        form_of(before, 12).apart(UpdateReply(Coefficients.of(arrays), 10, 0.5))


def test_more_examples_than_the_weights_allow_are_refused_and_never_a_wrong_mean() -> None:
    before = start()
    with pytest.raises(SecureSumError, match=r"weight of 1\.25"):
        form_of(before, 3).apart(moved(before, 1, 10))
    with pytest.raises(OtherFormError):
        total_in_form(form_of(before, 4), [moved(before, place, 10) for place in range(5)])


def test_at_the_end_of_the_schedule_steps_are_as_fine_as_the_changes_are_small() -> None:
    cosine, before = CalibrationSettings(local_steps=2), start(size=0.0)
    rounds = [replace(request(before), round=done, phase_rounds=16) for done in (0, 15)]
    first, last = (reach_of(cosine, asked) for asked in rounds)
    assert 0.095 < first < 0.105
    assert last < 0.001
    (_, early), (_, late) = (Changes(before, 7, reach).form({}).parts["core"] for reach in (first, last))
    assert late.step < early.step / 64


def test_a_client_with_a_tiny_part_of_all_examples_has_all_updates_sent_as_they_are() -> None:
    """Its change would round to nothing. The sum is tried again, and later rounds begin in that form."""
    before = start()
    inner, replies = federation(before, [20, 30, 50, 28])
    secure = SecureEngine(inner, RULES, SETTINGS)
    changes = form_of(before, 14)
    assert [changes.is_light(count) for count in (63, 64)] == [True, False]
    for reply in updates(secure, request(before, 14), 2):  # each of the clients counts 50 examples
        assert isinstance(reply, UpdateReply)
        np.testing.assert_allclose(reply.coefficients.arrays["core"], mean_of(replies)["core"], atol=4 * 2.0**-16)
    begun = [asked for name, asked, _ in inner.crossed if isinstance(asked, BeginRequest) and name == "c0"]
    assert [decode_request(asked.request).weight_bits for asked in begun] == [14, 0, 0]  # type: ignore[union-attr]


def test_settings_whose_updates_go_far_send_them_as_they_are() -> None:
    far = CalibrationSettings(learning_rate=1.0, local_steps=10_000)
    assert Changes.of(far, request(start())) is None
    assert Changes.of(SETTINGS, request(start(), 0)) is None
    assert Changes.of(SETTINGS, request(start(), 23)) is None
    assert Changes.of(SETTINGS, REQUESTS["gradient"]) is None


@pytest.mark.parametrize("steps", [1, 2, 5, 40])
@pytest.mark.parametrize("decay", [0.001, 0.1])
def test_adamw_never_moves_a_number_further_than_the_bound(steps: int, decay: float) -> None:
    """Against torch: equal gradients, single ones after silence, growing ones, random ones."""
    settings = CalibrationSettings(learning_rate=0.05, weight_decay=decay, local_steps=steps, schedule="constant")
    draw = torch.Generator().manual_seed(0)
    place = torch.arange(steps)
    gradients = torch.stack(
        [
            torch.ones(steps),
            (place == steps - 1) * 1.0,
            10.0 ** place.clamp(max=30),
            *torch.randn(200, steps, generator=draw).unbind(),
        ]
    )
    numbers = torch.full((len(gradients),), 0.5, requires_grad=True)
    optimizer = torch.optim.AdamW([numbers], settings.learning_rate, weight_decay=decay)
    for step in range(steps):
        numbers.grad = gradients[:, step].clone()
        optimizer.step()
    before = Coefficients(np.full((1, 2, 2), 0.5, dtype=np.float32))
    assert float((numbers.detach() - 0.5).abs().max()) <= reach_of(settings, request(before))
    assert float((numbers.detach() - 0.5).abs().max()) >= 0.5 * settings.learning_rate, "the test itself moves them"


# Through the engine


IN_THE_JOB = secure_job().method.calibration


def federation(before: Coefficients, counts: list[int]) -> tuple[RecordingEngine, list[UpdateReply]]:
    by = 0.9 * reach_of(IN_THE_JOB, request(before))
    replies = [moved(before, place, count, by) for place, count in enumerate(counts)]
    rules = [lambda asked, own=own: own if isinstance(asked, UpdateRequest) else None for own in replies]
    clients = [drawn_client(f"c{place}", rule=rule) for place, rule in enumerate(rules)]
    return RecordingEngine(behind(clients)), replies


def updates(secure: SecureEngine, asked: UpdateRequest, times: int) -> list[Reply]:
    return [delivery.reply for _ in range(times) for delivery in secure.exchange({TOGETHER: asked}, 60.0, {})]


def test_updates_travel_as_changes_with_the_same_mean_where_the_number_of_examples_is_known() -> None:
    before = start()
    inner, replies = federation(before, [20, 30, 50, 28])
    first, second = (updates(SecureEngine(inner, RULES, IN_THE_JOB), request(before, bits), 1)[0] for bits in (0, 7))
    sizes = [len(reply.masked) for name, _, reply in inner.crossed if name == "c0" and isinstance(reply, MaskReply)]
    numbers = {name: array.size for name, array in before.arrays.items()}
    assert sizes == [6 * (2 + sum(numbers.values())), 10 + 3 * numbers["scales"] + 2 * numbers["core"]]
    for reply in (first, second):
        assert isinstance(reply, UpdateReply)
        assert reply.examples == 128
        for name, mean in mean_of(replies).items():
            np.testing.assert_allclose(reply.coefficients.arrays[name], mean, atol=4 * 2.0**-16, err_msg=name)


def test_clients_with_more_examples_than_in_stage_1_cost_one_more_try_and_no_wrong_mean() -> None:
    before = start()
    inner, replies = federation(before, [20, 30, 50, 100])
    secure = SecureEngine(inner, RULES, IN_THE_JOB)
    for reply in updates(secure, request(before), 2):
        assert isinstance(reply, UpdateReply)
        assert reply.examples == 200
        np.testing.assert_allclose(reply.coefficients.arrays["core"], mean_of(replies)["core"], atol=4 * 2.0**-15)
    assert len({asked.session for _, asked, _ in inner.crossed if isinstance(asked, BeginRequest)}) == 3


def test_a_server_that_weights_one_client_alone_gets_no_total(monkeypatch: pytest.MonkeyPatch) -> None:
    """With other weights the others' changes are small in the total beside the one client's change."""
    before = start()
    inner, _ = federation(before, [20, 30, 50, 28])
    secure = SecureEngine(inner, RULES, IN_THE_JOB)
    updates(secure, request(before), 1)

    others = encode(request(before, 13))

    class Lying(RecordingEngine):
        def exchange(self, requests: Any, deadline: float, heads: Any) -> Any:
            lies = {
                name: replace(asked, request=others) if isinstance(asked, BeginRequest) and name != "c0" else asked
                for name, asked in requests.items()
            }
            yield from super().exchange(lies, deadline, heads)

    liar = Lying(inner.inner)
    monkeypatch.setattr(secure, "_inner", liar)
    monkeypatch.setattr(sum_steps, "disagreeing", lambda *_: [])  # what an honest server would see before numbers leave
    with pytest.raises((SecureSumError, TooFewClientsError)):
        updates(secure, request(before), 1)
    sent = {(name, type(reply)) for name, _, reply in liar.crossed}
    assert ("c0", MaskReply) in sent
    assert ("c0", RevealReply) not in sent
