"""Every family of tiny models as a test's parameter: some in each run of the tests, the others in the soak tests."""

from __future__ import annotations

import pytest

from tests.support import tiny

QUICK = ("llama", "gemma2", "gpt2", "gptj", "opt", "bloom", "falcon-40b")
"""One for each way in which a residual stream, a window or positions work."""
SOME_FAMILIES = [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.soak]) for name in sorted(tiny.FAMILY_CASES)]
