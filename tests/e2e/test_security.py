"""On real hosts: no secret where none may be, no memory left anywhere, certificates changed under way, replays."""

import asyncio
import json
import re
import secrets
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from agent.base import pki
from lab.broker import PKI
from lab.cluster import Cluster, migration
from lab.host import Host
from lab.service import CONFIGURATION, PROGRAM, to_toml
from lab.shell import PATIENCE, end
from lab.workloads import run_counter
from protocol.commands import ReplyKind, SourcePolicy
from protocol.status import Event, HostStatus, Phase
from tests.e2e.archives import said
from tests.e2e.support import clean, counts_on, until
from tests.e2e.test_failures import replaced, restart_agent
from tests.vm.confined import CAP_SYS_BOOT, UNIT, directives

A, B = "a26", "b28"
PLACES_OF_TEXT = "$(find /run/transship /var/lib/transship /var/log -type f -size -2048k)"
OURS = "/run/transship /var/lib/transship /etc/transship /var/log/transship-agent.log"
# Everything that may have been written by an agent or for it; not the container's own disk, of which memory is no part.
PLACES = "/run/transship /var/lib/transship /var/log /tmp /var/tmp /root /dev/shm /var/lib/docker/tmp"
HOLDER = """
import secrets, time
word = "w" + secrets.token_hex(12)
kept = [(word + str(number)).encode() for number in range(2000)]
print(word[::-1], flush=True)
while True:
    time.sleep(0.05)
"""


# --- secrets


class Watcher:
    """Looks at command lines and environments of every process on a host, all the time, for what must not be there."""

    SCRIPT = r"""
while sleep 0.02; do
    for p in /proc/[0-9]*; do
        line=$(tr '\0' ' ' <$p/cmdline)
        echo "$line" >>/tmp/seen-cmdline
        # the agent's own is where the password may come from, and a test's command line has another one
        case $line in
        */opt/transship/bin/transship*) ;;
        *) tr '\0' '\n' <$p/environ >>/tmp/seen-environ ;;
        esac
    done
done 2>/dev/null
"""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._process = host.popen(["sh", "-c", self.SCRIPT])

    def end(self) -> tuple[str, str]:
        end(self._process)  # with the shell in the host, which nsenter alone would leave behind
        found = tuple(
            self._host.run(["cat", f"/tmp/seen-{what}"], check=False).stdout for what in ("cmdline", "environ")
        )
        self._host.run(["rm", "-f", "/tmp/seen-cmdline", "/tmp/seen-environ"])
        return found[0], found[1]


def confined() -> list[str]:
    """What gives a command the capabilities that it would have as the unit that is shipped."""
    [line] = [line for line in directives(UNIT.read_text()) if line.startswith("CapabilityBoundingSet=~")]
    without = [word.removeprefix("CAP_").lower() for word in line.partition("~")[2].split()]
    assert "sys_boot" in without
    return ["setpriv", f"--bounding-set=-{',-'.join(without)}", "--"]


@pytest.fixture
def talkative(moves: Cluster) -> Iterator[Cluster]:
    """Agents that say all they can, confined as by their unit; the password of one is in its environment."""
    try:
        for name in (A, B):
            host = moves[name]
            host.stop_agent()
            written = host.agent.configuration()
            password = written["broker"].pop("password")
            if name == B:
                host.node.write("/etc/transship/broker.password", password + "\n", 0o600)
                written["broker"]["password_file"] = "/etc/transship/broker.password"
            written["checkpoints"] = {"key_file": "/etc/transship/seal.key"}
            host.node.write("/etc/transship/seal.key", secrets.token_hex(32), 0o600)
            host.node.write(CONFIGURATION, to_toml(written), 0o600)
            env = {"TRANSSHIP_BROKER__PASSWORD": password} if name == A else {}
            host.node.spawn("transship-agent", [*confined(), PROGRAM, "agent", "-vv"], env=env)
        asyncio.run(moves.until_ready())
        yield moves
    finally:
        for name in (A, B):
            restart_agent(moves[name])
        asyncio.run(moves.until_ready())


def secrets_of(host: Host) -> dict[str, str]:
    """What is secret on a host, by what it is; of keys a line in their middle."""
    return {
        "broker password": host.agent.configuration()["broker"]["password"],
        "host key": host.node.read(f"{PKI}/host.key").splitlines()[1],
        "seal key": host.node.read("/etc/transship/seal.key").strip(),
    }


async def test_no_secret_is_said_shown_or_readable(talkative: Cluster) -> None:
    """A move each way and a sealed checkpoint, with all that -vv says."""
    moves, name = talkative, "discreet"
    watchers = {host: Watcher(moves[host]) for host in (A, B)}
    run_counter(moves[A], name)
    try:
        await counts_on(moves[A], name)
        for source, target, fields in ((A, B, {"strategy": "postcopy", "allow_postcopy": True}), (B, A, {})):
            reply = await moves.migrate(name, source, target, **fields)
            assert reply.kind is ReplyKind.FINISHED, reply.error
        assert said(moves, A, f"transship checkpoint {name} --leave-running")["encrypted"]
    finally:
        seen = {host: watcher.end() for host, watcher in watchers.items()}
        moves[A].docker("rm", "--force", name, check=False)
    for host in (A, B):
        status = moves[host].run(["sh", "-c", "grep -h CapBnd $(grep -l transship /proc/*/comm | sed s/comm/status/)"])
        assert all(not int(line.split()[1], 16) & (1 << CAP_SYS_BOOT) for line in status.stdout.splitlines()), (
            "confined"
        )
    everywhere = {what: word for host in (A, B) for what, word in secrets_of(moves[host]).items()}
    for host in (A, B):
        commands, environments = seen[host]
        assert "criu" in commands, "it was looked at while something ran"
        assert "PATH=" in environments
        log = moves[host].agent_log()
        assert re.search(r"\+ (env PATH=\S+ )?runc |\+ nft ", log), "-vv says the commands"
        script = f"cat {PLACES_OF_TEXT} 2>/dev/null | tr -d '\\0'"
        kept = moves[host].run(["sh", "-c", script], check=False).stdout
        for what, word in everywhere.items():
            for place, text in (("cmdline", commands), ("environ", environments), ("log", log), ("files", kept)):
                assert word not in text, f"the {what} is in the {place} of {host}"
        assert readable(moves[host]) == []


def readable(host: Host) -> list[str]:
    """Files of ours that somebody else than root may read or write: none but certificates.

    A container that was started with --init runs a program from /run/transship/init: everybody's, as its original is.
    """
    argv = ["sh", "-c", f"find {OURS} -type f -perm /0077 -o -type d -perm /0022 -o -type p -perm /0077"]
    public = ("/run/transship/init/", f"{PKI}/ca.crt", f"{PKI}/host.crt", "/var/log/transship-agent.log")
    found = host.run(argv, check=False).stdout.splitlines()
    return [path for path in found if not path.startswith(public)]


# --- memory


async def hold(host: Host, name: str) -> str:
    """A container with a word in its memory that is nowhere else; it has told us backwards."""
    host.ensure_image("py")
    host.docker("run", "--detach", "--name", name, "py", "python3", "-c", HOLDER)
    await until(lambda: bool(host.docker("logs", name).strip()), "it has its word")
    return host.docker("logs", name).strip()[::-1]


def left(host: Host, word: str) -> list[str]:
    """Files in which the word stands, and mounts in which it could."""
    found = host.run(["sh", "-c", f"grep -rlaF {word} {PLACES} 2>/dev/null"], check=False).stdout.splitlines()
    mounts = host.node.read("/proc/mounts").splitlines()
    return [*found, *(line for line in mounts if line.startswith("transship "))]


async def no_memory_left(moves: Cluster, word: str) -> None:
    for name in (A, B):
        found: list[str] = []

        def looked(host: Host = moves[name], found: list[str] = found) -> bool:
            found[:] = left(host, word)
            return not found

        try:
            await until(looked, f"nothing of its memory is left on {name}", 40)
        except AssertionError as error:
            raise AssertionError(f"{error}: {found}") from None


class Images:
    """What CRIU's images are like while they are there: their modes, and on which kind of file system they lie."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._go_on = threading.Event()
        self.seen: set[tuple[str, str]] = set()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()

    def _look(self) -> None:
        # Of each file its own file system: find knows only those that were mounted when it began.
        each = 'for one; do echo "$(stat -c %a "$one") $(stat -f -c %T "$one")"; done'
        script = f"find /run/transship -name '*.img' -exec sh -c '{each}' sh {{}} + 2>/dev/null"
        while not self._go_on.is_set():
            for line in self._host.run(["sh", "-c", script], check=False).stdout.splitlines():
                mode, _, system = line.partition(" ")
                if mode and system:  # else it went in between
                    self.seen.add((mode, system))

    def end(self) -> set[tuple[str, str]]:
        self._go_on.set()
        self._thread.join()
        return self.seen


async def test_memory_is_wiped_on_every_end(moves: Cluster) -> None:
    name = "mind"
    word = await hold(moves[A], name)
    images = [Images(moves[host]) for host in (A, B)]
    try:
        # failure
        with replaced(moves[B], "/usr/sbin/criu", 'case "$1" in swrk) exit 1;; esac; exec /usr/sbin/criu.real "$@"'):
            reply = await moves.migrate(name, A, B)
            assert reply.kind is ReplyKind.FAILED
        await no_memory_left(moves, word)
        # cancel, while it is frozen or a little later: whichever comes first, it is one of the two ends
        async with moves.moving(name, A, B) as moving:
            await moving.until(Phase.FROZEN, Phase.DONE)
            await moving.cancel()
            ended = (await moving.end()).kind
        await no_memory_left(moves, word)
        source, target = (B, A) if ended is ReplyKind.FINISHED else (A, B)
        # a crash of both agents in the middle, and their recovery
        async with moves.moving(name, source, target) as moving:
            await moving.until(Phase.FROZEN, Phase.DONE)
            for host in (A, B):
                moves[host].kill_agent()
        for host in (A, B):
            moves[host].start_agent()
        await moves.until_ready()
        await clean(moves, A, B, seconds=40)
        await no_memory_left(moves, word)
        # success
        there = A if name in moves[A].docker("ps", "--format", "{{.Names}}").split() else B
        reply = await moves.migrate(name, there, B if there == A else A)
        assert reply.kind is ReplyKind.FINISHED, reply.error
        await no_memory_left(moves, word)
    finally:
        seen = {one for looking in images for one in looking.end()}
        for host in (A, B):
            moves[host].docker("rm", "--force", name, check=False)
    assert seen, "some of the images were seen while they were there"
    assert {mode for mode, _ in seen} <= {"600"}, seen
    assert {system for _, system in seen} == {"tmpfs"}, seen


# --- certificates


def renewed(moves: Cluster, name: str, days: int) -> tuple[str, str]:
    authority = moves.lab.broker.authority
    address = moves[name].node.address
    certificate, key = pki.issue(
        authority.ca_file.read_bytes(),
        (authority.folder / "ca.key").read_bytes(),
        name,
        [name, "localhost"],
        [address.v4, address.v6],
        days,
    )
    return certificate.decode(), key.decode()


async def status_of(moves: Cluster, name: str) -> HostStatus:
    async with asyncio.timeout(30 * PATIENCE), moves.controller() as controller:
        return next(host for host in await controller.hosts() if host.host == name)


async def test_certificates_change_under_a_running_move(moves: Cluster) -> None:
    """New ones on both hosts, for two days: taken up at once, said, and the move that runs meanwhile goes on."""
    name = "traveller"
    agents = {host: moves[host].node.daemon("transship-agent") for host in (A, B)}
    before = {host: (await status_of(moves, host)).certificates_until for host in (A, B)}
    events: list[Event] = []
    run_counter(moves[A], name, mib=200)
    try:
        await counts_on(moves[A], name)
        async with moves.controller() as listener:

            async def listen() -> None:
                async for event in listener.events():
                    events.append(event)

            listening = asyncio.create_task(listen())
            async with moves.moving(name, A, B, bandwidth=4_000_000) as moving:
                await moving.until(Phase.COPYING, Phase.FROZEN)
                for host in (A, B):
                    certificate, key = renewed(moves, host, 2)
                    moves[host].node.write(f"{PKI}/host.crt", certificate)
                    moves[host].node.write(f"{PKI}/host.key", key, 0o600)
                    agent = agents[host]
                    assert agent is not None
                    agent.signal(signal.SIGHUP)
                reply = await moving.end()
            assert reply.kind is ReplyKind.FINISHED, reply.error
            end = time.monotonic() + 30 * PATIENCE
            for host in (A, B):
                while not (found := await status_of(moves, host)).certificates_warning:
                    assert time.monotonic() < end, f"{host} does not warn"
                    await asyncio.sleep(0.2)
                assert found.certificates_until is not None
                assert before[host] is None or found.certificates_until < before[host]
                assert "ends in 1 days" in found.certificates_warning
            while {event.host for event in events if event.kind == "certificates-warning"} != {A, B}:
                assert time.monotonic() < end, events
                await asyncio.sleep(0.2)
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)
        await counts_on(moves[B], name)
        back = await moves.migrate(name, B, A)
        assert back.kind is ReplyKind.FINISHED, back.error
        for host in (A, B):
            assert moves[host].node.daemon("transship-agent") == agents[host], "nobody was restarted"
            shown = f"openssl s_client -connect {moves[host].node.address.v4}:7443 -tls1_3 </dev/null 2>/dev/null"
            enddate = moves[A].run(["sh", "-c", f"{shown} | openssl x509 -noout -checkend {3 * 86400}"], check=False)
            assert enddate.returncode == 1, f"what {host} shows ends within three days: {enddate.stdout}"
            old = moves[A].run(["sh", "-c", shown.replace("tls1_3", "tls1_2") + " | grep -c BEGIN"], check=False)
            assert old.stdout.strip() == "0", "nothing older than TLS 1.3"
    finally:
        for host in (A, B):
            moves[host].docker("rm", "--force", name, check=False)
            certificate, key = renewed(moves, host, 365)
            moves[host].node.write(f"{PKI}/host.crt", certificate)
            moves[host].node.write(f"{PKI}/host.key", key, 0o600)


# --- replays


async def test_a_replay_after_a_restart_is_answered_and_moves_nothing(moves: Cluster) -> None:
    name = "once"
    run_counter(moves[A], name)
    try:
        await counts_on(moves[A], name)
        command = migration(name, B)
        first = await moves.ask(A, command)
        assert first.kind is ReplyKind.FINISHED, first.error
        # one of the same name is there again: a replay would find something to move
        run_counter(moves[A], name)
        moves[A].kill_agent()
        moves[A].start_agent()
        await moves.until_ready()
        again = await moves.ask(A, command)
        assert (again.kind, again.migration) == (first.kind, first.migration)
        changed = command.model_copy(update={"source": SourcePolicy.KEEP})
        other = await moves.send_raw(A, changed.model_dump_json().encode())
        assert other.error is not None
        assert "another command" in other.error.message
        expired = json.loads(migration(name, B).model_dump_json()) | {"expires_at": "2025-01-01T00:00:00Z"}
        refused = await moves.send_raw(A, json.dumps(expired).encode())
        assert refused.error is not None
        assert refused.error.code == "expired"
        assert name in moves[A].docker("ps", "--format", "{{.Names}}").split()
    finally:
        for host in (A, B):
            moves[host].docker("rm", "--force", name, check=False)
