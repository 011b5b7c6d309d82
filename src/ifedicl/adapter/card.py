"""Model cards of adapters and exported checkpoints, in Markdown."""

from __future__ import annotations

import json

from ifedicl.adapter.content import Content
from ifedicl.adapter.hub_name import hub_id_of_model
from ifedicl.backbone.licence import Terms

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
        f"{task.does} with the frozen model `{content.model_name}` "
        f"(fingerprint `{content.fingerprint[:16]}…`), without demonstrations in the prompt.\n\n"
        f"- prompt: `{task.template!r}`, {task.turn} turn\n"
        f"{''.join(f'- {name}: {value}{chr(10)}' for name, value in task.card_lines.items())}"
        f"- context vectors: {len(layers)} layers × 2 writes × {width}{where}\n"
        f"- coefficients: {content.coefficients.count} calibrated"
        f"{', and a readout of hidden states' if content.readout else ''}\n"
        f"{_figures(content)}"
        f"{_forgotten(content)}"
        f"- limits: {task.limits}, and is as good as the clients' examples; measure it on your own "
        "text before you rely on it\n"
        "- licence: the base model's terms apply to its use\n\n"
        "```python\nfrom ifedicl import Adapter\n\n"
        f"{load}.{task.usage}\n```\n\n"
        f"Provenance:\n\n```json\n{provenance}\n```\n"
        f"{_privacy(content)}"
    )


def adapter_hub_card(content: Content, terms: Terms, repo_id: str) -> str:
    """The card of an adapter on the hub: :func:`card` with front matter and the base model's terms."""
    body = card(content, f'Adapter.from_pretrained("{repo_id}")')
    return front_matter(content, terms, "ifedicl", content.task.pipeline_tag) + body + terms_text(terms)


def terms_text(terms: Terms) -> str:
    """The base model's terms, as a section."""
    return _TERMS.format(terms=terms.markdown())


def front_matter(content: Content, terms: Terms, library: str, pipeline: str) -> str:
    """The card's metadata in YAML."""
    from huggingface_hub import ModelCardData  # takes a third of a second to import, and only exports need it

    facts = ModelCardData(
        license=terms.licence,
        base_model=hub_id_of_model(content.model.source),
        library_name=library,
        pipeline_tag=pipeline,
        tags=["ifedicl", content.task.pipeline_tag, "federated-learning"],
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


def _forgotten(content: Content) -> str:
    """A line for each removal of clients' shares."""
    return "".join(
        f"- forgotten after round {note['round']}: all text of {note['clients_left']} clients, removed examples of "
        f"{note['clients_changed']}. Vectors, directions, readout sums and figures are those of a run that never held them"
        + (f"; the coefficients are not, they went on for {note['more_rounds']} rounds\n" if note["more_rounds"] else "\n")
        for note in content.provenance.get("forgotten") or ()
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
