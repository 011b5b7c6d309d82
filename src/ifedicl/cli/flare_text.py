"""What ``ifedicl flare status`` and ``--follow`` print about a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def round_line(facts: Mapping[str, Any]) -> str:
    """One round."""
    figures = [("training loss", facts["train_loss"]), ("held-out loss", facts["held_out_loss"])]
    shown = "".join(f", {name} {value:.3f}" for name, value in figures if value is not None)
    return f"round {facts['round']} of {facts['rounds']}{shown}"


def status_lines(facts: Mapping[str, Any]) -> Iterator[str]:
    """A running job: its round, its step and its sites."""
    yield round_line(facts)
    yield f"now: {facts['step']}, {len(facts['answered'])} of {facts['asked']} have answered"
    for name, site in facts["sites"].items():
        yield f"  {name}: {_last(site)}; {_bytes(site)}"


def ending(result: Mapping[str, Any] | None) -> Iterator[str]:
    """How a job ended: the cause by site and code, or figures and where the adapter is."""
    if result is None:
        yield "the server has no result: the job never began. Each of its sites must be connected; see `ifedicl flare status`"
        return
    sites = result.get("sites", {})
    if result["error"] is not None:
        yield f"cause: {result['error']}"
    else:
        yield f"{result['round']} rounds in {result['seconds']:.0f} s; round {result['chosen_round']} was chosen"
        if result["held_out_loss"] is not None:
            raw = result["zero_shot_accuracy"]
            compared = "" if raw is None else f"; the raw model {raw:.1%}"
            yield f"held out: loss {result['held_out_loss']:.3f}, accuracy {result['held_out_accuracy']:.1%}{compared}"
        for note in result.get("forgotten", ()):
            yield (
                f"forgotten after round {note['round']}: all text of {note['clients_left']} sites, removed examples of "
                f"{note['clients_changed']}; {note['more_rounds']} rounds without it followed"
            )
        if result["gate"] is not None:
            is_open = result["gate"]["open"]
            yield f"gate: {'open, the adapter is used' if is_open else 'closed, the raw model is used'}"
    for name, site in sites.items():
        yield f"  {name}: {_last(site)}; {_bytes(site)}"
    if result["error"] is None:
        yield f"adapter, on the server's machine: {result['adapter']}"
    else:
        yield "a site's own log: `ifedicl flare logs KIT` on its machine. The server's: `ifedicl flare logs` with your kit"


def _last(site: Mapping[str, Any]) -> str:
    """The last answer of a site; a code with its meaning."""
    from ifedicl.federation.failure_words import FAILURE_WORDS

    meanings = {code.value: words for code, words in FAILURE_WORDS.items()}
    seconds = "" if site["seconds"] is None else f" in {site['seconds']:.1f} s"
    if site["last"] not in meanings:
        return f"{site['last']}{seconds}"
    return f"{site['last']} ({site['step']}){seconds}: {meanings[site['last']]}"


def _bytes(site: Mapping[str, Any]) -> str:
    return f"bytes down {site['bytes_down']:,}, up {site['bytes_up']:,}, FLARE's own {site['carrier_bytes']:,}"
