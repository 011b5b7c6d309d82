"""Costs of a method: bytes as serialised, processor seconds by stage and client, peak memory."""

from __future__ import annotations

import ctypes
import gc
import threading
import time
from collections import Counter, defaultdict
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
    """Means over clients.

    Attributes:
        bytes_up: sent by one client, by stage; empty where nothing is sent.
        bytes_down: received by one client, by stage.
        cpu_seconds: processor seconds of one client on all cores together, by stage.
        test_seconds: processor seconds for the label of one test text.
    """

    bytes_up: Mapping[str, float]
    bytes_down: Mapping[str, float]
    cpu_seconds: Mapping[str, float]
    test_seconds: float


class Meter:
    """Adds up the costs of one run of a method."""

    def __init__(self, clients: Sequence[str], *, counts_bytes: bool = True) -> None:
        """Start at zero; ``counts_bytes`` is False for work that a client does alone, without sending messages."""
        self._clients = len(clients)
        self._counts_bytes = counts_bytes
        self._up: Counter[str] = Counter()
        self._down: Counter[str] = Counter()
        self._cpu: defaultdict[str, float] = defaultdict(float)
        self._test: list[float] = []

    def engine(self, clients: Sequence[Endpoint]) -> Engine:
        """A local engine; the meter counts all its exchanges."""
        return _MeteredEngine(LocalEngine(clients), self)

    @contextmanager
    def working(self, stage: str) -> Iterator[None]:
        """Count the processor seconds of the block as one client's work."""
        start = time.process_time()
        yield
        self.add_seconds(stage, time.process_time() - start)

    def add_seconds(self, stage: str, seconds: float) -> None:
        """Add processor seconds of one client."""
        self._cpu[stage] += seconds

    @contextmanager
    def testing(self, texts: int) -> Iterator[None]:
        """Count the processor seconds of the block, in which ``texts`` test texts get their labels."""
        start = time.process_time()
        yield
        self._test.append((time.process_time() - start) / texts)

    def add_bytes(self, stage: str, *, up: int = 0, down: int = 0) -> None:
        """Add bytes between the server and one client."""
        if self._counts_bytes:
            self._up[stage] += up
            self._down[stage] += down

    def down(self, stage: str, header: Header, arrays: Arrays) -> Arrays:
        """Send arrays to one client, serialised as by the engine; returns the arrays that the client receives."""
        message = pack(stage, header, arrays)
        self.add_bytes(stage, down=len(message))
        return unpack(message)[2]

    def up(self, stage: str, header: Header, arrays: Arrays) -> Arrays:
        """Send arrays from one client to the server; returns the arrays that the server receives."""
        message = pack(stage, header, arrays)
        self.add_bytes(stage, up=len(message))
        return unpack(message)[2]

    def add(self, other: Meter) -> None:
        """Add the costs that another meter has counted."""
        self._up.update(other._up)
        self._down.update(other._down)
        self._test += other._test
        for stage, seconds in other._cpu.items():
            self.add_seconds(stage, seconds)

    def costs(self) -> Costs:
        """Costs per client."""
        count = self._clients
        return Costs(
            bytes_up={stage: total / count for stage, total in self._up.items() if total},
            bytes_down={stage: total / count for stage, total in self._down.items() if total},
            cpu_seconds={stage: total / count for stage, total in self._cpu.items()},
            test_seconds=sum(self._test) / len(self._test) if self._test else 0.0,
        )


class _MeteredEngine:
    """Wraps an engine and adds the costs of each exchange to a meter."""

    def __init__(self, inner: Engine, meter: Meter) -> None:
        self._inner = inner
        self._meter = meter
        self.clients = inner.clients

    def exchange(self, requests: Mapping[str, Request], deadline: float, heads: Mapping[str, Head]) -> Iterator[Delivery]:
        stage = next(iter(requests.values())).kind
        deliveries = self._inner.exchange(requests, deadline, heads)
        while True:
            # Between two deliveries of the local engine exactly one client works.
            start = time.process_time()
            delivery = next(deliveries, None)
            if delivery is None:
                return
            self._meter.add_seconds(stage, time.process_time() - start)
            self._meter.add_bytes(stage, up=delivery.bytes_up, down=delivery.bytes_down)
            yield delivery


class PeakMemory:
    """Peak memory within a block, above that at its start: GPU memory on a GPU, else sampled resident memory."""

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
            return self
        with suppress(OSError, AttributeError):
            # The C library keeps freed memory: without this, memory freed by earlier cells hides the peak of this one.
            ctypes.CDLL("libc.so.6").malloc_trim(0)
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
        """Peak above the start, in MiB."""
        return (self._peak - self._base) / _MIB

    def _sample(self) -> None:
        process = psutil.Process()
        while not self._done.wait(_SAMPLE_SECONDS):
            self._peak = max(self._peak, process.memory_info().rss)
