"""How the command line finds its broker: options, then TRANSSHIP_BROKER__* in the environment, then two files.

The files are a person's own ~/.config/transship/cli.toml and, on a host, the agent's /etc/transship/agent.toml, of
which only the table [broker] is read here. A key of an earlier place wins; the rest is taken from the later ones.
"""

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from agent.base.config import DEFAULT_FILE, Broker
from agent.base.errors import Refused
from protocol.errors import ErrorCode
from protocol.reading import explain

PREFIX = "TRANSSHIP_BROKER__"


@dataclass(frozen=True, slots=True)
class Options:
    """What was said on the command line; None where nothing was."""

    broker: str | None = None
    """HOST or HOST:PORT."""
    tls: bool | None = None
    ca: Path | None = None
    username: str | None = None
    password_file: Path | None = None

    def as_settings(self) -> dict[str, Any]:
        said: dict[str, Any] = {"tls": self.tls, "ca": self.ca}
        said |= {"username": self.username, "password_file": self.password_file}
        if self.broker is not None:
            host, colon, port = self.broker.rpartition(":")
            bare = not colon or "]" in port or (":" in host and not host.startswith("["))  # an IPv6 address has colons
            said["host"] = (self.broker if bare else host).strip("[]")
            said["port"] = None if bare else port
        return {key: value for key, value in said.items() if value is not None}


def user_file(environment: Mapping[str, str] = os.environ) -> Path:
    base = environment.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "transship" / "cli.toml"


def load(options: Options, *, agent_file: Path = DEFAULT_FILE, environment: Mapping[str, str] = os.environ) -> Broker:
    """Put the settings together.

    Raises:
        Refused: a file is no TOML, a key is unknown or a value out of shape; says which.

    """
    ours = user_file(environment)
    found = {
        **_table(agent_file, only_broker=True),
        **_table(ours, only_broker=False),
        **{key[len(PREFIX) :].lower(): text for key, text in environment.items() if key.startswith(PREFIX) and text},
        **options.as_settings(),
    }
    if found.get("tls") in (False, "false", "0", "no", "off"):
        found.setdefault("ca", None)
    try:
        return Broker.model_validate(found)
    except ValidationError as error:
        raise Refused(
            ErrorCode.BAD_COMMAND,
            "the settings for the broker are wrong: " + "; ".join(explain(error)),
            hint=f"see the options, TRANSSHIP_BROKER__*, [broker] in {ours} and in {agent_file}",
        ) from None


def _table(file: Path, *, only_broker: bool) -> dict[str, Any]:
    try:
        content = tomllib.loads(file.read_text())
    except OSError:
        return {}  # not there, or root's alone: then the others have to say it
    except ValueError as error:
        raise Refused(ErrorCode.BAD_COMMAND, f"{file} is no TOML: {error}") from None
    unknown = content.keys() - {"broker"}
    if unknown and not only_broker:
        raise Refused(ErrorCode.BAD_COMMAND, f"{file} knows the table [broker] only, not {', '.join(sorted(unknown))}")
    table = content.get("broker", {})
    if not isinstance(table, dict):
        raise Refused(ErrorCode.BAD_COMMAND, f"broker in {file} must be a table")
    return table
