"""The spec against real engines: every container of the table, described on one, is created the same on another."""

import json
from pathlib import Path
from typing import Any

import pytest

from agent.doors.docker import Docker
from agent.doors.docker_model import Container
from agent.migration import fields, fitting, spec
from lab import Host, Lab
from tests.e2e.engines import door

CHECKOUT = Path(__file__).parents[2]
TABLE: dict[str, Any] = json.loads((CHECKOUT / "tests/unit/data/containers.json").read_text())


def make(host: Host) -> None:
    for name, lines in TABLE["images"].items():
        source = host.docker("create", "busybox", "true").strip()
        host.docker("commit", *(word for line in lines for word in ("--change", line)), source, name)
        host.docker("rm", source)
    for name, options in TABLE["networks"].items():
        host.docker("network", "create", *options, name)
    for name, options in TABLE["volumes"].items():
        host.docker("volume", "create", *options, name)
    for options in TABLE["containers"].values():
        host.docker("run", "--detach", *options)
    for network, name, *options in TABLE["connect"]:
        host.docker("network", "connect", *options, network, name)


def clear(host: Host) -> None:
    host.run(["docker", "rm", "--force", "--volumes", *TABLE["containers"]], check=False)
    host.run(["sh", "-c", "docker volume rm $(docker volume ls --quiet)"], check=False)
    host.run(["docker", "network", "rm", *TABLE["networks"]], check=False)
    host.run(["docker", "image", "rm", *TABLE["images"]], check=False)


async def make_again(here: Docker, there: Docker, found: Container) -> tuple[Container, spec.Spec]:
    """What a target does with an Offer, but for the content."""
    image = await here.image(found.image_id)
    assert image is not None
    if await there.image(found.image) is None:
        await there.load_image(here.save_image(found.image))
    result = await spec.describe(here, found, image, {})
    for network in result.networks:
        if await there.network(network.name) is None:
            await there.create_network(network.create)
    for volume in result.volumes:
        if volume.kind == "volume" and not volume.anonymous and await there.volume(volume.name) is None:
            await there.create_volume(
                {"Name": volume.name, "Driver": volume.driver, "DriverOpts": volume.options, "Labels": volume.labels}
            )
    fitted = fitting.fit_engine(result.create, (await there.engine()).api)
    made = await there.create(found.name, fitted.create)
    await there.start(made)
    await there.set_restart_policy(made, found.restart_policy)
    return await there.inspect(made), result


@pytest.mark.parametrize(("source", "target"), [("d26", "d28"), ("d28", "d26"), ("d28", "store28")])
async def test_every_container_of_the_table_is_the_same_afterwards(lab: Lab, source: str, target: str) -> None:
    clear(lab[source])
    clear(lab[target])
    make(lab[source])
    different: dict[str, tuple[str, ...]] = {}
    try:
        async with door(lab[source]) as here, door(lab[target]) as there:
            for name in TABLE["containers"]:
                before = await here.inspect(name)
                after, result = await make_again(here, there, before)
                found = fields.differences(before.raw, after.raw)
                if found and name != "borrower":  # whose borrowed mounts are written out
                    different[name] = found
                for was in before.networks:
                    [now] = [one for one in after.networks if one.network == was.network]
                    if was.network != "bridge":
                        assert (now.addresses, now.mac) == (was.addresses, was.mac), name
                assert all(network.addresses == () for network in result.networks if network.name == "bridge")
    finally:
        clear(lab[source])
        clear(lab[target])
    assert different == {}
