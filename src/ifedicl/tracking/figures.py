"""Which figures of a run leave by a tracker. This is the only place that decides it."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Mapping
from typing import Protocol

from ifedicl.errors import ConfigError, Fault
from ifedicl.federation.events import Begun, Delivered, Event, RoundDone
from ifedicl.federation.state import RoundRecord, Traffic
from ifedicl.settings import Method

_log = logging.getLogger(__name__)


class Tracker(Protocol):
    """Where figures go. A run of Weights & Biases is one as it is."""

    def log(self, figures: Mapping[str, float], step: int, /) -> object:
        """Keep the figures of the run after ``step`` completed rounds. What it returns is not used."""
        ...


class Tracked:
    """An observer of a run that gives a tracker the figures of each round.

    They are ``train_loss``, ``held_out/loss``, ``held_out/accuracy``, ``clients`` (those with a usable update), and since the
    run's first round ``bytes/down``, ``bytes/up``, ``failures`` and ``seconds``. A tracker that fails gets no more of them, and
    the run goes on.
    """

    def __init__(
        self, tracker: Tracker, method: Method, *, by_client: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Take the tracker and the run's method.

        Args:
            tracker: gets totals over all clients.
            method: of the run.
            by_client: whether it also gets each client's held-out figures, under ``client/NAME/``.
            clock: in seconds.

        Raises:
            ConfigError: ``by_client`` in a privacy mode that hides single clients.
        """
        if by_client and method.sums_only:
            assert method.privacy is not None
            allowed = f'false in privacy.mode "{method.privacy.mode}", which shows nobody a single client'
            raise ConfigError("tracker", [Fault("by_client", "true", allowed, "Leave it out.")])
        self._tracker = tracker
        self._by_client = by_client
        self._clock = clock
        self._began = clock()
        self._is_lost = False
        self._down = self._up = self._failures = 0

    def __call__(self, event: Event) -> None:
        """Take one event."""
        if isinstance(event, Begun) and event.state is not None:
            for traffic in event.state.traffic:
                self._count(traffic)
        elif isinstance(event, Delivered):
            self._count(event.traffic)
        elif isinstance(event, RoundDone) and not self._is_lost:
            try:
                self._tracker.log(self._figures(event.record), event.record.round)
            except Exception as error:
                self._is_lost = True
                _log.warning(
                    "%s failed (%s); it gets no more figures, and the run goes on",
                    type(self._tracker).__name__,
                    type(error).__name__,
                )

    def _count(self, traffic: Traffic) -> None:
        self._down += traffic.bytes_down
        self._up += traffic.bytes_up
        self._failures += traffic.failure is not None

    def _figures(self, record: RoundRecord) -> dict[str, float]:
        figures: dict[str, float] = {
            "clients": len(record.clients),
            "bytes/down": self._down,
            "bytes/up": self._up,
            "failures": self._failures,
            "seconds": self._clock() - self._began,
        }
        if record.train_loss is not None:
            figures["train_loss"] = record.train_loss
        if record.held_out is not None:
            figures |= {"held_out/loss": record.held_out.loss, "held_out/accuracy": record.held_out.accuracy}
        if self._by_client:
            for name, tally in record.by_client.items():
                place = f"client/{re.sub(r'[^A-Za-z0-9_. -]', '_', name)}"
                figures |= {f"{place}/held_out/loss": tally.loss, f"{place}/held_out/accuracy": tally.accuracy}
        return figures
