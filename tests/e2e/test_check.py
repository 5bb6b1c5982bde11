"""`check` on real hosts: every reason that a container or its target can have is said, all at once, and nothing else.

The containers are made and asked about, not moved; what stands in the way is true of them for as long as they run.
"""

import asyncio
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from lab.cluster import TRANSSHIP, Cluster
from lab.host import Host
from lab.shell import PATIENCE
from protocol.check import ContainerCheck, Outlook, Verdict
from protocol.commands import Check, Cordon
from protocol.errors import Why
from protocol.status import ContainerStatus
from tests.e2e.archives import controller
from tests.e2e.reason_cases import CASES, NOBODY, PROGRAM, Case
from tests.e2e.support import WAIT_SECONDS, done, leftovers, until

A, B, REMAPPED = "a26", "b28", "u26"
AT_ONCE = 4
MORE = {Why.PRIVILEGED, Why.HOST_NAMESPACE, Why.SHARED_NAMESPACE}
"""More may be against these: they see what is the host's, or another's."""
SUBNETS = "docker network create --subnet {}.0/24 {} >/dev/null; "


def run(host: Host, name: str, case: Case) -> None:
    mount = ("--volume", "/root/reason.py:/program.py:ro") if case.program else ()
    command = ("py", "python3", "/program.py", name) if case.program else ("busybox", "sh", "-c", case.shell)
    if not case.program and not case.shell:
        command = ("busybox", "sleep", "1000")
    host.docker("run", "--detach", "--name", name, "--label", "reason=yes", *mount, *case.options, *command)


def ground(here: Host, there: Host) -> None:
    """What the containers need, and what is in their way."""
    for host in (here, there):
        for image in ("busybox", "py"):
            host.ensure_image(image)
    for host in (here, there):  # a bind mount has to be there
        host.node.write("/root/reason.py", PROGRAM, 0o644)
    devices = "for d in dri/card9 vfio/9 {}; do mkdir -p /dev/$(dirname $d); mknod /dev/$d c 1 3; done; "
    networks = SUBNETS.format("10.98.0", "reason-same")
    ours = SUBNETS.format("10.97.0", "reason-moved") + SUBNETS.format("10.96.0", "reason-overlaps")
    theirs = SUBNETS.format("10.95.0", "reason-moved") + SUBNETS.format("10.96.0", "reason-rival")
    volumes = "docker volume create --opt type=none --opt o=bind --opt device=/srv reason-of-host >/dev/null; "
    other = "docker run -d --name reason-other --label reason=yes -v reason-shared:/d busybox sleep 1000 >/dev/null"
    here.run(["sh", "-ec", f"mkdir -p /srv; {devices.format('reason9')}{networks}{ours}{volumes}{other}"])
    taken = (
        "docker create --name name-taken busybox true; docker volume create reason-both; "
        "docker run -d --name reason-taken --network reason-same --ip 10.98.0.9 -p 8097:80 busybox sleep 1000"
    )
    there.run(["sh", "-ec", f"{devices.format('')}{networks}{theirs}{taken}"])


def clear(host: Host) -> None:
    script = (
        "docker unpause paused; docker rm -f $(docker ps -aq --filter label=reason=yes) name-taken reason-taken; "
        "docker network rm reason-same reason-moved reason-overlaps reason-rival; "
        "docker volume rm reason-shared reason-of-host reason-both; "
        "rm -rf /dev/dri/card9 /dev/vfio/9 /dev/reason9 /root/reason.py; true"
    )
    host.run(["sh", "-c", script], check=False)


@pytest.fixture(scope="module")
def reasons(pair: Cluster) -> Iterator[Cluster]:
    try:
        ground(pair[A], pair[B])
        cases = {str(why): case for why, case in CASES.items()} | {NOBODY: Case()}
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(lambda one: run(pair[A], *one), cases.items()))
        for case in CASES.values():
            if case.then:
                pair[A].docker(*case.then)
        yield pair
    finally:
        clear(pair[A])
        clear(pair[B])


@pytest.fixture(scope="module")
def asked(reasons: Cluster) -> dict[str, ContainerCheck]:
    """By name, what is said of each container, all asked about in one command."""
    return asyncio.run(ask(reasons))


async def ask(reasons: Cluster) -> dict[str, ContainerCheck]:

    def ready() -> bool:
        programs = [why for why, case in CASES.items() if case.program]
        return all("ready" in reasons[A].docker("logs", why) for why in programs)

    await until(ready, "each program has done what is asked about")
    before = reasons[A].docker("ps", "--no-trunc", "--format", "{{.ID}} {{.State}}")
    reply = await done(reasons, A, Check, to=B)
    assert reply.checks is not None
    assert reasons[A].docker("ps", "--no-trunc", "--format", "{{.ID}} {{.State}}") == before, "nothing was touched"
    assert not leftovers(reasons[B])
    return {one.container: one for one in reply.checks}


def codes(one: ContainerCheck) -> set[str]:
    return {reason.name for reason in (*one.reasons, *one.peers[0].reasons)}


@pytest.mark.parametrize("why", CASES)
async def test_a_reason_is_said_of_the_container_that_has_it(asked: dict[str, ContainerCheck], why: Why) -> None:
    one = asked[why]
    assert why in codes(one), one
    assert one.peers[0].verdict is Verdict.NO
    said = [reason for reason in (*one.reasons, *one.peers[0].reasons) if reason.why is why]
    assert all(reason.message for reason in said)


async def test_nothing_is_said_of_one_that_nothing_is_against(asked: dict[str, ContainerCheck]) -> None:
    one = asked[NOBODY]
    assert codes(one) == set()
    assert one.peers[0].verdict is Verdict.YES
    assert set(one.peers[0].blackout_ms) >= {"cold", "postcopy"}
    assert 0 < one.peers[0].blackout_ms["cold"] < 5000
    others = {name: codes(found) - {name} for name, found in asked.items() if name in CASES}
    assert {name for name, more in others.items() if more} <= MORE, others


async def test_what_lies_in_the_host_that_is_asked(reasons: Cluster) -> None:
    """Another kind of host; one that is to be empty; one that is offline."""
    await done(reasons, B, Cordon)
    try:
        reply = await done(reasons, A, Check, container=NOBODY)
    finally:
        await done(reasons, B, Cordon, cordoned=False)
    [one] = reply.checks or ()
    said = {peer.host: {reason.name for reason in peer.reasons} for peer in one.peers}
    assert said[B] == {Why.CORDONED}
    assert Why.USERNS_REMAP in said[REMAPPED]


async def test_the_command_line_says_all_of_it_and_exits_by_it(reasons: Cluster) -> None:
    def typed(*words: str) -> tuple[int, str]:
        ran = reasons[A].run([TRANSSHIP, "check", *words], env=controller(reasons), check=False, timeout=60)
        return ran.returncode, ran.stdout

    code, text = typed(NOBODY, "--to", B, "--json")
    assert (code, json.loads(text)["peers"][0]["verdict"]) == (0, "yes")
    code, text = typed("terminal", "--to", B)
    assert code == 2
    assert "terminal: it has a terminal" in text
    assert "run it without --tty" in text


async def test_the_outlook_is_retained_and_follows_what_happens(reasons: Cluster) -> None:
    """Nobody asks: it is known some moments after a container's start, and anew when it or a peer has changed."""
    async with reasons.controller() as watching:
        stream = watching.watch()

        async def seen(name: str, verdict: Verdict, code: str = "") -> Outlook:
            async with asyncio.timeout(WAIT_SECONDS * PATIENCE):
                async for _, said in stream:
                    found = said.outlook if isinstance(said, ContainerStatus) and said.name == name else None
                    there = found.peers.get(B) if found is not None else None
                    if found is None or there is None or there.verdict is not verdict:
                        continue
                    if not code or code in (*there.reasons, *found.reasons):
                        return found
            raise AssertionError("the stream has ended")

        first = await seen(NOBODY, Verdict.YES)
        assert first.peers[B].blackout_ms["cold"] > 0
        assert Why.USERNS_REMAP in first.peers[REMAPPED].reasons
        await done(reasons, B, Cordon)
        try:
            await seen(NOBODY, Verdict.NO, Why.CORDONED)
        finally:
            await done(reasons, B, Cordon, cordoned=False)
        await seen(NOBODY, Verdict.YES)
        reasons[A].docker("exec", "--detach", NOBODY, "sleep", "1000")
        reasons[A].docker("rename", NOBODY, "renamed")  # a change, by which it is looked at
        found = await seen("renamed", Verdict.NO, Why.EXEC_SESSION)
        assert found.reasons == (Why.EXEC_SESSION,)
