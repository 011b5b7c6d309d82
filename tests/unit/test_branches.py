"""Rows that branch behind the prompt, against one sequence for each path of the label words: the same in every family."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ifedicl.backbone.encoding import LabelTree
from ifedicl.backbone.families import FAMILIES
from ifedicl.backbone.hooks import injected
from ifedicl.backbone.layer_cache import UpperLayers
from ifedicl.backbone.layout import Layout, Row, branches_of, read_at, states_of
from ifedicl.backbone.load import Backbone
from ifedicl.backbone.multi_adapter import Asked, Placed, mixed_batches, mixed_log_probabilities
from ifedicl.backbone.passes import PassBudget
from ifedicl.backbone.prompts import EncodedExamples, Tokens
from ifedicl.backbone.scoring import Scorer
from ifedicl.backbone.tree_attention import branch_limit
from ifedicl.calibrate import example_gradients, gradient_sum
from ifedicl.core.coefficients import Coefficients
from ifedicl.core.subspace import Context, ContextTensors
from ifedicl.kinds.classify import Task
from tests.support import tiny
from tests.support.families import SOME_FAMILIES

# Words that begin others, of 2 to 16 tokens; three paths.
WORDS = ("at home", "at home alone", "out", "on", "at the table, fresh and warm", "outside")
PLACES = Task(name="places", labels=WORDS, template="Text: {text}\nPlace:")
TEXTS = (*tiny.SENTENCES, "ok")
ALIBI = ("bloom", "bloom-post-norm-residual", "falcon-rw-alibi")
WIDE = 64
"""Tokens: a sliding window that holds all of these prompts and label words."""


@pytest.fixture(params=sorted(tiny.FAMILY_CASES))
def family(request: pytest.FixtureRequest) -> Backbone:
    return tiny.family_backbone(request.param, window=WIDE)


def by_paths(backbone: Backbone) -> Backbone:
    """The same model, whose rows never branch."""
    return replace(backbone, branch_limit=0)


def injection(first: int = 0) -> tuple[ContextTensors, Tensor, np.ndarray[Any, Any], Tensor]:
    """Context, scales, active writes from a layer on, and core."""
    draws = torch.Generator().manual_seed(3)
    basis = torch.linalg.qr(torch.randn(3, 2, 32, 4, generator=draws)).Q.mT.contiguous()
    scales = torch.stack([torch.randn(3, 2, generator=draws) * 0.3, 0.5 + torch.rand(3, 2, generator=draws)], dim=-1)
    active = np.zeros((3, 2), dtype=np.bool_)
    active[first:] = True
    context = ContextTensors(torch.randn(3, 2, 32, generator=draws), basis)
    return context, scales, active, torch.randn(3, 2, 4, 4, generator=draws) * 0.4


def scores_and_gradients(scorer: Scorer, prompts: Sequence[Tokens], first: int = 0) -> list[Tensor | None]:
    """Log-probabilities of an injected model and the gradients of all its coefficients."""
    context, scales, active, core = injection(first)
    scales.requires_grad_()
    core.requires_grad_()
    labels = torch.arange(len(prompts)) % len(scorer.task.labels)
    with injected(scorer.backbone, context, scales, active, core=core):
        scores = scorer.label_scores(prompts).log_softmax(dim=-1)
    nn.functional.nll_loss(scores, labels).backward()
    return [scores.detach(), scales.grad, core.grad]


def fed(backbone: Backbone) -> Counter[str]:
    """Counts the tokens and the passes that reach the first layer from now on."""
    count: Counter[str] = Counter()

    def hook(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        count.update(passes=1, tokens=output.shape[:-1].numel())

    backbone.writes[0][0].register_forward_hook(hook)
    return count


# --- every family ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", SOME_FAMILIES)
def test_a_model_says_how_far_its_rows_may_branch(case: str) -> None:
    expected = 0 if case in ALIBI else WIDE if case in tiny.SLIDING else 128
    assert tiny.family_backbone(case, window=WIDE).branch_limit == expected
    assert {family for family, writes in FAMILIES.items() if not writes.branches} == {"bloom"}


def test_branching_rows_give_the_scores_and_gradients_of_one_sequence_a_path(family: Backbone) -> None:
    ours, theirs = Scorer(family, PLACES), Scorer(by_paths(family), PLACES)
    prompts = ours.encoder.prompts(TEXTS).tokens
    assert len(set(map(len, prompts))) > 3, "prompts alike in length would prove nothing about padding"
    assert ours.layout(prompts).branches == (family.branch_limit > 0)
    assert len(theirs.layout(prompts).tails) == 3
    one_row, one_a_path = scores_and_gradients(ours, prompts), scores_and_gradients(theirs, prompts)
    torch.testing.assert_close(one_row, one_a_path, rtol=1e-3, atol=1e-4)
    scores, *gradients = one_a_path
    assert scores is not None
    assert (scores[:, None] - scores[:, :, None]).abs().max() > 1
    assert all(gradient is not None and (gradient != 0).all() for gradient in gradients)


@torch.no_grad()
def test_branching_rows_behind_a_remembered_beginning_are_as_if_run_whole(family: Backbone) -> None:
    ours = Scorer(family, PLACES)
    prompts = [prompt[:12] for prompt in ours.encoder.prompts(TEXTS).tokens]
    beginning = (7, 130, 22, 3, 65, 11, 204, 90)
    context, scales, active, core = injection()
    with injected(family, context, scales, active, core=core):
        prefix = family.prefix(beginning)
        assert ours.layout(prompts, prefix.length).branches == (family.branch_limit > 0)
        behind = ours.label_scores(prompts, prefix).log_softmax(dim=-1)
        whole = Scorer(by_paths(family), PLACES).label_scores([beginning + prompt for prompt in prompts])
    torch.testing.assert_close(behind, whole.log_softmax(dim=-1), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("first", [1, 2])
def test_branching_rows_on_kept_states_give_what_the_whole_model_gives(family: Backbone, first: int) -> None:
    upper, whole = Scorer(family, PLACES, first_layer=first), Scorer(by_paths(family), PLACES)
    prompts = upper.encoder.prompts(TEXTS).tokens
    expected = scores_and_gradients(whole, prompts, first)
    for _ in range(2):  # computed, then kept
        torch.testing.assert_close(scores_and_gradients(upper, prompts, first), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("case", sorted({*tiny.SLIDING, *ALIBI}))
@torch.no_grad()
def test_where_rows_may_not_branch_they_would_give_other_numbers(case: str) -> None:
    backbone = tiny.family_backbone(case)
    right, forced = Scorer(backbone, PLACES), Scorer(replace(backbone, branch_limit=128), PLACES)
    prompts = right.encoder.prompts(TEXTS).tokens
    assert not right.layout(prompts).branches
    try:
        difference = (forced.label_scores(prompts) - right.label_scores(prompts)).abs().max()
    except ValueError:  # ALiBi wants a mask of two dimensions
        assert case in ALIBI
    else:
        assert difference > 0.01


@pytest.mark.parametrize("case", tiny.SLIDING)
@torch.no_grad()
def test_rows_branch_as_long_as_the_window_holds_the_whole_sequence(case: str) -> None:
    deepest = max(map(len, Scorer(tiny.family_backbone(case), PLACES).encoder.tree.paths))
    window = 22 + deepest
    backbone = tiny.family_backbone(case, window=window)
    ours, theirs = Scorer(backbone, PLACES), Scorer(by_paths(backbone), PLACES)
    prompts = ours.encoder.prompts(TEXTS).tokens
    fits = [len(prompt) <= 22 for prompt in prompts]
    assert 22 in map(len, prompts)
    assert [ours.layout([prompt]).branches for prompt in prompts] == fits
    assert not ours.layout(prompts).branches, "the longest decides for its pass"
    assert not all(fits)
    together, apart = ours.label_scores(prompts), torch.cat([ours.label_scores([prompt]) for prompt in prompts])
    expected = theirs.label_scores(prompts)
    torch.testing.assert_close(together, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(apart, expected, rtol=1e-4, atol=1e-4)
    shortest = min(prompts, key=len)
    assert ours.layout([shortest], 22 - len(shortest)).branches
    assert not ours.layout([shortest], 23 - len(shortest)).branches


def test_a_family_that_a_user_names_never_branches(tmp_path: Path) -> None:
    paths = {"layers": "layers", "attention": "self_attn.o_proj", "mlp": "mlp.down_proj"}
    assert tiny.load(tiny.save_model(tmp_path / "m", "granite"), writes=paths).branch_limit == 0


def test_attention_that_drops_a_mask_of_our_own_never_branches() -> None:
    def limit(attention: str) -> int:
        return branch_limit(FAMILIES["llama"], SimpleNamespace(_attn_implementation=attention), 100)

    assert [limit(name) for name in ("sdpa", "eager", "flash_attention_2", "flex_attention")] == [100, 100, 0, 0]


def test_rows_whose_mask_would_fill_the_memory_do_not_branch() -> None:
    limit = branch_limit(FAMILIES["llama"], SimpleNamespace(_attn_implementation="sdpa"), 131_072)
    assert limit**2 * 4 == 256 * 2**20  # bytes of float32


# --- rows and layouts --------------------------------------------------------------------------------------------------

trees = st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=6).map(tuple), min_size=2, max_size=8, unique=True)
prompts_of_tokens = st.lists(st.lists(st.integers(1, 300), min_size=1, max_size=9).map(tuple), min_size=1, max_size=4)


@settings(deadline=None, max_examples=40)
@given(trees, prompts_of_tokens)
@torch.no_grad()
def test_every_node_of_any_tree_is_read_as_on_its_path(words: list[Tokens], prompts: list[Tokens]) -> None:
    backbone, tree = tiny.family_backbone("llama"), LabelTree.of(words)
    branching, paths = Layout.branching(tree), Layout.by_paths(tree)
    found = []
    for layout in (branching, paths):
        states = states_of(backbone, layout.rows(prompts))
        found.append(read_at(states, torch.from_numpy(layout.places(prompts, states.shape[1]))))  # (B, N, d)
    ours, theirs = found
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    assert branching.branches == (len(tree.paths) > 1)
    assert sum(len(tail.tokens) for tail in branching.tails) == len(tree.nodes) - 1, "each node but the root is fed once"


def test_each_branch_sees_the_prompt_and_its_own_ancestors_at_its_own_position() -> None:
    words = ((1, 2, 9), (1, 3, 9), (4, 9))
    (tail,) = Layout.branching(LabelTree.of(words)).tails
    assert tail == Row((1, 2, 3, 4), (-1, 0, 0, -1))
    branches = branches_of([tail.behind((7, 8)), tail.behind((5,))], torch.device("cpu"))
    assert branches is not None
    assert branches.positions.tolist() == [[0, 1, 2, 3, 3, 2], [0, 1, 2, 2, 1, 0]]
    seen = [{place for place, sees in enumerate(line) if sees} for line in branches.seen[0].tolist()]
    assert seen == [{0}, {0, 1}, {0, 1, 2}, {0, 1, 2, 3}, {0, 1, 2, 4}, {0, 1, 5}]
    assert branches.seen[1].diagonal().all(), "a token that saw nothing would give no number"


@pytest.mark.parametrize("task", [tiny.TASK, Task(name="one path", labels=("at home", "at home alone"), template="{text} is")])
def test_where_nothing_branches_there_is_no_mask(backbone: Backbone, task: Task) -> None:
    scorer = Scorer(backbone, task)
    prompts = scorer.encoder.prompts(TEXTS).tokens
    rows = scorer.layout(prompts).rows(prompts)
    assert len(rows) == len(prompts)
    assert branches_of(rows, backbone.device) is None


def test_rows_of_both_kinds_make_no_pass_together() -> None:
    with pytest.raises(AssertionError, match="need separate passes"):
        branches_of([Row((1, 2, 3)), Row((1, 2, 3), (-1, -1))], torch.device("cpu"))


@torch.no_grad()
def test_kept_states_tell_the_same_tokens_in_other_branches_apart() -> None:
    backbone, tokens = tiny.family_backbone("llama"), (5, 17, 3, 99)
    upper = UpperLayers(backbone, 2)
    rows = [Row(tokens), Row(tokens, (-1, -1)), Row(tokens, (-1, 0, 0)), Row(tokens, (-1, 0, 1))]
    for _ in range(2):  # computed, then kept
        kept = [upper.hidden_states([row])[0] for row in rows]
        for row, states in zip(rows, kept, strict=True):
            torch.testing.assert_close(states, states_of(backbone, [row])[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(kept[3], kept[0], rtol=1e-5, atol=1e-5)  # branches that follow each other are a sequence
    assert all((kept[0][3] - other[3]).abs().max() > 0.01 for other in kept[1:3])


# --- whatever is read of a row -----------------------------------------------------------------------------------------


def test_each_examples_own_gradient_is_that_of_one_sequence_a_path() -> None:
    backbone = tiny.family_backbone("llama")  # of larger weights: gradients that show
    context, scales, _, core = injection()
    own = Context(context.vectors.numpy(), context.basis.numpy() if context.basis is not None else None)
    coefficients = Coefficients(scales.numpy(), core.numpy())
    rows, found = range(len(TEXTS)), []
    for model in (backbone, by_paths(backbone)):
        scorer = Scorer(model, PLACES)
        prompts, labels = scorer.encoder.prompts(TEXTS), [number % len(WORDS) for number in rows]
        rest = (
            scorer,
            EncodedExamples(prompts, tuple(labels)),
            own,
            coefficients,
            tiny.method(calibration={"loss": "labels"}),
            rows,
        )
        each = {row: arrays for batch, part in example_gradients(*rest) for row, arrays in _unstacked(batch, part)}
        assert sorted(each) == list(rows)
        for name, total in gradient_sum(*rest).arrays.items():
            np.testing.assert_allclose(sum(arrays[name] for arrays in each.values()), total, rtol=1e-3, atol=1e-4)
        found.append(each)
    for row in rows:
        for name, array in found[0][row].items():
            assert np.abs(array).max() > 1e-3
            np.testing.assert_allclose(array, found[1][row][name], rtol=1e-3, atol=1e-4)


def _unstacked(batch: Sequence[int], arrays: dict[str, Any]) -> list[tuple[int, dict[str, Any]]]:
    return [(row, {name: array[place] for name, array in arrays.items()}) for place, row in enumerate(batch)]


@pytest.mark.parametrize("first_layer", [0, 1])
@pytest.mark.parametrize("template", [PLACES.template, "as it was, or so they say: " * 2 + PLACES.template])
def test_states_pooled_text_and_scores_are_those_of_one_sequence_a_path(
    backbone: Backbone, template: str, first_layer: int
) -> None:
    task = PLACES.model_copy(update={"template": template})
    ours, theirs = (Scorer(model, task, first_layer=first_layer) for model in (backbone, by_paths(backbone)))
    prompts = ours.encoder.prompts(TEXTS)
    for layers in ((), (1,), (1, backbone.layers)):
        one_row, one_a_path = ours.read(prompts, layers), theirs.read(prompts, layers)
        np.testing.assert_allclose(one_row.states, one_a_path.states, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(one_row.logs, one_a_path.logs, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(ours.features(prompts), one_a_path.states[:, : backbone.width], rtol=1e-3, atol=1e-4)


def test_in_bfloat16_both_ways_differ_by_its_rounding_alone(llama_folder: Path) -> None:
    exact, rough = tiny.load(llama_folder), tiny.load(llama_folder, dtype="bfloat16")
    prompts = Scorer(exact, PLACES).encoder.prompts(TEXTS)
    expected = Scorer(exact, PLACES).log_probabilities(prompts)
    errors = [np.abs(Scorer(model, PLACES).log_probabilities(prompts) - expected) for model in (rough, by_paths(rough))]
    assert 0 < errors[0].max() < 2 * errors[1].max()
    assert errors[0].max() < 0.1 * np.ptp(expected, axis=0).max()


def test_many_states_are_read_against_the_vocabulary_in_parts(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Scorer(backbone, PLACES).log_probabilities(Scorer(backbone, PLACES).encoder.prompts(TEXTS))
    sizes: list[int] = []
    read = Backbone.logits

    def counted(self: Backbone, states: Tensor, words: Tensor | None = None) -> Tensor:
        sizes.append(states.shape[:-1].numel())
        return read(self, states, words)

    monkeypatch.setattr(Backbone, "logits", counted)
    monkeypatch.setattr("ifedicl.backbone.label_words._MOST_READ", 60)
    scorer = Scorer(backbone, PLACES)
    parts = scorer.log_probabilities(scorer.encoder.prompts(TEXTS))
    assert max(sizes) == 2 * len(scorer.encoder.tree.nodes) <= 60
    np.testing.assert_allclose(parts, whole, rtol=1e-4, atol=1e-5)


# --- what it costs -----------------------------------------------------------------------------------------------------


def test_one_row_feeds_the_prompt_and_each_node_once(llama_folder: Path) -> None:
    backbone = tiny.load(llama_folder)
    count = fed(backbone)
    ours, theirs = Scorer(backbone, PLACES), Scorer(by_paths(backbone), PLACES)
    (prompt,) = ours.encoder.prompts(TEXTS[:1]).tokens
    tree = ours.encoder.tree
    with torch.no_grad():
        ours.label_scores([prompt])
        assert count == {"passes": 1, "tokens": len(prompt) + len(tree.nodes) - 1}
        count.clear()
        theirs.label_scores([prompt])
    assert count["tokens"] == len(tree.paths) * (len(prompt) + max(map(len, tree.paths)))


def test_passes_are_filled_with_the_rows_that_are_run(llama_folder: Path) -> None:
    backbone = tiny.load(llama_folder)
    ours, theirs = Scorer(backbone, PLACES), Scorer(by_paths(backbone), PLACES)
    prompts = [(1, 2, 3)] * 12
    row = 3 + len(ours.encoder.tree.nodes) - 1
    for scorer, most in ((ours, 4), (theirs, 4 * row // (3 * (3 + 15)))):
        scorer.budget = PassBudget(tokens=4 * row, overhead=1_000, remembered=64 * row)
        assert max(map(len, scorer.batches(prompts))) == most
    count = fed(backbone)
    ours.log_probabilities(ours.encoder.prompts(TEXTS))
    assert count["tokens"] / count["passes"] <= ours.budget.tokens


def test_adapters_with_other_trees_share_a_pass_and_flat_ones_keep_their_own(backbone: Backbone) -> None:
    tasks = (tiny.TASK, tiny.MANY_TOKENS, PLACES)
    placed = [Placed(Scorer(backbone, task)) for task in tasks]
    rows = [Asked(own, own.scorer.encoder.prompts([text]).tokens[0]) for text in TEXTS[:4] for own in placed]
    batches = mixed_batches(rows)
    assert sorted(position for batch in batches for position in batch) == list(range(len(rows)))
    owners = [{placed.index(rows[position].placed) for position in batch} for batch in batches]
    assert {1, 2} in owners
    assert all(not {0} < own for own in owners)
    for batch in batches:
        for position, logs in zip(batch, mixed_log_probabilities(backbone, [rows[p] for p in batch]), strict=True):
            scorer = Scorer(by_paths(backbone), tasks[placed.index(rows[position].placed)])
            with torch.no_grad():
                expected = scorer.label_scores([rows[position].prompt]).log_softmax(dim=-1)[0]
            np.testing.assert_allclose(logs, expected.numpy(), rtol=1e-3, atol=1e-4)
