"""Docker's own checkpoints: where they work they are of use, here and on another host; where not, that is said."""

import asyncio
from pathlib import Path

from lab.cluster import Cluster
from lab.host import Host
from lab.workloads import run_counter
from protocol.commands import NativeCreate, NativeList, NativeRemove, NativeStart
from protocol.errors import ErrorCode
from tests.e2e.archives import copy, last_logged, policy, remove, run, said, state, typed
from tests.e2e.support import asked, clean, counts_on, done, until


async def test_a_container_goes_on_from_its_own_checkpoint(keeps: Cluster) -> None:
    """Taken, listed, started from, removed; and a restart policy starts no second one."""
    here, name = keeps["a26"], "own"
    try:
        run_counter(here, name, "--restart", "always")
        await counts_on(here, name)
        run(keeps, "a26", f"transship native create {name} first --leave-running")
        await counts_on(here, name)
        run(keeps, "a26", f"transship native create {name} second")
        assert state(here, name) == "exited"
        assert said(keeps, "a26", f"transship native ls {name}")["checkpoints"] == ["first", "second"]
        last = last_logged(here, name)
        run(keeps, "a26", f"transship native start {name} second")
        assert last in (await counts_on(here, name)).logged
        assert policy(here, name) == "always"
        refused = run(keeps, "a26", f"transship native start {name} first", check=False)
        assert refused.returncode == 2, "Docker itself would say yes, and restore nothing"
        run(keeps, "a26", f"transship native rm {name} first")
        assert said(keeps, "a26", f"transship native ls {name}")["checkpoints"] == ["second"]
    finally:
        remove(here, name)


async def test_a_command_line_that_is_killed_leaves_it_to_the_agent(keeps: Cluster) -> None:
    """Paused, until the agent sees that nobody is at it any more."""
    here, name = keeps["a26"], "own-orphan"
    try:
        run_counter(here, name, "--restart", "always", mib=128)
        await counts_on(here, name)
        started = typed(keeps, "a26", f"transship native create {name} taken")
        await until(lambda: state(here, name) == "paused", "it is paused")
        here.run(["kill", "-KILL", str(started.pid)])
        started.end()
        await until(lambda: state(here, name) == "running", "the agent lets it go on")
        await until(lambda: policy(here, name) == "always", "with its own policy")
        await counts_on(here, name)
    finally:
        remove(here, name)


async def test_docker_28_is_refused_with_the_way_that_works(keeps: Cluster) -> None:
    here, name = keeps["b28"], "own28"
    try:
        run_counter(here, name)
        refused = run(keeps, "b28", f"transship native create {name} first", check=False)
        assert refused.returncode == 2
        assert "can't start from its own checkpoints" in refused.stderr
        assert "`transship checkpoint`" in refused.stderr
        assert state(here, name) == "running"
    finally:
        remove(here, name)


async def goes_on_there(there: Host, name: str, last: int) -> None:
    """From the next number, with what it had written and deleted; what it has printed before is not there."""
    await until(lambda: len(there.docker("logs", name).split()) > 20, "it counts on there")
    assert int(there.docker("logs", name).split()[0]) == last + 1
    assert there.docker("exec", name, "sh", "-c", "test ! -e /etc/passwd && head -n 1 /count").startswith("1 ")


async def test_it_goes_on_on_another_host(keeps: Cluster) -> None:
    """With what it has written and deleted; into a container that was made there from the same image."""
    here, there, name = keeps["a26"], keeps["c26"], "away"
    try:
        run_counter(here, name)
        here.docker("exec", name, "rm", "-rf", "/etc/passwd", "/usr/local/share")
        await counts_on(here, name)
        run(keeps, "a26", f"transship native create {name} moved")
        run(keeps, "a26", f"transship native save {name} moved /root/moved.tar")
        assert run(keeps, "a26", "stat -c %a /root/moved.tar").stdout.strip() == "600"
        last = last_logged(here, name)
        copy(here, there, "/root/moved.tar")
        there.ensure_image("py")
        there.docker("create", "--name", name, "py", "python3", "-c", "pass")
        run(keeps, "c26", f"transship native load {name} /root/moved.tar")
        run(keeps, "c26", f"transship native start {name} moved")
        await goes_on_there(there, name, last)
        again = run(keeps, "c26", f"transship native load {name} /root/moved.tar", check=False)
        assert again.returncode == 2, "nothing is put into one that has run"
    finally:
        remove(here, name)
        remove(there, name)


async def test_over_mqtt_it_is_taken_listed_started_from_and_removed(keeps: Cluster) -> None:
    """And dockerd, which comes up again in between, starts nothing empty."""
    here, name = keeps["a26"], "own-mqtt"
    try:
        run_counter(here, name, "--restart", "always")
        await counts_on(here, name)
        await done(keeps, "a26", NativeCreate, container=name, name="first", leave_running=True)
        await counts_on(here, name)
        await done(keeps, "a26", NativeCreate, container=name, name="second")
        assert (state(here, name), policy(here, name)) == ("exited", "no")
        assert (await done(keeps, "a26", NativeList, container=name)).native == ("first", "second")
        last = last_logged(here, name)
        here.restart_dockerd()
        await keeps.until_ready()
        assert state(here, name) == "exited"
        await done(keeps, "a26", NativeStart, container=name, name="second")
        assert last in (await counts_on(here, name)).logged
        assert policy(here, name) == "always"
        busy = await asked(keeps, "a26", NativeStart, container=name, name="first")
        assert busy.error is not None
        assert busy.error.code is ErrorCode.BUSY
        await done(keeps, "a26", NativeRemove, container=name, name="first")
        assert (await done(keeps, "a26", NativeList, container=name)).native == ("second",)
        gone = await asked(keeps, "a26", NativeRemove, container=name, name="first")
        assert gone.error is not None
        assert gone.error.code is ErrorCode.NO_SUCH_CHECKPOINT
        await clean(keeps, "a26")
    finally:
        remove(here, name)


async def test_over_mqtt_an_agent_that_is_killed_meanwhile_has_no_second_one_started(keeps: Cluster) -> None:
    """It runs with its policy, or it is stopped without and can be started from its checkpoint; never neither."""
    here, name = keeps["a26"], "own-killed"
    try:
        run_counter(here, name, "--restart", "always", mib=128)
        await counts_on(here, name)
        found = here.docker("inspect", "-f", "{{.Id}}", name)
        checkpoint = Path(f"/proc/{here.node.init().pid}/root/var/lib/docker/containers/{found}/checkpoints/taken")
        asking = asyncio.create_task(asked(keeps, "a26", NativeCreate, container=name, name="taken"))
        await until(checkpoint.exists, "dockerd has begun")
        here.kill_agent()
        here.start_agent()
        await keeps.until_ready()
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await until(lambda: state(here, name) == "exited" or policy(here, name) == "always", "one or the other")
        if state(here, name) == "exited":
            assert policy(here, name) == "no"
            last = last_logged(here, name)
            here.restart_dockerd()
            await keeps.until_ready()
            assert state(here, name) == "exited"
            await done(keeps, "a26", NativeStart, container=name, name="taken")
            assert last in (await counts_on(here, name)).logged
        else:
            await counts_on(here, name)
        assert policy(here, name) == "always"
    finally:
        remove(here, name)


async def test_over_mqtt_docker_28_is_refused_with_the_way_that_works(keeps: Cluster) -> None:
    here, name = keeps["b28"], "own-mqtt28"
    try:
        run_counter(here, name)
        await counts_on(here, name)
        refused = await asked(keeps, "b28", NativeCreate, container=name, name="first")
        assert refused.error is not None
        assert refused.error.code is ErrorCode.INCOMPATIBLE
        assert "`transship checkpoint`" in refused.error.hint
        await counts_on(here, name)
    finally:
        remove(here, name)


async def test_over_mqtt_it_is_started_on_another_host(keeps: Cluster) -> None:
    """Made there from the same image, with what it has written and deleted; here it stays stopped."""
    here, there, name = keeps["a26"], keeps["c26"], "own-away"
    try:
        there.ensure_image("py")
        run_counter(here, name, "--restart", "unless-stopped", "--env", "KEPT=yes")
        here.docker("exec", name, "rm", "-rf", "/etc/passwd", "/usr/local/share")
        await counts_on(here, name)
        await done(keeps, "a26", NativeCreate, container=name, name="moved")
        last = last_logged(here, name)
        refused = await asked(keeps, "a26", NativeStart, container=name, name="moved", on="b28")
        assert refused.error is not None
        assert refused.error.code is ErrorCode.INCOMPATIBLE
        await done(keeps, "a26", NativeStart, container=name, name="moved", on="c26")
        await goes_on_there(there, name, last)
        assert "KEPT=yes" in there.docker("inspect", "-f", "{{.Config.Env}}", name)
        assert policy(there, name) == "unless-stopped"
        assert (state(here, name), policy(here, name)) == ("exited", "no")
        taken = await asked(keeps, "a26", NativeStart, container=name, name="moved", on="c26")
        assert taken.error is not None
        assert taken.error.code is ErrorCode.NAME_TAKEN
        for host in (here, there):
            assert host.run(["ls", "/var/lib/transship/native"], check=False).stdout == "", "nothing is left on the way"
    finally:
        remove(here, name)
        remove(there, name)


async def test_over_mqtt_what_docker_does_not_carry_stays_here(keeps: Cluster) -> None:
    here, name = keeps["a26"], "own-volume"
    try:
        run_counter(here, name, "--volume", f"{name}:/data")
        await counts_on(here, name)
        await done(keeps, "a26", NativeCreate, container=name, name="moved")
        refused = await asked(keeps, "a26", NativeStart, container=name, name="moved", on="c26")
        assert refused.error is not None
        assert refused.error.code is ErrorCode.NOT_MIGRATABLE
        assert "/data" in refused.error.message
        await done(keeps, "a26", NativeStart, container=name, name="moved")
        await counts_on(here, name)
    finally:
        remove(here, name)
        here.docker("volume", "rm", name, check=False)


async def test_what_was_coming_when_its_agent_ended_is_removed(keeps: Cluster) -> None:
    there, name = keeps["c26"], "own-half.native-m-0123456789abcdef"
    try:
        there.ensure_image("py")
        there.kill_agent()
        there.docker("create", "--name", name, "py", "true")
        there.start_agent()
        await until(lambda: state(there, name) == "", "it is removed")
        await keeps.until_ready()
    finally:
        remove(there, name)
