"""Names under which a server is reached: a probe's, a service's, a proxy's, and those of a page that wants to read it."""

from __future__ import annotations

from pathlib import Path

import pytest

from ifedicl import cli
from ifedicl.errors import ConfigError
from ifedicl.serve.answering import ServerState
from ifedicl.serve.api_keys import Keys, new_key
from ifedicl.serve.hosts import check_names
from tests.support.serve import asking, fault

SERVICE = "labels.prod.svc.cluster.local"


@pytest.mark.parametrize("name", [SERVICE, "10.1.2.3:8000", "site.example", "", "[::1"])
@pytest.mark.parametrize("host", ["0.0.0.0", "127.0.0.1"])  # noqa: S104
def test_a_probe_is_answered_under_any_name_and_nothing_else_is(state: ServerState, host: str, name: str) -> None:
    client = asking(state, host=host)
    for path, told in (("/healthz", {"status": "ok"}), ("/readyz", {"status": "ready"})):
        answer = client.get(path, headers={"Host": name})
        assert (answer.status_code, answer.json()) == (200, told)
        assert client.head(path, headers={"Host": name}).status_code == 200
    if name != "10.1.2.3:8000":
        for path in ("/", "/v1/adapters", "/metrics", "/docs", "//healthz", "/healthz/", "/readyz/../v1/adapters"):
            assert fault(client.get(path, headers={"Host": name}))[:2] == (400, "host"), path


@pytest.mark.parametrize(
    ("name", "status"),
    [(f"{SERVICE}:8000", 200), (SERVICE.upper(), 200), ("10.1.2.3", 200), ("localhost", 200), ("site.example", 400)],
)
def test_a_name_that_is_allowed_is_answered_without_keys(state: ServerState, name: str, status: int) -> None:
    client = asking(state, host="0.0.0.0", allowed=[SERVICE])  # noqa: S104
    answer = client.get("/v1/adapters", headers={"Host": name})
    assert answer.status_code == status
    if status == 400:
        assert SERVICE in fault(answer)[2]


def test_with_keys_the_allowed_names_are_the_only_ones(state: ServerState, tmp_path: Path) -> None:
    own = {"Authorization": f"Bearer {new_key(tmp_path / 'keys', 'reader')}"}
    client = asking(state, Keys(tmp_path / "keys"), host="0.0.0.0", allowed=[SERVICE])  # noqa: S104
    assert client.get("/v1/adapters", headers=own | {"Host": SERVICE}).status_code == 200
    assert fault(client.get("/v1/adapters", headers=own | {"Host": "site.example"}))[:2] == (400, "host")


@pytest.mark.parametrize(
    "name", ["*", "*.example", "labels.example:8000", "http://labels.example", "10.1.2.3", "::1", "", "a b"]
)
def test_what_is_no_name_of_a_host_is_refused(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match=r"allowed-host: received .*allowed: a host name such as labels\.example"):
        check_names([SERVICE, name])
    with pytest.raises(SystemExit) as stop:
        cli.main(["serve", "x", "--allowed-host", name])
    assert stop.value.code == 2
    assert "allowed-host" in capsys.readouterr().err
