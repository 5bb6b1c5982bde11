"""A restored copy that CRIU holds: what is heard of it, how dockerd gets it, how it is ended without having run."""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Coroutine
from typing import Any

from agent.base.errors import ContainerGone, RestoreFailed, Stranded
from agent.checkpoint import freezer, proc
from agent.checkpoint.freezer import Cgroup
from agent.doors.handover import HandOver, RestoreResult
from agent.migration.run import Run
from agent.network import quiet, sockets
from agent.network.namespace import open_namespace
from protocol.status import Phase

LOOK_SECONDS = 0.1
WORD_SECONDS = 1.0
HUNG_SECONDS = 0.5
"""For a restore that is not wanted any more, and whose memory was to follow: nobody answers it, and it may hang."""
GIVEN_UP_SECONDS = 20.0
"""So long at most dockerd's start goes on after the end of what it was to start."""


async def next_word(
    hand_over: HandOver, start: "asyncio.Task[None]", given_up: asyncio.Event, wanted: tuple[str, ...]
) -> str:
    """What the runtime says, waiting for one of these; empty where none comes, or it is not waited for any more."""
    hearing = asyncio.create_task(hand_over.event(), name=f"hear {wanted}")
    giving_up = asyncio.create_task(given_up.wait(), name="give up")
    ended = asyncio.create_task(_no_more_words(hand_over, start, wanted), name="end of the runtime")
    try:
        await asyncio.wait({hearing, giving_up, ended}, return_when=asyncio.FIRST_COMPLETED)
        if not giving_up.done():  # the word comes before the end, but the two may be seen in the other order
            await asyncio.wait({hearing, giving_up}, timeout=WORD_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        return hearing.result() if hearing.done() else ""
    finally:
        for waiting in (hearing, giving_up, ended):
            waiting.cancel()


async def _no_more_words(hand_over: HandOver, start: "asyncio.Task[None]", wanted: tuple[str, ...]) -> None:
    """Wait until none of these can come: dockerd's start has failed; or it has returned, and the restore has ended."""
    await asyncio.wait({start})
    if start.cancelled() or start.exception() is not None:
        return
    if wanted == ("printed",):  # said by a child of the runtime, when containerd reads
        await asyncio.Event().wait()
    await hand_over.runtime_ended()


async def is_started(start: "asyncio.Task[None]", result: RestoreResult, seconds: float) -> bool:
    """Wait for dockerd's start of it to return, and whether it has.

    Where it fails (it can't attach the network, say) it kills the first process, and waits for an end that does not
    come: that is for runc to see, which waits itself.
    """
    with contextlib.suppress(OSError), open_namespace(result.pid) as namespace:
        end = time.monotonic() + seconds
        while not start.done() and not proc.is_ending(result.pid) and time.monotonic() < end:
            await asyncio.wait({start}, timeout=LOOK_SECONDS)
        if not start.done():
            await asyncio.to_thread(sockets.destroy, namespace)
    return start.done()


async def or_why_it_ended(proof: Coroutine[Any, Any, None], start: "asyncio.Task[None] | None") -> None:
    """Have a copy proved while dockerd takes it over. Of one that is gone, since dockerd has given it up meanwhile, the
    reason is dockerd's.

    Raises:
        RestoreFailed, ContainerGone: there is no proof, and dockerd has said nothing against it.
        AgentError: what dockerd says.

    """
    try:
        await proof
    except (ContainerGone, RestoreFailed):
        if start is not None:
            await asyncio.wait({start}, timeout=GIVEN_UP_SECONDS)
            if start.done() and not start.cancelled() and (why := start.exception()) is not None:
                raise why from None
        raise


async def why_not(start: "asyncio.Task[None]", seconds: float) -> str:
    """What dockerd says of a start that fails; empty where it says nothing in time."""
    await asyncio.wait({start}, timeout=seconds)
    failure = start.exception() if start.done() and not start.cancelled() else None
    return str(failure) if failure else ""


def is_there(run: Run) -> bool:
    """Whether the copy that was proved is there still; of one that may not run yet, whether CRIU holds it still.

    Where CRIU was killed, a runc that hears of it gives its container up, some time later: it forgets it, and has
    systemd end what runs in its scope. Such a copy is not to be relied on while there is another.
    """
    pid = int(run.record["pid"])
    if proc.start_time(pid) != run.record["pid_start"] or proc.is_ending(pid):
        return False
    task = proc.task(pid)
    return run.phase is not Phase.PREPARED or (task is not None and task.tracer != 0)


def gone(run: Run) -> Stranded:
    """What is said to the source of a decided copy that is not there."""
    again = "run again" + (", as it was before that moment" if run.record.get("may_have_run") else "")
    return Stranded(
        f"{run.container} is restored, but {run.how_gone}",
        hint=f"the source still has its frozen copy: `transship resolve ID --abort` there lets it {again}",
    )


async def end(hand_over: HandOver, result: RestoreResult) -> None:
    """Make sure that no task of it is left, and no mount that would keep containerd from deleting it."""
    holders = proc.criu_in(hand_over.path)
    group = _cgroup(hand_over.path.name, [result.pid, *holders])
    if result.runc in holders:
        # runc first: it would reap the container's first process, and containerd would never hear of its end
        with contextlib.suppress(ProcessLookupError):
            os.kill(result.runc, signal.SIGKILL)
    if group is not None and result.pid in group.tasks():
        await quiet.drop(result.pid)
    await hand_over.unmount_all(killed=True)  # before containerd hears of the end, and deletes runc's folder
    if group is not None:
        await freezer.kill_frozen(group)  # CRIU is in it too


async def end_in_part(hand_over: HandOver) -> None:
    """The same of one whose restore has failed half-way, or hangs: nobody has said which is its first process.

    What runc and CRIU had made by then goes with them where they end by themselves, and stays where they were killed.
    """
    groups = [group for group in await asyncio.to_thread(freezer.of_container, hand_over.path.name) if group.tasks()]
    if groups:
        await hand_over.unmount_all(killed=True)
    for group in groups:
        await freezer.kill_frozen(group)


def _cgroup(container_id: str, pids: list[int]) -> Cgroup | None:
    """The container's own, by its name. Of a process that is dead already the kernel says the root, and of runc the
    engine's: neither must be killed.
    """
    for pid in pids:
        with contextlib.suppress(ContainerGone):
            group = freezer.cgroup_of(pid)
            if container_id in group.path.name:
                return group
    return None
