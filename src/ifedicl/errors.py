"""Every error that ifedicl raises on purpose.

::

    IfediclError                    catch this to catch all of them
    ├── ConfigError                 settings or a config file are wrong        exit 2
    ├── TaskError                   the task cannot be scored with this model  exit 2
    ├── DataError                   a data file or its rows are wrong          exit 3
    ├── BackboneError               the model cannot be used                   exit 4
    │   ├── UnknownFamilyError      no entry in the table of writes
    │   ├── UnsafeWeightsError      only pickled weights, or remote code asked for
    │   ├── NotEnoughMemoryError    it would not fit, found before loading
    │   └── FingerprintError        not the model that the adapter or federation was made with
    ├── AdapterError                an adapter folder is torn or of another format  exit 5
    ├── StorageError                no space, no permission, a torn checkpoint      exit 6
    │   └── LedgerError             a ledger was changed, or is not the one that is known
    ├── DownloadError               a download failed or was cut short              exit 7
    │   └── ChecksumError           it arrived, but is not what was published
    ├── FederationError             the rounds cannot go on                         exit 8
    │   ├── TooFewClientsError      fewer usable replies than ``min_clients``
    │   │   └── LimitsReachedError  the owners' limits let no more leave
    │   ├── BudgetSpentError        an owner's privacy budget is used up
    │   ├── SecureSumError          a step of the secure sum that is out of order, changed or replayed
    │   └── MessageError            bytes that are not one of our messages
    └── ServeError                  the server cannot start, or not answer          exit 9
        ├── BusyError               as much waits as may wait
        ├── UnknownRunError         there is no run of that name
        └── StoppedError            it takes no more requests

Each message says what is wrong, what was received, what is allowed and what to do. ``exit_code`` is what the command line
exits with.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


class IfediclError(Exception):
    """Base of all errors raised on purpose."""

    exit_code = 1


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong with a configuration.

    Attributes:
        field: dotted name as the user wrote it, for instance ``calibration.batch_size``.
        received: what stood there, already as text.
        allowed: what may stand there.
        remedy: what to do about it.
    """

    field: str
    received: str
    allowed: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.field}: received {self.received}; allowed: {self.allowed}. {self.remedy}"


class ConfigError(IfediclError):
    """Settings are wrong. All faults are reported at once."""

    exit_code = 2

    def __init__(self, source: str, faults: Iterable[Fault]) -> None:
        self.source = source
        self.faults = tuple(faults)
        lines = "\n".join(f"  - {fault}" for fault in self.faults)
        count = len(self.faults)
        super().__init__(f"{source}: {count} {'fault' if count == 1 else 'faults'}\n{lines}")


class TaskError(IfediclError):
    """The task cannot be used, alone or with this tokenizer."""

    exit_code = 2


class DataError(IfediclError):
    """A data file cannot be read, or its rows do not fit the task."""

    exit_code = 3


class BackboneError(IfediclError):
    """The model cannot be loaded or used."""

    exit_code = 4


class UnknownFamilyError(BackboneError):
    """The table of writes does not know this architecture."""


class UnsafeWeightsError(BackboneError):
    """Loading would run code from the checkpoint."""


class NotEnoughMemoryError(BackboneError):
    """The model would not fit. Raised before anything is loaded."""


class FingerprintError(BackboneError):
    """Another model than the one that the vectors were taken from."""


class AdapterError(IfediclError):
    """An adapter folder is missing something, torn, or of another format version."""

    exit_code = 5


class StorageError(IfediclError):
    """A file could not be written or read back."""

    exit_code = 6


class LedgerError(StorageError):
    """A ledger's lines do not follow from each other, or it is not the ledger that the other side knows."""


class DownloadError(IfediclError):
    """A download failed or was interrupted."""

    exit_code = 7


class ChecksumError(DownloadError):
    """A file is not the one that was published under its name."""


class FederationError(IfediclError):
    """The coordinator cannot go on."""

    exit_code = 8


class TooFewClientsError(FederationError):
    """Fewer clients gave a usable reply than the settings ask for."""


class LimitsReachedError(TooFewClientsError):
    """Too few, and all the others say that their owners' limits are reached: they would say so for ever."""


class BudgetSpentError(FederationError):
    """What was asked would cost more privacy than the owner's budget has left."""


class SecureSumError(FederationError):
    """A step of the secure sum does not verify, comes out of order or twice, or holds numbers that cannot be summed."""


class MessageError(FederationError):
    """Bytes that are not a message of this format, or arrays that do not fit it."""


class ServeError(IfediclError):
    """The server cannot start, or cannot answer a request."""

    exit_code = 9


class BusyError(ServeError):
    """As much waits as may wait."""


class UnknownRunError(ServeError):
    """There is no run of that name below the server's folder."""


class StoppedError(ServeError):
    """The server takes no more requests."""
