"""The frozen model: without examples, and with demonstrations in the prompt (in-context learning)."""

from __future__ import annotations

from collections.abc import Sequence

from ifedicl import runs, seeds
from ifedicl.backbone.control_tokens import ControlTokens
from ifedicl.bench.costs import Meter
from ifedicl.bench.methods.base import ALL, PAPER, Measured, Passes, Scope, Size, evaluate_adapter
from ifedicl.bench.setup import Setup
from ifedicl.kinds.any_task import TEXT_FIELD, AnyTask
from ifedicl.kinds.classify import Task, as_classification
from ifedicl.kinds.examples import AnyEvaluation, AnyExample

_DEMONSTRATIONS = 16
_MAX_TOKENS = 1_024
_CLIENTS = 3


class ZeroShot:
    """The prompt alone."""

    name = "zero-shot"
    scope = Scope.SET
    preset = PAPER

    def passes(self, size: Size) -> Passes:
        return Passes(size.test)

    def run(self, setup: Setup) -> Measured:
        meter = Meter(setup.names)
        return Measured({ALL: _evaluated(setup, setup.task, meter)}, meter.costs())


class PooledICL:
    """Demonstrations drawn from the text of all clients: a reference, since a federation does not pool text."""

    name = "icl-pooled"
    scope = Scope.SEED
    preset = PAPER

    def passes(self, size: Size) -> Passes:
        return Passes(size.test)

    def run(self, setup: Setup) -> Measured:
        meter = Meter(setup.names, counts_bytes=False)
        task, count = with_demonstrations(setup, setup.training_examples(setup.pool), "pooled")
        return Measured({ALL: _evaluated(setup, task, meter)}, meter.costs(), settings={"demonstrations": [count]})


class LocalICL:
    """A client's own demonstrations, for the first three clients."""

    name = "icl-local"
    scope = Scope.SPLIT
    preset = PAPER

    def passes(self, size: Size) -> Passes:
        return Passes(size.test * min(_CLIENTS, size.clients))

    def run(self, setup: Setup) -> Measured:
        names = setup.names[:_CLIENTS]
        meter = Meter(names, counts_bytes=False)
        evaluations, counts = {}, []
        for done, name in enumerate(names, start=1):
            task, count = with_demonstrations(setup, setup.training_examples(setup.examples[name]), name)
            counts.append(count)
            evaluations[name] = _evaluated(setup, task, meter)
            setup.on_progress(done, len(names))
        return Measured(evaluations, meter.costs(), settings={"demonstrations": counts})


def with_demonstrations(setup: Setup, examples: Sequence[AnyExample], name: str) -> tuple[Task, int]:
    """The task with demonstrations before its prompt, balanced over labels and in seeded order, and their number.

    At most 16, and at most 1,024 tokens or half of the model's window.
    """
    task, tokenizer = as_classification(setup.task, "in-context demonstrations"), setup.backbone.tokenizer
    tokens_left = min(_MAX_TOKENS, setup.backbone.context_window // 2)
    shown: list[str] = []
    for example in _balanced(examples, task, ControlTokens(tokenizer), setup.method.seed, name)[:_DEMONSTRATIONS]:
        text = task.prompt(example.text) + task.separator + task.label_words[task.class_of(example)] + "\n\n"
        tokens_left -= len(tokenizer(text, add_special_tokens=False)["input_ids"])
        if tokens_left < 0:
            break
        shown.append(text)
    order = seeds.generator(setup.method.seed, "demonstration order", name).permutation(len(shown))
    demonstrations = "".join(shown[int(index)] for index in order)
    return task.model_copy(update={"template": demonstrations + task.template}), len(shown)


def _balanced(examples: Sequence[AnyExample], task: Task, control: ControlTokens, seed: int, name: str) -> list[AnyExample]:
    """Seeded draws without replacement, one of each label in turn."""
    by_label: dict[str, list[AnyExample]] = {label: [] for label in task.labels}
    for index in seeds.generator(seed, "demonstrations", name).permutation(len(examples)):
        example = examples[int(index)]
        # The task would put the test text there; a control token would be one, since demonstrations are part of the template.
        if TEXT_FIELD not in example.text and control.named_in(example.text) is None:
            by_label[example.stratum].append(example)
    turns = max(map(len, by_label.values()))
    return [drawn[turn] for turn in range(turns) for drawn in by_label.values() if turn < len(drawn)]


def _evaluated(setup: Setup, task: AnyTask, meter: Meter) -> AnyEvaluation:
    return evaluate_adapter(setup, runs.zero_shot_adapter(setup.backbone, setup.model, task), meter)
