"""Start-up kits: a folder for each party with its key, a certificate of the project's authority, and addresses."""

from __future__ import annotations

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
from ifedicl.flare.kit_folder import SIGNATURES, check_is_kit
from ifedicl.flare.participants import Project

_OTHER_WAYS = ("start.sh", "sub_start.sh", "stop_fl.sh", "fl_admin.sh", "system_info.ipynb", "readme.txt")
"""FLARE's own scripts, which start it without our rules."""


class _ProblemLog:
    """The log that FLARE's provisioner writes to; keeps warnings and errors only."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.warning = self.error = self.problems.append

    def info(self, message: str) -> None:
        pass

    debug = info


def provision(project: Project, out: Path) -> Mapping[str, Path]:
    """Make a kit for the server, for each site and for the coordinator's console.

    The authority's key stays in ``out``, the coordinator's folder. It can sign a certificate in any party's name. A second call
    with the same folder gives earlier parties the same certificates, so sites can be added.

    Returns:
        The folder of each kit, by the site's name, ``server`` or ``console``.

    Raises:
        ConfigError: ``out`` belongs to another project.
        StorageError: a file cannot be written.
    """
    with disk_faults_named(out):
        out.mkdir(parents=True, exist_ok=True)
        out.chmod(0o700)
        log = _ProblemLog()
        static = StaticFileBuilder(config_folder="config", scheme="grpc", require_signed_jobs=True)
        builders = [WorkspaceBuilder(), static, CertBuilder(root_valid_days=project.valid_days)]
        context = Provisioner(str(out), builders).provision(_flare_project(project), logger=log)
        if context.get(CtxKey.BUILD_ERROR):
            remedy = "Give another folder with --out, or restore the project file."
            raise ConfigError("provision", [Fault("project", "; ".join(log.problems), "a project that fits --out", remedy)])
        parties = Path(context.get(CtxKey.CURRENT_PROD_DIR))
        kits = {"server": parties / project.server.host} | {site: parties / site for site in project.sites}
        kits["console"] = parties / project.coordinator
        for kit in kits.values():
            _finish(kit, context.get(CtxKey.ROOT_PRI_KEY))
    return kits


def check_kit(kit: Path) -> None:
    """Check that a kit was not changed since it was made.

    Raises:
        FederationError: ``kit`` is not a kit, or a file in its ``startup`` folder differs from the signed one.
    """
    check_is_kit(kit)
    startup = kit / "startup"
    if not verify_folder_signature(str(startup), str(startup / "rootCA.pem"), single_signer=True, signature_file=SIGNATURES):
        raise FederationError(f"{kit} was changed: a file in startup/ differs from the signed one. Get the kit again")


def _flare_project(project: Project) -> FlareProject:
    flare_project, server = FlareProject(project.name, "", props={"api_version": 3}), project.server
    ports = {"fed_learn_port": server.port, "admin_port": server.admin_port, "default_host": server.host}
    flare_project.set_server(server.host, _organisation(project.name), props=ports)
    for site in project.sites:
        flare_project.add_client(site, _organisation(site), props={"allow_log_streaming": False})
    flare_project.add_admin(project.coordinator, _organisation(project.name), props={"role": "project_admin"})
    return flare_project


def _organisation(name: str) -> str:
    return name.replace("-", "_")


def _finish(kit: Path, key: object) -> None:
    """Remove FLARE's own scripts, let only the owner read the kit, and sign it."""
    for path in (kit / folder / name for folder in (".", "startup") for name in _OTHER_WAYS):
        path.unlink(missing_ok=True)
    for folder, _, _ in os.walk(kit):
        Path(folder).chmod(0o700)
    sign_folders(str(kit / "startup"), key, signature_file=SIGNATURES)
