"""How a run is driven: not part of the method, so that a resume may change it."""

from __future__ import annotations

from pydantic import Field

from ifedicl.settings.validation import Section


class Coordination(Section):
    """How long the coordinator waits, how few replies are enough, and when it stops early.

    Clients never see it and no digest holds it: a run may be resumed with a longer deadline or with fewer clients.
    """

    deadline_seconds: float = Field(default=3600.0, gt=0.0, description="how long the coordinator waits for a step; above 0")
    min_clients: int = Field(default=1, ge=1, description="fewest usable replies for a step to count; 1 or more")
    patience: int = Field(default=0, ge=0, description="stop after so many evaluations without a better one; 0: never")
