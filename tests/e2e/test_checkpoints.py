"""A checkpoint is taken, and restored as often as one likes: what counted goes on counting where it was."""

import asyncio
import json
import re

import pytest

from lab.cluster import Cluster
from lab.workloads import counted, run_counter
from protocol.commands import Checkpoint, ListCheckpoints, RemoveCheckpoint, Restore
from tests.e2e.archives import address, copy, last_logged, policy, remove, run, said, state
from tests.e2e.support import clean, counts_on, done, until

HOSTS = ["a26", "b28"]
OTHER = {"a26": "b28", "b28": "a26"}


@pytest.mark.parametrize("host", HOSTS)
async def test_it_runs_on_and_its_clones_run_beside_it(keeps: Cluster, host: str) -> None:
    """Two clones of one checkpoint: each goes on from the same number, with files and log, under its own address."""
    here = keeps[host]
    name, clones = f"ck-{host}", [f"ck-{host}-one", f"ck-{host}-two"]
    try:
        run_counter(here, name, "--volume", f"{name}-data:/data")
        here.docker("exec", name, "sh", "-c", "echo kept > /data/file; rm -rf /etc/alpine-release /etc/debian_version")
        await counts_on(here, name)
        info = said(keeps, host, f"transship checkpoint {name} --leave-running --to /root/{name}.tar.zst")
        taken_at = max(counted(here, name).logged)
        assert info["left_running"] is True
        assert info["tasks"] >= 1
        await counts_on(here, name)
        assert run(keeps, host, f"stat -c %a /root/{name}.tar.zst").stdout.strip() == "600"
        for clone in clones:
            said(keeps, host, f"transship restore /root/{name}.tar.zst --name {clone}")
            now = await counts_on(here, clone)
            assert now.logged[0] == 1, "the log came along"
            assert here.docker("exec", clone, "cat", "/data/file") == "kept"
            assert here.docker("inspect", "-f", "{{(index .Mounts 0).Name}}", clone) == f"{clone}-{name}-data"
        assert taken_at > 20
        found = [address(here, each) for each in (name, *clones)]
        assert len(set(found)) == 3, found
        await counts_on(here, name)
        await clean(keeps, host)
    finally:
        remove(here, name, *clones)
        here.docker("volume", "rm", f"{name}-data", *(f"{clone}-{name}-data" for clone in clones), check=False)


@pytest.mark.parametrize("host", HOSTS)
async def test_it_is_stopped_and_comes_back_on_either_host(keeps: Cluster, host: str) -> None:
    """By the host's own folder: stopped, restored elsewhere from here, and here again when it is gone there."""
    here, there = keeps[host], keeps[OTHER[host]]
    name = f"ck-stop-{host}"
    try:
        run_counter(here, name, "--restart", "always")
        await counts_on(here, name)
        info = said(keeps, host, f"transship checkpoint {name} --with-image")
        assert state(here, name) == "exited"
        assert policy(here, name) == "no", "dockerd would start it empty (test_checkpoint_policies.py)"
        assert any("`always`" in note for note in info["notes"])
        last = last_logged(here, name)
        refused = run(keeps, host, f"transship restore {info['id']}", check=False)
        assert refused.returncode == 2, "the stopped one has the name still"
        assert f"there is a container named {name}" in refused.stderr
        here.docker("rm", name)
        said(keeps, OTHER[host], f"transship restore {info['id']} --on {OTHER[host]}")
        now = await counts_on(there, name)
        assert last in now.logged
        assert policy(there, name) == "always"
        remove(there, name)
        said(keeps, host, f"transship restore {info['id']}")
        assert last in (await counts_on(here, name)).logged
        await clean(keeps, host, OTHER[host])
    finally:
        remove(here, name)
        remove(there, name)


async def test_an_archive_goes_through_a_pipe(keeps: Cluster) -> None:
    """`-` both ways, from one engine to the other; nothing of it lies anywhere."""
    here, there = keeps["a26"], keeps["b28"]
    name = "ck-pipe"
    try:
        run_counter(here, name)
        await counts_on(here, name)
        run(keeps, "a26", f"transship checkpoint {name} -R --with-image --to - --compress none > /root/piped.tar")
        copy(here, there, "/root/piped.tar")
        run(keeps, "b28", "cat /root/piped.tar | transship restore - --tcp close")
        await asyncio.gather(counts_on(here, name), counts_on(there, name))
        assert run(keeps, "a26", "ls /run/transship/pipes").stdout == ""
        await clean(keeps, "a26", "b28")
    finally:
        remove(here, name)
        remove(there, name)


async def test_a_file_here_is_restored_on_another_host(keeps: Cluster) -> None:
    here, there, name = keeps["b28"], keeps["a26"], "ck-file"
    try:
        run_counter(here, name)
        await counts_on(here, name)
        run(keeps, "b28", f"transship checkpoint {name} --with-image --to /root/ck-file.tar.zst")
        last = last_logged(here, name)
        said(keeps, "b28", "transship restore /root/ck-file.tar.zst --on a26 --name ck-file-there")
        assert last in (await counts_on(there, "ck-file-there")).logged
        assert state(here, name) == "exited"
        await clean(keeps, "a26", "b28")
    finally:
        remove(here, name)
        remove(there, "ck-file-there")


@pytest.mark.parametrize("host", HOSTS)
async def test_a_controller_asks_for_it_over_mqtt(keeps: Cluster, host: str) -> None:
    """By the messages of the contract; the command line is one controller among others."""
    here, name = keeps[host], f"ck-mqtt-{host}"
    try:
        run_counter(here, name)
        await counts_on(here, name)
        taken = (await done(keeps, host, Checkpoint, container=name, leave_running=False)).checkpoint
        assert taken is not None
        assert state(here, name) == "exited"
        last = last_logged(here, name)
        assert taken.id in {each.id for each in (await done(keeps, host, ListCheckpoints)).checkpoints or ()}
        await done(keeps, host, Restore, checkpoint=taken.id, name=f"{name}-clone")
        assert last in (await counts_on(here, f"{name}-clone")).logged
        await done(keeps, host, RemoveCheckpoint, checkpoint=taken.id)
        assert taken.id not in {each.id for each in (await done(keeps, host, ListCheckpoints)).checkpoints or ()}
        await clean(keeps, host)
    finally:
        remove(here, name, f"{name}-clone")


@pytest.mark.parametrize("host", HOSTS)
async def test_a_reader_that_goes_away_costs_nothing(keeps: Cluster, host: str) -> None:
    """The container was to be stopped: its archive was not taken whole, so it runs on."""
    here, name = keeps[host], f"ck-broken-{host}"
    try:
        run_counter(here, name, mib=64)
        await counts_on(here, name)
        broken = run(
            keeps, host, f"transship checkpoint {name} --compress none --to - | head -c 100000 >/dev/null", check=False
        )
        assert broken.returncode != 0
        assert state(here, name) == "running"
        await counts_on(here, name)
        await clean(keeps, host)
    finally:
        remove(here, name)


@pytest.mark.parametrize("host", HOSTS)
async def test_an_archive_that_was_changed_restores_nothing(keeps: Cluster, host: str) -> None:
    here, name = keeps[host], f"ck-changed-{host}"
    try:
        run_counter(here, name)
        await counts_on(here, name)
        run(keeps, host, f"transship checkpoint {name} -R --compress none --to /root/good.tar")
        # in the middle of the pages
        run(
            keeps,
            host,
            "cp /root/good.tar /root/bad.tar && printf X | dd of=/root/bad.tar bs=1 conv=notrunc "
            "seek=$(( $(stat -c %s /root/bad.tar) - 4000000 )) status=none",
        )
        run(keeps, host, "head -c -20000 /root/good.tar > /root/short.tar")
        for archive in ("bad", "short"):
            failed = run(keeps, host, f"transship restore /root/{archive}.tar --name ck-never", check=False)
            assert failed.returncode == 1, failed
            assert "was changed" in failed.stderr or "cut off" in failed.stderr, failed.stderr
            assert state(here, "ck-never") == ""
        await clean(keeps, host)
    finally:
        remove(here, name, "ck-never")


HOLDS_A_FILE = "import time; file = open('/data/file'); print('open', flush=True); time.sleep(1e6)"


HOLDS_WHAT_IS_HIDDEN = """
import ctypes, os, time
os.makedirs("/place")
file = open("/place/file", "wb")
assert ctypes.CDLL(None).mount(b"tmpfs", b"/place", b"tmpfs", 0, b"") == 0
print("hidden", flush=True)
time.sleep(1e6)
"""
MAY_MOUNT = ("--cap-add", "SYS_ADMIN", "--security-opt", "apparmor=unconfined")


@pytest.mark.parametrize("host", HOSTS)
async def test_a_dump_that_fails_says_why_and_where_the_log_is(keeps: Cluster, host: str) -> None:
    """Something is mounted over a file that it holds open."""
    here, name = keeps[host], f"ck-hidden-{host}"
    program = ("py", "python3", "-c", HOLDS_WHAT_IS_HIDDEN)
    try:
        here.ensure_image("py")
        here.docker("run", "-d", "--name", name, "--restart", "always", *MAY_MOUNT, *program)
        await until(lambda: "hidden" in here.docker("logs", name), "the file is hidden")
        failed = run(keeps, host, f"transship checkpoint {name} --json", check=False)
        error = json.loads(failed.stdout.splitlines()[-1])["error"]
        assert error["code"] == "dump-failed"
        assert "probably it has a file open that its path does not lead to" in error["message"]
        assert any("Error" in line and "/place/file" in line for line in error["detail"]), error["detail"]
        assert len(error["detail"]) > 3, "and the few before them"
        assert "let the program close the file" in error["hint"]
        kept = re.search(r"/var/lib/transship/failed/\S+", error["hint"])
        assert kept is not None
        assert "/place/file" in here.run(["cat", kept[0]]).stdout
        assert state(here, name) == "running"
        assert policy(here, name) == "always"
        by_hand = run(keeps, host, f"transship criu dump {name} --json", check=False)
        assert (
            "probably it has a file open that its path does not lead to"
            in json.loads(by_hand.stdout)["error"]["message"]
        )
        assert state(here, name) == "running"
        await clean(keeps, host)
    finally:
        remove(here, name)
        here.run(["sh", "-c", "rm -rf /var/lib/transship/external/*"], check=False)


@pytest.mark.parametrize("host", HOSTS)
async def test_a_restore_that_fails_says_why_and_where_the_log_is(keeps: Cluster, host: str) -> None:
    """A file of the host that the container has open is another one by now."""
    here, name = keeps[host], f"ck-why-{host}"
    try:
        here.ensure_image("py")
        here.run(["sh", "-c", "mkdir -p /srv/why; echo before > /srv/why/file"])
        here.docker("run", "-d", "--name", name, "-v", "/srv/why:/data", "py", "python3", "-c", HOLDS_A_FILE)
        await until(lambda: "open" in here.docker("logs", name), "the file is open")
        run(keeps, host, f"transship checkpoint {name} -R --to /root/why.tar")
        here.run(["sh", "-c", "echo something longer than before > /srv/why/file"])
        failed = run(keeps, host, "transship restore /root/why.tar --name ck-never --json", check=False)
        error = json.loads(failed.stdout)["error"]
        assert error["code"] == "restore-failed"
        assert "a file that it has open is not what it was" in error["message"]
        assert any("Error" in line and "has bad size" in line for line in error["detail"]), error["detail"]
        kept = re.search(r"/var/lib/transship/failed/\S+", error["hint"])
        assert kept is not None
        assert "has bad size" in here.run(["cat", kept[0]]).stdout
        assert state(here, "ck-never") == ""
        assert state(here, name) == "running"
        await clean(keeps, host)
    finally:
        remove(here, name, "ck-never")


@pytest.mark.parametrize("host", HOSTS)
async def test_the_folder_is_listed_and_what_is_pinned_stays(keeps: Cluster, host: str) -> None:
    """Taken by the clock, by the container's own label; then listed, pinned, removed."""
    here, name = keeps[host], f"ck-clock-{host}"

    def listed() -> list[str]:
        lines = run(keeps, "a26", f"transship checkpoints --host {host} --json").stdout.splitlines()
        return [each["id"] for each in map(json.loads, lines) if each["container"] == name]

    try:
        run_counter(here, name, "--label", "transship.checkpoint.every=2s")
        await until(lambda: len(listed()) >= 2, "its label has it taken twice", 60)
        await counts_on(here, name)
        remove(here, name)
        first = listed()[0]
        run(keeps, host, f"transship checkpoints pin {first}")
        refused = run(keeps, host, f"transship checkpoints rm {first}", check=False)
        assert refused.returncode == 2
        assert "pinned" in refused.stderr
        run(keeps, host, f"transship restore {first}")
        await counts_on(here, name)
        remove(here, name)  # or the clock goes on
        folder = "ls -A /var/lib/transship/checkpoints"
        await until(lambda: ".part" not in run(keeps, host, folder).stdout, "one that was begun has ended")
        for each in listed():
            run(keeps, host, f"transship checkpoints rm {each} --force")
        assert name not in run(keeps, host, folder).stdout
    finally:
        remove(here, name)
