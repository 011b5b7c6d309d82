"""What the scorers of all kinds of task have in common: passes over one model, and what the federation asks of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ifedicl.backbone.layer_cache import UpperLayers
from ifedicl.backbone.layout import Row, branches_of, last_places, read_at, right_padded, states_of
from ifedicl.backbone.load import Backbone, Prefix
from ifedicl.backbone.lock import exclusive
from ifedicl.backbone.losses import Answers, Loss
from ifedicl.backbone.passes import BUDGETS, length_batches
from ifedicl.backbone.pooling import Span
from ifedicl.backbone.prompts import EncodedExamples, PromptEncoder, Prompts, Tokens
from ifedicl.backbone.readings import Reading
from ifedicl.backbone.tree_attention import Branches
from ifedicl.core.readout import Readout
from ifedicl.core.transfer import to_device, to_host
from ifedicl.kinds.any_task import AnyTask
from ifedicl.kinds.examples import AnyExample


class BaseScorer(ABC):
    """One task with one model: encodes examples, and reads the model for them. Injections around it change what it computes.

    Each kind of task has a subclass. *Labels* are what it makes of the answers of examples; all others pass them on.
    Several threads may use it.
    """

    task: AnyTask
    encoder: PromptEncoder
    words: Answers

    def __init__(self, backbone: Backbone, *, first_layer: int = 0, on_pass: Callable[[], None] = lambda: None) -> None:
        """Take the model.

        Args:
            backbone: the frozen model.
            first_layer: the lowest that is ever injected; the states that enter it are computed once for each row and kept.
            on_pass: called before each forward pass; what it raises ends the work.
        """
        self.backbone = backbone
        self.on_pass = on_pass
        self.upper = UpperLayers(backbone, first_layer) if first_layer else None
        self.budget = BUDGETS[backbone.device.type]

    @abstractmethod
    def encoded(self, examples: Sequence[AnyExample]) -> EncodedExamples:
        """Encode examples.

        Raises:
            DataError: a text has no tokens, or an answer is none of the task.
        """

    @abstractmethod
    def demonstrations(self, prompts: Sequence[Tokens], labels: Sequence[Any], position: str) -> list[Tokens]:
        """What stage 1 runs of each example: its end is the token that is read, at this ``vectors.read_position``."""

    @abstractmethod
    def classes_of(self, labels: Sequence[Any]) -> list[int]:
        """The class of each example, as :meth:`AnyTask.class_of`."""

    def row_classes(self, labels: Sequence[Any]) -> Sequence[Any]:
        """The class of each row of a :meth:`reading` of examples, below :attr:`AnyTask.columns`; usually one row an example.

        Where classes overlap, zeros and ones: which of all classes each row has.
        """
        return self.classes_of(labels)

    def rows_of(self, label: Any) -> int:
        """How many rows of :meth:`scores` an example with this label has; usually one."""
        del label
        return 1

    @abstractmethod
    def training_batches(self, prompts: Sequence[Tokens], labels: Sequence[Any]) -> list[list[int]]:
        """Positions of examples in groups, one for each pass with gradients."""

    @abstractmethod
    def widths(self, examples: EncodedExamples) -> list[int]:
        """The tokens of each example's longest row."""

    @abstractmethod
    def reading(
        self, examples: EncodedExamples, pooled_layers: tuple[int, ...] = (), *, alone: bool = False, words: bool = True
    ) -> Reading:
        """What a readout's sums and the figures of examples are made of.

        Args:
            examples: any number of them; their answers have no influence.
            pooled_layers: the text's mean states at the inputs of these layers (1 to ``L``) are read too.
            alone: each example in a pass of its own. In a pass of several, one changes the last bits of another.
            words: False: the answers are not run, and all have the same log-probability.
        """

    @abstractmethod
    def scores(
        self,
        examples: EncodedExamples,
        *,
        readout: Readout | None = None,
        on_progress: Callable[[int], None] | None = None,
    ) -> npt.NDArray[Any]:
        """What :meth:`AnyTask.evaluation` reads, for any number of examples; by a readout, or None: by the answers' own tokens.

        ``on_progress`` is called with the number of examples just done.
        """

    def shared(self, on_pass: Callable[[], None]) -> Self:
        """The same scorer with another ``on_pass``. Both use the same tokens and the same kept states."""
        twin = copy(self)
        twin.on_pass = on_pass
        return twin

    def losses(self, loss: Loss, prompts: Sequence[Tokens], labels: Sequence[Any]) -> Tensor:
        """``(B,)`` float32 in nats, in one pass; ``labels`` as :meth:`encoded` makes them."""
        fed = loss.fed(self.words, prompts, labels, lambda width: width)
        return loss.losses(self.words, self.states(fed.rows, None), fed.tensors)

    def pass_inputs(self, rows: Sequence[Row], width: int) -> dict[str, Tensor]:
        """For :meth:`states_from`: rows padded to ``width`` tokens, and the states that enter the lowest layer that runs."""
        device = self.backbone.device
        branches = branches_of(rows, device, width)
        return {
            "tokens": right_padded([row.tokens for row in rows], device, width),
            **({} if branches is None else {"positions": branches.positions, "seen": branches.seen}),
            **({} if self.upper is None else {"entering": self.upper.entering(rows, width)}),
        }

    def states_from(self, given: Mapping[str, Tensor]) -> Tensor:
        """``(B·R, T, d)`` states as of these rows in a plain pass; a function of what :meth:`pass_inputs` gives alone."""
        branches = Branches(given["positions"], given["seen"]) if "seen" in given else None
        with exclusive(self.backbone):
            if self.upper is None:
                return self.backbone.hidden_states(given["tokens"], branches=branches)
            with self.upper.skipping(given["entering"]):
                return self.backbone.hidden_states(given["tokens"], branches=branches)

    @torch.inference_mode()
    def features(self, prompts: Prompts) -> npt.NDArray[np.float32]:
        """``(N, d)``: the last hidden state at each prompt's last token, which predicts the answer."""
        groups, states = length_batches([len(tokens) for tokens in prompts.tokens], self.budget), list[Tensor]()
        for batch in groups:
            tokens = [prompts.tokens[position] for position in batch]
            run = self.states([Row(prompt) for prompt in tokens], None)
            states.append(last_states(run, tokens).float())
        result = np.empty((len(prompts.tokens), self.backbone.width), dtype=np.float32)
        if groups:
            (result[[position for batch in groups for position in batch]],) = to_host(torch.cat(states))
        return result

    def spans(self, prompts: Sequence[Tokens], pooled_layers: tuple[int, ...]) -> list[Span | None]:
        """The span of each prompt's text at these layers; without a layer None for each prompt."""
        if not pooled_layers:
            return [None] * len(prompts)
        texts = [self.encoder.text_span(prompt) for prompt in prompts]
        return [Span(pooled_layers, text.start, text.stop) for text in texts]

    def states(self, rows: Sequence[Row], prefix: Prefix | None) -> Tensor:
        """``(B, T, d)`` last hidden states of a pass; with a ``prefix``, the rows follow it."""
        self.on_pass()
        with exclusive(self.backbone):
            if self.upper is None or prefix is not None:
                return states_of(self.backbone, rows, prefix)
            return self.upper.hidden_states(rows)


def last_states(states: Tensor, prompts: Sequence[Tokens]) -> Tensor:
    """``(B, d)`` of ``(B, T, d)``: the state at each prompt's last token."""
    return read_at(states, to_device(last_places(prompts, states.shape[1]), states.device))
