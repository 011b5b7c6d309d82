"""Which settings of different sections do not go together. Each message names the settings and the remedy."""

from __future__ import annotations

from collections.abc import Mapping

from ifedicl.settings.coordination import Coordination
from ifedicl.settings.method_fields import MethodFields
from ifedicl.settings.sections import NoiseSettings


def check_method(method: MethodFields) -> None:
    """Check the sections of a method against each other.

    Raises:
        ValueError: some do not go together.
    """
    _check_robust(method)
    _check_sums(method)
    _check_noise(method)
    _check_gradients(method)
    _check_readout(method)


def check_coordination(method: MethodFields, coordination: Coordination) -> None:
    """Check how a run is driven against its method.

    Raises:
        ValueError: they do not go together.
    """
    if method.sums_only and coordination.min_clients > 1:
        raise ValueError(
            "coordination.min_clients must be 1 where the coordinator sees sums only: all clients' replies come as one. "
            "privacy.min_survivors takes its place"
        )


def noise_contradictions(noise: NoiseSettings, method: MethodFields, survivors: int) -> list[str]:
    """What in a run would make its privacy guarantee empty; nothing: the guarantee holds.

    Args:
        noise: what is promised.
        method: the run's settings.
        survivors: the fewest clients that a sum is ever opened for.
    """
    server = method.server
    return _holding(
        {
            f"noise.colluders {noise.colluders} must be fewer than the {survivors} clients that a sum may come from, or no "
            "one's noise hides it": noise.colluders >= survivors,
            'server.update must be "gradient": steps that a client takes itself are not clipped for each example': (
                not method.takes_gradients
            ),
            'server.optimizer must be "adam": gradients are sent in units of their usual size': (
                server is None or server.optimizer != "adam"
            ),
            "[readout] must be left out (readout = false where a preset brings it): its sums carry no noise": (
                method.readout is not None
            ),
            "holdout.selection and holdout.gate must be 0: figures of held-out examples carry no noise": (
                method.holdout.selection + method.holdout.gate > 0
            ),
            'rounds.select_by must be "last", as there are no figures to choose by': method.rounds.select_by != "last",
        }
    )


def _holding(sentences: Mapping[str, bool]) -> list[str]:
    return [sentence for sentence, holds in sentences.items() if holds]


def _check_robust(method: MethodFields) -> None:
    if method.robust is None:
        return
    trusting = {
        'weighting "examples"': method.weighting == "examples",
        'server.update "gradient"': method.takes_gradients,
        "[readout]": method.readout is not None,
        "rounds.client_fraction below 1": method.rounds.client_fraction < 1,
        "a privacy.mode that shows sums only": method.sums_only,
    }
    if wrong := _holding(trusting):
        raise ValueError(
            f"[robust] does not go with {', '.join(wrong)}: there, one client's own sums or numbers of examples decide, or "
            "a drawn few can be liars in the majority. Leave out the one or the other; what a preset brings goes with "
            "readout = false, for instance"
        )


def _check_sums(method: MethodFields) -> None:
    if method.privacy is None or not method.sums_only:
        return
    wrong = _holding(
        {
            'weighting must be "examples", as a sum counts every example alike': method.weighting != "examples",
            "rounds.client_fraction must be 1, since sums over different clients can be subtracted": (
                method.rounds.client_fraction < 1
            ),
        }
    )
    if wrong:
        raise ValueError(f'privacy.mode "{method.privacy.mode}" shows the coordinator sums only: {"; ".join(wrong)}')


def _check_noise(method: MethodFields) -> None:
    if method.privacy is None or method.privacy.noise is None:
        return
    if wrong := noise_contradictions(method.privacy.noise, method, method.privacy.min_survivors):
        raise ValueError(f'privacy.mode "private" would guarantee nothing: {"; ".join(wrong)}')


def _check_gradients(method: MethodFields) -> None:
    if method.takes_gradients and method.rounds.client_fraction < 1:
        raise ValueError(
            'server.update "gradient" draws examples, not clients, and must not depend on who holds them; '
            "leave rounds.client_fraction at 1"
        )


def _check_readout(method: MethodFields) -> None:
    if method.readout is not None and method.holdout.selection == 0:
        raise ValueError("[readout] is chosen on held-out examples; set holdout.selection above 0, for instance to 0.2")
