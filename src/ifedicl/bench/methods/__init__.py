"""One file for each kind of method. To add one: a class as ``BenchMethod`` in ``base.py`` says, and a line here."""

from __future__ import annotations

from collections.abc import Mapping

from ifedicl.bench.methods.affine import LogitAffine
from ifedicl.bench.methods.base import PAPER, BenchMethod
from ifedicl.bench.methods.lora import FedAvgLoRA
from ifedicl.bench.methods.ours import ClientAlone, IFedICL, PooledI2CL
from ifedicl.bench.methods.raw import LocalICL, PooledICL, ZeroShot
from ifedicl.bench.methods.ridge import RidgeProbe

_ALL: tuple[BenchMethod, ...] = (
    ZeroShot(),
    LocalICL(),
    PooledICL(),
    ClientAlone(),
    IFedICL("ifed-icl", PAPER),
    IFedICL("ifed-icl-readout", "readout"),
    IFedICL("ifed-icl-subspace", "subspace"),
    IFedICL("one-shot", "one-shot"),
    PooledI2CL(),
    FedAvgLoRA(),
    LogitAffine(),
    RidgeProbe(),
)
METHODS: Mapping[str, BenchMethod] = {method.name: method for method in _ALL}
"""In the order of the tables."""
