"""What a job needs that a policy does not allow, found by asking the rules themselves."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ifedicl.federation.manifest import Manifest
from ifedicl.federation.sample_exchange import SampleCounts, sample_exchange
from ifedicl.ledger.usage import History
from ifedicl.owner.policy import LeastSettings, Policy
from ifedicl.owner.rules import RefusalError, broken_rules, check_behind, check_request

_COMMENTED = re.compile(r"# (?P<name>[a-z_]+) = [^#]*?\s*(?P<rest>#.*)?$")
_PLENTY = 1000  # examples of each class: needs that depend on an owner's data are not a job's


@dataclass(frozen=True)
class Need:
    """A line of ``client.toml`` that a job needs.

    Attributes:
        section: ``allow``, ``least``, ``most`` or ``work``.
        name: of the setting.
        value: that the job needs, as TOML.
        why: the reason why the rules refuse the job, or a step of it, as the setting is.
    """

    section: str
    name: str
    value: str
    why: str

    @property
    def line(self) -> str:
        """The line of TOML."""
        return f"{self.name} = {self.value}"


def needs_of(manifest: Manifest, policy: Policy) -> tuple[Need, ...]:
    """The settings of a policy that would have to change before it answers every step of an approved job.

    Each candidate is one that the rules miss if it alone is as the policy has it.
    """
    wanted = _candidates(manifest, policy.least)
    enough = _changed(policy, wanted)
    found = []
    for (section, name), value in wanted.items():
        own = getattr(getattr(policy, section), name)
        reasons = list(_refused(_changed(enough, {(section, name): own}), manifest))
        if own != value and reasons:
            found.append(Need(section, name, str(value).lower(), reasons[0].partition("; ")[2] or reasons[0]))
    return tuple(found)


def _candidates(manifest: Manifest, least: LeastSettings) -> dict[tuple[str, str], Any]:
    """Settings that may be in a job's way, with values that are not."""
    method, limits = manifest.method, manifest.limits
    calibration = method.calibration
    wanted: dict[tuple[str, str], Any] = {("allow", name): True for name in ("class_counts", "readout_sums", "gradient_sums")}
    wanted |= {("most", name): getattr(limits, name) for name in ("rounds", "figures", "sums", "contexts")}
    return wanted | {
        ("least", "step"): min(least.step, calibration.batch_size),
        ("least", "examples"): min(least.examples, calibration.batch_size * calibration.local_steps),
        ("work", "steps"): calibration.local_steps,
    }


def _changed(policy: Policy, values: Mapping[tuple[str, str], Any]) -> Policy:
    """The policy with other values; sections are validated when they are read, so they are copied here."""
    for (section, name), value in values.items():
        policy = policy.model_copy(update={section: getattr(policy, section).model_copy(update={name: value})})
    return policy


def _refused(policy: Policy, manifest: Manifest) -> Iterator[str]:
    """Why the rules refuse the job or a step of it, for an owner with many examples and an empty ledger."""
    yield from (refusal.reason for refusal in broken_rules(policy, manifest, History(), approved=True))
    groups = np.full(manifest.method.groups(manifest.task.classes), _PLENTY)
    for request, reply in sample_exchange(manifest, SampleCounts(groups, _PLENTY, _PLENTY)).values():
        try:
            check_request(policy, request)
            check_behind(policy, manifest, reply)
        except RefusalError as refusal:
            yield refusal.reason


def marked(template: str, needs: Sequence[Need]) -> str:
    """The text of a ``client.toml`` in which the commented line of each need holds the job's value, below a remark.

    The lines stay comments: it is the owner who allows them.
    """
    lines, section = [], ""
    wanted = {(need.section, need.name): need for need in needs}
    for line in template.splitlines():
        section = line[1:-1] if line.startswith("[") and line.endswith("]") else section
        match = _COMMENTED.match(line)
        need = wanted.get((section, match["name"])) if match else None
        if need is None or match is None:
            lines.append(line)
            continue
        lines.append(
            f"# The job needs the next line. To allow it, remove its first two characters. It is not allowed yet: {need.why}."
        )
        lines.append(f"# {need.line:<28}{match['rest'] or ''}")
    return "\n".join(lines) + "\n"
