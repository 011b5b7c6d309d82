"""Compare an adapter with its export in llama.cpp: python benchmarks/llama_cpp.py ADAPTER MODEL.gguf

With `--lora FILE`, MODEL.gguf is the base model and FILE of `ifedicl export --as gguf-lora`; without it, MODEL.gguf is
what llama.cpp's converter made of an exported checkpoint. `--server PROGRAM` is llama-server, which docs/serving.md
builds from a package of the Python index. Label words of one token only. The sentences are our own.

Prints one line of JSON: for how many sentences llama.cpp makes the same tokens, and gives the same label by its
log-probabilities and by the grammar that the model card shows; and the largest difference of a label's log-probability.
"""

from __future__ import annotations

import argparse
import json
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

import numpy as np

from ifedicl import Adapter
from ifedicl.backbone.encoding import Encoder
from ifedicl.kinds.classify import as_classification

SENTENCES = (
    "The nurse called me back within minutes and explained everything kindly.",
    "The form has four pages and is printed on both sides.",
    "After three weeks of waiting the machine arrived broken.",
    "What a lovely, quiet room, and the bread is baked next door!",
    "Nobody picked up the phone, and the desk was closed.",
    "The train leaves at ten past nine from platform four.",
)


class Server:
    """llama.cpp's server at an address."""

    def __init__(self, address: str) -> None:
        self._address = address

    def ask(self, path: str, body: dict[str, object]) -> dict[str, Any]:
        """The answer to a request."""
        request = Request(f"{self._address}/{path}", json.dumps(body).encode(), {"Content-Type": "application/json"})  # noqa: S310
        with urlopen(request, timeout=300) as answer:  # noqa: S310
            found: dict[str, Any] = json.load(answer)
        return found

    def log_probabilities(self, tokens: tuple[int, ...], words: list[int], vocabulary: int) -> list[float]:
        """``(C,)``: of the words behind a prompt, among all words."""
        body = {"prompt": list(tokens), "n_predict": 1, "n_probs": vocabulary, "temperature": 0}
        (first,) = self.ask("completion", body)["completion_probabilities"]
        by_word = {entry["id"]: entry["logprob"] for entry in first["top_logprobs"]}
        return [by_word[word] for word in words]


@contextmanager
def serving(program: str, model: Path, lora: Path | None) -> Iterator[Server]:
    """Run the server until the block ends."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [program, "-m", str(model), "--host", "127.0.0.1", "--port", str(port), "-c", "1024", "-np", "1"]
    command += [] if lora is None else ["--lora", str(lora)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            if process.poll() is not None:
                raise SystemExit(f"{program} ended with {process.returncode}; run it by hand: {' '.join(command)}")
            try:
                with urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                    break
            except (URLError, OSError):  # it loads the model
                time.sleep(0.5)
        yield Server(f"http://127.0.0.1:{port}")
    finally:
        process.terminate()
        process.wait()


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("adapter")
    options.add_argument("model", type=Path)
    options.add_argument("--server", default="llama-server")
    options.add_argument("--lora", type=Path)
    chosen = options.parse_args()
    adapter = replace(Adapter.load(chosen.adapter), readout=None)
    classifier = adapter.classifier()
    task = as_classification(adapter.task, "this benchmark")
    encoder = Encoder(classifier.backbone, task)
    words = [word for (word,) in encoder.tree.words]
    expected, prompts = classifier.log_probabilities(SENTENCES), encoder.prompts(SENTENCES).tokens
    grammar = "root ::= " + " | ".join(json.dumps(word, ensure_ascii=False) for word in task.samples.values())
    rows, same_tokens, by_grammar = [], 0, 0
    with serving(chosen.server, chosen.model, chosen.lora) as server:
        for sentence, prompt, ours in zip(SENTENCES, prompts, expected, strict=True):
            text = task.prompt(sentence)
            same_tokens += tuple(server.ask("tokenize", {"content": text})["tokens"]) == prompt
            rows.append(server.log_probabilities(prompt, words, len(classifier.backbone.tokenizer)))
            body: dict[str, object] = {"prompt": text, "n_predict": 64, "temperature": 0, "grammar": grammar}
            by_grammar += server.ask("completion", body)["content"] == list(task.samples.values())[int(ours.argmax())]
    scores = np.array(rows, dtype=np.float64)
    logs = scores - np.logaddexp.reduce(scores, axis=1, keepdims=True)
    found = {
        "sentences": len(SENTENCES),
        "same_tokens": same_tokens,
        "same_label": int((logs.argmax(axis=1) == expected.argmax(axis=1)).sum()),
        "same_label_by_grammar": by_grammar,
        "labels": sorted({task.labels[int(row.argmax())] for row in expected}),
        "largest_difference": round(float(np.abs(logs - expected).max()), 6),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
