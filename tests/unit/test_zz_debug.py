import torch, numpy as np
from tests.unit.test_adapter import *


def test_a(adapter, saved, backbone):
    from ifedicl.backbone.load import load_backbone

    for _ in range(3):
        b = load_backbone(adapter.model)
        print([adapter.classifier(x).classify(TEXTS[:2])[0].probabilities["good"] for x in (backbone, b, backbone, b)])
        print(
            [Adapter.load(saved).classifier(x).classify(TEXTS[:2])[0].probabilities["good"] for x in (backbone, b, backbone, b)]
        )
    l = Adapter.load(saved)
    print(
        (l.coefficients.scales == adapter.coefficients.scales).all(),
        (l.vectors == adapter.vectors).all(),
        l.vectors.ctypes.data % 64,
        adapter.vectors.ctypes.data % 64,
        l.vectors.flags,
        l.coefficients.scales.flags,
        adapter.coefficients.active.all(),
    )
    print(l.coefficients.scales.strides, adapter.coefficients.scales.strides, type(l.vectors))
    print(torch.from_numpy(l.vectors), torch.from_numpy(adapter.vectors))
    assert 0
