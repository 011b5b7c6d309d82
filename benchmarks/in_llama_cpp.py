"""Compare an adapter with its export for llama.cpp, in llama.cpp: python benchmarks/in_llama_cpp.py OUT BASE.gguf

OUT is a folder of `ifedicl export --as gguf-lora`, BASE.gguf the base model. `--without-lora` shows what the base model
says instead. Needs: pip install xllamacpp, which holds llama.cpp's server. Label words of one token only. The sentences
are our own.

Prints one line of JSON: for how many sentences the label is the same by log-probabilities and by the request that the
model card shows, which labels they were, and the largest difference of a label's log-probability.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from _sentences import SENTENCES
from ifedicl import Adapter, Backbone
from ifedicl.backbone.encoding import Encoder
from ifedicl.kinds.classify import as_classification


def server(model: Path, lora: Path | None) -> Any:
    """llama.cpp's server within this process, with one thread. Keys and values are float32: only the order of sums differs."""
    import xllamacpp  # within: the test of cards reads them without it

    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel = str(model), 1024, 1
    params.warmup, params.ui, params.cpuparams.n_threads, params.verbosity = False, False, 1, 0
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    if lora is not None:
        params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(lora))]
    return xllamacpp.Server(params)


def request_of(card: str) -> dict[str, Any]:
    """The body of the request that a model card shows, for "a text"."""
    (block,) = re.findall(r"```bash\n(.*?)```", card, re.DOTALL)
    words = shlex.split(block.splitlines()[-1])
    body: dict[str, Any] = json.loads(words[words.index("-d") + 1])
    return body


def compared(out: Path, backbone: Backbone, base: Path, *, with_lora: bool = True) -> dict[str, Any]:
    """The figures of an exported adapter without its readout, on its model, beside llama.cpp's."""
    adapter = replace(Adapter.load(out / "ifedicl"), readout=None)
    task = as_classification(adapter.task, "this benchmark")
    encoder = Encoder(backbone, task)
    words = [word for (word,) in encoder.tree.words]
    expected, prompts = adapter.classifier(backbone).log_probabilities(SENTENCES), encoder.prompts(SENTENCES).tokens
    answers, request = list(task.samples.values()), request_of((out / "README.md").read_text())
    rows, by_request, running = [], 0, server(base, out / "adapter.gguf" if with_lora else None)
    for sentence, prompt, ours in zip(SENTENCES, prompts, expected, strict=True):
        asked = {"prompt": list(prompt), "n_predict": 1, "n_probs": len(backbone.tokenizer), "temperature": 0}
        (first,) = running.handle_completions(asked)["choices"][0]["logprobs"]["content"]
        by_word = {entry["id"]: entry["logprob"] for entry in first["top_logprobs"]}
        rows.append([by_word[word] for word in words])
        # Text this time: llama.cpp makes the tokens.
        answer = running.handle_completions({**request, "prompt": task.prompt(sentence)})
        by_request += answer["choices"][0]["text"] == answers[int(ours.argmax())]
    scores = np.array(rows, dtype=np.float64)
    logs = scores - np.logaddexp.reduce(scores, axis=1, keepdims=True)
    return {
        "sentences": len(SENTENCES),
        "same_label": int((logs.argmax(axis=1) == expected.argmax(axis=1)).sum()),
        "same_label_by_request": by_request,
        "labels": sorted({task.labels[int(row.argmax())] for row in expected}),
        "largest_difference": float(np.abs(logs - expected).max()),
    }


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("out", type=Path)
    options.add_argument("base", type=Path)
    options.add_argument("--without-lora", action="store_true")
    chosen = options.parse_args()
    backbone = Adapter.load(chosen.out / "ifedicl").on_model().backbone
    print(json.dumps(compared(chosen.out, backbone, chosen.base, with_lora=not chosen.without_lora)))


if __name__ == "__main__":
    main()
