"""Jobs that ask the task cache: a stored adapter is the answer without a job, and a new one is stored after its job.

The cache is at the coordinator's console. The vectors of stage 1, which a warm start needs, are at the server, so a job starts
cold.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ifedicl.adapter import Adapter
from ifedicl.core.vectors import Array32
from ifedicl.errors import FederationError
from ifedicl.federation.coordinator import Starter
from ifedicl.flare.jobs import JobSettings
from ifedicl.store import requests
from ifedicl.store.protocol import Store
from ifedicl.store.records import TaskKey
from ifedicl.store.requests import Answer


@dataclass(frozen=True)
class Finished:
    """A finished job: its adapter, and how it ended, as :meth:`~ifedicl.flare.status.Board.ended` says."""

    adapter: Adapter
    result: Mapping[str, Any]

    @property
    def figures(self) -> dict[str, float | int | bool | None]:
        """For the cache: rounds, the chosen round's held-out loss and accuracy, and whether the gate is open."""
        gate = self.result["gate"]
        return {
            "rounds": self.result["round"],
            "held_out_loss": self.result["held_out_loss"],
            "held_out_accuracy": self.result["held_out_accuracy"],
            "gate_open": None if gate is None else gate["open"],
        }


def request(
    store: Store, federation: str, job: JobSettings, work: Callable[[], Finished], *, recalibrate: bool = False
) -> tuple[Answer, Finished | None]:
    """Answer a job from the store, or do its work and store the result; equal requests at the same time work once.

    Args:
        store: the task cache.
        federation: adapters of other federations are not found.
        job: what is asked for.
        work: sends the job and waits for its end.
        recalibrate: work even if an adapter is stored.

    Returns:
        The answer, and the finished job unless the answer was stored.

    Raises:
        FederationError: the job failed, or the server gave the adapter of another task, model or method.
        BackboneError: the store has no reference of the model, and the model is not on this machine. Nothing was sent.
        StorageError: an error of the database.
    """
    key = TaskKey.of(federation, job.fingerprint, job.task, job.method)

    def centre() -> Array32:
        from ifedicl.backbone.load import load_backbone
        from ifedicl.store.signature import reference

        return reference(load_backbone(job.model), job.method.vectors.read_position)

    def calibrate(_starter: Starter) -> Finished:
        if not job.method.is_one_shot:
            store.reference(key, centre)  # before anything is sent, because it may fail
        finished = work()
        if TaskKey.of_adapter(federation, finished.adapter) != key:
            raise FederationError(
                f"run {job.name}: the server gave the adapter of another task, model or method, so it is not stored. Look at "
                "the server's runs, and ask its operator"
            )
        return finished

    return requests.request(store, key, job.method, calibrate, centre, recalibrate=recalibrate)
