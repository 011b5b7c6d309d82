"""Fixed point: numbers as integers modulo ``2^bits``. Sums are exact in any order, and uniform masks hide them perfectly."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ifedicl.core.vectors import Array64
from ifedicl.errors import SecureSumError
from ifedicl.secagg.masks import Integers

_WORD = 8  # bytes of the integers in memory


@dataclass(frozen=True)
class FixedPoint:
    """Range and resolution of the numbers.

    Attributes:
        bits: of one number on the wire, 1 to 63.
        fraction: how many of these bits are fractional: the resolution is ``2^-fraction``. It may be below 0.
    """

    bits: int
    fraction: int

    @property
    def step(self) -> float:
        """The resolution. Rounding moves a number by half of it at most."""
        return float(2.0**-self.fraction)

    def limit(self, clients: int) -> float:
        """The largest number that each of ``clients`` may send so that their sum cannot overflow."""
        return self._limit(clients) * self.step

    def integers(self, numbers: Array64) -> npt.NDArray[np.int64]:
        """Each number in units of ``step``, rounded to the nearest integer.

        Raises:
            SecureSumError: a number is not finite, or too large even for a single client.
        """
        with np.errstate(invalid="ignore", over="ignore"):
            scaled = np.rint(numbers * 2.0**self.fraction)
            fits = bool((np.abs(scaled) <= self._limit(1)).all())  # False of NaN
        if not fits:
            raise SecureSumError(self._too_large(1))
        return scaled.astype(np.int64)

    def wrapped_integers(self, numbers: Array64) -> npt.NDArray[np.int64]:
        """As :meth:`integers`, of finite numbers of any size, modulo ``2^bits``."""
        return np.rint(self.wrapped(numbers) * 2.0**self.fraction).astype(np.int64)

    def bounded(self, numbers: Array64, clients: int) -> npt.NDArray[np.int64]:
        """As :meth:`integers`, with each number brought into the range of :meth:`limit`, and 0 for one that is not a number."""
        limit = self._limit(clients)
        scaled = np.clip(np.nan_to_num(numbers, posinf=np.inf, neginf=-np.inf) * 2.0**self.fraction, -limit, limit)
        return np.rint(scaled).astype(np.int64)

    def check(self, integers: npt.NDArray[np.int64], clients: int) -> None:
        """Refuse integers that could overflow in a sum over ``clients``.

        Raises:
            SecureSumError: a number is too large.
        """
        if integers.size and int(np.abs(integers).max()) > self._limit(clients):
            raise SecureSumError(self._too_large(clients))

    def numbers(self, total: Integers) -> Array64:
        """The numbers of a sum of :meth:`integers`, which is modulo ``2^bits``."""
        unused = np.uint64(8 * _WORD - self.bits)
        signed = (total << unused).view(np.int64) >> np.int64(unused)  # the highest bit that travels is the sign
        return signed.astype(np.float64) * self.step

    def wrapped(self, numbers: Array64) -> Array64:
        """Numbers brought into the range of this form by whole ranges, as a sum modulo ``2^bits`` is."""
        size = 2.0**self.bits * self.step
        inside: Array64 = numbers - size * np.rint(numbers / size)
        return inside

    def size(self, count: int) -> int:
        """Bytes of ``count`` numbers as they travel."""
        return -(-count * self.bits // 8)

    def packed(self, integers: Integers) -> bytes:
        """Modulo ``2^bits``, little-endian, bit after bit, as they travel."""
        rows = np.ascontiguousarray(integers.astype("<u8")).view(np.uint8).reshape(-1, _WORD)[:, : -(-self.bits // 8)]
        if self.bits % 8 == 0:
            return np.ascontiguousarray(rows).tobytes()
        bits = np.unpackbits(np.ascontiguousarray(rows), axis=1, count=self.bits, bitorder="little")
        return np.packbits(bits.ravel(), bitorder="little").tobytes()

    def unpacked(self, data: bytes, count: int) -> Integers:
        """The ``count`` integers of :meth:`packed`.

        Raises:
            SecureSumError: other bytes than those of so many numbers.
        """
        if len(data) != self.size(count):
            raise SecureSumError(f"masked numbers: received {len(data)} bytes; {count} numbers have {self.size(count)}")
        rows = np.frombuffer(data, np.uint8)
        if self.bits % 8:
            bits = np.unpackbits(rows, count=count * self.bits, bitorder="little").reshape(count, self.bits)
            rows = np.packbits(bits, axis=1, bitorder="little")
        whole = np.zeros((count, _WORD), dtype=np.uint8)
        whole[:, : -(-self.bits // 8)] = rows.reshape(count, -1)
        return whole.view("<u8").reshape(-1).astype(np.uint64)

    def _limit(self, clients: int) -> int:
        return int((2 ** (self.bits - 1) - 1) // clients)

    def _too_large(self, clients: int) -> str:
        return (
            f"a number is not finite or larger than {self.limit(clients):g}; a sum of {clients} clients holds {self.bits} bits "
            f"a number, {self.fraction} of them fractional. Lower the learning rate or ask fewer clients"
        )
