"""The lines about a forgetting in the ledgers of the clients that left or removed examples, in a run on this machine.

One is written before anything is changed, one when the adapter is without their share. A first line without its last one says
that the forgetting was interrupted, and that the same call goes on with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ifedicl.federation.forgetting import Forgetting
from ifedicl.federation.state import State
from ifedicl.ledger.ledger import Ledger
from ifedicl.owner.endpoint import ledger_file
from ifedicl.settings import Method

FORGET, FORGOTTEN = "forget", "forgotten"
"""Events: a share is about to be removed; it has been."""


@dataclass(frozen=True)
class ForgetLines:
    """The lines of one forgetting, in the folder of a run's ledgers."""

    ledgers: Path
    forgetting: Forgetting

    def begin(self, state: State, method: Method) -> bool:
        """Write the first lines, and return whether the forgetting was begun before and interrupted.

        Raises:
            ConfigError: the run in this state cannot forget this; nothing is written.
            StorageError: a line cannot be written.
        """
        if self.forgetting.has_begun(state) and self._missing(FORGOTTEN, self._facts(state), after=FORGET):
            return True
        self.forgetting.check(state, method)
        facts = {"number": len(state.forgotten) + 1, **self._numbers(state.round)}
        for name, ledger in self._missing(FORGET, facts).items():
            ledger.append(FORGET, self._line(name, facts))
        return False

    def finish(self, state: State) -> None:
        """Write the last lines of a run that has forgotten.

        Raises:
            StorageError: a line cannot be written.
        """
        facts = self._facts(state)
        for name, ledger in self._missing(FORGOTTEN, facts).items():
            ledger.append(FORGOTTEN, self._line(name, facts))

    def _facts(self, state: State) -> Mapping[str, Any]:
        """Those of the last forgetting of a run."""
        return {"number": len(state.forgotten), **self._numbers(state.forgotten[-1].round)}

    def _numbers(self, round_number: int) -> Mapping[str, Any]:
        return {"exact": not self.forgetting.rounds, **self.forgetting.note(round_number).facts}

    def _missing(self, event: str, facts: Mapping[str, Any], *, after: str | None = None) -> dict[str, Ledger]:
        """By client, the ledgers without this line; only those that have the line of ``after``, if it is given."""
        missing = {}
        for name in sorted(self.forgetting.left | self.forgetting.changed):
            ledger, line = Ledger(ledger_file(self.ledgers, name), name), self._line(name, facts)
            events = {entry.event for entry in ledger if entry.facts == line}
            if event not in events and (after is None or after in events):
                missing[name] = ledger
        return missing

    def _line(self, name: str, facts: Mapping[str, Any]) -> dict[str, Any]:
        return {"share": "all" if name in self.forgetting.left else "removed examples", **facts}
