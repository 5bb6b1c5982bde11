"""The spec against real engines: every container of the table, described on one, is created the same on another."""

import pytest

from agent.doors.docker import Docker
from agent.doors.docker_model import Container
from agent.migration import fields, fitting, spec
from lab import Lab
from tests.e2e.engines import door
from tests.unit.data.record import TABLE, make, remove


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
    remove(lab[source])
    remove(lab[target])
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
        remove(lab[source])
        remove(lab[target])
    assert different == {}
