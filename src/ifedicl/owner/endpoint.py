"""Clients that are played in one process, as the privacy mode of a run lets them answer, and with ledgers of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from ifedicl.data import Example, read_texts
from ifedicl.federation.assignment import Assignment
from ifedicl.federation.client import Client
from ifedicl.federation.engine import Door, Engine
from ifedicl.federation.messages import Reply, Request
from ifedicl.federation.secure import packages_of
from ifedicl.ledger.ledger import Ledger
from ifedicl.ledger.usage import History
from ifedicl.owner.guard import GuardedClient, SummedClient
from ifedicl.owner.policy import open_policy
from ifedicl.settings import Method, RunSettings

if TYPE_CHECKING:
    from ifedicl.federation.dp_client import DPClient


@dataclass(frozen=True)
class Mode:
    """Clients as the privacy mode of the settings lets them answer.

    Attributes:
        clients: in order.
        method: the settings.
        promises: of noise, each client's; none where none is promised.
    """

    clients: Sequence[Client]
    method: Method
    promises: Sequence[DPClient]

    @classmethod
    def of(cls, clients: Sequence[Client], method: Method, public: Sequence[Example], left: Mapping[str, int]) -> Mode:
        """Raises ConfigError where a package that the mode needs is not installed."""
        if method.privacy is None or not method.promises_noise:
            return cls(clients, method, ())
        with packages_of(method.privacy):
            from ifedicl.federation.secure.simulation import promised
        promises = promised(clients, method, public, left)
        summing = [client.with_sums(promise) for client, promise in zip(clients, promises, strict=True)]
        return cls(summing, method, promises)

    def carrier(self, engine: Callable[[Sequence[Door]], Engine], ledgers: Path | None) -> Engine:
        """What carries the messages.

        Args:
            engine: carries those that doors answer.
            ledgers: a folder for each client's ledger; None: none is kept.

        Raises:
            ConfigError: a package that the mode needs is not installed.
            StorageError: a ledger cannot be written, or was changed.
        """
        if self.method.privacy is None or not self.method.sums_only:
            return engine(self.clients if ledgers is None else with_ledgers(self.clients, ledgers))
        with packages_of(self.method.privacy):
            from ifedicl.federation.secure.simulation import secured
        if ledgers is None:
            return secured(engine, self.clients, self.method.privacy, promises=self.promises)
        folder = ledgers

        def owned(client: Client, masking: Callable[[Callable[[Request], Reply]], Door]) -> Door:
            return SummedClient(client, open_policy(), _ledger(folder, client.name), masking)

        return secured(engine, self.clients, self.method.privacy, owned, self.promises)

    def spent(self) -> dict[str, Any]:
        """What the adapter tells of one example of any client, for its provenance; nothing where no noise is promised."""
        if not self.promises:
            return {}
        budgets = [promise.budget for promise in self.promises]
        most = max(budget.spent_epsilon for budget in budgets)
        return {"privacy": {"epsilon": round(most, 4), "delta": budgets[0].delta, "of": "one example of one client"}}


def with_ledgers(clients: Sequence[Client], folder: Path) -> list[GuardedClient]:
    """Played clients, each with a ledger of what left it, ``NAME.jsonl``; nothing is refused.

    Raises:
        StorageError: a ledger cannot be written, or was changed.
    """
    return [GuardedClient(client, open_policy(), _ledger(folder, client.name)) for client in clients]


def _ledger(folder: Path, name: str) -> Ledger:
    return Ledger(folder / f"{quote(name, safe=' ')}.jsonl", name)


def public_examples(settings: RunSettings) -> tuple[Example, ...]:
    """Public texts under each label in turn: no one knows which would fit, and it does not matter."""
    if settings.data.public is None:
        return ()
    texts, labels = read_texts(settings.data.public, text=settings.data.text_column), settings.task.labels
    return tuple(Example(text, labels[place % len(labels)]) for place, text in enumerate(texts))


def gradients_left(assignment: Assignment, ledgers: Path, names: Sequence[str]) -> dict[str, int]:
    """By name, how many gradients of this run each ledger tells of: a budget remembers them over a restart."""
    if not assignment.method.promises_noise:
        return {}
    return {name: History.of(_ledger(ledgers, name)).spent(assignment.digest).rounds for name in names}
