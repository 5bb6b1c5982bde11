"""What every message shares: the model's rules, the protocol version, the shape of names and ids."""

import secrets
from datetime import UTC, datetime
from typing import Annotated, Final

from pydantic import AwareDatetime, BaseModel, ConfigDict, StringConstraints

PROTOCOL_VERSION: Final = 1

HostName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]
"""A host's name in the cluster; also the common name of its certificate."""

ContainerRef = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,254}$")]
"""A container's name or (a prefix of) its id, as the Docker command line takes it."""

ContainerId = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
EvacuationId = Annotated[str, StringConstraints(pattern=r"^e-[0-9a-f]{16}$")]
"""Made from the id of the command that has begun it; the ids of its migrations are made from it."""
MigrationId = Annotated[str, StringConstraints(pattern=r"^m-[0-9a-f]{16}$")]
CommandId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,63}$")]
Timestamp = AwareDatetime


class WireModel(BaseModel):
    """A message or a part of one: immutable, and an unknown field is an error, not a surprise."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, ser_json_bytes="base64")


def new_migration_id() -> str:
    return "m-" + secrets.token_hex(8)


def new_command_id() -> str:
    return "c-" + secrets.token_hex(8)


def utc_now() -> datetime:
    return datetime.now(UTC)
