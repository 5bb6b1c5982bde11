"""The door against real engines: Docker 26, Docker 28.5, and the containerd image store."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from agent.base.errors import DockerFailed
from agent.doors.docker import Docker
from lab import Engine, Host, Lab
from tests.e2e.engines import HOSTS, SLEEP, door


async def test_an_engine_says_what_it_is(host: Host, docker: Docker) -> None:
    engine = await docker.engine("hold")
    assert engine.docker.startswith("26.1" if host.spec.engine is Engine.DOCKER26 else "28.5")
    assert engine.image_store == ("containerd" if host.spec.containerd_store else "graphdriver")
    assert engine.runc.startswith("1.")
    assert engine.runtime_registered
    assert not (await docker.engine("nothing")).runtime_registered
    assert await docker.data_root() == "/var/lib/docker"


async def test_an_engine_on_cgroup_v2_says_so(lab: Lab) -> None:
    async with door(lab["cgroup2"]) as docker:
        assert (await docker.engine()).cgroup_version == 2
    async with door(lab["d28"]) as docker:
        assert (await docker.engine()).cgroup_version == 1


async def test_a_containers_life(docker: Docker) -> None:
    host_config = {"RestartPolicy": {"Name": "always"}, "PortBindings": {"80/tcp": [{"HostPort": "8099"}]}}
    made = await docker.create("one", {**SLEEP, "ExposedPorts": {"80/tcp": {}}, "HostConfig": host_config})
    async with asyncio.timeout(30), docker.events(time.time_ns()) as events:
        await docker.start(made)
        await docker.start(made)  # already so
        while (event := await anext(events)).action != "start":
            assert event.container_id == made
    found = await docker.inspect("one")
    assert (found.id, found.state, found.restart_policy["Name"]) == (made, "running", "always")
    assert found.pid
    assert 0 < await docker.memory(made) < 64 << 20
    [row] = await docker.list()
    assert (row.id, row.name, row.state, row.ports) == (made, "one", "running", ((8099, "tcp"),))
    await docker.set_restart_policy(made, {"Name": "no"})
    await docker.rename(made, "two")
    found = await docker.inspect("two")
    assert (found.name, found.restart_policy["Name"]) == ("two", "no")
    assert await docker.kill(made)
    assert await docker.wait_exit(made) == 137
    assert not await docker.kill(made)
    await docker.remove(made)
    await docker.remove(made)
    assert await docker.find(made) is None


async def test_removals_at_the_same_time_all_end_well(docker: Docker) -> None:
    made = await docker.create("one", SLEEP)
    await docker.start(made)
    await asyncio.gather(*(docker.remove(made) for _ in range(5)))
    assert await docker.list() == ()


async def test_a_stop_takes_as_long_as_it_is_given(docker: Docker) -> None:
    made = await docker.create(
        "one", {"Image": "busybox", "Cmd": ["sh", "-c", "trap '' TERM; while :; do sleep 1; done"]}
    )
    await docker.start(made)
    began = time.monotonic()
    await docker.stop(made, seconds=1)
    assert 1 <= time.monotonic() - began < 15
    await docker.stop(made)
    await docker.stop("nothing")


async def test_a_taken_name_is_dockers_own_sentence(docker: Docker) -> None:
    await docker.create("one", SLEEP)
    with pytest.raises(DockerFailed, match="is already in use") as failed:
        await docker.create("one", SLEEP)
    assert failed.value.http_status == 409


async def test_running_execs(host: Host, docker: Docker) -> None:
    made = await docker.create("one", SLEEP)
    await docker.start(made)
    assert await docker.running_execs(await docker.inspect(made)) == ()
    host.docker("exec", "--detach", "one", "sleep", "999")
    [found] = await docker.running_execs(await docker.inspect(made))
    assert found.command == "sleep 999"
    assert found.pid


async def test_a_start_that_is_held_can_be_cancelled_and_holds_up_nothing_else(host: Host, docker: Docker) -> None:
    host.run(["rm", "-f", "/run/let-go"])
    held = await docker.create("held", {**SLEEP, "HostConfig": {"Runtime": "hold"}})
    other = await docker.create("other", SLEEP)
    starting = asyncio.create_task(docker.start(held))
    done, _ = await asyncio.wait({starting}, timeout=1)
    assert not done
    await docker.start(other)
    assert {row.name: row.state for row in await docker.list()} == {"held": "created", "other": "running"}
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert docker._opened is not None
    assert not docker._opened[1]._acquired
    # dockerd goes on with what it was asked, whoever has gone.
    host.run(["touch", "/run/let-go"])
    found = await docker.inspect(held)
    assert found.state in ("created", "running")
    await docker.start(held)
    assert (await docker.inspect(held)).state == "running"


async def test_networks_and_volumes(docker: Docker) -> None:
    await docker.create_network({"Name": "net", "Driver": "bridge", "IPAM": {"Config": [{"Subnet": "10.92.0.0/24"}]}})
    found = await docker.network("net")
    assert found is not None
    assert (found.name, found.driver, found.addresses) == ("net", "bridge", ())
    made = await docker.create("one", {**SLEEP, "HostConfig": {"NetworkMode": "net"}})
    await docker.start(made)
    found = await docker.network("net")
    assert found is not None
    assert found.addresses == ("10.92.0.2/24",)
    with pytest.raises(DockerFailed, match="active endpoints"):
        await docker.remove_network("net")
    await docker.remove(made)
    await docker.remove_network("net")
    await docker.remove_network("net")
    volume = await docker.create_volume({"Name": "vol", "Labels": {"a": "b"}})
    assert await docker.volume("vol") == volume
    assert volume.mountpoint.endswith("/vol/_data")
    await docker.remove_volume("vol")
    await docker.remove_volume("vol")


@pytest.mark.parametrize("target", [found.name for found in HOSTS])
async def test_an_image_goes_from_one_engine_to_the_other_as_a_stream(lab: Lab, docker: Docker, target: str) -> None:
    image = await docker.image("py")
    assert image is not None
    await docker.tag_image(image.id, "moved", "1")
    async with door(lab[target]) as there:
        loaded = await there.load_image(docker.save_image("moved:1"))
        assert loaded == ("moved:1",)
        found = await there.image("moved:1")
        assert found is not None
        assert (found.diff_ids, found.config, found.architecture) == (image.diff_ids, image.config, image.architecture)
        assert found.id in {one.id for one in await there.images()}
        await there.remove_image("moved:1")
        await docker.remove_image("moved:1")
        assert await there.image("moved:1") is None


async def test_what_is_no_image_is_not_loaded(docker: Docker) -> None:
    async def garbage() -> AsyncIterator[bytes]:
        for _ in range(64):
            yield b"no tar!!" * 8192

    with pytest.raises(DockerFailed, match="tar"):
        await docker.load_image(garbage())


async def test_a_broken_source_of_an_image_is_what_is_raised(docker: Docker) -> None:
    async def broken() -> AsyncIterator[bytes]:
        async with aclosing(docker.save_image("busybox")) as saved:
            async for chunk in saved:
                yield chunk[
                    :4096
                ]  # no more than the kernel takes at once: a transport with a rest closes when that is gone
                raise ConnectionResetError("the peer went away")

    before = await docker.images()
    with pytest.raises(ConnectionResetError, match="the peer went away"):
        await docker.load_image(broken())
    assert await docker.images() == before
