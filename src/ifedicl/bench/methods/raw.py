"""The frozen model as it is: without examples, and with demonstrations in the prompt (in-context learning)."""

from __future__ import annotations

from collections.abc import Sequence

from ifedicl import runs, seeds
from ifedicl.bench.costs import Meter
from ifedicl.bench.methods.base import ALL, PAPER, Measured, Passes, Scope, Size
from ifedicl.bench.setup import Setup
from ifedicl.data import Example
from ifedicl.metrics import Evaluation
from ifedicl.task import TEXT_FIELD, Task

_DEMONSTRATIONS = 16
_MOST_TOKENS = 1_024
_CLIENTS = 3
_BETWEEN = "\n\n"


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
    """Demonstrations drawn from all clients' text together: what nobody may do, as a mark."""

    name = "icl-pooled"
    scope = Scope.SEED
    preset = PAPER

    def passes(self, size: Size) -> Passes:
        return Passes(size.test)

    def run(self, setup: Setup) -> Measured:
        meter = Meter(setup.names, crosses=False)
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
        meter = Meter(names, crosses=False)
        evaluations, counts = {}, []
        for place, name in enumerate(names):
            task, count = with_demonstrations(setup, setup.training_examples(setup.examples[name]), name)
            counts.append(count)
            evaluations[name] = _evaluated(setup, task, meter)
            setup.on_progress(place + 1, len(names))
        return Measured(evaluations, meter.costs(), settings={"demonstrations": counts})


def with_demonstrations(setup: Setup, examples: Sequence[Example], name: str) -> tuple[Task, int]:
    """The task with demonstrations before its prompt, as many of each label as there are, and how many.

    At most 16, and at most 1,024 tokens or half of the model's window. Their order is drawn too.
    """
    task, tokenizer = setup.task, setup.backbone.tokenizer
    room = min(_MOST_TOKENS, setup.backbone.context_window // 2)
    shown: list[str] = []
    for example in _balanced(examples, task, setup.method.seed, name)[:_DEMONSTRATIONS]:
        text = task.prompt(example.text) + task.separator + task.label_words[task.index(example.label)] + _BETWEEN
        room -= len(tokenizer(text, add_special_tokens=False)["input_ids"])
        if room < 0:
            break
        shown.append(text)
    order = seeds.generator(setup.method.seed, "demonstration order", name).permutation(len(shown))
    beginning = "".join(shown[int(place)] for place in order)
    return task.model_copy(update={"template": beginning + task.template}), len(shown)


def _balanced(examples: Sequence[Example], task: Task, seed: int, name: str) -> list[Example]:
    """Seeded draws without replacement, one of each label in turn."""
    by_label: dict[str, list[Example]] = {label: [] for label in task.labels}
    for place in seeds.generator(seed, "demonstrations", name).permutation(len(examples)):
        example = examples[int(place)]
        if TEXT_FIELD not in example.text:  # it would be taken for the place of the text
            by_label[example.label].append(example)
    turns = max(map(len, by_label.values()))
    return [own[turn] for turn in range(turns) for own in by_label.values() if turn < len(own)]


def _evaluated(setup: Setup, task: Task, meter: Meter) -> Evaluation:
    classifier = runs.zero_shot_adapter(setup.backbone, setup.model, task).classifier(setup.backbone)
    with meter.testing(len(setup.test)):
        return classifier.evaluate(setup.test)
