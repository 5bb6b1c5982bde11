"""What a container needs around it on the target: its image, volumes, networks, log files; and their way back.

Whatever is made here is noted in the journal first, so that a discard after a crash finds it.
"""

import contextlib
from dataclasses import dataclass
from pathlib import Path

from agent.base.errors import DockerFailed, Refused, StepFailed
from agent.doors.docker import Docker
from agent.doors.docker_model import Image
from agent.migration.host import Host
from agent.migration.run import Run
from protocol.errors import ErrorCode
from protocol.peer import ImageRef, Offer, Volume

NOT_FOUND = 404


@dataclass(frozen=True, slots=True)
class ImageHere:
    """The image on this host: under which name to create the container, and what is not as it was."""

    name: str
    notes: tuple[str, ...] = ()


def same_image(image: Image, wanted: ImageRef) -> bool:
    """Whether two images are the same thing: by id, or across image stores by layers and configuration."""
    if image.id == wanted.id:
        return True
    return tuple(image.diff_ids) == wanted.diff_ids and _plain(image.config) == _plain(wanted.config)


def _plain(config: object) -> object:
    """A configuration without its empty fields, which engines write or leave out as they like."""
    if isinstance(config, dict):
        return {key: _plain(value) for key, value in config.items() if value not in (None, "", [], {}, False, 0)}
    return config


async def find_image(docker: Docker, wanted: ImageRef) -> Image | None:
    """The same image on this host, if it is here."""
    for image in await docker.images():
        if same_image(image, wanted):
            return image
    return None


async def image_here(docker: Docker, wanted: ImageRef) -> ImageHere:
    """The name by which to create the container, tagged as at the source where nobody else has that tag.

    Raises:
        StepFailed: the image is not here although it was sent.

    """
    image = await find_image(docker, wanted)
    if image is None:
        raise StepFailed(f"the image {wanted.name} is not on this host although its layers are")
    if wanted.name == wanted.id or wanted.name.removeprefix("sha256:") == wanted.id.removeprefix("sha256:"):
        return ImageHere(image.id)
    named = await docker.image(wanted.name)
    if named is None:
        await docker.tag_image(image.id, *repository_and_tag(wanted.name))
        return ImageHere(wanted.name)
    if named.id == image.id:
        return ImageHere(wanted.name)
    return ImageHere(
        image.id, (f"the tag {wanted.name} belongs to another image here; the container names its image by id",)
    )


def repository_and_tag(name: str) -> tuple[str, str]:
    """The two halves of an image's name; a colon before the last slash is a registry's port."""
    place, slash, rest = name.partition("@")[0].rpartition("/")
    repository, _, tag = rest.partition(":")
    return place + slash + repository, tag or "latest"


async def provide(host: Host, run: Run, offer: Offer) -> None:
    """Make the missing networks and volumes, the same as at the source."""
    for network in offer.networks:
        if await host.docker.network(network.name) is None:
            if not network.create or host.settings.network_policy != "create":
                raise Refused(ErrorCode.NETWORK_MISSING, f"there is no network {network.name} on {host.name}")
            await run.note_down(networks=[*run.record.get("networks", []), network.name])
            await host.docker.create_network(dict(network.create))
    for volume in offer.volumes:
        if volume.kind == "volume" and await host.docker.volume(volume.name) is None:
            await run.note_down(volumes=[*run.record.get("volumes", []), volume.name])
            await host.docker.create_volume(
                {
                    "Name": volume.name,
                    "Driver": volume.driver,
                    "DriverOpts": dict(volume.options),
                    "Labels": dict(volume.labels),
                }
            )


def copied(volume: Volume) -> bool:
    """Whether a volume's content travels: local ones, and not those whose options name shared storage."""
    return volume.kind == "volume" and volume.driver == "local" and not volume.options.get("device")


async def volume_path(host: Host, run: Run, name: str) -> Path:
    """Where the content of a volume that this migration made is written.

    Raises:
        Refused: the volume was here before: it is somebody else's.

    """
    if name not in run.record.get("volumes", []):
        raise Refused(ErrorCode.VOLUME_CONFLICT, f"the volume {name} was not made by this migration")
    volume = await host.docker.volume(name)
    if volume is None:
        raise StepFailed(f"the volume {name} is gone")
    return Path(volume.mountpoint)


async def remove_half_created(docker: Docker, offer: Offer) -> None:
    """Remove the container whose creation was begun, and whose id was lost in a crash.

    The name was free when the migration was taken, and `creating` was noted just before; what has it now and never
    ran is ours.
    """
    with contextlib.suppress(DockerFailed):
        found = await docker.inspect(offer.container)
        if found.state == "created":
            await docker.remove(found.id, force=True, volumes=False)


async def take_back(host: Host, run: Run) -> None:
    """Make sure that what `provide` made is gone."""
    for name in run.record.get("volumes", []):
        await host.docker.remove_volume(name)
    for name in run.record.get("networks", []):
        with contextlib.suppress(DockerFailed):  # another container has joined it meanwhile: then it is theirs
            await host.docker.remove_network(name)
