"""Claim: 32 concurrent clients, one text a request, are served at no less than 0.85 of the speed of labelling in batches.

First side: ``Classifier.log_probabilities`` of all texts, in this process. Second side: the same texts through `ifedicl
serve`, a separate process on loopback, from 32 clients that each wait for a reply before the next request. Both sides have
the same number of threads. The adapter has λ and β at every write of every layer. Also printed: the seconds that a client
waits.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from _pairs import TASK, Claim, bench, compare, model_settings, parser, report, sentences, timed
from ifedicl.adapter import Adapter


def main() -> None:
    arguments = _parsed()
    setup = bench(arguments)
    settings = model_settings(arguments)
    adapter = Adapter(TASK, setup.context, setup.coefficients, settings, setup.backbone.fingerprint)
    texts = [example.text for example in sentences(arguments.examples)]
    classifier = adapter.classifier(setup.backbone)
    waits: list[float] = []

    with tempfile.TemporaryDirectory() as folder, _server(adapter, Path(folder), arguments) as port:
        answers = asyncio.run(_labelled(port, texts, arguments.clients))
        _check(answers, classifier.log_probabilities(texts))

        def offline(_: int) -> None:
            classifier.log_probabilities(texts)

        def served(_: int) -> None:
            waits.extend(seconds for _, seconds in asyncio.run(_labelled(port, texts, arguments.clients)))

        claim = Claim("offline / served", at_least=0.85)
        comparison = compare(claim, timed(offline), timed(served), arguments.pairs)
    fifty, ninety_nine = np.percentile(waits, [50, 99])
    figures = {"clients": arguments.clients, "p50 ms": round(1000 * fifty), "p99 ms": round(1000 * ninety_nine)}
    report("serving", arguments, [comparison], **figures, **{"texts/s": round(len(texts) / comparison.second.median, 1)})


def _parsed() -> argparse.Namespace:
    arguments = parser(__doc__, examples=64)
    arguments.add_argument("--clients", type=int, default=32, help="concurrent clients (default: %(default)s)")
    return arguments.parse_args()


@contextmanager
def _server(adapter: Adapter, folder: Path, arguments: argparse.Namespace) -> Iterator[int]:
    """The port of a server that runs within the block."""
    adapter.save(folder / "adapter")
    log = folder / "log"
    threads = {"OMP_NUM_THREADS": str(arguments.threads or torch.get_num_threads())}
    command = [sys.executable, "-m", "ifedicl.cli", "serve", f"bench={folder}/adapter", "--port", "0", "--timeout", "600"]
    with log.open("wb") as file:
        process = subprocess.Popen(command, stderr=file, env={**os.environ, **threads})
    try:
        while (found := re.search(r" at http://127\.0\.0\.1:(\d+)", log.read_text())) is None:
            if process.poll() is not None:
                raise SystemExit(log.read_text())
            time.sleep(0.1)
        yield int(found[1])
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


async def _labelled(port: int, texts: list[str], clients: int) -> list[tuple[dict[str, float], float]]:
    """Probabilities of each text, and the seconds that they took."""
    left = iter(enumerate(texts))
    answers: list[tuple[dict[str, float], float]] = [({}, 0.0)] * len(texts)

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for place, text in left:  # shared: each takes the next one
            start = time.perf_counter()
            answers[place] = (await _asked(reader, writer, text), time.perf_counter() - start)
        writer.close()

    await asyncio.gather(*(client() for _ in range(clients)))
    return answers


async def _asked(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, text: str) -> dict[str, float]:
    body = json.dumps({"texts": text}).encode()
    writer.write(b"POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head)
    assert length is not None
    answer = json.loads(await reader.readexactly(int(length[1])))
    if not head.startswith(b"HTTP/1.1 200"):
        raise SystemExit(answer)
    return dict(answer["results"][0]["probabilities"])


def _check(answers: list[tuple[dict[str, float], float]], logs: np.ndarray) -> None:
    """Both sides must do the same work."""
    served = np.array([list(probabilities.values()) for probabilities, _ in answers])
    np.testing.assert_allclose(served, np.exp(logs), atol=1e-3)


if __name__ == "__main__":
    main()
