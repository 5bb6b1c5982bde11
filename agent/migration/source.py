"""The source's side of a migration, told once from top to bottom; handover.md is the law.

Until COMMITTED everything can be taken back by this side alone, and is, on any error or cancel. After it nothing is.
"""

import asyncio
import contextlib
import logging
import time
from functools import partial

from agent.base.errors import AgentError, DumpFailed, Lost
from agent.base.tasks import both, to_the_end, unless, within
from agent.base.undo import Undo
from agent.checkpoint import freezer, proc, resume
from agent.doors.peer_client import PeerClient
from agent.migration import leaving
from agent.migration.choosing import memory_follows
from agent.migration.files import FilePasses
from agent.migration.host import Host
from agent.migration.run import Run
from agent.migration.subject import Subject
from agent.network import identity, lock, quiet
from agent.strategy import Strategy
from agent.strategy.postcopy import GONE
from protocol.commands import TcpPolicy
from protocol.peer import Arrival, Manifest, Running
from protocol.status import Phase

log = logging.getLogger("agent.source")


async def migrate(run: Run, subject: Subject, host: Host, peer: PeerClient, strategy: Strategy) -> None:
    """Move one running container to a peer, or leave it exactly as it was."""
    async with Undo(failed=run.undo_failed) as undo:
        undo.first("make the peer forget it", leaving.tell_discard, peer, run)
        answer = await peer.offer(subject.offer)
        run.notes += answer.notes
        await run.enter(Phase.RESERVED)

        undo.first("put the restart policy back", leaving.put_policy_back, host, run, subject)
        await host.docker.set_restart_policy(subject.id, {"Name": "no"})  # nobody else may start a copy

        await leaving.send_missing_layers(run, subject, host, peer, answer)
        passes = FilePasses(run, subject, peer)
        run.notes += (await peer.create(run.id)).notes
        await passes.log()
        await peer.stage(run.id)  # dockerd's and the runtime's work there is done; the runtime waits
        await run.enter(Phase.COPYING)
        await passes.first()
        undo.first("remove the images", strategy.release, host.shell, run.id)
        memory = subject.memory(run, host, peer)
        await strategy.copy_while_running(memory, passes.again)
        if strategy.lazy and not subject.offer.lazy:
            subject = subject.followed()
            await run.note_down(**subject.to_record())
        await peer.warm_up(run.id)

        undo.first("thaw and unlock the container", let_go, run, host, subject, strategy)
        tasks = await hold(run, subject, host)  # the blackout starts
        await run.enter(Phase.FROZEN)
        async with within(host.settings.deadlines.dump, "dump and transfer", leaving.SLOW_HINT):
            (dump, images), files = await both(strategy.dump_and_send(memory), passes.delta())
        sent = strategy.sent
        manifest = Manifest(parts=(*sent, dump, *files), images=images, tasks=len(tasks), rounds=len(sent))
        preparing = peer.prepare(run.id, manifest)  # restored there, stopped, locked, proved
        prepared = await unless(preparing, strategy.fails_to_serve(run.id))
        run.figures["restore_ms"] = prepared.restore_ms
        await run.enter(Phase.PREPARED)
        if subject.offer.lazy and not await strategy.serves(run.id):
            raise DumpFailed(GONE)

        await commit(run, undo)  # fsync: the one decision; nothing is taken back from here on
    await finish(run, subject, host, peer, strategy)


async def finish(run: Run, subject: Subject, host: Host, peer: PeerClient, strategy: Strategy) -> None:
    """From the decision to the end; a restarted source goes on here. Every step is safe to repeat."""
    if run.phase is Phase.COMMITTED:
        if subject.offer.tcp is TcpPolicy.CLOSE:
            await hang_up(host, subject)
        running = await go_until_answered(run, host, peer)  # the blackout ends there
        if "frozen_at" in run.figures:
            run.figures["blackout_ms"] = (time.monotonic() - run.figures["frozen_at"]) * 1000
        run.target_phases = running.phases
        run.figures["target_cpu_s"] = running.cpu_s
        if running.network_ms is not None:
            run.figures["network_ms"] = running.network_ms
        run.notes += [note for note in running.notes if note not in run.notes]
        await run.enter(Phase.RUNNING, **run.shown())
    if subject.offer.lazy:
        await until_whole(run, host, peer, strategy)
    await strategy.stop_serving(host.shell, run.id)
    if subject.pid in subject.cgroup.tasks():
        await quiet.drop(subject.pid)
    await leaving.end_copy(host, run, subject)
    await strategy.release(host.shell, run.id)
    await leaving.tell_forget(peer, run)
    await run.enter(Phase.DONE)


async def hold(run: Run, subject: Subject, host: Host) -> list[proc.Task]:
    """Frozen, not dead: network locked, tasks frozen; the tasks there are."""
    began, keep = time.monotonic(), subject.offer.tcp is TcpPolicy.KEEP
    seconds = host.settings.deadlines.freeze
    good = partial(memory_follows, run, subject)
    held = await quiet.hold(host.shell, subject.pid, subject.cgroup, seconds, accepted=keep, good=good)
    run.figures["frozen_at"] = held.frozen_at
    run.figures["freeze_ms"] = (time.monotonic() - began) * 1000
    if held.left.stuck + held.left.closing and keep:
        run.notes.append(
            f"{held.left.stuck + held.left.closing} connections that it had closed were not delivered to their end"
        )
    return proc.tasks(subject.cgroup.tasks())


async def let_go(run: Run, host: Host, subject: Subject, strategy: Strategy) -> None:
    """Thaw and unlock it, once CRIU has let go of it: tasks that are thawed before that run into CRIU's parasite."""
    await strategy.stop_serving(host.shell, run.id)
    await release(host, subject)


async def release(host: Host, subject: Subject) -> None:
    """Make sure that the container is neither locked nor frozen; of one that is gone, that runc can delete it."""
    if not subject.cgroup.tasks():
        await freezer.thaw_if_empty(subject.cgroup)
    else:
        try:
            await resume.give_back(subject.cgroup)
            await lock.unlock(host.shell, subject.pid)
        finally:  # a mute container is bad, a frozen one is worse
            await resume.thaw(subject.cgroup)
        with contextlib.suppress(OSError):  # the target may have announced itself, and switches send its frames there
            await asyncio.to_thread(identity.announce, subject.pid)


async def hang_up(host: Host, subject: Subject) -> None:
    """Connections that don't go on are ended here, before the target says where the address is."""
    if subject.pid in subject.cgroup.tasks():  # its number may be another's by now, after a crash
        with contextlib.suppress(AgentError):  # then their other sides have to find out by themselves
            await quiet.hang_up(host.shell, subject.pid)


async def commit(run: Run, undo: Undo) -> None:
    """Write the decision. Whether it was written is known for certain when this returns or raises."""
    run.deciding = True  # from here on no cancel is taken: it could come between the decision and its being known
    try:
        await to_the_end(run.decide())
    finally:
        if run.phase is Phase.COMMITTED:
            undo.detach()


async def go_until_answered(run: Run, host: Host, peer: PeerClient) -> Running:
    """Tell the decision until the target has confirmed that the container runs. No deadline: it is decided."""
    while True:
        try:
            running = await peer.go(run.id)
        except AgentError as error:
            if run.doubt is None:
                log.warning("%s is decided, but %s has not confirmed yet: %s", run.id, peer.name, error)
            run.doubt = error.info()
            await run.publish()
            await asyncio.sleep(host.settings.deadlines.ask_again)
        else:
            run.doubt = None
            return running


async def until_whole(run: Run, host: Host, peer: PeerClient, strategy: Strategy) -> None:
    """Wait until the last page is across: till then the frozen copy lives, however long the target is away (rule 7).

    Memory that can't get across any more is a person's to give up: it was the last of it, and it is kept until then.
    """
    run.sending("pages")
    began = time.monotonic()
    while not run.record.get("given_up"):
        try:
            arrived = await peer.arrived(run.id)
        except AgentError as error:
            await doubt(run, error)
            await asyncio.sleep(host.settings.deadlines.ask_again)
            continue
        if arrived.state is Arrival.WHOLE:
            break
        if arrived.state is Arrival.LOST or not await strategy.serves(run.id):
            await doubt(run, lost(run, arrived.detail))
            await asyncio.sleep(host.settings.deadlines.ask_again)
        else:
            run.doubt = None
    if run.record.get("given_up"):
        run.failure = lost(run).info()
        return
    run.doubt = None
    run.figures["pages_ms"] = (time.monotonic() - began) * 1000
    run.part_done("pages", int(run.figures.get("pages_bytes", 0)), began, frozen=False)


def lost(run: Run, detail: tuple[str, ...] = ()) -> Lost:
    """What is said of memory that can't get across any more."""
    return Lost(
        f"the memory of {run.container} did not get across whole, and it has run on {run.peer} already",
        hint=f"it is held there, and what is left of its frozen copy here, until `transship resolve {run.id} --commit`",
        detail=detail,
    )


async def doubt(run: Run, error: AgentError) -> None:
    """Say what is waited for, once."""
    said, run.doubt = run.doubt, error.info()
    if said is None or said.code is not run.doubt.code:
        log.warning("%s: %s", run.id, error)
        await run.publish()
