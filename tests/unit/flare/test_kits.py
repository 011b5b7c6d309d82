"""FLARE project files, and the rules that a kit contains."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ifedicl.errors import ConfigError
from ifedicl.flare.participants import load_project
from ifedicl.flare.site_policy import authorization, write_server_rules, write_site_rules
from tests.support.flare import project


def test_a_project_file_is_read_with_its_defaults(tmp_path: Path) -> None:
    loaded = load_project(project(tmp_path))
    assert (loaded.sites, loaded.server.port, loaded.server.admin_port, loaded.valid_days) == (("a", "b"), 8002, 8003, 360)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sites": '["a", "A"]'}, "two have the same name"),
        ({"sites": '["../a"]'}, "sites: received"),
        ({"sites": '["server"]'}, "sites: received"),
        ({"coordinator": '"me"'}, "e-mail"),
        ({"valid_days": "0"}, "days for which"),
        ({"colour": "1"}, "a name that does not exist"),
    ],
)
def test_a_wrong_project_file_is_refused_with_the_field(tmp_path: Path, changes: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_project(project(tmp_path, **changes))


def test_the_rules_let_no_code_in_and_no_log_out(tmp_path: Path) -> None:
    write_site_rules(tmp_path, patience=30.0)
    resources = json.loads((tmp_path / "local" / "resources.json").read_text())
    assert resources["class_allow_list"] == ["ifedicl.flare.executor.SiteExecutor"]
    assert resources["class_list_enforcement_mode"] == "enforce"
    assert resources["allow_log_streaming"] is False
    rights = authorization()["permissions"]
    assert {role["byoc"] for role in rights.values()} == {"none"}
    assert {role["shell_commands"] for role in rights.values()} == {"none"}
    write_server_rules(tmp_path)
    assert "/tmp/nvflare" not in (tmp_path / "local" / "resources.json").read_text()  # noqa: S108
