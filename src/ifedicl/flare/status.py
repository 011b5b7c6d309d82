"""The facts that `ifedicl flare status` shows about a running job."""

from __future__ import annotations

import threading
import time
from typing import Any

from ifedicl.federation.coordinator import Outcome
from ifedicl.federation.events import Delivered, Event, RoundDone, StepStarted
from ifedicl.federation.state import RoundRecord, Traffic
from ifedicl.flare.jobs import JobSettings


class Board:
    """Collects the facts of a run from its events. Any thread may read them."""

    def __init__(self, job: JobSettings) -> None:
        self._lock = threading.Lock()
        self._job = job
        self._started = time.time()
        self._step = "starting"
        self._asked = 0
        self._answered: list[str] = []
        self._last: dict[str, Traffic] = {}
        self._bytes = dict.fromkeys(job.sites, (0, 0, 0))  # received by a site, sent by it, added by the transport
        self._rounds: list[RoundRecord] = []
        self._last_round = job.last_round

    def observe(self, event: Event) -> None:
        """An observer of the coordinator."""
        with self._lock:
            if isinstance(event, StepStarted):
                self._step, self._asked, self._answered = event.step, event.clients, []
            elif isinstance(event, Delivered):
                self._deliver(event.traffic)
            elif isinstance(event, RoundDone):
                self._rounds.append(event.record)
                self._last_round = event.rounds

    @property
    def facts(self) -> dict[str, Any]:
        """The facts, for JSON: totals only, no array."""
        with self._lock:
            last = self._rounds[-1] if self._rounds else None
            held_out = last and last.held_out
            return {
                "run": self._job.name,
                "round": last.round if last else 0,
                "rounds": self._last_round,
                "seconds": time.time() - self._started,
                "train_loss": last and last.train_loss,
                "held_out_loss": held_out and held_out.loss,
                "held_out_accuracy": held_out and held_out.accuracy,
                "step": self._step,
                "asked": self._asked,
                "answered": list(self._answered),
                "sites": {site: self._site(site) for site in self._job.sites},
            }

    def failed(self, error: str) -> dict[str, Any]:
        """How a run ended that could not go on; ``error`` is the coordinator's own sentence."""
        return self.facts | {"error": error}

    def ended(self, outcome: Outcome, adapter: str) -> dict[str, Any]:
        """How a run ended: the chosen round's figures, and where the server has the ``adapter``."""
        state, gate = outcome.state, outcome.gate
        chosen = outcome.held_out
        return self.facts | {
            "error": None,
            "round": state.round,
            "phases": state.phases,
            "forgotten": [item.facts for item in state.forgotten],
            "chosen_round": outcome.chosen_round,
            "held_out_loss": chosen and chosen.loss,
            "held_out_accuracy": chosen and chosen.accuracy,
            "zero_shot_accuracy": state.zero_shot and state.zero_shot.accuracy,
            "gate": None if gate is None else {"open": gate.is_open},
            "adapter": adapter,
        }

    def _deliver(self, traffic: Traffic) -> None:
        down, up, carrier = self._bytes[traffic.client]
        self._bytes[traffic.client] = (down + traffic.bytes_down, up + traffic.bytes_up, carrier + traffic.carrier_bytes)
        self._last[traffic.client] = traffic
        if traffic.failure is None:
            self._answered.append(traffic.client)

    def _site(self, name: str) -> dict[str, Any]:
        last = self._last.get(name)
        down, up, carrier = self._bytes[name]
        return {
            "last": "no reply yet" if last is None else (last.failure or "answered"),
            "step": last and last.step,
            "seconds": last and round(last.seconds, 3),
            "bytes_down": down,
            "bytes_up": up,
            "carrier_bytes": carrier,
        }
