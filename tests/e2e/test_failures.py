"""Something fails in the middle: the container goes on at the source as if nothing had been, and nothing is left."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest

from lab.cluster import Cluster
from lab.host import Host
from lab.shell import PATIENCE
from lab.workloads import run_counter
from protocol.commands import ReplyKind
from protocol.errors import Consequence, ErrorCode
from protocol.status import Phase
from tests.e2e.support import clean, counts_on, until

A, B = "a26", "b28"


@contextmanager
def replaced(host: Host, program: str, script: str) -> Iterator[None]:
    """Put a script in a program's place; it finds the real one beside it as PROGRAM.real."""
    host.run(["mv", program, f"{program}.real"])
    host.node.write(program, f"#!/bin/sh\n{script}\n", 0o755)
    try:
        yield
    finally:
        host.run(["mv", f"{program}.real", program])


def runtime_fails(moves: Cluster) -> AbstractContextManager[None]:
    return replaced(moves[B], "/usr/local/bin/transship-runtime", "exit 1")


def dump_does_not_begin(moves: Cluster) -> AbstractContextManager[None]:
    return replaced(moves[A], "/usr/sbin/criu", 'case "$1" in swrk) exit 1;; esac; exec /usr/sbin/criu.real "$@"')


def dump_fails(moves: Cluster) -> AbstractContextManager[None]:
    """Where it takes the memory of the frozen tasks (criu/include/fault-injection.h: FI_DUMP_PAGES)."""
    return replaced(moves[A], "/usr/sbin/criu", 'CRIU_FAULT=3 exec /usr/sbin/criu.real "$@"')


def restore_fails(moves: Cluster) -> AbstractContextManager[None]:
    return replaced(moves[B], "/usr/sbin/criu", 'case "$1" in swrk) exit 1;; esac; exec /usr/sbin/criu.real "$@"')


def restore_is_killed(moves: Cluster) -> AbstractContextManager[None]:
    """CRIU, as soon as it has forked what it restores: that keeps runc waiting for it (agent/runtime/restore.py)."""
    forked = "[ $(wc -w </proc/$pid/task/$pid/children) -gt 1 ]"  # one is the loop itself
    dies = f"pid=$$; (until {forked}; do :; done; kill -9 $pid) &"
    # it is asked for its version first
    second = f"if [ -e /run/asked ]; then rm /run/asked; {dies} else : >/run/asked; fi"
    return replaced(moves[B], "/usr/sbin/criu", f'case "$1" in swrk) {second};; esac; exec /usr/sbin/criu.real "$@"')


def restart_agent(host: Host) -> None:
    host.stop_agent()
    host.start_agent()


@contextmanager
def lock_fails(moves: Cluster) -> Iterator[None]:
    """Without nftables' library, which CRIU needs too, the agent calls the command; that can be made to fail."""
    library, found = "/usr/lib/x86_64-linux-gnu/libnftables.so.1", "LD_LIBRARY_PATH=/opt/hidden"
    script = f'text=$(cat); case "$text" in *drop*) exit 1;; esac; echo "$text" | {found} /usr/sbin/nft.real "$@"'
    moves[A].run(["sh", "-c", f"mkdir -p /opt/hidden; cp {library} /opt/hidden/; mv {library} {library}.away"])
    try:
        with (
            replaced(moves[A], "/usr/sbin/nft", script),
            replaced(moves[A], "/usr/sbin/criu", f'{found} exec /usr/sbin/criu.real "$@"'),
        ):
            restart_agent(moves[A])
            yield
    finally:
        moves[A].run(["mv", f"{library}.away", library])
        restart_agent(moves[A])


def no_tmpfs(moves: Cluster) -> AbstractContextManager[None]:
    return replaced(
        moves[B], "/usr/bin/mount", 'case "$*" in *transship*) exit 32;; esac; exec /usr/bin/mount.real "$@"'
    )


@pytest.mark.parametrize(
    ("breaking", "code"),
    [
        (runtime_fails, ErrorCode.RESTORE_FAILED),
        (no_tmpfs, ErrorCode.COMMAND_FAILED),
        (lock_fails, ErrorCode.COMMAND_FAILED),
        (dump_does_not_begin, ErrorCode.DUMP_FAILED),
        (dump_fails, ErrorCode.DUMP_FAILED),
        (restore_fails, ErrorCode.RESTORE_FAILED),
        (restore_is_killed, ErrorCode.RESTORE_FAILED),
    ],
    ids=["stage", "tmpfs", "lock", "dump-start", "dump", "restore", "restore-killed"],
)
async def test_a_failing_step_is_taken_back(
    moves: Cluster, breaking: Callable[[Cluster], AbstractContextManager[None]], code: ErrorCode
) -> None:
    name = "unbroken"
    run_counter(moves[A], name, "--restart", "always")
    try:
        await counts_on(moves[A], name)
        before = moves[A].docker("inspect", "-f", "{{.State.Pid}}", name)
        with breaking(moves):
            await moves.until_ready()
            reply = await moves.migrate(name, A, B)
        await moves.until_ready()
        assert reply.kind is ReplyKind.FAILED
        assert reply.error is not None
        assert reply.error.code is code, reply.error
        assert reply.error.consequence is Consequence.TAKEN_BACK
        assert (
            moves[A].docker("inspect", "-f", "{{.State.Pid}} {{.HostConfig.RestartPolicy.Name}}", name)
            == f"{before} always"
        )
        await counts_on(moves[A], name, taken_back=1)
        assert name not in moves[B].docker("ps", "--all", "--format", "{{.Names}}").split()
        await clean(moves, A, B)
        again = await moves.migrate(name, A, B)
        assert again.kind is ReplyKind.FINISHED, "once mended, the same move works"
        await counts_on(moves[B], name, taken_back=1)
    finally:
        for host in (A, B):
            moves[host].docker("rm", "--force", name, check=False)


async def test_dockerd_can_not_have_what_is_restored(moves: Cluster) -> None:
    """Docker 28 publishes the port when the copy is restored and held; where it can't, it must let go of the copy."""
    name = "blocked"
    run_counter(moves[A], name, "--restart", "always", "--publish", "8080:8080")
    try:
        await counts_on(moves[A], name)
        with replaced(moves[B], "/usr/sbin/docker-proxy", "exit 1"):
            reply = await moves.migrate(name, A, B)
        assert reply.error is not None
        assert reply.error.consequence is Consequence.TAKEN_BACK
        assert "proxy" in reply.error.message
        await counts_on(moves[A], name, taken_back=1)
        await clean(moves, A, B)
        assert name not in moves[B].docker("ps", "--all", "--format", "{{.Names}}").split()
        await until(lambda: not shims(moves[B]), "containerd has forgotten it too")
    finally:
        for host in (A, B):
            moves[host].docker("rm", "--force", name, check=False)


@pytest.mark.parametrize("target", ["b26", B])
async def test_a_restore_that_fails_for_runc_when_it_is_decided_ends_nothing(moves: Cluster, target: str) -> None:
    """Where it can't write its last file, say: it would kill what it has restored, when no other copy is left."""
    name = "no-pid-file"
    other_file = 'for a; do shift; [ "$p" = --pid-file ] && a=/no/such/file; p=$a; set -- "$@" "$a"; done'
    script = f'case " $* " in *" restore "*) {other_file};; esac; exec /usr/sbin/runc.real "$@"'
    run_counter(moves[A], name)
    try:
        await counts_on(moves[A], name)
        with replaced(moves[target], "/usr/sbin/runc", script):
            reply = await moves.migrate(name, A, target)
            assert reply.kind is ReplyKind.FINISHED, reply.error
            await counts_on(moves[target], name)
            await clean(moves, A, target)
        moves[target].docker("pause", name)
        moves[target].docker("unpause", name)
        await counts_on(moves[target], name)
    finally:
        for host in (A, target):
            moves[host].docker("rm", "--force", name, check=False)


async def test_what_is_given_up_while_its_runc_begins_is_gone_at_once(moves: Cluster) -> None:
    """Who comes to wait for the images when nobody will bring them any more would do so for ten seconds."""
    name = "early"
    script = 'case " $* " in *" restore "*) sleep 1;; esac; exec /usr/sbin/runc.real "$@"'
    run_counter(moves[A], name)
    try:
        await counts_on(moves[A], name)
        with replaced(moves[B], "/usr/sbin/runc", script):
            async with moves.moving(name, A, B) as moving:
                await moving.until(Phase.COPYING)
                async with asyncio.timeout(6 * PATIENCE):
                    await moving.cancel()
                    assert (await moving.end()).kind is ReplyKind.FAILED
            assert name not in moves[B].docker("ps", "--all", "--format", "{{.Names}}").split()
        await counts_on(moves[A], name)
        await clean(moves, A, B)
    finally:
        moves[A].docker("rm", "--force", name, check=False)


async def test_what_dockerd_leaves_of_the_moved_container_goes_too(moves: Cluster) -> None:
    """dockerd removes a container also where runc was killed at that, and has forgotten its shim and its cgroups."""
    name = "forgotten"
    killed = "[ -e /run/killed ] || { : >/run/killed; kill -9 $$; }"
    run_counter(moves[A], name)
    try:
        await counts_on(moves[A], name)
        script = f'case " $* " in *" delete "*) {killed};; esac; exec /usr/sbin/runc.real "$@"'
        with replaced(moves[A], "/usr/sbin/runc", script):
            reply = await moves.migrate(name, A, B)
        assert reply.kind is ReplyKind.FINISHED, reply.error
        assert moves[A].run(["rm", "/run/killed"]).returncode == 0
        await counts_on(moves[B], name)
        await clean(moves, A, B)
        assert shims(moves[A]) == []
    finally:
        for host in (A, B):
            moves[host].docker("rm", "--force", name, check=False)


def shims(host: Host) -> list[str]:
    return host.run(["pgrep", "--full", "containerd-shim"], check=False).stdout.split()


@pytest.mark.parametrize("phase", [Phase.RESERVED, Phase.COPYING, Phase.FROZEN])
async def test_cancel_before_the_decision(moves: Cluster, phase: Phase) -> None:
    name = "cancelled"
    run_counter(moves[A], name, mib=256)
    try:
        await counts_on(moves[A], name)
        async with moves.moving(name, A, B) as move:
            await move.until(phase)
            cancelled = await move.cancel()
            end = await move.end()
        if cancelled.kind is ReplyKind.FINISHED:
            assert end.error is not None
            assert end.error.code is ErrorCode.CANCELLED
            await counts_on(moves[A], name, taken_back=1)
            assert name not in moves[B].docker("ps", "--all", "--format", "{{.Names}}").split()
        else:  # it was decided before the cancel came
            assert cancelled.error is not None
            assert cancelled.error.code in (ErrorCode.TOO_LATE, ErrorCode.NO_SUCH_MIGRATION)
            await counts_on(moves[B], name)
        await clean(moves, A, B)
    finally:
        for host in (A, B):
            moves[host].docker("rm", "--force", name, check=False)


@pytest.mark.parametrize("phase", [Phase.RESERVED, Phase.COPYING, Phase.FROZEN, Phase.PREPARED, Phase.COMMITTED])
@pytest.mark.parametrize("killed", [A, B])
async def test_an_agent_dies_at_any_phase(moves: Cluster, killed: str, phase: Phase) -> None:
    """After a restart there is one container, and it counts on; nobody has to do anything."""
    name = "survivor"
    run_counter(moves[A], name, "--restart", "always", mib=64)
    try:
        await counts_on(moves[A], name)
        async with moves.moving(name, A, B) as move:
            await move.until(phase, Phase.DONE)
            moves[killed].kill_agent()
            moves[killed].start_agent()
        await moves.until_ready()
        await until(lambda: bool(running_on(moves, name)), "it runs somewhere")
        await clean(moves, A, B)
        await until(lambda: len(running_on(moves, name)) == 1, "it runs once")
        (where,) = running_on(moves, name)
        await counts_on(moves[where], name, taken_back=1)
        policy = moves[where].docker("inspect", "-f", "{{.HostConfig.RestartPolicy.Name}}", name)
        assert policy == "always"
    finally:
        for host in (A, B):
            moves[host].docker("rm", "--force", name, check=False)


def running_on(moves: Cluster, name: str) -> list[str]:
    return [host for host in (A, B) if name in moves[host].docker("ps", "--format", "{{.Names}}").split()]


async def test_the_link_is_cut_while_the_container_is_frozen(moves: Cluster) -> None:
    """A slow link holds it in the dump; when it breaks the source thaws by itself, and the target finds out later."""
    name = "cutoff"
    run_counter(moves[A], name, mib=256)
    moves.lab.slow(B, "50mbit")
    try:
        await counts_on(moves[A], name)
        async with moves.moving(name, A, B) as move:
            await move.until(Phase.FROZEN)
            moves.lab.cut(B)
            end = await move.end()
        assert end.kind is ReplyKind.FAILED
        assert end.error is not None
        assert end.error.code is ErrorCode.TRANSFER_FAILED, end.error
        await counts_on(moves[A], name, taken_back=1)
        assert frozen(moves[A]) == []
        moves.lab.heal(B)
        await clean(moves, A, B, seconds=90)
        assert name not in moves[B].docker("ps", "--all", "--format", "{{.Names}}").split()
    finally:
        moves.lab.heal(B)
        for host in (A, B):
            moves[host].docker("rm", "--force", name, check=False)


def frozen(host: Host) -> list[str]:
    script = "find /sys/fs/cgroup -name freezer.state -exec grep -l FROZEN {} +"
    return host.run(["sh", "-c", script], check=False).stdout.splitlines()
