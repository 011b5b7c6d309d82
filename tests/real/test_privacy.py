"""Attacks and differential privacy on the real model and real sentences."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ifedicl import Backbone, ModelSettings, cli, federate, simulate
from ifedicl.audit.suite import Evidence, run_attacks
from ifedicl.backbone.scoring import Scorer
from ifedicl.demo.fetch import demo_model, demo_places
from ifedicl.demo.story import TASK
from ifedicl.kinds.classify import Example
from ifedicl.settings import Method, changed, load_preset, validated

pytestmark = pytest.mark.real
UPPER = 0.7
"""Only the layers above this depth send vectors: attacks on all thirty take three times as long."""


def test_a_single_texts_vector_gives_it_away_and_noise_hides_it(real_backbone: Backbone) -> None:
    places = demo_places(pool=24, test=3, seed=0)
    own, public = places["shop reviews"].pool[:20], places["tweets"].pool[:20]
    method = validated(Method, {"injection": {"from_depth": UPPER}}, "test")
    evidence = Evidence.of(Scorer(real_backbone, TASK), own, public, method, updates=6)
    tables = run_attacks(evidence, real_backbone, trials=200, seed=0, epsilons=(1.0,))
    outside = {(row["examples"], row["epsilon"]): row["auc"] for row in tables["membership"] if row["attacker"] == "outsider"}
    assert outside[1, None] > 0.99
    assert outside[1, 1.0] < 0.7
    alone = next(row for row in tables["differencing"] if (row["examples"], row["added"], row["epsilon"]) == (4, 1, None))
    assert alone["named"] == 1.0


def test_the_command_says_it_in_plain_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows: tuple[Example, ...] = demo_places(pool=24, test=3, seed=0)["newspaper"].pool[:20]
    config, page = tmp_path / "config.toml", tmp_path / "audit.md"
    (tmp_path / "own.jsonl").write_text("".join(json.dumps({"text": row.text, "label": row.label}) + "\n" for row in rows))
    config.write_text(
        f"""
        [task]
        name = "mood"
        labels = {json.dumps(TASK.labels)}
        template = {json.dumps(TASK.template)}
        [model]
        source = {json.dumps(str(demo_model()))}
        dtype = "float32"
        device = "cpu"
        [data]
        clients = {{ own = "own.jsonl" }}
        [injection]
        from_depth = {UPPER}
        """
    )
    arguments = ["audit", str(config), "--public-examples", "20", "--updates", "4", "--trials", "100", "--out", str(page)]
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 0
    assert "of their rare words come back" in capsys.readouterr().out
    assert "SmolLM2" in page.read_text()
    assert not any(row.text in page.read_text() for row in rows)


def test_a_private_federation_of_the_real_model_tells_what_it_spent(real_backbone: Backbone) -> None:
    places = demo_places(pool=9, test=3, seed=0)
    public = [example.text for example in demo_places(pool=30, test=3, seed=1)["tweets"].pool[:8]]
    pools = {name: place.pool for name, place in places.items() if name != "tweets"}
    method = validated(
        Method,
        {
            "holdout": {"selection": 0.0},
            "weighting": "examples",
            "vectors": {"read_position": "prompt"},
            "injection": {"from_depth": 0.9},
            "rounds": {"rounds": 1, "select_by": "last"},
            "server": {"update": "gradient", "draw": 1.0},
            "privacy": {"mode": "private", "noise": {"epsilon": 4.0}},
        },
        "test",
    )
    model = ModelSettings(source=str(demo_model()), dtype="float32", device="cpu")
    federated = federate(simulate(real_backbone, TASK, pools), model, TASK, method, public=public)
    stated = federated.adapter.provenance["privacy"]
    assert 3.9 < stated["epsilon"] <= 4.0
    assert not federated.adapter.coefficients.is_identity


def test_a_private_readout_of_the_real_model_comes_from_one_noisy_sum(real_backbone: Backbone) -> None:
    """With the noise of ε = 16, clients of few examples hardly learn anything: what is asked and what it cost is tried."""
    places = demo_places(pool=12, test=3, seed=0)
    public = [example.text for example in demo_places(pool=30, test=3, seed=1)["tweets"].pool[:16]]
    pools = {name: place.pool for name, place in places.items() if name != "tweets"}
    sections = {
        "holdout": {"selection": 0.0, "gate": 0.2},
        "privacy": {"mode": "private", "min_examples": 4, "noise": {"epsilon": 16.0}},
    }
    method = changed(load_preset("one-shot"), sections, "test")
    model = ModelSettings(source=str(demo_model()), dtype="float32", device="cpu")
    federated = federate(simulate(real_backbone, TASK, pools), model, TASK, method, public=public)
    assert 15.9 < federated.adapter.provenance["privacy"]["epsilon"] <= 16.0
    readout = federated.outcome.state.readout
    assert readout is not None
    assert np.isfinite(readout.weights).all()
    steps = {item.step for item in federated.outcome.state.traffic}
    assert steps == {"job", "noisy_statistics", "compare"}
