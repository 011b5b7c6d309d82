"""Model cards of adapters and exported checkpoints, in Markdown."""

from __future__ import annotations

import json
from pathlib import Path

from ifedicl.adapter.content import Content
from ifedicl.backbone.licence import Terms

_EXPORTED = """
## This checkpoint

The adapter is folded into the weights, stored as {dtype}. This is an ordinary checkpoint; where the model's family stores no
biases, it has the name of another family. Use the prompt above and compare the probabilities of the label words. A readout is
not part of it; it is in `ifedicl/`, with the adapter.
"""
_SEEN = {
    "open": "The coordinator saw each client's means, sums and coefficients one by one, and no text.",
    "secure": "The coordinator saw sums over the clients only, and no text.",
    "private": "The coordinator saw sums over the clients only, with noise, and no text.",
}
"""By the run's privacy mode."""
_TERMS = """
## Terms

{terms}
"""


def card(content: Content, load: str = 'Adapter.load("this/folder")') -> str:
    """The card in an adapter's folder; ``load`` is the Python that reads the adapter."""
    task, layers, width = content.task, content.context.layers, content.context.vectors.shape[2]
    where = f", from layer {layers.start} on (the lowest is 0)" if layers.start else ""
    provenance = json.dumps(dict(content.provenance), indent=2, ensure_ascii=False)
    return (
        f"# {task.name}: an ifedicl adapter\n\n"
        f"Labels text as {', '.join(task.labels)} with the frozen model `{content.model_name}` "
        f"(fingerprint `{content.fingerprint[:16]}…`), without demonstrations in the prompt.\n\n"
        f"- prompt: `{task.template!r}`, {task.turn} turn\n"
        f"- label words: {', '.join(task.label_words)}\n"
        f"- context vectors: {len(layers)} layers × 2 writes × {width}{where}\n"
        f"- coefficients: {content.coefficients.count} calibrated"
        f"{', and a readout of hidden states' if content.readout else ''}\n"
        f"{_figures(content)}"
        "- limits: it chooses among its labels only, and is as good as the clients' examples; measure it on your own "
        "text before you rely on it\n"
        "- licence: the base model's terms apply to its use\n\n"
        "```python\nfrom ifedicl import Adapter\n\n"
        f'{load}.classify(["a text"])\n```\n\n'
        f"Provenance:\n\n```json\n{provenance}\n```\n"
        f"{_privacy(content)}"
    )


def adapter_hub_card(content: Content, terms: Terms, repo_id: str) -> str:
    """The card of an adapter on the hub: :func:`card` with front matter and the base model's terms."""
    body = card(content, f'Adapter.from_pretrained("{repo_id}")')
    return _front_matter(content, terms, "ifedicl", "text-classification") + body + _terms(terms)


def checkpoint_card(content: Content, terms: Terms, dtype: str) -> str:
    """The card of an exported checkpoint whose weights are stored as ``dtype``."""
    body = card(content) + _EXPORTED.format(dtype=dtype) + _terms(terms)
    return _front_matter(content, terms, "transformers", "text-generation") + body


def _terms(terms: Terms) -> str:
    return _TERMS.format(terms=terms.markdown())


def _front_matter(content: Content, terms: Terms, library: str, pipeline: str) -> str:
    from huggingface_hub import ModelCardData  # takes a third of a second to import, and only exports need it

    source = content.model.source
    is_hub_id = not (source.startswith((".", "~", "/")) or Path(source).exists())
    facts = ModelCardData(
        license=terms.licence,
        base_model=source if is_hub_id else None,
        library_name=library,
        pipeline_tag=pipeline,
        tags=["ifedicl", "text-classification", "federated-learning"],
    )
    return f"---\n{facts.to_yaml()}\n---\n\n"


def _figures(content: Content) -> str:
    """A line with the gate's figures, if there are any."""
    gate = content.provenance.get("gate") or {}
    if "examples" not in gate:
        return ""
    return (
        f"- figures: {gate['accuracy']:.1%} of {gate['examples']} held-out examples of the clients are right, "
        f"{gate['zero_shot_accuracy']:.1%} by the raw model; these examples were used for no choice\n"
    )


def _privacy(content: Content) -> str:
    """What the coordinator saw, and what the adapter itself can reveal."""
    facts = content.provenance
    if "clients" not in facts:
        return ""
    privacy = (facts.get("method") or {}).get("privacy") or {}
    mode = privacy.get("mode", "open")
    promise = facts.get("privacy") or {}
    noise = f" Noise hides {promise.get('of')}: ε = {promise.get('epsilon')}, δ = {promise.get('delta')}." if promise else ""
    return (
        f"\n## Privacy\n\n{_SEEN.get(mode, '')}{noise}\n\n"
        f"The adapter holds means and sums over the examples of {facts['clients']} clients, and no text of theirs. Without "
        "noise, such numbers can reveal whether a known text was among the examples, and which words are frequent in them.\n"
    )
