"""A client under differential privacy: only requests that noise is planned for reach it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ifedicl.federation.client import Client
from ifedicl.federation.dp_sums import DPSums
from ifedicl.federation.messages import ContextRequest, Failure, FailureCode, GradientRequest, Reply, Request, VectorsRequest

_ANSWERED = (VectorsRequest, ContextRequest, GradientRequest)


class DPClient:
    """The layer around a client whose sums are private. It also gives the secure sum this client's share of the noise."""

    def __init__(self, client: Client, sums: DPSums) -> None:
        """Nothing is asked yet.

        Args:
            client: the data owner; the same examples answer, summed by ``sums``.
            sums: its budget and its noise.
        """
        self.client = client.with_sums(sums)
        self._sums = sums

    @property
    def name(self) -> str:
        """The client's."""
        return self.client.name

    @property
    def cursor(self) -> str:
        """As :attr:`Client.cursor`."""
        return self.client.cursor

    @property
    def spent_epsilon(self) -> float:
        """The ε of all gradients so far, for one example."""
        return self._sums.spent_epsilon

    def examples_behind(self, cursor: str) -> npt.NDArray[np.int64]:
        """As :meth:`Client.examples_behind`."""
        return self.client.examples_behind(cursor)

    def noise(self, kind: str, size: int) -> npt.NDArray[np.int64]:
        """As :meth:`DPSums.noise`."""
        return self._sums.noise(kind, size)

    def handle(self, request: Request, /) -> Reply:
        """Answer what noise is planned for, under the settings that the budget was made for. Never raises."""
        if not isinstance(request, _ANSWERED):
            return Failure(FailureCode.BAD_REQUEST)
        if isinstance(request, VectorsRequest) and request.method != self._sums.method:
            return Failure(FailureCode.BAD_REQUEST)
        return self.client.handle(request)
