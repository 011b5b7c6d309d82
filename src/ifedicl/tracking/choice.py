"""Which trackers a run has, as options or as the environment say."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Self

from ifedicl.errors import ConfigError, Fault
from ifedicl.federation.events import Event, each
from ifedicl.settings import Method
from ifedicl.tracking.figures import Tracked

TENSORBOARD, MLFLOW, TELEMETRY = "IFEDICL_TENSORBOARD", "IFEDICL_MLFLOW", "IFEDICL_TELEMETRY"
VARIABLES = (TENSORBOARD, MLFLOW, TELEMETRY)
"""The variables that stand for the options."""


@dataclass(frozen=True)
class Trackers:
    """The trackers of a run; none by default.

    Attributes:
        tensorboard: a folder; each run has its own in it.
        mlflow: the address of a tracking server.
        telemetry: whether OpenTelemetry gets traces and metrics.
        by_client: whether they also get each client's held-out figures, where the privacy mode shows them.
    """

    tensorboard: Path | None = None
    mlflow: str | None = None
    telemetry: bool = False
    by_client: bool = False

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Self:
        """As the variables say."""
        folder = environment.get(TENSORBOARD)
        is_on = environment.get(TELEMETRY, "") not in ("", "0")
        return cls(Path(folder) if folder else None, environment.get(MLFLOW) or None, is_on)

    @property
    def variables(self) -> dict[str, str]:
        """The variables that say the same, for another process."""
        wanted = {
            TENSORBOARD: "" if self.tensorboard is None else str(self.tensorboard.absolute()),
            MLFLOW: self.mlflow or "",
            TELEMETRY: "1" if self.telemetry else "",
        }
        return {name: value for name, value in wanted.items() if value}

    def check(self) -> None:
        """Check that the packages of the chosen trackers are installed.

        Raises:
            ConfigError: one is not.
        """
        packages = {
            "tensorboard": ("tensorboardX", self.tensorboard is not None),
            "mlflow": ("mlflow", self.mlflow is not None),
            "telemetry": ("opentelemetry.sdk", self.telemetry),
        }
        missing = [extra for extra, (name, is_wanted) in packages.items() if is_wanted and not _is_installed(name)]
        if missing:
            remedy = f"Install them: pip install 'ifedicl[{','.join(missing)}]'."
            names = ", ".join(packages[extra][0] for extra in missing)
            raise ConfigError("tracker", [Fault("packages", f"no {names}", f"with {names} installed", remedy)])

    @contextmanager
    def observer(self, name: str, method: Method) -> Iterator[Callable[[Event], None]]:
        """An observer for the run of this name and method; what it holds is written when the block ends.

        Raises:
            ConfigError: a package is missing, a tracking server does not answer, or ``by_client`` in a mode that hides clients.
        """
        self.check()
        with ExitStack() as stack:
            observers: list[Callable[[Event], None]] = []
            if self.tensorboard is not None:
                from ifedicl.tracking.tensorboard import tensorboard

                files = stack.enter_context(tensorboard(self.tensorboard / name))
                observers.append(Tracked(files, method, by_client=self.by_client))
            if self.mlflow is not None:
                from ifedicl.tracking.mlflow import mlflow

                run = stack.enter_context(mlflow(self.mlflow, name, method))
                observers.append(Tracked(run, method, by_client=self.by_client))
            if self.telemetry:
                from ifedicl.tracking.spans import Gauges, run_spans
                from ifedicl.tracking.telemetry import otlp

                sent = stack.enter_context(otlp("ifedicl-coordinator"))
                observers += [stack.enter_context(run_spans(sent, name)), Tracked(Gauges(sent.meter), method)]
            yield each(*observers)


NONE = Trackers()
"""No tracker."""


def _is_installed(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # of a package above it
        return False
