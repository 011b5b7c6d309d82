"""What a model gives for prompts, on the host."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ifedicl.core.readout import Readout


@dataclass(frozen=True)
class Reading:
    """What a model gives for prompts.

    Attributes:
        states: ``(N, h)`` float32, the last hidden state at each prompt's last token, which predicts the label word, and the
            mean states of the text's tokens at the pooled layers behind it.
        logs: ``(N, C)`` float32, ``log P(label | prompt)`` among the labels by their words.
    """

    states: npt.NDArray[np.float32]
    logs: npt.NDArray[np.float32]

    def log_probabilities(self, readout: Readout | None, *, alone: bool = False) -> npt.NDArray[np.float32]:
        """``(N, C)`` log-probabilities among the labels, by a readout; None: by the label words.

        ``alone``: no row changes a bit of another.
        """
        return self.logs if readout is None else readout.log_probabilities(self.states, self.logs, alone=alone)
