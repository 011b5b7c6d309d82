"""Start-up kits: keys, certificates of the project's own authority, and addresses; one folder for each party."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from nvflare.lighter.constants import CtxKey
from nvflare.lighter.entity import Project as FlareProject
from nvflare.lighter.impl.cert import CertBuilder
from nvflare.lighter.impl.static_file import StaticFileBuilder
from nvflare.lighter.impl.workspace import WorkspaceBuilder
from nvflare.lighter.provisioner import Provisioner
from nvflare.lighter.utils import sign_folders, verify_folder_signature

from ifedicl.errors import ConfigError, Fault, FederationError
from ifedicl.files import disk_faults_named
from ifedicl.flare.participants import Project

_SIGNATURES = "signature.json"
_OTHER_WAYS = ("start.sh", "sub_start.sh", "stop_fl.sh", "fl_admin.sh", "system_info.ipynb", "readme.txt")
"""FLARE's own scripts: they would start it under other rules than ours."""


class _Quiet:
    """FLARE's provisioner reports to this; only what went wrong is kept."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def info(self, message: str) -> None:
        """Not shown."""

    def debug(self, message: str) -> None:
        """Not shown."""

    def warning(self, message: str) -> None:
        """Kept."""
        self.problems.append(message)

    def error(self, message: str) -> None:
        """Kept."""
        self.problems.append(message)


def provision(project: Project, out: Path) -> Mapping[str, Path]:
    """Make a kit for the server, for each site and for the coordinator's console.

    The authority's key stays in ``out``; who has it can make a certificate in anybody's name. A second call in the same folder
    gives those who were there before the same certificates again, so that sites can be added.

    Args:
        project: who takes part.
        out: a folder of the coordinator's own.

    Returns:
        The kit's folder of each party, by name; the server's is ``server``.

    Raises:
        ConfigError: the authority in ``out`` is another one.
        StorageError: it cannot be written.
    """
    with disk_faults_named(out):
        out.mkdir(parents=True, exist_ok=True)
        out.chmod(0o700)
        log = _Quiet()
        builders = [WorkspaceBuilder(), _static_files(), CertBuilder(root_valid_days=project.valid_days)]
        context = Provisioner(str(out), builders).provision(_described(project), logger=log)
        if context.get(CtxKey.BUILD_ERROR):
            remedy = "Start in a folder of its own with --out, or restore what was changed in the project file."
            raise ConfigError("provision", [Fault("project", "; ".join(log.problems), "a project that fits --out", remedy)])
        made = Path(context.get(CtxKey.CURRENT_PROD_DIR))
        kits = {"server": made / project.server.host} | {site: made / site for site in project.sites}
        kits["console"] = made / project.coordinator
        for kit in kits.values():
            _finished(kit, context.get(CtxKey.ROOT_PRI_KEY))
    return kits


def check_kit(kit: Path) -> None:
    """Refuse a kit that was changed since it was made.

    Raises:
        FederationError: a file of its ``startup`` folder is not as it was signed.
    """
    startup = kit / "startup"
    if not (startup / _SIGNATURES).is_file():
        raise FederationError(f"{kit} is no start-up kit of ours: there is no startup/{_SIGNATURES}. Name the folder of a kit")
    if not verify_folder_signature(str(startup), str(startup / "rootCA.pem"), single_signer=True, signature_file=_SIGNATURES):
        raise FederationError(
            f"{kit} was changed since it was made: a file in startup/ is not as it was signed. Fetch it again"
        )


def _described(project: Project) -> FlareProject:
    described = FlareProject(project.name, "", props={"api_version": 3})
    server = project.server
    ports = {"fed_learn_port": server.port, "admin_port": server.admin_port, "default_host": server.host}
    described.set_server(server.host, _organisation(project.name), props=ports)
    for site in project.sites:
        described.add_client(site, _organisation(site), props={"allow_log_streaming": False})
    described.add_admin(project.coordinator, _organisation(project.name), props={"role": "project_admin"})
    return described


def _organisation(name: str) -> str:
    return name.replace("-", "_")


def _static_files() -> StaticFileBuilder:
    return StaticFileBuilder(config_folder="config", scheme="grpc", require_signed_jobs=True)


def _finished(kit: Path, key: object) -> None:
    """Without FLARE's own scripts, readable by its owner alone, and signed."""
    for path in (kit / folder / name for folder in (".", "startup") for name in _OTHER_WAYS):
        path.unlink(missing_ok=True)
    for folder, _, _ in os.walk(kit):
        Path(folder).chmod(0o700)
    sign_folders(str(kit / "startup"), key, signature_file=_SIGNATURES)


def party_of(kit: Path) -> tuple[str, str]:
    """("server", host), ("site", name) or ("console", address) of a kit.

    Raises:
        FederationError: it is no kit.
    """
    startup = kit / "startup"
    if (startup / "fed_server.json").is_file():
        facts = json.loads((startup / "fed_server.json").read_text(encoding="utf-8"))
        return "server", str(facts["servers"][0]["admin_server"])
    if (startup / "fed_client.json").is_file():
        return "site", str(json.loads((startup / "fed_client.json").read_text(encoding="utf-8"))["client"]["fqsn"])
    if (startup / "fed_admin.json").is_file():
        return "console", str(json.loads((startup / "fed_admin.json").read_text(encoding="utf-8"))["admin"]["username"])
    raise FederationError(f"{kit} is no start-up kit. Name the folder that `ifedicl flare provision` made for you")
