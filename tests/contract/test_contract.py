"""The contract itself: what is written down is what the models say, and each model holds to the rules of all."""

import asyncio
import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as some
from pydantic import BaseModel, ValidationError

from protocol import peer, schemas, topics
from protocol.base import new_command_id, new_migration_id
from protocol.commands import COMMAND, Reply, Strategy, TcpPolicy
from protocol.errors import ErrorCode
from protocol.reading import MAX_COMMAND_BYTES, Unreadable, read, read_command
from protocol.status import DecisionNotice, HostStatus
from tests.contract.conftest import Mosquitto
from tests.contract.samples import sample
from tests.contract.stories import StoryHost, container

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/contract.md").read_text()
MODELS = (*schemas.COMMANDS, *schemas.SAID, *schemas.PEER)
SCHEMAS = schemas.schemas()
PATIENCE = 20.0


EXAMPLES: dict[type[BaseModel], dict[str, Any]] = {
    model: sample(SCHEMAS[schemas.file_name(model)], SCHEMAS[schemas.file_name(model)].get("$defs", {}))
    for model in MODELS
}


def documented() -> list[tuple[str, str]]:
    """Every JSON example of the page, with the message that it is."""
    return re.findall(r"<!-- message: ([a-z-]+) -->\n```json\n(.*?)```", PAGE, re.DOTALL)


every_model = pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)


# --- what is on disk


def test_files_on_disk_are_those_that_the_models_make() -> None:
    assert schemas.stale(ROOT / "docs/contract") == [], "run: python -m protocol.schemas --write docs/contract"


def test_writing_and_checking_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = schemas.files()  # once: half a second, and each of the steps below would make the same again
    monkeypatch.setattr(schemas, "files", made.copy)
    folder = tmp_path / "new"
    assert schemas.main(["--check", str(tmp_path)]) == 1
    assert "asyncapi.json" in capsys.readouterr().out
    assert schemas.main(["--write", str(folder)]) == 0
    assert schemas.main(["--check", str(folder)]) == 0
    (folder / "old.schema.json").write_text("{}")
    (folder / "reply.schema.json").write_text("{}")
    assert schemas.stale(folder) == ["old.schema.json", "reply.schema.json"]
    assert schemas.main(["--write", str(folder)]) == 0
    assert schemas.stale(folder) == []


def test_asyncapi_names_every_topic_and_every_reference_leads_somewhere() -> None:
    document = schemas.asyncapi()

    def check(node: Any) -> None:
        if isinstance(node, dict):
            if "$ref" in node:
                found: Any = document
                for part in node["$ref"].removeprefix("#/").split("/"):
                    found = found[part]
            for child in node.values():
                check(child)
        elif isinstance(node, list):
            for child in node:
                check(child)

    check(document)
    addresses = {channel["address"] for channel in document["channels"].values()}
    functions = {
        topics.command("{host}"),
        topics.host_status("{host}"),
        topics.container_status("{host}", "{container}"),
        topics.evacuation("{host}"),
        topics.events("{host}"),
        topics.migration_status("{migration}", "{host}"),
        topics.decision("{migration}", "{host}"),
        topics.replies("{client}"),
    }
    assert addresses == functions
    retained = {name for name, one in document["operations"].items() if one["bindings"]["mqtt"]["retain"]}
    assert retained == {
        "sendHostStatus",
        "sendContainerStatus",
        "sendEvacuation",
        "sendMigrationStatus",
        "sendDecision",
    }


def test_every_message_that_the_peer_link_speaks_of_has_a_schema() -> None:
    named = {word for word in re.findall(r"\b[A-Z][a-z]+\b", peer.__doc__ or "") if hasattr(peer, word)}
    assert named <= {model.__name__ for model in schemas.PEER}


# --- every model


@every_model
def test_there_is_an_example_that_both_model_and_schema_take(model: type[BaseModel]) -> None:
    example = EXAMPLES[model]
    one = model.model_validate_json(json.dumps(example), strict=True)
    jsonschema.validate(example, SCHEMAS[schemas.file_name(model)], cls=jsonschema.Draft202012Validator)
    jsonschema.validate(json.loads(one.model_dump_json()), SCHEMAS[schemas.file_name(model)])


@every_model
def test_round_trip_over_the_wire_changes_nothing(model: type[BaseModel]) -> None:
    one = model.model_validate_json(json.dumps(EXAMPLES[model]), strict=True)
    assert read(model, one.model_dump_json()) == one


@every_model
def test_unknown_field_is_rejected_by_model_and_schema(model: type[BaseModel]) -> None:
    with pytest.raises(Unreadable, match="colour is not a field of this message"):
        read(model, json.dumps({**EXAMPLES[model], "colour": "red"}))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**EXAMPLES[model], "colour": "red"}, SCHEMAS[schemas.file_name(model)])


@every_model
def test_message_is_immutable(model: type[BaseModel]) -> None:
    one = model.model_validate_json(json.dumps(EXAMPLES[model]), strict=True)
    with pytest.raises(ValidationError, match="frozen"):
        setattr(one, next(iter(model.model_fields)), None)


@pytest.mark.parametrize(
    "model", [model for model in MODELS if "version" in model.model_fields], ids=lambda model: model.__name__
)
@pytest.mark.parametrize("version", [2, 0, "1", None, True, 1.0])
def test_wrong_version_says_so(model: type[BaseModel], version: object) -> None:
    with pytest.raises(Unreadable, match="of the contract is not spoken here; version 1 is") as caught:
        read(model, json.dumps({**EXAMPLES[model], "version": version}))
    assert caught.value.info.code is ErrorCode.UNSUPPORTED_VERSION


def test_every_top_level_message_of_mqtt_has_a_version() -> None:
    assert [model.__name__ for model in (*schemas.COMMANDS, *schemas.SAID) if "version" not in model.model_fields] == []


# --- reading commands


def test_command_schema_asks_for_the_kind() -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"id": "c-1"}, SCHEMAS["command.schema.json"])
    jsonschema.validate({"id": "c-1", "kind": "ping"}, SCHEMAS["command.schema.json"])


def test_fault_inside_a_list_is_named_by_its_place() -> None:
    report = {"phases": [{"phase": "planned", "at_ms": 0}, {"phase": "asleep", "at_ms": 1}]}
    with pytest.raises(Unreadable, match=re.escape('report.phases[1].phase is "asleep": it must be planned, ')):
        read(Reply, json.dumps({**EXAMPLES[Reply], "report": report}))


def test_id_of_an_unreadable_command_is_kept_if_it_is_one() -> None:
    for raw, command in (({"id": "c-1"}, "c-1"), ({"id": 7}, None), ({"id": "c 1"}, None), ({}, None)):
        with pytest.raises(Unreadable) as caught:
            read_command(json.dumps(raw).encode())
        assert caught.value.command == command


@given(some.binary(max_size=200))
def test_no_bytes_whatever_raise_anything_else(data: bytes) -> None:
    with pytest.raises(Unreadable) as caught:
        read_command(data)
    assert caught.value.info.message


@given(
    some.recursive(
        some.none() | some.booleans() | some.integers() | some.floats(allow_nan=False) | some.text(max_size=8),
        lambda inner: (
            some.lists(inner, max_size=3)
            | some.dictionaries(some.sampled_from(["kind", "id", "version", "to", "container", "x"]), inner, max_size=4)
        ),
        max_leaves=8,
    )
)
def test_no_json_whatever_raises_anything_else(content: Any) -> None:
    data = json.dumps(content).encode()
    with contextlib.suppress(Unreadable):
        command = read_command(data)
        assert COMMAND.validate_json(command.model_dump_json()) == command


def test_large_command_is_refused_unread() -> None:
    read_command(b" " * (MAX_COMMAND_BYTES - 50) + b'{"kind": "ping", "id": "c-1"}')
    with pytest.raises(Unreadable, match="too large"):
        read_command(b" " * MAX_COMMAND_BYTES + b'{"kind": "ping", "id": "c-1"}')


def test_ids_that_we_make_are_ids() -> None:
    read_command(json.dumps({"kind": "cancel", "id": new_command_id(), "migration": new_migration_id()}).encode())


# --- the page


def test_every_json_example_of_the_page_is_marked() -> None:
    assert len(documented()) == PAGE.count("```json") > 8


@pytest.mark.parametrize(("name", "text"), documented(), ids=lambda value: value if "{" not in value else "")
def test_example_of_the_page_validates(name: str, text: str) -> None:
    content = json.loads(text)
    jsonschema.validate(content, SCHEMAS[f"{name}.schema.json"], cls=jsonschema.Draft202012Validator)
    if name == "command":
        read_command(text.encode())
    else:
        [model] = [model for model in MODELS if schemas.file_name(model) == f"{name}.schema.json"]
        read(model, text)


@pytest.mark.parametrize("code", ErrorCode)
def test_page_lists_every_error_code(code: ErrorCode) -> None:
    assert f"`{code}`" in PAGE


def test_page_lists_every_command_and_topic() -> None:
    for model in schemas.COMMANDS:
        assert f"| `{model.model_fields['kind'].default}` |" in PAGE
    for channel in schemas.CHANNELS:
        address = channel.address.removeprefix(f"{topics.ROOT}/")
        for parameter, shown in {"host": "HOST", "container": "ID", "migration": "ID", "client": "CLIENT"}.items():
            address = address.replace(f"{{{parameter}}}", shown)
        assert f"| `{address}` |" in PAGE


def example(name: str) -> str:
    found = re.search(rf"<!-- run: {name} -->\n```[a-z]+\n(.*?)```", PAGE, re.DOTALL)
    assert found is not None, name
    return found.group(1)


def typed(name: str, port: int) -> list[str]:
    words = shlex.split(example(name).replace("\\\n", " ").replace("1883", str(port)).replace("localhost", "127.0.0.1"))
    if not shutil.which(words[0]):
        pytest.skip(f"{words[0]} is not installed")
    return words


async def test_examples_with_mosquittos_tools_work(mosquitto: Mosquitto) -> None:
    async with StoryHost("node-a", mosquitto.settings, [container("node-a", "web")]).running():
        code, said = await output(*typed("ping", mosquitto.port))
        assert code == 0, said
        assert Reply.model_validate_json(said).agent_version == "0.1.0"
        watching = await asyncio.create_subprocess_exec(
            *typed("watch", mosquitto.port), stdout=subprocess.PIPE, env={**os.environ, "LC_ALL": "C"}
        )
        assert watching.stdout is not None
        try:
            seen = ""
            async with asyncio.timeout(PATIENCE):
                while "transship/v1/replies/me" not in seen:  # sent again until it listens
                    code, said = await output(*typed("migrate", mosquitto.port))
                    assert code == 0, said
                    seen = (await watching.stdout.readline()).decode()
                while '"finished"' not in seen:
                    seen = (await watching.stdout.readline()).decode()
        finally:
            watching.terminate()
            await watching.wait()


async def output(*argv: str) -> tuple[int | None, str]:
    process = await asyncio.create_subprocess_exec(*argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    async with asyncio.timeout(PATIENCE):
        said, _ = await process.communicate()
    return process.returncode, said.decode()


# --- what the command line says of it


def test_help_of_migrate_lists_the_policies_there_are() -> None:
    source = "".join((ROOT / "agent/cli" / name).read_text() for name in ("main.py", "running.py"))
    assert f'metavar="{"|".join(Strategy)}"' in source
    assert f'metavar="{"|".join(TcpPolicy)}"' in source


def test_time_without_offset_is_no_time() -> None:
    with pytest.raises(ValidationError):
        HostStatus(host="a", online=True, at=datetime(2025, 1, 1))
    HostStatus(host="a", online=True, at=datetime(2025, 1, 1, tzinfo=UTC))


def test_a_decision_is_understood_of_a_newer_agent_and_a_command_is_not() -> None:
    """Of a decision nothing may be missed; what a command wants beside what is known can't be left out."""
    notice = DecisionNotice(
        migration=new_migration_id(), source="a", target="b", decision="commit", at=datetime.now(UTC)
    )
    newer = notice.model_dump(mode="json") | {"of_a_newer_one": 1}
    assert read(DecisionNotice, json.dumps(newer), newer=True) == notice
    for wrong in ({"decision": "perhaps"}, {"version": 2}):
        with pytest.raises(Unreadable):
            read(DecisionNotice, json.dumps(newer | wrong), newer=True)
    with pytest.raises(Unreadable, match="of_a_newer_one"):
        read(DecisionNotice, json.dumps(newer))
