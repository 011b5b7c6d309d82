"""Run the Triton kernels in Triton's interpreter (``TRITON_INTERPRET=1``) against the oracle, and print how many are equal."""

from __future__ import annotations

from itertools import product

import torch

from ifedicl.core import injection_kernels
from tests.support.injection_oracle import assert_equals_oracle, drawn

SHAPES = ((3, 37, 48), (5, 130), (1, 1, 32))  # several tiles, none of them full; one token
RANKS = (0, 1, 5, 16, 20)
PROGRAMS = 3  # fewer than there are tiles: each takes several in turn


def main() -> None:
    """Run all cases."""
    cases = list(product(SHAPES, RANKS, (torch.float32, torch.bfloat16)))
    for shape, rank, dtype in cases:
        given = drawn(shape, rank, dtype)
        _, write, packed, vector, basis = given
        backward = injection_kernels.backward(*given, PROGRAMS)
        assert backward[1].shape == (PROGRAMS, 2 + rank**2)
        assert_equals_oracle((injection_kernels.forward(write, packed, vector, basis), *backward), given)
    print(f"{len(cases)} cases equal the oracle")


if __name__ == "__main__":
    main()
