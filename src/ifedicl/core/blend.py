"""Blends readouts with the label words, by what each mix of them loses on held-out examples.

Exponential weights (Bayes' rule with mixes as hypotheses): a mix weighs its prior times ``exp(-loss)``, with the loss in nats
summed over all held-out examples. Mixes are linear in the readout's features, so their weighted mean is one readout. As
``-log softmax`` is convex, its loss is at most the mean of theirs. Half of the prior is on the label words alone: few held-out
examples move little of it, and nothing jumps when there are a few more.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ifedicl.core.readout import TEMPERATURES, Readout

SHARES = (0.0, 0.5)
"""How much of the label words' logits is added to those of a readout."""
_WORDS = 0.5
"""Prior of the label words alone. The rest is on the mixes, in proportion to 1 / temperature: cautious ones are likelier."""
_CERTAIN = 0.999
"""Posterior of the label words from which they are used alone."""
_NEGLIGIBLE = 1e-4
"""Posterior below which a hypothesis is left out, so that label words that matter nothing need not be scored."""


def shares(reads_words: bool) -> tuple[float, ...]:
    """The shares that are tried: without those of the label words, if the readout does not read them."""
    return SHARES if reads_words else SHARES[:1]


def mixes(
    readouts: Sequence[Readout], temperatures: Sequence[float] = TEMPERATURES, added: Sequence[float] = SHARES
) -> list[Readout]:
    """Each readout at each temperature and with each share of the label words added."""
    return [readout.mixed(temperature, share) for readout in readouts for temperature in temperatures for share in added]


def blended(readouts: Sequence[Readout], losses: Sequence[float], added: Sequence[float] = SHARES) -> Readout | None:
    """The mean of the label words and all :func:`mixes`, weighted by prior and held-out loss; None: the label words alone.

    Args:
        readouts: one for each penalty, of temperature 1; at least one.
        losses: in nats, summed over the held-out examples: of the label words, then of each mix, in order.
        added: the shares of the label words that were tried.

    Raises:
        ValueError: another number of losses.
    """
    tried = mixes(readouts, added=added)
    caution = np.array([1 / temperature for _ in readouts for temperature in TEMPERATURES for _ in added])
    prior = np.append(_WORDS, (1 - _WORDS) * caution / caution.sum())
    if len(losses) != len(prior):
        raise ValueError(f"losses: received {len(losses)}; allowed: {len(prior)}, of the label words and {len(tried)} mixes")
    evidence = np.log(prior) - np.asarray(losses, dtype=np.float64)
    posterior = np.exp(evidence - np.logaddexp.reduce(evidence))
    if posterior[0] >= _CERTAIN:
        return None
    posterior = np.where(posterior < _NEGLIGIBLE, 0.0, posterior)
    posterior /= posterior.sum()
    words = readouts[0].mixed(0.0, 1.0).weights.astype(np.float64)
    total = posterior[0] * words + np.tensordot(posterior[1:], np.stack([mix.weights for mix in tried]), axes=1)
    return Readout(total.astype(np.float32), readouts[0].pooled_layers)
