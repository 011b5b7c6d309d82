"""What a method costs: bytes as serialised, processor seconds by stage and client, peak memory."""

from __future__ import annotations

import ctypes
import gc
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import psutil
import torch

from ifedicl.federation.engine import Delivery, Engine
from ifedicl.federation.handler import Endpoint
from ifedicl.federation.local_engine import LocalEngine
from ifedicl.federation.messages import Arrays, Header, Request, pack, unpack
from ifedicl.ledger.entries import Head

_SAMPLE_SECONDS = 0.01
_MIB = 1 << 20


@dataclass(frozen=True)
class Costs:
    """Means over the clients that take part.

    Attributes:
        bytes_up: from a client, by stage; empty where nothing crosses.
        bytes_down: to a client, likewise.
        cpu_seconds: processor seconds of a client, by stage, all cores together.
        test_seconds: processor seconds to label one test text.
    """

    bytes_up: Mapping[str, float]
    bytes_down: Mapping[str, float]
    cpu_seconds: Mapping[str, float]
    test_seconds: float


class Meter:
    """Adds up what one run of a method costs."""

    def __init__(self, clients: Sequence[str], *, crosses: bool = True) -> None:
        """Start at nothing.

        Args:
            clients: who takes part.
            crosses: whether messages leave their owner; False for what a client does by itself.
        """
        self._clients = tuple(clients)
        self._crosses = crosses
        self._up: Counter[str] = Counter()
        self._down: Counter[str] = Counter()
        self._cpu: dict[str, float] = {}
        self._test: list[float] = []

    def engine(self, clients: Sequence[Endpoint]) -> Engine:
        """A local engine whose every exchange is counted."""
        return _MeteredEngine(LocalEngine(clients), self)

    @contextmanager
    def working(self, stage: str) -> Iterator[None]:
        """One client works within the block."""
        start = time.process_time()
        yield
        self.worked(stage, time.process_time() - start)

    def worked(self, stage: str, seconds: float) -> None:
        """One client has worked so many processor seconds."""
        self._cpu[stage] = self._cpu.get(stage, 0.0) + seconds

    @contextmanager
    def testing(self, texts: int) -> Iterator[None]:
        """So many test texts are labelled within the block."""
        start = time.process_time()
        yield
        self._test.append((time.process_time() - start) / texts)

    def carried(self, stage: str, *, up: int, down: int) -> None:
        """So many bytes crossed between the server and one client."""
        if self._crosses:
            self._up[stage] += up
            self._down[stage] += down

    def down(self, stage: str, header: Header, arrays: Arrays) -> Arrays:
        """Send arrays to one client as the engine would; what arrives there."""
        message = pack(stage, header, arrays)
        self.carried(stage, up=0, down=len(message))
        return unpack(message)[2]

    def up(self, stage: str, header: Header, arrays: Arrays) -> Arrays:
        """Send arrays from one client to the server; what arrives there."""
        message = pack(stage, header, arrays)
        self.carried(stage, up=len(message), down=0)
        return unpack(message)[2]

    def add(self, other: Meter) -> None:
        """Count what another meter has counted."""
        self._up.update(other._up)
        self._down.update(other._down)
        self._test += other._test
        for stage, seconds in other._cpu.items():
            self.worked(stage, seconds)

    def costs(self) -> Costs:
        """What it came to, a client."""
        count = len(self._clients)
        return Costs(
            bytes_up={stage: total / count for stage, total in self._up.items() if total},
            bytes_down={stage: total / count for stage, total in self._down.items() if total},
            cpu_seconds={stage: total / count for stage, total in self._cpu.items()},
            test_seconds=sum(self._test) / len(self._test) if self._test else 0.0,
        )


class _MeteredEngine:
    """An engine around another that tells a meter what each exchange took."""

    def __init__(self, inner: Engine, meter: Meter) -> None:
        self._inner = inner
        self._meter = meter

    def clients(self) -> tuple[str, ...]:
        return self._inner.clients()

    def exchange(self, requests: Mapping[str, Request], deadline: float, heads: Mapping[str, Head]) -> Iterator[Delivery]:
        stage = next(iter(requests.values())).kind
        deliveries = self._inner.exchange(requests, deadline, heads)
        while True:
            # Between two deliveries of the local engine one client works, and nobody else.
            start = time.process_time()
            delivery = next(deliveries, None)
            if delivery is None:
                return
            self._meter.worked(stage, time.process_time() - start)
            self._meter.carried(stage, up=delivery.bytes_up, down=delivery.bytes_down)
            yield delivery


class PeakMemory:
    """Peak memory within a block above what was held at its start: on a GPU its own, else resident memory, sampled."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._base = 0
        self._peak = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> PeakMemory:
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            torch.cuda.reset_peak_memory_stats(self._device)
            self._base = torch.cuda.memory_allocated(self._device)
        else:
            _give_back_freed_memory()
            self._base = self._peak = psutil.Process().memory_info().rss
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._device.type == "cuda":
            self._peak = torch.cuda.max_memory_allocated(self._device)
        else:
            self._done.set()
            self._thread.join()

    @property
    def mib(self) -> float:
        """The peak above the start, in MiB."""
        return (self._peak - self._base) / _MIB

    def _sample(self) -> None:
        process = psutil.Process()
        while not self._done.wait(_SAMPLE_SECONDS):
            self._peak = max(self._peak, process.memory_info().rss)


def _give_back_freed_memory() -> None:
    """The C library keeps freed memory; without this a cell would hide behind the one before it."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
