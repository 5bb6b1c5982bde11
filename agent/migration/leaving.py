"""What the source does around the story: sends layers, ends its own copy, tells the peer; and the ways back.

Everything here is idempotent - "make sure it is so" - since a restarted agent calls it again.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator

from agent.base.errors import AgentError, DockerFailed
from agent.base.tasks import beside, within
from agent.checkpoint import freezer, proc
from agent.doors.peer_client import PeerClient
from agent.migration import belongings, cleared, kept, restarting
from agent.migration.host import Host
from agent.migration.run import Run
from agent.migration.subject import Subject
from agent.prework.layers import filtered, read_image_index
from agent.strategy import dead
from agent.strategy.dump import DUMPS
from protocol.commands import SourcePolicy
from protocol.peer import Answer
from protocol.status import Phase

log = logging.getLogger("agent.source")

FORGET_ATTEMPTS = 3
DISCARD_SECONDS = 10.0
"""For the peer to be told that it is off: an undo must not fail because the peer is slow."""
ALIVE_SECONDS = 5.0
"""Well within the target's lease (targets.LEASE_SECONDS)."""
LOOK_SECONDS = 0.05
SLOW_HINT = "the container is frozen meanwhile; raise deadlines.dump if that may take longer"


async def send_missing_layers(run: Run, subject: Subject, host: Host, peer: PeerClient, answer: Answer) -> None:
    """Only what the peer lacks, by diff id; nothing where it has the image."""
    image, rest = subject.offer.image, subject.offer.files_bytes + subject.memory_bytes
    if not answer.image_wanted:
        run.expects(rest)
        return
    run.expects(image.size * len(answer.missing_layers) // max(1, len(image.diff_ids)), rest)
    drop = await _held(subject, host, answer)
    run.sending("layers")
    began = time.monotonic()

    async def counted() -> AsyncIterator[bytes]:
        async for chunk in filtered(host.docker.save_image(subject.offer.image.id), drop):
            await run.pace(len(chunk))
            yield chunk
            run.sent(len(chunk))

    part = await peer.send_layers(run.id, counted())
    run.part_done(part.name, part.bytes, began, frozen=False)


async def _held(subject: Subject, host: Host, answer: Answer) -> frozenset[str]:
    """Blobs of the image, as this engine's `docker save` names them, that the peer has already."""
    image = subject.offer.image
    all_missing = set(answer.missing_layers) >= set(image.diff_ids)
    if answer.engine.image_store == "graphdriver" and all_missing:
        return frozenset()
    if subject.offer.engine.image_store == "graphdriver" and answer.engine.image_store == "graphdriver":
        return frozenset(image.diff_ids) - frozenset(answer.missing_layers)  # a layer is named by its diff id there
    # containerd names a layer by the digest of what it stores; which diff id that is says the image itself
    index = await read_image_index(host.docker.save_image(image.id))
    if answer.engine.image_store == "graphdriver":
        return frozenset(index.droppable(set(answer.missing_layers)))
    return frozenset(layer.digest for layer in index.layers) & frozenset(answer.held_blobs)


async def tell_discard(peer: PeerClient, run: Run) -> None:
    """Tell the peer that it is off. If it can't be told now it finds out by itself: by its lease, or by asking."""
    try:
        async with within(DISCARD_SECONDS, "telling it"):
            await peer.discard(run.id)
    except AgentError as error:
        log.warning("%s: %s could not be told to discard and will ask: %s", run.id, peer.name, error)


async def tell_forget(peer: PeerClient, run: Run) -> None:
    """Tell the peer that the source is done. It has finished by itself; this only saves it a question."""
    for _ in range(FORGET_ATTEMPTS):
        with contextlib.suppress(AgentError):
            await peer.forget(run.id)
            return
        await asyncio.sleep(1.0)


async def tell_alive(peer: PeerClient, run: Run) -> None:
    """Keep the target's lease while nothing is decided: it discards what it hears nothing of. Goes on for ever."""
    while True:
        await asyncio.sleep(ALIVE_SECONDS)
        if run.phase in (Phase.RESERVED, Phase.COPYING, Phase.FROZEN):
            with contextlib.suppress(AgentError):  # what is wrong with the link shows where something is sent
                await peer.alive(run.id)


async def put_policy_back(host: Host, run: Run, subject: Subject) -> None:
    """Make sure that the container has its own restart policy, and runs if it would run by that; but not one that is
    ended since it is in a checkpoint.
    """
    if kept.recall(host.settings.state_dir, subject.id) is not None:
        if not subject.cgroup.tasks():  # dockerd need not know yet
            return
        kept.let_go(host.settings.state_dir, subject.id)
    await restarting.set_back(host.docker, run, subject.id, subject.restart_policy)
    await restarting.start_as_docker_would(host.docker, subject.id, subject.restart_policy, stopped=run.stopped)


async def end_copy(host: Host, run: Run, subject: Subject) -> None:
    """The frozen copy dies while it is still locked, so that no FIN or RST leaves; then the container goes."""
    await freezer.kill_frozen(subject.cgroup)
    found, name = await host.docker.find(subject.id), f"{subject.name}.moved-{run.id}"
    keep = subject.after is SourcePolicy.KEEP and not subject.auto_remove
    if found is None:  # an agent before this one may have come so far
        await cleared.clear(host.shell, subject.id)
    elif not keep:
        await cleared.remove(host.docker, host.shell, subject.id)
    elif found.name != name:
        await host.docker.rename(subject.id, name)
    if keep:
        return
    for volume in subject.offer.volumes:
        if belongings.copied(volume):
            # its content is on the target, proved by hash; a stale copy here would stand in the way of a return
            with contextlib.suppress(DockerFailed):  # in use by another container: then it is not ours to remove
                await host.docker.remove_volume(volume.name)


async def wait_for_left_behind_dump(run: Run) -> None:
    """After a crash: a CRIU that still dumps must end before the tasks may be thawed, or its parasite ruins them."""
    if left := proc.criu_in(DUMPS / run.id):
        log.warning("%s: waiting for the dump that goes on without its agent: processes %s", run.id, left)
    async with beside(dead.see_to(DUMPS / run.id)):
        while proc.criu_in(DUMPS / run.id):
            await asyncio.sleep(LOOK_SECONDS)
