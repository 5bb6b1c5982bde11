"""The host's folder of checkpoints as its agent is told to keep it: how many, how old, how large, sealed."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from lab.cluster import Cluster
from lab.host import Host
from lab.workloads import run_counter
from tests.e2e.archives import remove, run, said
from tests.e2e.checkpoint_support import archives, configured, stalled
from tests.e2e.support import clean, counts_on

FOLDER = "/var/lib/transship/checkpoints"
HOSTS = ["a26", "b28"]


@asynccontextmanager
async def counting(keeps: Cluster, *names: str) -> AsyncIterator[Host]:
    """Containers that count on b28; afterwards they are gone, with all checkpoints and keys."""
    here = keeps["b28"]
    try:
        for name in names:
            run_counter(here, name)
            await counts_on(here, name)
        yield here
    finally:
        remove(here, *names)
        run(keeps, "b28", f"rm -f {FOLDER}/* {FOLDER}/.*.json /root/*.key", check=False)


async def test_the_newest_of_each_container_are_kept_and_what_is_pinned(keeps: Cluster) -> None:
    names = ("ck-many", "ck-other")
    taken: dict[str, list[str]] = {name: [] for name in names}
    async with counting(keeps, *names) as here:
        async with configured(keeps, "b28", keep_count=2):
            for turn in range(4):
                for name in names:
                    taken[name].append(said(keeps, "b28", f"transship checkpoint {name} -R")["id"])
                if turn == 0:
                    run(keeps, "b28", f"transship checkpoints pin {taken['ck-many'][0]}")
        there = archives(here)[0]
        assert there >= {taken["ck-many"][0], *taken["ck-many"][2:], *taken["ck-other"][2:]}
        assert not there & {taken["ck-many"][1], *taken["ck-other"][:2]}
        assert archives(here)[0] == archives(here)[1]


async def test_what_is_too_old_goes_with_the_next_one(keeps: Cluster) -> None:
    name = "ck-old"
    async with counting(keeps, name) as here:
        old, pinned = (said(keeps, "b28", f"transship checkpoint {name} -R")["id"] for _ in range(2))
        run(keeps, "b28", f"transship checkpoints pin {pinned}")
        for each in (old, pinned):
            note = json.loads(here.node.read(f"{FOLDER}/.{each}.json"))
            here.node.write(f"{FOLDER}/.{each}.json", json.dumps({**note, "at": "2020-01-01T00:00:00Z"}), 0o600)
        async with configured(keeps, "b28", keep_days=30):
            new = said(keeps, "b28", f"transship checkpoint {name} -R")["id"]
        assert archives(here)[0] == {pinned, new}


async def test_the_oldest_go_until_the_rest_is_small_enough(keeps: Cluster) -> None:
    name = "ck-large"
    async with counting(keeps, name) as here:
        first = said(keeps, "b28", f"transship checkpoint {name} -R --compress none")
        async with configured(keeps, "b28", keep_bytes=int(2.5 * first["bytes"])):
            others = [said(keeps, "b28", f"transship checkpoint {name} -R --compress none")["id"] for _ in range(3)]
        assert archives(here)[0] == set(others[1:])
        sizes = run(keeps, "b28", f"stat -c %s {FOLDER}/checkpoint-*").stdout.split()
        assert sum(map(int, sizes)) <= 2.5 * first["bytes"]


async def test_with_a_key_the_folder_is_sealed(keeps: Cluster) -> None:
    """Restored by its id with the key that the agent has; with another one it is not."""
    name = "ck-locked"
    async with counting(keeps, name) as here:
        run(keeps, "b28", "for key in right wrong; do head -c 32 /dev/urandom > /root/$key.key; done")
        async with configured(keeps, "b28", key_file="/root/right.key"):
            info = said(keeps, "b28", f"transship checkpoint {name} --compress none")
            assert info["encrypted"] is True
            assert run(keeps, "b28", f"grep -c ballast {info['place']}", check=False).stdout.strip() == "0"
            assert run(keeps, "b28", f"stat -c %a {info['place']}").stdout.strip() == "600"
            remove(here, name)
            run(keeps, "b28", f"transship restore {info['id']}")
            await counts_on(here, name)
            remove(here, name)
        async with configured(keeps, "b28", key_file="/root/wrong.key"):
            refused = run(keeps, "b28", f"transship restore {info['id']}", check=False)
            assert refused.returncode == 2
            assert "sealed" in refused.stderr
        await clean(keeps, "b28")


@pytest.mark.parametrize("host", HOSTS)
async def test_through_a_pipe_nothing_lies_on_the_disk(keeps: Cluster, host: str) -> None:
    """Its reader does not read: all that was packed so far would have to be somewhere."""
    here, name = keeps[host], f"ck-nowhere-{host}"
    try:
        run_counter(here, name, mib=64)
        async with stalled(keeps, host, name):
            places = "/ /var/lib/docker /var/lib/transship -xdev -not -path '/var/log/*'"  # there the lab has its own
            large = f"find {places} -type f -size +8M -newer /root/marker"
            assert run(keeps, host, large, check=False).stdout == ""
        await counts_on(here, name)
        await clean(keeps, host)
    finally:
        remove(here, name)
