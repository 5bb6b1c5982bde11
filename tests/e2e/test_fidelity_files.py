"""Writable layer, volumes, bind mounts and file systems in memory are on the target what they were on the source."""

import json
from pathlib import Path
from typing import Any

import pytest

from lab.cluster import Cluster
from lab.host import Host
from protocol.commands import ReplyKind
from protocol.errors import Consequence, ErrorCode
from protocol.status import Phase
from tests.e2e.fidelity import idle, inspect, move, notes, remove, sent, stays
from tests.e2e.support import clean, until

TREES = Path(__file__).with_name("trees.py").read_text()
WAIT_FOR_EVER = "import signal, time\nwhile True: time.sleep(3600)"
ALL = ("/a-layer", "/z-layer", "/named", "/anonymous", "/bound")
BALLAST = 1 << 20
SLOW = "80mbit"
NAME = "trees"


def trees(host: Host, verb: str, *places: str) -> str:
    """Run trees.py in the container, which has no file of it."""
    command = ["docker", "exec", "--interactive", NAME, "python3", "-B", "-", verb, *places]
    return host.run(command, input=TREES, timeout=60).stdout


def looks(host: Host, *places: str) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = json.loads(trees(host, "tree", *places))
    return found


def unlike(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    return {path: (before.get(path), after.get(path)) for path in before | after if before.get(path) != after.get(path)}


def in_layer(host: Host) -> set[str]:
    """Paths in the writable layer. The times of what the engine lays below it are its own on each host."""
    return {line[2:].lstrip("/") or "." for line in host.docker("diff", NAME).splitlines()}


def timeless(found: dict[str, Any], keep: set[str]) -> dict[str, Any]:
    return {path: said if path in keep else {**said, "mtime": 0} for path, said in found.items()}


def start_trees(host: Host) -> None:
    host.ensure_image("py")
    host.run(["mkdir", "-p", "/srv/copied/bound"])
    volumes = ("--volume=trees:/named", "--volume=/anonymous", "--volume=/srv/copied/bound:/bound")
    memory = ("--tmpfs=/ram:size=8m", "--tmpfs=/few:size=1m", "--shm-size=8m")
    host.docker("run", "-d", "--name", NAME, *volumes, *memory, "py", "python3", "-c", WAIT_FOR_EVER)
    if host.spec.userns_remap:
        host.run(["chown", "100000:100000", "/srv/copied/bound"])
    script = "mkdir /a-layer /z-layer; head -c 1048576 /dev/urandom > /m-ballast; cp /m-ballast /named/ballast"
    host.docker("exec", NAME, "sh", "-c", script)
    trees(host, "make", *ALL)
    fill = "mkdir -p $d/a/b; head -c 300000 /dev/urandom > $d/a/b/f; chmod 640 $d/a/b/f"
    host.docker("exec", NAME, "sh", "-c", f"for d in /ram /dev/shm; do {fill}; done")
    few = "cd /few; mkdir -m 1777 d; echo few >d/f; chown 12:345 d/f; chmod 4751 d/f; ln -s f d/l; mkfifo -m 620 p"
    host.docker("exec", NAME, "sh", "-c", f"{few}; touch -d @981173106 d/f p; chmod 2750 .; touch -d @981173107 .")


@pytest.mark.parametrize(("source", "target"), [("a26", "b28"), ("v28", "u26")], ids=["26-28", "28-26-remapped"])
async def test_every_kind_of_change_arrives(pair: Cluster, source: str, target: str) -> None:
    """Everything is changed while the first pass is under way: before it comes by, and behind its back."""
    here, there = pair[source], pair[target]
    try:
        start_trees(here)
        pair.lab.slow(source, SLOW)
        async with pair.moving(NAME, source, target, compress="none") as moving:
            await moving.until(Phase.COPYING)
            trees(here, "change", *ALL)
            trees(here, "change-image", "/")
            before, memory, layer = looks(here, "/", *ALL), in_memory(here), in_layer(here)
            pair.lab.heal(source)
            reply = await moving.end()
        assert reply.kind is ReplyKind.FINISHED, reply.error
        after = looks(there, "/", *ALL)
        assert in_layer(there) == layer
        before["/"], after["/"] = timeless(before["/"], layer), timeless(after["/"], layer)
        wrong = {place: found for place in before if (found := unlike(before[place], after[place]))}
        assert not wrong, wrong
        assert len(before["/"]) > 1000
        assert in_memory(there) == memory
        for part in ("root", "volume:trees"):
            assert sent(reply, f"{part}:0") > BALLAST, "the first pass has it all"
            assert 0 < sent(reply, f"{part}:1") < sent(reply, f"{part}:0") // 2, "the delta has what changed"
        assert not notes(reply) or "anonymous" in str(notes(reply))
        assert "trees" not in here.docker("volume", "ls", "--quiet").split()
        await clean(pair, source, target)
    finally:
        pair.lab.heal(source)
        forget(pair)


def in_memory(host: Host) -> str:
    names = "find /ram /dev/shm | sort | xargs ls -ldn | awk '{print $1,$2,$3,$4,$NF}'"
    few = "find /few | sort | xargs stat -c '%N %A %u %g %s %Y'; cat /few/d/f"  # packed by the agent, not by tar
    return host.docker("exec", NAME, "sh", "-c", f"{names}; sha256sum /ram/a/b/f /dev/shm/a/b/f; {few}")


def forget(pair: Cluster) -> None:
    remove(pair, NAME, "other")
    for host in pair.lab.hosts.values():
        host.docker("volume", "rm", "trees", check=False)
        host.run(["rm", "-rf", "/srv/copied", "/srv/own"])


async def test_what_was_deleted_from_a_volume_stays_deleted(pair: Cluster) -> None:
    """Docker fills a new volume from the image, on the target too: named and anonymous."""
    here, there = pair["a26"], pair["b28"]
    try:
        here.ensure_image("layers")
        volumes = ("--volume=trees:/data", "--mount=type=volume,target=/usr/sbin", "--volume=/var/log")
        here.docker("run", "-d", "--name", NAME, *volumes, "layers", "tail", "-f", "/dev/null")
        here.docker("exec", NAME, "rm", "/data/from-second", "/data/changed")
        here.docker("exec", NAME, "sh", "-c", "echo mine > /data/own; touch /usr/sbin/own")
        before = here.docker("exec", NAME, "ls", "-lnR", "--full-time", "/data", "/usr/sbin", "/var/log")
        assert "from-third" in before
        await move(pair, NAME, "a26", "b28")
        assert there.docker("exec", NAME, "ls", "-lnR", "--full-time", "/data", "/usr/sbin", "/var/log") == before
        anonymous = [found["Name"] for found in inspect(there, NAME)["Mounts"] if found["Name"] != "trees"]
        there.docker("rm", "--force", "--volumes", NAME)
        left = there.docker("volume", "ls", "--quiet").split()
        assert "trees" in left
        assert not set(anonymous) & set(left), "anonymous volumes go with their container"
    finally:
        forget(pair)


async def test_a_writer_goes_on_through_the_move(pair: Cluster) -> None:
    """A volume in use: each record is there once, and only what was written since the first pass comes in the delta."""
    here, there = pair["b28"], pair["a26"]
    write = "import time\nfor n in range(10**9):\n print(n, file=open('/named/log', 'a')); time.sleep(0.002)"
    try:
        here.ensure_image("py")
        here.docker("run", "-d", "--name", NAME, "--volume=trees:/named", "py", "python3", "-c", write)
        here.docker("exec", NAME, "sh", "-c", "head -c 8000000 /dev/urandom > /named/ballast")
        digest = here.docker("exec", NAME, "sha256sum", "/named/ballast")
        await until(lambda: len(written(here)) > 100, "it writes")
        reply = await move(pair, NAME, "b28", "a26")
        so_far = len(written(there))
        await until(lambda: len(written(there)) > so_far + 100, "it writes on")
        numbers = written(there)
        assert numbers == list(range(len(numbers)))
        assert there.docker("exec", NAME, "sha256sum", "/named/ballast") == digest
        assert sent(reply, "volume:trees:1") < 1_000_000
    finally:
        forget(pair)


def written(host: Host) -> list[int]:
    return [int(line) for line in host.docker("exec", NAME, "cat", "/named/log", check=False).splitlines()]


# What is in the way


async def refused(pair: Cluster, code: ErrorCode, said: str, source: str = "a26", target: str = "b28") -> None:
    error = await stays(pair, NAME, source, target, code, said)
    assert error.hint, error


async def test_a_volume_that_is_there_is_not_overwritten(pair: Cluster) -> None:
    here, there = pair["a26"], pair["b28"]
    try:
        idle(here, NAME, "--volume=trees:/named")
        idle(there, "other", "--volume=trees:/named")
        there.docker("exec", "other", "sh", "-c", "echo precious > /named/own")
        await refused(pair, ErrorCode.VOLUME_CONFLICT, "there is a volume trees, and it would be overwritten")
        assert there.docker("exec", "other", "cat", "/named/own") == "precious"
    finally:
        forget(pair)


async def test_a_volume_that_two_containers_use_does_not_become_two(pair: Cluster) -> None:
    try:
        idle(pair["a26"], NAME, "--volume=trees:/named:ro")
        idle(pair["a26"], "other", "--volume=trees:/else")
        await refused(pair, ErrorCode.NOT_MIGRATABLE, "its volume trees is also used by other, which stays here")
        pair["a26"].docker("stop", "--time=0", "other")
        await move(pair, NAME, "a26", "b28")
    finally:
        forget(pair)


async def test_bind_mounts_must_be_there_or_may_be_copied(pair: Cluster) -> None:
    here, there = pair["a26"], pair["b28"]
    try:
        here.run(["mkdir", "-p", "/srv/own", "/srv/copied/a/b"])
        here.run(["sh", "-c", "echo here | tee /srv/own/f /srv/copied/a/b/f"])
        idle(here, NAME, "--volume=/srv/own:/own", "--volume=/srv/copied/a/b:/copied:ro", "--volume=/etc/hostname:/one")
        await refused(pair, ErrorCode.VOLUME_CONFLICT, "the bind mount's path /srv/own is not there")
        there.run(["sh", "-c", "mkdir -p /srv/own /srv/copied/a/b; echo there > /srv/own/f; touch /srv/copied/a/b/x"])
        await refused(pair, ErrorCode.VOLUME_CONFLICT, "/srv/copied/a/b has content, and it would be overwritten")
        there.run(["rm", "-r", "/srv/copied/a"])
        there.run(["ln", "-s", "/etc", "/srv/copied/a"])
        await refused(pair, ErrorCode.VOLUME_CONFLICT, "the bind mount's path /srv/copied/a/b is not there")
        there.run(["rm", "/srv/copied/a"])
        reply = await move(pair, NAME, "a26", "b28")
        assert there.docker("exec", NAME, "cat", "/own/f", "/copied/f").split() == ["there", "here"]
        assert sent(reply, "bind:0:0") + sent(reply, "bind:1:0") + sent(reply, "bind:2:0") > 0
        assert here.run(["cat", "/srv/copied/a/b/f"]).stdout == "here\n", "a bind mount is the host's own: it stays"
        await refused(pair, ErrorCode.VOLUME_CONFLICT, "/srv/copied/a/b has content", "b28", "a26")
    finally:
        forget(pair)


async def test_nothing_is_left_of_a_move_that_was_taken_back(pair: Cluster) -> None:
    """Networks, volumes, folders of bind mounts: what was made for it goes again, and what was there stays."""
    here, there = pair["a26"], pair["b28"]
    before = belongings(there)
    try:
        here.docker("network", "create", "--subnet=10.93.0.0/24", "made")
        start_trees(here)
        here.docker("network", "connect", "made", NAME)
        there.run(["mkdir", "-p", "/srv/copied"])
        pair.lab.slow("a26", SLOW)
        async with pair.moving(NAME, "a26", "b28") as moving:
            await moving.until(Phase.COPYING)
            await until(lambda: "bound" in there.run(["ls", "/srv/copied"]).stdout, "it is made")
            assert len(belongings(there)) == len(before) + 3
            place = there.docker("volume", "inspect", "--format", "{{.Mountpoint}}", "trees")
            await until(lambda: there.run(["ls", "-A", place]).stdout != "", "something is written into it")
            await moving.cancel()
            reply = await moving.end()
        assert reply.error is not None
        assert reply.error.consequence is Consequence.TAKEN_BACK
        await clean(pair, "a26", "b28")
        await until(lambda: belongings(there) == before, "they are gone")
        assert there.run(["ls", "-A", "/srv/copied"]).stdout == ""
        assert len(looks(here, "/named")["/named"]) > 30
    finally:
        pair.lab.heal("a26")
        forget(pair)
        for host in (here, there):
            host.docker("network", "rm", "made", check=False)


def belongings(host: Host) -> list[str]:
    return sorted((host.docker("volume", "ls", "--quiet") + "\n" + host.docker("network", "ls", "--quiet")).split())
