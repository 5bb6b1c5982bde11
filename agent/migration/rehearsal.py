"""A rehearsal: would it work, and how long would it take? The story of a move up to PREPARED, and its undo.

    source   as in a move, but that it runs again as soon as CRIU and the last files are done with it
    target   as in a move, under a throw-away name, on no network but for stand-in addresses on lo, and locked

Nothing new can be decided here. The source never enters COMMITTED: the end of the story is the undo that any failure
has, on purpose. The target (thrown_away.py) refuses to let such a copy run, whoever asks. The image stays there.
"""

import asyncio
import time
from typing import Any

from agent.base.errors import Refused, RestoreFailed, StepFailed
from agent.base.tasks import both, within
from agent.base.undo import Undo
from agent.doors.peer_client import PeerClient
from agent.migration import fitting, leaving, source
from agent.migration.files import FilePasses
from agent.migration.host import Host
from agent.migration.run import Run
from agent.migration.subject import Subject
from agent.strategy import Strategy
from protocol.errors import ErrorCode
from protocol.peer import Manifest, Offer
from protocol.status import Phase


class Rehearsed(StepFailed):
    """Not an error: the way back of a rehearsal that went well."""


async def rehearse(run: Run, subject: Subject, host: Host, peer: PeerClient, strategy: Strategy) -> None:
    """Do all of a move that can be taken back.

    Raises:
        Rehearsed: it went well, and all of it is taken back; or whatever else has failed.

    """
    check_can_be(subject.offer)
    async with Undo(failed=run.undo_failed) as undo:
        undo.first("make the peer forget it", leaving.tell_discard, peer, run)
        answer = await peer.offer(subject.offer)
        await run.enter(Phase.RESERVED)
        await leaving.send_missing_layers(run, subject, host, peer, answer)
        passes = FilePasses(run, subject, peer)
        await peer.create(run.id)
        await passes.log()
        await peer.stage(run.id)
        await run.enter(Phase.COPYING)
        await passes.first()
        undo.first("remove the images", strategy.release, host.shell, run.id)
        memory = subject.memory(run, host, peer)
        await strategy.copy_while_running(memory, passes.again)
        await peer.warm_up(run.id)

        undo.first("thaw and unlock the container", _let_go, run, subject, host, strategy)
        tasks = await source.hold(run, subject, host)
        await run.enter(Phase.FROZEN)
        async with within(host.settings.deadlines.dump, "dump and transfer", leaving.SLOW_HINT):
            files_then_run = _last_files(run, subject, host, strategy, passes, memory.written)
            (dump, images), files = await both(strategy.dump_and_send(memory), files_then_run)
        manifest = Manifest(parts=(dump, *files), images=images, tasks=len(tasks))
        prepared = await peer.prepare(run.id, manifest)
        run.figures["restore_ms"] = prepared.restore_ms
        run.figures["rehearsed_ms"] = (time.monotonic() - run.figures["frozen_at"]) * 1000
        await run.enter(Phase.PREPARED)
        if prepared.tasks != len(tasks):
            raise RestoreFailed(f"{prepared.tasks} tasks were restored of {len(tasks)}")
        raise Rehearsed(f"{run.container} could be moved to {run.peer}")


async def _last_files(
    run: Run, subject: Subject, host: Host, strategy: Strategy, passes: FilePasses, written: asyncio.Event
) -> list[Any]:
    """Send what has changed; then nothing needs the container frozen, though its images are still on the way."""
    files = await passes.delta()
    await written.wait()
    await _let_go(run, subject, host, strategy)
    run.figures["held_ms"] = (time.monotonic() - run.figures["frozen_at"]) * 1000
    return files


async def _let_go(run: Run, subject: Subject, host: Host, strategy: Strategy) -> None:
    """Thaw and unlock it, once: from then on it is its user's again, who may have paused it."""
    if not run.record.get("let_go"):
        await source.let_go(run, host, subject, strategy)
        await run.note_down(let_go=True)


def check_can_be(offer: Offer) -> None:
    """Raises Refused for one whose copy could not be kept from being seen."""
    if fitting.host_config(offer.create).get("NetworkMode") == "host":
        raise Refused(
            ErrorCode.NOT_MIGRATABLE,
            f"{offer.container} is on the host's network, where its copy would be seen: it can't be rehearsed",
            hint="`transship check` says what stands against a move",
        )
