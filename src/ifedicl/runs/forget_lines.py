"""The lines about a forgetting in the ledgers of the clients that left or removed examples, in a run on this machine.

One is written before anything is changed, one when the adapter is without their share. A first line without its last one says
that the forgetting was interrupted, and that the same call goes on with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ifedicl.federation.forgetting import Forgetting
from ifedicl.federation.state import Forgotten, State
from ifedicl.ledger.ledger import Ledger
from ifedicl.owner.endpoint import ledger_file
from ifedicl.settings import Method

FORGET, FORGOTTEN = "forget", "forgotten"
"""Events: a share is about to be removed; it has been."""


@dataclass(frozen=True)
class ForgetLines:
    """The lines in the folder of a run's ledgers."""

    ledgers: Path

    def begin(self, forgetting: Forgetting, state: State, method: Method) -> bool:
        """Write the first lines, and return whether the forgetting was begun before and interrupted.

        Raises:
            ConfigError: the run in this state cannot forget this; nothing is written.
            StorageError: a line cannot be written.
        """
        if forgetting.has_begun(state) and self._unfinished(state):
            return True
        forgetting.check(state, method)
        note, number = forgetting.note(state.round), len(state.forgotten) + 1
        for name, ledger in self._without(FORGET, note, number).items():
            ledger.append(FORGET, _line(name, note, number))
        return False

    def finish(self, state: State) -> None:
        """Write the last lines, if the run that has ended in this state was forgetting.

        Raises:
            StorageError: a line cannot be written.
        """
        for name, ledger in self._unfinished(state).items():
            ledger.append(FORGOTTEN, _line(name, state.forgotten[-1], len(state.forgotten)))

    def _unfinished(self, state: State) -> dict[str, Ledger]:
        """By client, the ledgers that have the first line of the last forgetting and lack the last one."""
        if not state.forgotten:
            return {}
        note, number = state.forgotten[-1], len(state.forgotten)
        begun_not = self._without(FORGET, note, number)
        return {name: ledger for name, ledger in self._without(FORGOTTEN, note, number).items() if name not in begun_not}

    def _without(self, event: str, note: Forgotten, number: int) -> dict[str, Ledger]:
        """By client, the ledgers without this line."""
        ledgers = {name: Ledger(ledger_file(self.ledgers, name), name) for name in (*note.left, *note.changed)}
        return {
            name: ledger
            for name, ledger in ledgers.items()
            if not any(entry.event == event and entry.facts == _line(name, note, number) for entry in ledger)
        }


def _line(name: str, note: Forgotten, number: int) -> dict[str, Any]:
    share = "all" if name in note.left else "removed examples"
    return {"share": share, "number": number, "exact": not note.more_rounds, **note.facts}
