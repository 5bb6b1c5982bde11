"""CRIU straight on a container's processes: what counted goes on counting, beside Docker; by the command or by hand."""

import re
from pathlib import Path

import pytest

from lab.cluster import Cluster
from lab.workloads import run_counter
from tests.e2e.archives import address, last_logged, run, state
from tests.e2e.external_support import do, goes_on, kept, printed, removed
from tests.e2e.support import counts_on, until

HOSTS = ["a26", "b28"]


@pytest.mark.parametrize("by_hand", [False, True], ids=["command", "pasted"])
@pytest.mark.parametrize("host", HOSTS)
async def test_a_tree_is_dumped_and_restored_beside_docker(keeps: Cluster, host: str, by_hand: bool) -> None:
    here, name = keeps[host], f"ext-{host}-{'hand' if by_hand else 'word'}"
    with removed(here, name):
        run_counter(here, name, "--volume", f"{name}:/data", "--restart", "always")
        here.docker("exec", name, "sh", "-c", "echo kept > /data/file")
        await counts_on(here, name)
        before = address(here, name)
        do(keeps, host, f"transship criu dump {name}", by_hand=by_hand)
        await until(lambda: state(here, name) == "exited", "Docker sees it end")
        last = last_logged(here, name)
        do(keeps, host, f"transship criu restore {name}", by_hand=by_hand)
        pid = await goes_on(here, name, last)
        assert before in here.run(["nsenter", f"--net=/proc/{pid}/ns/net", "ip", "-o", "address"]).stdout
        await until(lambda: max(printed(here, name), default=0) > last, "what it prints goes on in a file")
        mounts = here.run(["cat", "/proc/mounts"]).stdout
        assert "/var/lib/transship/external" not in mounts, "what was set up is taken down again"
        assert "transship-" not in here.run(["ip", "netns"]).stdout


@pytest.mark.parametrize("host", HOSTS)
async def test_the_options_of_today_are_those_that_the_page_explains(keeps: Cluster, host: str) -> None:
    """Each of the table's right column is in what is printed; and that is said which Docker does not say."""
    here, name = keeps[host], "ext-words"
    with removed(here, name):
        run_counter(here, name)
        await counts_on(here, name)
        dump = run(keeps, host, f"transship criu dump {name} -v").stdout
        restore = run(keeps, host, f"transship criu restore {name} -v").stdout
        assert int(kept(here, name, "work/pid")) > 0
        for words in (dump, restore):
            for option in ("mnt[/etc/hosts]:", "--manage-cgroups=soft", "--evasive-devices"):
                assert option in words, option
        assert re.search(r"--external '?net\[\d+\]:network", dump)
        for option in ("--root /var/lib/transship/external/", "--inherit-fd 'fd[9]:network'", "--restore-detached"):
            assert option in restore, option
        assert "Docker says it has exited" in dump
        assert "It is not Docker's child: `docker ps` says Exited still" in restore
        page = (Path(__file__).parents[2] / "docs/checkpoints.md").read_text()
        for old in ("--ext-mount-map", "--manage-cgroups", "--evasive-devices", "--root DIR"):
            assert f"| `{old}" in page


@pytest.mark.parametrize("host", HOSTS)
async def test_it_can_go_on_after_the_dump(keeps: Cluster, host: str) -> None:
    here, name = keeps[host], "ext-on"
    with removed(here, name):
        run_counter(here, name)
        await counts_on(here, name)
        run(keeps, host, f"transship criu dump {name} --leave-running")
        await counts_on(here, name)
        refused = run(keeps, host, f"transship criu restore {name}", check=False)
        assert refused.returncode == 2
        assert "share its files" in refused.stderr


@pytest.mark.parametrize("host", HOSTS)
async def test_a_restore_that_fails_leaves_nothing_set_up(keeps: Cluster, host: str) -> None:
    here, name = keeps[host], "ext-fails"
    with removed(here, name):
        run_counter(here, name)
        await counts_on(here, name)
        run(keeps, host, f"transship criu dump {name}")
        here.run(["sh", "-c", "rm /var/lib/transship/external/*/images/inventory.img"])
        failed = run(keeps, host, f"transship criu restore {name}", check=False)
        assert failed.returncode == 1
        assert "restore.log" in failed.stderr
        assert "/var/lib/transship/external" not in here.run(["cat", "/proc/mounts"]).stdout
        assert "transship-" not in here.run(["ip", "netns"]).stdout
