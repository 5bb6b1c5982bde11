"""Docker's own checkpoints: where they work they are of use, here and on another host; where not, that is said."""

from lab.cluster import Cluster
from lab.workloads import run_counter
from tests.e2e.archives import copy, last_logged, remove, run, said, state
from tests.e2e.support import counts_on, until


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
        assert here.docker("inspect", "-f", "{{.HostConfig.RestartPolicy.Name}}", name) == "always"
        refused = run(keeps, "a26", f"transship native start {name} first", check=False)
        assert refused.returncode == 2, "Docker itself would say yes, and restore nothing"
        run(keeps, "a26", f"transship native rm {name} first")
        assert said(keeps, "a26", f"transship native ls {name}")["checkpoints"] == ["second"]
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
        await until(lambda: len(there.docker("logs", name).split()) > 20, "it counts on there")
        assert int(there.docker("logs", name).split()[0]) == last + 1
        assert there.docker("exec", name, "sh", "-c", "test ! -e /etc/passwd && head -n 1 /count").startswith("1 ")
        again = run(keeps, "c26", f"transship native load {name} /root/moved.tar", check=False)
        assert again.returncode == 2, "nothing is put into one that has run"
    finally:
        remove(here, name)
        remove(there, name)
