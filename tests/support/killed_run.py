"""A run that is killed again and again, at any moment; started by ``test_resume.py`` in a process of its own.

One parent pays for the imports; each attempt is a fork of it, which loads the model and runs. The parent never computes a
gradient: torch refuses to do so on both sides of a fork.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
import torch._dynamo  # the first optimizer step of every attempt would import it

from ifedicl.backbone.load import load_backbone
from ifedicl.federation import checkpoint
from ifedicl.federation.events import Begun, Delivered, Event, RoundDone
from ifedicl.federation.run_folder import RunFolder
from ifedicl.runs import run
from ifedicl.settings import RunSettings, load_settings

Moment = tuple[int, int, float]
"""Kill at the n-th event of this round or a later one, after this many more seconds."""


def moments(rounds: int, kills: int, draw: random.Random) -> list[Moment]:
    """One before the first round, the others spread over all rounds, then one while the adapter is made."""
    stage_1 = (0, draw.randrange(1, 14), draw.uniform(0.0, 0.01))
    # A round is nine events: update, three answers, evaluate, three answers, done.
    starts = [int((place + draw.random()) * (rounds - 1) / (kills - 1)) for place in range(kills - 1)]
    during = [(max(start, 1), draw.randrange(1, 10), draw.uniform(0.0, 0.02)) for start in starts]
    return [stage_1, *during, (rounds, 9, draw.uniform(0.0, 0.004))]


def forked(settings: RunSettings, folder: Path, *, resume: bool, observer: Callable[[Event], None]) -> int:
    """The process id of a fork that runs."""
    child = os.fork()
    if child == 0:
        try:
            run(settings, folder, resume=resume, observer=observer)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return child


def was_killed(child: int) -> bool:
    """Whether a fork, once it has ended, was killed; False where it ended by itself."""
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status) and os.WEXITSTATUS(status):
        sys.exit("the run failed")
    return os.WIFSIGNALED(status)


def attempt(settings: RunSettings, folder: Path, *, resume: bool, moment: Moment | None) -> bool:
    """Whether the run was killed; False where it ended by itself first."""
    reader, writer = os.pipe()

    def tell(event: Event) -> None:
        if isinstance(event, Begun):
            return  # of no round, and before anything is sent
        place = event.record if isinstance(event, RoundDone) else event.traffic if isinstance(event, Delivered) else event
        os.write(writer, f"{place.round}\n".encode())

    child = forked(settings, folder, resume=resume, observer=tell)
    os.close(writer)
    seen = 0
    with os.fdopen(reader) as events:
        for line in events:
            if moment is None:
                continue
            seen += int(line) >= moment[0]
            if seen == moment[1]:
                time.sleep(moment[2])
                os.kill(child, signal.SIGKILL)
                break
    return was_killed(child)


def main(config: str, whole: str, broken: str, kills: str, seed: str) -> None:
    """Run once to the end, and once with kills; print what happened as JSON."""
    torch.set_num_threads(1)
    settings = load_settings(config)
    load_backbone(settings.model)  # brings in the model's own modules
    start = time.perf_counter()
    attempt(settings, Path(whole), resume=False, moment=None)
    uninterrupted = time.perf_counter() - start
    killed, rounds = [], []
    for number, moment in enumerate(moments(settings.rounds.rounds, int(kills), random.Random(int(seed)))):  # noqa: S311
        killed.append(attempt(settings, Path(broken), resume=number > 0, moment=moment))
        saved = checkpoint.load(RunFolder(Path(broken)).checkpoint)
        rounds.append(None if saved is None else saved.round)
    attempt(settings, Path(broken), resume=True, moment=None)
    print(json.dumps({"killed": killed, "rounds": rounds, "seconds": uninterrupted}))


if __name__ == "__main__":
    main(*sys.argv[1:])
