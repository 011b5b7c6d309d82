"""Every error that ifedicl raises on purpose.

::

    IfediclError                    catch this to catch all of them
    ├── ConfigError                 settings or a config file are wrong        exit 2
    │   └── FileExistsAlreadyError  a command would replace a file
    ├── TaskError                   the task cannot be scored with this model  exit 2
    ├── DataError                   a data file or its rows are wrong          exit 3
    │   └── InputError              an argument of a Python call is wrong
    ├── BackboneError               the model cannot be used                   exit 4
    │   ├── UnknownFamilyError      no entry in the table of writes
    │   ├── UnsafeWeightsError      only pickled weights, or remote code is required
    │   ├── NotEnoughMemoryError    the model does not fit; found before loading
    │   └── FingerprintError        not the model that the adapter or federation was made with
    ├── AdapterError                an adapter folder is torn or of another format  exit 5
    ├── StorageError                no space, no permission, a torn checkpoint      exit 6
    │   └── LedgerError             a ledger was changed, or is not the known one
    ├── DownloadError               a download failed or was cut short              exit 7
    │   └── ChecksumError           the file is not the published one
    ├── FederationError             the rounds cannot continue                      exit 8
    │   ├── TooFewClientsError      fewer usable replies than ``min_clients``
    │   │   └── LimitsReachedError  the owners' limits are reached
    │   ├── BudgetSpentError        an owner's privacy budget is used up
    │   ├── SecureSumError          a step of the secure sum that is out of order, changed or replayed
    │   │   └── ObjectionError      a peer's keys or shares are wrong
    │   └── MessageError            bytes that are not a message of this format
    └── ServeError                  the server cannot start or cannot answer        exit 9
        ├── BusyError               the queue is full
        ├── WrongRouteError         the adapter is of another kind than the route
        ├── UnknownRunError         there is no run of that name
        └── StoppedError            the server accepts no more requests

Each message names the field or file, what was received, what is allowed and the remedy. ``exit_code`` is the exit code of the
command line.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


class IfediclError(Exception):
    """Base of all errors raised on purpose."""

    exit_code = 1


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong with a configuration.

    Attributes:
        field: dotted name as the user wrote it, for instance ``calibration.batch_size``.
        received: the received value, as text.
        allowed: which values are allowed.
        remedy: what to do.
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


class FileExistsAlreadyError(ConfigError):
    """A command would replace a file that it has not made."""

    def __init__(self, path: object) -> None:
        self.source, self.faults = str(path), ()
        IfediclError.__init__(self, f"{path} exists already. Choose another name, or replace it with --force")


class TaskError(IfediclError):
    """The task is invalid, or cannot be used with this tokenizer."""

    exit_code = 2


class DataError(IfediclError):
    """A data file cannot be read, or its rows do not fit the task."""

    exit_code = 3


class InputError(DataError, ValueError, TypeError):
    """Texts, labels or a number in a Python call are wrong. Scikit-learn's tools expect the two built-in errors."""


class BackboneError(IfediclError):
    """The model cannot be loaded or used."""

    exit_code = 4


class UnknownFamilyError(BackboneError):
    """The table of writes does not know this architecture."""


class UnsafeWeightsError(BackboneError):
    """Loading would run code from the checkpoint."""


class NotEnoughMemoryError(BackboneError):
    """The model does not fit into memory. Raised before anything is loaded."""


class FingerprintError(BackboneError):
    """The model is not the one that the vectors belong to."""


class AdapterError(IfediclError):
    """An adapter folder is incomplete, torn, or of another format version."""

    exit_code = 5


class StorageError(IfediclError):
    """A file could not be written or read back."""

    exit_code = 6


class LedgerError(StorageError):
    """A ledger's chain is broken, or it is not the ledger that the other side knows."""


class DownloadError(IfediclError):
    """A download failed or was interrupted."""

    exit_code = 7


class ChecksumError(DownloadError):
    """A file is not the published file of that name."""


class FederationError(IfediclError):
    """The coordinator cannot continue."""

    exit_code = 8


class TooFewClientsError(FederationError):
    """Fewer clients gave a usable reply than the settings require."""


class LimitsReachedError(TooFewClientsError):
    """Too few clients, since the owners' limits of all others are reached: waiting does not help."""


class BudgetSpentError(FederationError):
    """The request costs more privacy than is left in the owner's budget."""


class SecureSumError(FederationError):
    """A step of the secure sum does not verify, comes out of order or twice, or holds numbers that cannot be summed."""


class ObjectionError(SecureSumError):
    """A client cannot take part in a secure sum with some of the others, whose keys or shares are wrong."""

    def __init__(self, reason: str, names: Sequence[str]) -> None:
        super().__init__(f"{', '.join(names)}: {reason}")
        self.names = tuple(names)


class MessageError(FederationError):
    """Bytes that are not a message of this format, or arrays that do not fit the message."""


class ServeError(IfediclError):
    """The server cannot start, or cannot answer a request."""

    exit_code = 9


class BusyError(ServeError):
    """The server's queue is full."""


class WrongRouteError(ServeError):
    """The adapter is of another kind of task than the server's route."""


class UnknownRunError(ServeError):
    """There is no run of that name in the server's folder."""


class StoppedError(ServeError):
    """The server accepts no more requests."""
