"""The project file: the parties, and the server's address."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from ifedicl.errors import ConfigError, Fault
from ifedicl.flare.names import NAME_PATTERN
from ifedicl.settings import Section, toml_of, validated

Port = Annotated[int, Field(ge=1024, le=65535)]


class ServerAddress(Section):
    """The address at which sites reach the server, the only party that listens."""

    host: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9.-]*$", description="the server's DNS name, as sites resolve it")
    port: Port = Field(default=8002, description="for sites, 1024 to 65535")
    admin_port: Port = Field(default=8003, description="for the coordinator's console, 1024 to 65535")

    @model_validator(mode="after")
    def _check_ports(self) -> Self:
        if self.port == self.admin_port:
            raise ValueError(f"admin_port: received {self.port}, the same as port; give two different ports")
        return self


class Project(Section):
    """The parties that get a start-up kit."""

    name: str = Field(pattern=NAME_PATTERN, description="letters, digits, - and _")
    server: ServerAddress
    sites: tuple[str, ...] = Field(min_length=1, description='names of sites: letters, digits, - and _; not "server"')
    coordinator: str = Field(
        pattern=r"^[A-Za-z0-9._%+-]+@[A-Za-z0-9.-]+\.[A-Za-z]{2,}$",
        description="the coordinator's e-mail address; the name on the console's certificate",
    )
    valid_days: int = Field(
        default=360, ge=1, le=3650, description="days for which the project's authority is valid, 1 to 3650"
    )

    @model_validator(mode="after")
    def _check_sites(self) -> Self:
        wrong = [site for site in self.sites if not re.fullmatch(NAME_PATTERN, site) or site.lower() == "server"]
        if wrong:
            raise ValueError(f'sites: received {", ".join(wrong)}; allowed: letters, digits, - and _, and not "server"')
        if len({site.lower() for site in self.sites}) < len(self.sites):
            raise ValueError("sites: two have the same name; upper and lower case count as the same")
        return self


def load_project(path: Path) -> Project:
    """Read a project file.

    Raises:
        ConfigError: the file is missing, not TOML, or has wrong settings; the message lists every fault.
    """
    try:
        values = toml_of(path)
    except (OSError, ValueError, RecursionError) as error:
        fault = Fault("file", str(path), "a readable TOML file", f"{error}. `ifedicl flare provision --help` shows one.")
        raise ConfigError(str(path), [fault]) from error
    return validated(Project, values, str(path))
