"""What a container needs around it on the target: its image, volumes, networks, log files; and their way back.

Whatever is made here is noted in the journal first, so that a discard after a crash finds it.
"""

import asyncio
import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.base.errors import DockerFailed, Refused, StepFailed
from agent.doors.docker import Docker
from agent.doors.docker_model import Image
from agent.migration import fitting
from agent.migration.host import Host
from agent.migration.run import Run
from agent.prework.confined import Confined
from protocol.errors import ErrorCode
from protocol.peer import ImageRef, Offer, Volume

CONFLICT = 409


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
    """Make the missing networks and volumes, the same as at the source, and the folders of bind mounts to be filled."""
    for network in offer.networks:
        if await host.docker.network(network.name) is None:
            if not network.create or host.settings.network_policy != "create":
                raise Refused(ErrorCode.NETWORK_MISSING, f"there is no network {network.name} on {host.name}")
            body, note, against = fitting.network_here(offer, network, await host.docker.networks())
            if against:
                raise Refused(ErrorCode.INCOMPATIBLE, against)
            await _make_network(host, run, body)
            run.notes += [note] if note else []
    for number, volume in enumerate(offer.volumes):
        if volume.kind == "bind":
            if bind_here(host.settings.bind_copy, volume)[0]:
                await _make_folder(run, number, host.settings.bind_copy, Path(volume.name))
        elif not volume.anonymous and await host.docker.volume(volume.name) is None:
            if not volume.shared:  # removed when the move is taken back, and its content is everybody's
                await _note_volume(run, volume.name, volume.name)
            await host.docker.create_volume(
                {
                    "Name": volume.name,
                    "Driver": volume.driver,
                    "DriverOpts": dict(volume.options),
                    "Labels": dict(volume.labels),
                }
            )


async def _make_network(host: Host, run: Run, body: dict[str, Any]) -> None:
    """Make it, unless another migration was faster: then it is that one's to take back."""
    before = run.record.get("networks", [])
    await run.note_down(networks=[*before, body["Name"]])
    try:
        await host.docker.create_network(body)
    except DockerFailed as error:
        if error.http_status != CONFLICT or await host.docker.network(body["Name"]) is None:
            raise
        await run.note_down(networks=before)


async def _note_volume(run: Run, offered: str, here: str) -> None:
    await run.note_down(volumes={**run.record.get("volumes", {}), offered: here})


def copied(volume: Volume) -> bool:
    """Whether a volume's content travels: local ones, and not those whose options name shared storage."""
    return volume.kind == "volume" and volume.driver == "local" and not volume.options.get("device")


async def take_over_volumes(host: Host, run: Run, offer: Offer, container_id: str) -> None:
    """Find the volumes that Docker has made for the new container by itself, and empty all that are to be filled.

    `docker create` fills a new volume from the image: what was deleted from it at the source would be there again.
    """
    mounts = {mount.destination: mount for mount in (await host.docker.inspect(container_id)).mounts}
    for volume in offer.volumes:
        if volume.anonymous:
            await _note_volume(run, volume.name, mounts[volume.destination].name)
    for volume in offer.volumes:
        if copied(volume) and volume.name in run.record.get("volumes", {}):
            place = await volume_path(host, run, offer, volume.name)
            await asyncio.to_thread(_empty, place)


def _empty(folder: Path) -> None:
    with Confined(str(folder)) as tree:
        tree.empty("")


async def volume_path(host: Host, run: Run, offer: Offer, offered: str) -> Path:
    """Where the content of a volume that this migration made is written.

    Raises:
        Refused: the volume was here before: it is somebody else's. Or it is a way to another place of this host, by its
            options: what is written there is for `bind_copy` to say.

    """
    name = run.record.get("volumes", {}).get(offered)
    if name is None or not any(volume.name == offered and copied(volume) for volume in offer.volumes):
        raise Refused(ErrorCode.VOLUME_CONFLICT, f"the volume {offered} was not made by this migration")
    volume = await host.docker.volume(name)
    if volume is None:
        raise StepFailed(f"the volume {name} is gone")
    return Path(volume.mountpoint)


# Bind mounts


def bind_here(allowed: Sequence[Path], bind: Volume) -> tuple[bool, str, str]:
    """Whether its content is wanted; or what stands against it, with a hint. Never over content that is there."""
    place = Path(bind.name)
    exists = os.path.lexists(place)
    if not bind.copyable or not may_write(allowed, place):
        hint = "make it there with the content that the container expects"
        return False, "" if exists else f"the bind mount's path {place} is not there", "" if exists else hint
    if exists and not (place.is_dir() and not any(place.iterdir())):
        hint = "empty it on the target; or if both hosts have the same content there, take it out of bind_copy"
        return False, f"the bind mount's path {place} has content, and it would be overwritten", hint
    return True, "", ""


def may_write(allowed: Sequence[Path], place: Path) -> bool:
    """Whether it is below a folder that the configuration names, wherever symlinks lead."""
    real = place.resolve()
    return any(real != folder.resolve() and real.is_relative_to(folder.resolve()) for folder in allowed)


async def _make_folder(run: Run, number: int, allowed: Sequence[Path], place: Path) -> None:
    """Make it, and note first what of the way to it has to go again.

    From the allowed folder on no symlink is followed any more: whoever else may write there could put one in the way.
    """
    real = place.resolve()
    base = next(folder.resolve() for folder in allowed if real.is_relative_to(folder.resolve()))
    below = (folder for folder in (real, *real.parents) if folder != base and folder.is_relative_to(base))
    missing = [folder for folder in below if not folder.exists()]
    made = {"place": str(real), "base": str(base), "made": str(missing[-1]) if missing else ""}
    if not base.exists():
        made["base_made"] = str(base)
    await run.note_down(binds={**run.record.get("binds", {}), str(number): made})
    if "base_made" in made:  # the configuration names it, and whoever may write above it is root here
        base.mkdir(parents=True, exist_ok=True)
        base.chmod(0o755)
    with _refused_way(real), Confined(str(base)) as tree:
        for folder in reversed(missing):
            fd, name = tree.parent(str(folder.relative_to(base)))
            with contextlib.suppress(FileExistsError):  # another move is on the same way
                os.mkdir(name, dir_fd=fd)
                os.fchmod(tree.directory(str(folder.relative_to(base))), 0o755)  # whatever our umask: it is the user's
        tree.directory(str(real.relative_to(base)))


@contextlib.contextmanager
def _refused_way(place: Path) -> Iterator[None]:
    try:
        yield
    except (NotADirectoryError, FileNotFoundError) as error:
        raise Refused(
            ErrorCode.VOLUME_CONFLICT, f"somebody has changed the way to {place} meanwhile: {error.strerror}"
        ) from None


@contextlib.contextmanager
def bind_folder(run: Run, number: str) -> Iterator[int]:
    """Where the content of a bind mount is written, open.

    Raises:
        Refused: it was not asked for, or is not where it was made.

    """
    bind = run.record.get("binds", {}).get(number)
    if bind is None:
        raise Refused(ErrorCode.VOLUME_CONFLICT, f"the content of the bind mount {number} was not asked for")
    base, place = Path(bind.get("base", "/")), Path(bind["place"])
    with _refused_way(place):
        tree = Confined(str(base))
    with tree:
        with _refused_way(place):
            fd = tree.directory(str(place.relative_to(base)))
        yield fd


# The way back


async def remove_half_created(docker: Docker, offer: Offer) -> None:
    """Remove the container whose creation was begun, and whose id was lost in a crash.

    The name was free when the migration was taken, and `creating` was noted just before; what has it now and never
    ran is ours.
    """
    with contextlib.suppress(DockerFailed):
        found = await docker.inspect(offer.container)
        if found.state == "created":
            await docker.remove(found.id, force=True, volumes=True)


async def take_back(host: Host, run: Run) -> None:
    """Make sure that what `provide` made is gone."""
    for name in run.record.get("volumes", {}).values():
        await host.docker.remove_volume(name)
    for bind in run.record.get("binds", {}).values():
        await asyncio.to_thread(_unmake_folder, Path(bind.get("base", "/")), Path(bind["place"]), bind["made"])
        if bind.get("base_made"):
            with contextlib.suppress(OSError):  # not empty: something of another's is there
                Path(bind["base_made"]).rmdir()
    for name in run.record.get("networks", []):
        with contextlib.suppress(DockerFailed):  # another container has joined it meanwhile: then it is theirs
            await host.docker.remove_network(name)


def _unmake_folder(base: Path, place: Path, made: str) -> None:
    """An empty folder that was there before is empty again; what was not there is not. No symlink is followed."""
    with contextlib.suppress(NotADirectoryError, FileNotFoundError), Confined(str(base)) as tree:
        if made:
            with contextlib.suppress(OSError):  # somebody has something mounted there
                tree.remove(str(Path(made).relative_to(base)))
        else:
            tree.empty(str(place.relative_to(base)))
