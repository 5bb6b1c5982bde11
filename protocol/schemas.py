"""The contract for other languages: a JSON schema for each message, and one AsyncAPI document of all the topics.

    python -m protocol.schemas --write docs/contract      write what has changed
    python -m protocol.schemas --check docs/contract      exit code 1 if anything there is not as it would be written

Everything is made from the models and from `topics`; nothing is said twice.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from protocol import commands, evacuation, peer, status, topics
from protocol.base import PROTOCOL_VERSION
from protocol.commands import COMMAND

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
ASYNCAPI: Final = "3.0.0"
BINDING: Final = "0.2.0"

COMMANDS: Final[tuple[type[BaseModel], ...]] = (
    commands.Migrate,
    commands.Check,
    commands.Cancel,
    commands.Limit,
    commands.Resolve,
    commands.ListMigrations,
    commands.Checkpoint,
    commands.Restore,
    commands.ListCheckpoints,
    commands.RemoveCheckpoint,
    commands.PinCheckpoint,
    commands.NativeCreate,
    commands.NativeList,
    commands.NativeRemove,
    commands.NativeStart,
    commands.Evacuate,
    commands.Return,
    commands.CancelEvacuation,
    commands.Cordon,
    commands.ShutdownNotice,
    commands.Ping,
)
SAID: Final[tuple[type[BaseModel], ...]] = (
    commands.Reply,
    status.HostStatus,
    status.ContainerStatus,
    status.MigrationStatus,
    status.DecisionNotice,
    status.Event,
    evacuation.EvacuationStatus,
)
PEER: Final[tuple[type[BaseModel], ...]] = (
    peer.Probed,
    peer.Question,
    peer.Checked,
    peer.Offer,
    peer.Answer,
    peer.Created,
    peer.Staged,
    peer.Manifest,
    peer.Prepared,
    peer.Running,
    peer.Arrived,
    peer.Decision,
    peer.NativeOffer,
)


@dataclass(frozen=True, slots=True)
class Channel:
    """One topic, as an agent uses it."""

    name: str
    address: str
    messages: tuple[type[BaseModel], ...]
    does: str
    """What the agent does there: `send` or `receive`."""
    summary: str
    retained: bool = False


PARAMETERS: Final = {
    "host": "A host's name in the cluster, as in its certificate.",
    "container": "A container's id, 64 hexadecimal digits.",
    "migration": "A migration's id: m- and 16 hexadecimal digits.",
    "client": "Whatever the controller likes; its own client id, for one.",
}

CHANNELS: Final = (
    Channel(
        "command",
        topics.command("{host}"),
        COMMANDS,
        "receive",
        "What a controller asks of a host's agent. QoS 1, never retained, with a response topic and correlation data.",
    ),
    Channel(
        "replies",
        topics.replies("{client}"),
        (commands.Reply,),
        "send",
        "Answers to a command, at the response topic that came with it; this is the usual place.",
    ),
    Channel(
        "hostStatus",
        topics.host_status("{host}"),
        (status.HostStatus,),
        "send",
        "What a host is and has; `online: false` is the agent's last will.",
        retained=True,
    ),
    Channel(
        "containerStatus",
        topics.container_status("{host}", "{container}"),
        (status.ContainerStatus,),
        "send",
        "One container of a host; cleared by an empty message when it is gone.",
        retained=True,
    ),
    Channel(
        "evacuation",
        topics.evacuation("{host}"),
        (evacuation.EvacuationStatus,),
        "send",
        "How far the evacuation of a host is, or how the last one came out; kept for a day after its end.",
        retained=True,
    ),
    Channel("events", topics.events("{host}"), (status.Event,), "send", "What happened on a host; not kept."),
    Channel(
        "migrationStatus",
        topics.migration_status("{migration}", "{host}"),
        (status.MigrationStatus,),
        "send",
        "How far a migration is, said by its source; kept for a day after its end.",
        retained=True,
    ),
    Channel(
        "decision",
        topics.decision("{migration}", "{host}"),
        (status.DecisionNotice,),
        "send",
        "The source's one decision on a migration. A waiting target reads it where the peer link is silent.",
        retained=True,
    ),
)


def schemas() -> dict[str, dict[str, Any]]:
    """Each message's schema, by its file name."""
    found = {file_name(model): _schema(model) for model in (*COMMANDS, *SAID, *PEER)}
    command = {"$schema": DIALECT, "title": "Command", **COMMAND.json_schema()}
    for model in COMMANDS:
        _require_kind(command["$defs"][model.__name__])
    return {"command.schema.json": command, **found}


def asyncapi() -> dict[str, Any]:
    """All topics and messages as one AsyncAPI document, from the agent's point of view."""
    template = "#/components/schemas/{model}"
    models = [(model, "validation") for model in (*COMMANDS, *SAID)]
    _, definitions = models_json_schema(models, ref_template=template)  # type: ignore[arg-type]
    for model in COMMANDS:
        _require_kind(definitions["$defs"][model.__name__])
    return {
        "asyncapi": ASYNCAPI,
        "info": {
            "title": "transship",
            "version": str(PROTOCOL_VERSION),
            "description": "Moves running Docker containers between hosts. Made by `python -m protocol.schemas` from "
            "the models in protocol/; docs/contract.md explains it.",
        },
        "defaultContentType": "application/json",
        "channels": {channel.name: _channel(channel) for channel in CHANNELS},
        "operations": {_operation_name(channel): _operation(channel) for channel in CHANNELS},
        "components": {
            "messages": {model.__name__: _message(model) for model in (*COMMANDS, *SAID)},
            "schemas": definitions["$defs"],
        },
    }


def _schema(model: type[BaseModel]) -> dict[str, Any]:
    schema = model.model_json_schema()
    if model in COMMANDS:
        _require_kind(schema)
    return {"$schema": DIALECT, **schema}


def _require_kind(schema: dict[str, Any]) -> None:
    """Python fills it in; on the wire it is what tells the commands apart."""
    schema["required"] = ["kind", *schema["required"]]


def file_name(model: type[BaseModel]) -> str:
    return f"{_words(model)}.schema.json"


def _words(model: type[BaseModel]) -> str:
    """HostStatus -> host-status."""
    name = model.__name__
    return "".join(
        f"-{letter.lower()}" if letter.isupper() and at else letter.lower() for at, letter in enumerate(name)
    )


def _channel(channel: Channel) -> dict[str, Any]:
    return {
        "address": channel.address,
        "summary": channel.summary,
        "parameters": {
            name: {"description": text} for name, text in PARAMETERS.items() if f"{{{name}}}" in channel.address
        },
        "messages": {model.__name__: {"$ref": f"#/components/messages/{model.__name__}"} for model in channel.messages},
    }


def _operation_name(channel: Channel) -> str:
    return f"{channel.does}{channel.name[0].upper()}{channel.name[1:]}"


def _operation(channel: Channel) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "action": channel.does,
        "channel": {"$ref": f"#/channels/{channel.name}"},
        "summary": channel.summary,
        "messages": _references(channel.name, channel.messages),
        "bindings": {"mqtt": {"qos": 1, "retain": channel.retained, "bindingVersion": BINDING}},
    }
    if channel.name == "command":
        operation["reply"] = {
            "address": {
                "description": "The MQTT 5 response topic of the command.",
                "location": "$message.header#/responseTopic",
            },
            "channel": {"$ref": "#/channels/replies"},
            "messages": _references("replies", (commands.Reply,)),
        }
    return operation


def _references(channel: str, models: Sequence[type[BaseModel]]) -> list[dict[str, str]]:
    return [{"$ref": f"#/channels/{channel}/messages/{model.__name__}"} for model in models]


def _message(model: type[BaseModel]) -> dict[str, Any]:
    about = (model.__doc__ or "").strip()
    message: dict[str, Any] = {
        "name": _words(model),
        "title": model.__name__,
        "summary": about.partition("\n")[0],
        "contentType": "application/json",
        "payload": {"$ref": f"#/components/schemas/{model.__name__}"},
    }
    if model in COMMANDS:
        message["bindings"] = {
            "mqtt": {
                "responseTopic": {"type": "string", "description": "Where replies go; none, and nothing is answered."},
                "correlationData": {"type": "string", "description": "Comes back with each reply as it was."},
                "bindingVersion": BINDING,
            }
        }
    return message


# --- files


def files() -> dict[str, str]:
    """Everything that is generated, by file name."""
    content: Mapping[str, dict[str, Any]] = {**schemas(), "asyncapi.json": asyncapi()}
    return {name: json.dumps(one, indent=2, ensure_ascii=False) + "\n" for name, one in sorted(content.items())}


def stale(folder: Path) -> list[str]:
    """Files that are missing, not as they would be written, or no longer written at all."""
    wanted = files()
    there = {file.name: file.read_text() for file in folder.glob("*.json")}
    return sorted(name for name in wanted.keys() | there.keys() if wanted.get(name) != there.get(name))


def write(folder: Path) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    changed, wanted = stale(folder), files()
    for name in changed:
        if name in wanted:
            (folder / name).write_text(wanted[name])
        else:
            (folder / name).unlink()
    return changed


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m protocol.schemas", description=(__doc__ or "").partition("\n")[0])
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--write", type=Path, metavar="DIR")
    action.add_argument("--check", type=Path, metavar="DIR")
    said = parser.parse_args(arguments)
    changed = write(said.write) if said.write else stale(said.check)
    for name in changed:
        print(name)
    return 1 if said.check and changed else 0


if __name__ == "__main__":
    sys.exit(main())
