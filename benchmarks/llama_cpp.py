"""Compare an adapter with its export in llama.cpp: python benchmarks/llama_cpp.py ADAPTER CHECKPOINT.gguf

Make the file first; docs/serving.md explains how. Needs: pip install ik-llama-cpp-python, a fork of llama.cpp with wheels.
Label words of one token only. The sentences are our own.
"""

from __future__ import annotations

import sys

import numpy as np
from ik_llama_cpp._internals import IkContext, IkModel, make_batch

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


def main(folder: str, file: str) -> None:
    adapter = Adapter.load(folder)
    classifier = adapter.classifier()
    encoder = Encoder(classifier.backbone, as_classification(adapter.task, "this benchmark"))
    words = [word for (word,) in encoder.tree.words]
    expected, prompts = classifier.log_probabilities(SENTENCES), encoder.prompts(SENTENCES).tokens
    model = IkModel(file)
    context = IkContext(model, n_ctx=512)
    rows, equal = [], 0
    for sentence, prompt in zip(SENTENCES, prompts, strict=True):
        tokens = model.tokenize(adapter.task.prompt(sentence), add_bos=False)
        equal += tuple(tokens) == prompt
        context.kv_cache_clear()
        context.decode(make_batch(tokens))
        logits = context.get_logits(-1)
        rows.append([logits[word] for word in words])
    scores = np.array(rows, dtype=np.float64)
    logs = scores - np.logaddexp.reduce(scores, axis=1, keepdims=True)
    same = int((logs.argmax(axis=1) == expected.argmax(axis=1)).sum())
    print(f"{len(SENTENCES)} sentences: same tokens {equal}, same label {same}")
    print(f"largest difference of a label's log-probability: {np.abs(logs - expected).max():.4f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
