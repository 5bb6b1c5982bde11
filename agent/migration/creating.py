"""The target's `docker create`: the offer's body as this host's engine, networks and ports take it."""

import re

from agent.base.errors import DockerFailed, Refused
from agent.migration import belongings, endpoints, fitting, homes, pins, ports
from agent.migration.fitting import Body
from agent.migration.host import Host
from agent.migration.run import Run
from protocol.peer import Offer

TAKES_NO_WISHES = re.compile(r"invalid config for network (\S+):.*user configured subnets", re.DOTALL)


async def create(host: Host, run: Run, offer: Offer) -> str:
    """Create the container, with no restart policy; its id, which is in the journal by then."""
    await endpoints.clear(host.docker, offer)
    image = await belongings.image_here(host.docker, offer.image)
    run.notes += image.notes
    body = {**await _fitted(host, run, offer), "Image": image.name}
    body["HostConfig"] = {**fitting.host_config(body), "Runtime": host.settings.runtime}
    await run.note_down(creating=offer.container)
    created = await _create(host, run, offer, body)
    await run.note_down(container_id=created)
    if offer.home and offer.home != host.name:
        homes.remember(host.settings.state_dir, created, offer.home)
    pins.remember(host.settings.state_dir, created, offer.pinned, [found.id for found in await host.docker.list()])
    return created


async def _fitted(host: Host, run: Run, offer: Offer) -> Body:
    docker, settings = host.docker, host.settings
    found = [await docker.network(wanted.name) for wanted in offer.networks]
    fitted = fitting.fit_networks(offer, {network.name: network for network in found if network is not None})
    for reason in fitted.reasons:  # none when it was admitted
        raise Refused(reason.code, reason.message, hint=reason.hint)
    clashes = ports.clashing(ports.published(fitted.create)) if settings.port_policy == "remap" else ()
    body, remapped = ports.remapped(fitted.create, clashes)
    engine = fitting.fit_engine(body, (await docker.engine(settings.runtime)).api)
    run.notes += [*fitted.notes, *remapped, *engine.notes]
    return engine.create


async def _create(host: Host, run: Run, offer: Offer, body: Body) -> str:
    """Create it; on a network that takes no wishes for addresses, without those that the user has not made.

    Docker takes them only where the user has chosen the subnet, which `inspect` does not tell.
    """
    while True:
        try:
            return await host.docker.create(offer.container, body)
        except DockerFailed as error:
            found = TAKES_NO_WISHES.search(error.message)
            ends = body["NetworkingConfig"]["EndpointsConfig"]
            if found is None or not fitting.may_give_up(offer, name := found[1]) or "IPAMConfig" not in ends[name]:
                raise
            body = fitting.without_addresses(body, {name: fitting.given_up(offer, name)})
            run.notes.append(f"it may get another address on {name}, whose subnet is of Docker's choice there")
