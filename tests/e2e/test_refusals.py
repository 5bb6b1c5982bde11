"""Bad input: each is answered with a code, a sentence and a hint before anything is touched; the container runs on."""

import json
from typing import Any

import pytest

from lab.cluster import Cluster, migration
from lab.workloads import run_counter
from protocol.commands import Reply, ReplyKind
from protocol.errors import Consequence, ErrorCode
from tests.e2e.support import clean, counts_on, until

A, B = "a26", "b28"
NAME = "refused"


@pytest.fixture
def counter(moves: Cluster) -> Any:
    run_counter(moves[A], NAME, "--restart", "unless-stopped")
    yield NAME
    moves[A].docker("rm", "--force", NAME)


def pid(moves: Cluster) -> str:
    return moves[A].docker("inspect", "-f", "{{.State.Pid}} {{.HostConfig.RestartPolicy.Name}}", NAME)


async def check_refused(moves: Cluster, reply: Reply, code: ErrorCode, before: str) -> None:
    assert reply.kind is ReplyKind.FAILED
    assert reply.error is not None
    assert reply.error.code is code, reply.error
    assert reply.error.message
    assert reply.error.consequence is Consequence.UNTOUCHED
    assert pid(moves) == before, "the same process, with the same restart policy"
    await counts_on(moves[A], NAME, 5)
    await clean(moves, A, B)


async def test_unknown_container(moves: Cluster, counter: str) -> None:
    before = pid(moves)
    reply = await moves.migrate("nobody", A, B)
    await check_refused(moves, reply, ErrorCode.NO_SUCH_CONTAINER, before)


async def test_unknown_target(moves: Cluster, counter: str) -> None:
    before = pid(moves)
    reply = await moves.migrate(counter, A, "elsewhere")
    await check_refused(moves, reply, ErrorCode.PEER_NOT_ALLOWED, before)


async def test_target_equals_source(moves: Cluster, counter: str) -> None:
    before = pid(moves)
    reply = await moves.migrate(counter, A, A)
    await check_refused(moves, reply, ErrorCode.SAME_HOST, before)


async def test_offline_target(moves: Cluster, counter: str) -> None:
    before = pid(moves)
    moves["b26"].stop_agent()
    try:
        reply = await moves.migrate(counter, A, "b26")
    finally:
        moves["b26"].start_agent()
        await moves.until_ready()
    await check_refused(moves, reply, ErrorCode.HOST_OFFLINE, before)


async def test_a_security_profile_that_is_not_there(moves: Cluster) -> None:
    """dockerd would leave it out without a word where there is no AppArmor."""
    run_counter(moves[A], NAME, "--security-opt", "apparmor=shop")
    try:
        before = pid(moves)
        reply = await moves.migrate(NAME, A, B)
        await check_refused(moves, reply, ErrorCode.INCOMPATIBLE, before)
        assert reply.error is not None
        assert "AppArmor" in reply.error.message
    finally:
        moves[A].docker("rm", "--force", NAME)


async def test_name_taken_on_the_target(moves: Cluster, counter: str) -> None:
    before = pid(moves)
    moves[B].ensure_image("busybox")
    moves[B].docker("create", "--name", NAME, "busybox", "true")
    reply = await moves.migrate(counter, A, B)
    moves[B].docker("rm", NAME)
    await check_refused(moves, reply, ErrorCode.NAME_TAKEN, before)


@pytest.mark.parametrize(
    ("options", "command", "code"),
    [
        (["--tty"], "sleep 1000", ErrorCode.NOT_MIGRATABLE),
        (["--pid", "host"], "sleep 1000", ErrorCode.NOT_MIGRATABLE),
        (["--privileged"], "sleep 1000", ErrorCode.NOT_MIGRATABLE),
        ([], "true", ErrorCode.NOT_RUNNING),
    ],
    ids=["tty", "pid-host", "privileged", "exited"],
)
async def test_a_container_that_cannot_move(moves: Cluster, options: list[str], command: str, code: ErrorCode) -> None:
    host = moves[A]
    host.ensure_image("busybox")
    host.docker("run", "-d", "--name", "stay", *options, "busybox", *command.split())
    try:
        if code is ErrorCode.NOT_RUNNING:
            host.docker("wait", "stay")
        before = host.docker("inspect", "-f", "{{.State.Pid}}", "stay")
        reply = await moves.migrate("stay", A, B)
        assert reply.error is not None
        assert reply.error.code is code, reply.error
        assert reply.error.hint or reply.error.reasons, reply.error
        assert host.docker("inspect", "-f", "{{.State.Pid}}", "stay") == before
    finally:
        host.docker("rm", "--force", "stay")
    await clean(moves, A, B)


async def test_no_room_on_the_target(moves: Cluster, counter: str) -> None:
    before = pid(moves)
    moves[B].stop_agent()
    moves[B].start_agent(config={"limits": {"memory_reserve_bytes": 1 << 50, "disk_reserve_bytes": 1 << 60}})
    await moves.until_ready()
    try:
        reply = await moves.migrate(counter, A, B)
    finally:
        moves[B].stop_agent()
        moves[B].start_agent()
        await moves.until_ready()
    assert reply.error is not None
    assert {reason.code for reason in reply.error.reasons} == {ErrorCode.NO_MEMORY, ErrorCode.NO_SPACE}
    await check_refused(moves, reply, ErrorCode.NO_MEMORY, before)


async def test_target_without_criu(moves: Cluster, counter: str) -> None:
    before = pid(moves)
    moves[B].run(["mv", "/usr/sbin/criu", "/usr/sbin/criu.away"])
    try:
        reply = await moves.migrate(counter, A, B)
    finally:
        moves[B].run(["mv", "/usr/sbin/criu.away", "/usr/sbin/criu"])
    await check_refused(moves, reply, ErrorCode.CRIU_UNUSABLE, before)


async def test_target_whose_dockerd_is_away(moves: Cluster, counter: str) -> None:
    before = pid(moves)
    moves["b26"].kill_dockerd()
    try:
        reply = await moves.migrate(counter, A, "b26")
    finally:
        moves["b26"].start_dockerd()
        await moves.until_ready()
    await check_refused(moves, reply, ErrorCode.DOCKER_UNAVAILABLE, before)


async def test_wrong_certificate(moves: Cluster, counter: str) -> None:
    """A host with a certificate of another CA gets nothing, and is given nothing."""
    before = pid(moves)
    script = (
        "cd /etc/transship/pki && mkdir -p keep && cp ca.crt host.crt host.key keep/ && "
        "/opt/transship/bin/transship pki init --out /tmp/other && "
        "/opt/transship/bin/transship pki host b26 --ca-dir /tmp/other --out /tmp/other/b26 && "
        "cp /tmp/other/b26/host.crt /tmp/other/b26/host.key ."
    )
    moves["b26"].run(["sh", "-c", script])
    moves["b26"].stop_agent()
    moves["b26"].start_agent()
    await moves.until_ready()
    try:
        reply = await moves.migrate(counter, A, "b26")
    finally:
        moves["b26"].run(["sh", "-c", "cd /etc/transship/pki && cp keep/* . && rm -r keep /tmp/other"])
        moves["b26"].stop_agent()
        moves["b26"].start_agent()
        await moves.until_ready()
    await check_refused(moves, reply, ErrorCode.PEER_NOT_ALLOWED, before)


@pytest.mark.parametrize(
    ("payload", "code", "word"),
    [
        (b"{", ErrorCode.BAD_COMMAND, "JSON"),
        (
            json.dumps({"kind": "migrate", "id": "x", "container": "c", "to": "b", "colour": 1}).encode(),
            ErrorCode.BAD_COMMAND,
            "colour",
        ),
        (
            json.dumps({"kind": "migrate", "id": "x", "container": "c", "to": "b", "version": 7}).encode(),
            ErrorCode.UNSUPPORTED_VERSION,
            "7",
        ),
        (json.dumps({"kind": "teleport", "id": "x"}).encode(), ErrorCode.BAD_COMMAND, "teleport"),
    ],
    ids=["garbage", "unknown-field", "wrong-version", "unknown-kind"],
)
async def test_malformed_command(moves: Cluster, payload: bytes, code: ErrorCode, word: str) -> None:
    reply = await moves.send_raw(A, payload)
    assert reply.kind is ReplyKind.FAILED
    assert reply.error is not None
    assert reply.error.code is code
    assert word.lower() in reply.error.message.lower(), reply.error.message


async def test_the_same_command_twice_is_done_once(moves: Cluster, counter: str) -> None:
    command = migration(counter, B)
    first = await moves.ask(A, command)
    again = await moves.ask(A, command)
    assert first.kind is ReplyKind.FINISHED, first.error
    assert again == first
    assert (await moves.migrate(counter, B, A)).kind is ReplyKind.FINISHED
    await counts_on(moves[A], counter)
    await clean(moves, A, B)


async def test_broker_and_dockerd_may_restart_at_any_time(moves: Cluster, counter: str) -> None:
    moves.lab.broker.restart()
    await moves.until_ready()
    moves["b26"].restart_dockerd()
    await moves.until_ready()
    assert (await moves.migrate(counter, A, "b26")).kind is ReplyKind.FINISHED
    await until(lambda: NAME in moves["b26"].docker("ps", "--format", "{{.Names}}"), "it is there")
    assert (await moves.migrate(counter, "b26", A)).kind is ReplyKind.FINISHED
    await counts_on(moves[A], counter)
