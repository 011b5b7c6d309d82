"""A run that is killed at chosen events; started by ``test_killed_presets.py`` in a process of its own.

The run kills itself with SIGKILL as the event comes, so each moment is exact and none comes too late, however slow the machine.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import torch
import torch._dynamo  # the first optimizer step of every attempt would import it

from ifedicl.backbone.load import load_backbone
from ifedicl.federation import checkpoint
from ifedicl.federation.events import Begun, Delivered, Event, RoundDone
from ifedicl.federation.run_folder import RunFolder
from ifedicl.settings import load_settings
from tests.support.killed_run import forked, was_killed


def name_of(event: Event) -> str:
    """What is the same in each try of a run, and of no other event."""
    if isinstance(event, Begun):
        return "begun"
    if isinstance(event, RoundDone):
        return f"{event.record.round} done"
    if isinstance(event, Delivered):
        return f"{event.traffic.round} {event.traffic.step} {event.traffic.client}"
    return f"{event.round} {event.step}"


def main(config: str, whole: str, broken: str, kills: str) -> None:
    """Run once to the end, and once with kills; print what happened as JSON."""
    torch.set_num_threads(1)
    settings = load_settings(config)
    load_backbone(settings.model)  # brings in the model's own modules
    note = Path(whole).with_suffix(".events")

    def write(event: Event) -> None:
        with note.open("a") as file:
            file.write(f"{name_of(event)}\n")

    was_killed(forked(settings, Path(whole), resume=False, observer=write))
    order = list(dict.fromkeys(note.read_text().splitlines()))
    place_of = {name: place for place, name in enumerate(order)}
    places = [int(place) for place in np.linspace(1, len(order) - 1, int(kills))]
    killed, rounds = [], []
    for number, place in enumerate(places):

        def stop(event: Event, place: int = place) -> None:
            if place_of.get(name_of(event), 0) >= place:  # a resume sends the job anew: an event that the whole run lacks
                os.kill(os.getpid(), signal.SIGKILL)

        killed.append(was_killed(forked(settings, Path(broken), resume=number > 0, observer=stop)))
        saved = checkpoint.load(RunFolder(Path(broken)).checkpoint)
        rounds.append(None if saved is None else saved.round)
    was_killed(forked(settings, Path(broken), resume=True, observer=lambda event: None))
    print(json.dumps({"killed": killed, "rounds": rounds, "events": [order[place] for place in places]}))


if __name__ == "__main__":
    main(*sys.argv[1:])
