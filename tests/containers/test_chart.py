"""The Helm chart, linted and rendered by Helm's own library, and checked against Kubernetes' schemas."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.arguments import parsed

helm = pytest.importorskip("helm_python", reason="`make containers` installs it")
kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="`make containers` installs it")

CHART = Path(__file__).parents[2] / "containers" / "chart"
KUBERNETES = "1.34"
PLAIN: dict[str, Any] = {
    "adapters": [{"name": "tickets", "path": "tickets/adapter"}],
    "adapterClaim": "adapters",
    "keys": {"secret": "ifedicl-keys"},
}
OPEN: dict[str, Any] = {"adapters": [{"name": "mood", "hub": "us/mood@v1"}], "withoutKeys": True}
FULL: dict[str, Any] = {
    **PLAIN,
    "store": {"secret": "ifedicl-store", "federation": "clinics"},
    "model": "/cache/model",
    "allowedHosts": ["labels.internal"],
    "config": {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318", "OMP_NUM_THREADS": 4},
    "secretConfig": "ifedicl-hub",
    "telemetry": True,
    "extraArgs": ["--most-waiting", "1024"],
    "cacheClaim": "models",
    "image": {"repository": "registry.internal/ifedicl", "tag": "7"},
    "imagePullSecrets": [{"name": "registry"}],
    "ingress": {"enabled": True, "className": "nginx", "host": "labels.example", "tlsSecret": "labels-tls"},
    "podAnnotations": {"team": "triage"},
    "tolerations": [{"key": "gpu", "operator": "Exists"}],
    "nodeSelector": {"gpu": "yes"},
}


def rendered(values: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The objects by their kinds."""
    with helm.Chart.load(str(CHART)) as chart:
        chart.validate_schema(values)
        texts = chart.render(values, name="prod", namespace="labels")
    objects = [item for name, text in texts.items() if not name.endswith(".txt") for item in yaml.safe_load_all(text) if item]
    return {item["kind"]: item for item in objects}


def container(objects: dict[str, dict[str, Any]]) -> dict[str, Any]:
    spec = objects["Deployment"]["spec"]["template"]["spec"]
    [only] = spec["containers"]
    return dict(only)


def test_helm_finds_nothing_wrong() -> None:
    messages = helm.lint(str(CHART), values=PLAIN)
    assert [item for item in messages["messages"] if "icon" not in str(item)] == []


@pytest.mark.parametrize("values", [PLAIN, OPEN, FULL], ids=["plain", "open", "full"])
def test_every_object_fits_the_schemas_of_kubernetes(values: dict[str, Any]) -> None:
    for item in rendered(values).values():
        kubernetes_validate.validate(item, KUBERNETES, strict=True)


@pytest.mark.parametrize("values", [PLAIN, OPEN, FULL], ids=["plain", "open", "full"])
def test_the_arguments_are_those_of_the_command(values: dict[str, Any]) -> None:
    objects = rendered(values)
    given = parsed(["serve", "--host", "0.0.0.0", *container(objects)["args"]])  # noqa: S104
    assert (given["keys"] is None) == given["without_keys"] == values.get("withoutKeys", False)
    name = objects["Service"]["metadata"]["name"]
    own = [name, f"{name}.labels", f"{name}.labels.svc", f"{name}.labels.svc.cluster.local"]
    further = ["labels.example", "labels.internal"] if values is FULL else []
    assert given["allowed_host"] == own + further
    expected = "mood=hub:us/mood@v1" if values is OPEN else "tickets=/adapters/tickets/adapter"
    assert given["adapters"] == [expected]
    if values is FULL:
        assert (given["store"], given["federation"]) == ("$(IFEDICL_SERVE_STORE)", "clinics")
        assert (given["model"], given["most_waiting"], given["telemetry"]) == ("/cache/model", 1024, True)


@pytest.mark.parametrize("values", [PLAIN, OPEN, FULL], ids=["plain", "open", "full"])
def test_a_pod_has_probes_no_rights_and_nothing_to_write_to_but_its_volumes(values: dict[str, Any]) -> None:
    objects = rendered(values)
    one, pod = container(objects), objects["Deployment"]["spec"]["template"]["spec"]
    assert one["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert one["livenessProbe"]["httpGet"]["path"] == one["startupProbe"]["httpGet"]["path"] == "/healthz"
    assert one["startupProbe"]["failureThreshold"] * one["startupProbe"]["periodSeconds"] == 900
    security = one["securityContext"]
    assert security == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert (pod["securityContext"]["runAsNonRoot"], pod["securityContext"]["runAsUser"]) == (True, 10001)
    assert pod["automountServiceAccountToken"] is False
    mounts = {item["name"]: item for item in one["volumeMounts"]}
    assert {"cache", "temporary"} <= set(mounts)
    assert all(mounts[name]["readOnly"] for name in set(mounts) - {"cache", "temporary"})
    assert {item["name"] for item in pod["volumes"]} == set(mounts)
    selector = objects["Deployment"]["spec"]["selector"]["matchLabels"]
    assert selector == objects["Service"]["spec"]["selector"]
    assert selector.items() <= objects["Deployment"]["spec"]["template"]["metadata"]["labels"].items()


def test_secrets_are_named_and_never_held() -> None:
    objects = rendered(FULL)
    assert "Secret" not in objects
    assert objects["ConfigMap"]["data"] == {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318", "OMP_NUM_THREADS": "4"}
    one = container(objects)
    assert one["env"] == [
        {"name": "IFEDICL_SERVE_STORE", "valueFrom": {"secretKeyRef": {"name": "ifedicl-store", "key": "url"}}}
    ]
    assert {"secretRef": {"name": "ifedicl-hub"}} in one["envFrom"]
    volumes = {item["name"]: item for item in objects["Deployment"]["spec"]["template"]["spec"]["volumes"]}
    assert volumes["keys"]["secret"]["secretName"] == "ifedicl-keys"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, "adapters: none, and no store"),
        ({**PLAIN, "keys": {}}, "keys.secret: none"),
        ({**PLAIN, "adapterClaim": ""}, "adapterClaim: none"),
        ({**PLAIN, "allowedHosts": ["*"]}, "allowedHosts"),
        ({**PLAIN, "adapters": [{"name": "x"}]}, "adapters"),
        ({**PLAIN, "ingress": {"enabled": True}}, "host"),
        ({**PLAIN, "replica": 2}, "replica"),
    ],
)
def test_wrong_values_are_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(helm.HelmError, match=said):
        rendered(values)
