"""The migrations that come to this host: one `Target` each, one request at a time, and what they do when it is silent.

Implements the peer link's `PeerHandler`. A request runs in a task of its own, so that a broken link never leaves a
step half done.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Protocol, TypeVar

from agent.base import tracing
from agent.base.errors import DockerFailed, Refused
from agent.base.tasks import Failing
from agent.doors.docker import unavailable
from agent.doors.pages import WebSocket
from agent.doors.peer_server import Stream
from agent.migration import admission, machine, restarting, thrown_away
from agent.migration.arrival import image_room
from agent.migration.host import Host
from agent.migration.journal import Entry
from agent.migration.machine import OnRestart, Role
from agent.migration.run import Run
from agent.migration.target import Target, offer_from
from protocol.base import utc_now
from protocol.errors import ErrorCode, Reason
from protocol.peer import (
    Against,
    Answer,
    Arrival,
    Arrived,
    Checked,
    Created,
    Decision,
    DecisionKind,
    Manifest,
    Offer,
    Prepared,
    Probed,
    Question,
    Running,
    Staged,
)
from protocol.status import Phase

log = logging.getLogger("agent.target")

T = TypeVar("T")

LEASE_SECONDS = 20.0
"""Without a word from the source before PREPARED, a target discards: it can't have been decided yet.

A source that is busy with itself says that it is alive (leaving.tell_alive).
"""
MOST_PROBE_BYTES = 64 << 20
TAKES_PARTS = (Phase.RESERVED, Phase.STAGED)
"""From the restore on nothing is written any more: it would be written to what is proved, or runs."""
ASK_AFTER_SECONDS = 2.0
"""In PREPARED, silence for longer than a decision takes: from then on the target asks."""


class Asking(Protocol):
    """The two independent ways to learn the source's decision (rule 2)."""

    async def ask_peer(self, source: str, migration: str) -> DecisionKind:
        """Over the peer link; raises AgentError where it does not answer."""

    async def read_retained(self, source: str, migration: str) -> DecisionKind:
        """From the broker; PENDING while there is nothing."""


class _Slot:
    """A target, its lock, and what was promised to it."""

    def __init__(self, target: Target, need: admission.Reserved) -> None:
        self.target = target
        self.need = need
        self.lock = asyncio.Lock()
        self.watch: asyncio.Task[None] | None = None
        self.failing = Failing(f"{target.run.id}: a target's own step")
        self.unheard = Failing(f"{target.run.id}: asking {target.run.peer} for its decision")


class Targets:
    """Every migration that this host is the target of."""

    def __init__(self, host: Host, asking: Asking, decide: Callable[[str, str], Awaitable[DecisionKind]]) -> None:
        self._host = host
        self._asking = asking
        self._decide = decide
        self._slots: dict[str, _Slot] = {}
        self._admitting = asyncio.Lock()
        self.on_end: Callable[[], None] = lambda: None
        """Called when one of them is over here."""
        self._work: set[asyncio.Task[Any]] = set()

    # --- PeerHandler ---

    async def probe(self, peer: str, stream: Stream) -> Probed:
        """How fast it comes, and what its source may want to know before it offers something."""
        began, first = 0.0, 0
        async for chunk in aiter(stream):
            if not began:  # the beginning of a connection says nothing
                began, first = time.monotonic(), len(chunk)
            if stream.bytes > MOST_PROBE_BYTES:
                raise Refused(ErrorCode.BAD_COMMAND, "that is more than any measurement needs")
        seconds = max(time.monotonic() - began, 1e-4) if began else 1.0
        against = next(admission.against_postcopy(await self._host.engine()), None)
        return Probed(rate=max(stream.bytes - first, 1) / seconds, against_postcopy=against.message if against else "")

    async def check(self, peer: str, question: Question) -> Checked:
        """What would be said of these offers; nothing is reserved."""
        limit = self._host.settings.limits.clock_skew_s
        arrived = [tuple(admission.at_arrival(offer, limit)) for offer in question.offers]
        here = await admission.Here.look(self._host)
        postcopy = tuple(admission.against_postcopy(here.engine))
        needs = [slot.need for slot in self._slots.values()]
        judged = [
            await admission.judge(self._host, offer, needs, image_room(offer), here, found)
            for offer, found in zip(question.offers, arrived, strict=True)
        ]
        answers = tuple(Against(reasons=one.reasons, postcopy=postcopy, precopy=one.precopy) for one in judged)
        return Checked(answers=answers, at=utc_now())

    async def offer(self, peer: str, offer: Offer) -> Answer:
        arrived = tuple(admission.at_arrival(offer, self._host.settings.limits.clock_skew_s))
        return await self._apart(self._take(peer, offer, arrived))

    async def _take(self, peer: str, offer: Offer, arrived: tuple[Reason, ...]) -> Answer:
        if offer.target != self._host.name:
            raise Refused(ErrorCode.NO_SUCH_HOST, f"this is {self._host.name}, not {offer.target}")
        async with self._admitting:
            if offer.migration in self._slots or await self._host.journal.get(offer.migration, Role.TARGET):
                raise Refused(ErrorCode.BUSY, f"{offer.migration} is known here already")
            needs = [slot.need for slot in self._slots.values()]
            try:
                answer, need = await admission.examine(self._host, offer, needs, image_room(offer), arrived)
            except DockerFailed as error:
                raise unavailable(error) or error from None
            if offer.rehearsal:
                offer, need = thrown_away.offer_of(offer), thrown_away.promised(offer, need)
            record = {"offer": offer.model_dump(mode="json"), "image_wanted": answer.image_wanted}
            entry = Run.entry(offer.migration, Role.TARGET, offer.container, peer, record)
            run = Run(self._host.journal, entry)
            await run.record_beginning()
            self._add(Target(self._host, run, offer), need)
        return answer

    async def layers(self, peer: str, migration: str, stream: Stream) -> None:
        await self._step(peer, migration, lambda target: target.layers(stream))

    async def create(self, peer: str, migration: str) -> Created:
        return await self._step(peer, migration, lambda target: target.create())

    async def log(self, peer: str, migration: str, stream: Stream) -> None:
        await self._part(peer, migration).log(stream)

    async def stage(self, peer: str, migration: str) -> Staged:
        return await self._step(peer, migration, lambda target: target.stage())

    # not under the lock: the trees, what was printed and the images come at once

    async def files(self, peer: str, migration: str, name: str, stream: Stream) -> None:
        await self._part(peer, migration).files(name, stream)

    async def printed(self, peer: str, migration: str, stream: Stream) -> None:
        await self._part(peer, migration).printed(stream)

    async def images(self, peer: str, migration: str, stream: Stream) -> None:
        await self._part(peer, migration).images(stream)

    async def round(self, peer: str, migration: str, number: int, stream: Stream) -> None:
        await self._part(peer, migration).images(stream, number)

    async def follow(self, peer: str, migration: str) -> None:
        self._part(peer, migration)  # as with any part: only while it takes some
        await self._step(peer, migration, lambda target: target.follow())

    async def prepare(self, peer: str, migration: str, manifest: Manifest) -> Prepared:
        return await self._step(peer, migration, lambda target: target.prepare(manifest))

    async def pages(self, peer: str, migration: str, socket: WebSocket) -> None:
        await self._slot(peer, migration).target.following.carry(socket)

    async def arrived(self, peer: str, migration: str) -> Arrived:
        if migration not in self._slots and await self._ended(peer, migration) is Phase.DONE:
            return Arrived(state=Arrival.WHOLE)
        return await self._slot(peer, migration).target.following.arrived()

    async def go(self, peer: str, migration: str) -> Running:
        slot = self._slots.get(migration)
        if slot is None and await self._ended(peer, migration) is Phase.DONE:
            return Running(phases=())  # it runs, and this was said before
        running = await self._step(peer, migration, lambda target: target.go())
        if slot is not None:
            self._spawn(self._guarded(slot, self._settle(migration)), f"settle {migration}")
        return running

    async def alive(self, peer: str, migration: str) -> None:
        self._slot(peer, migration)

    async def forget(self, peer: str, migration: str) -> None:
        if migration in self._slots:
            self._slot(peer, migration)
            await self._apart(self._settle(migration, asked=True))

    async def discard(self, peer: str, migration: str) -> None:
        if migration in self._slots:
            self._slot(peer, migration)
            await self._apart(self._throw_away(migration))

    async def decision(self, peer: str, migration: str) -> Decision:
        return Decision(decision=await self._decide(peer, migration))

    # --- the life of a slot ---

    def _add(self, target: Target, need: admission.Reserved) -> _Slot:
        slot = _Slot(target, need)
        self._slots[target.run.id] = slot
        slot.watch = self._spawn(self._watch(slot), f"watch {target.run.id}")
        return slot

    def _slot(self, peer: str, migration: str) -> _Slot:
        slot = self._slots.get(migration)
        if slot is None or slot.target.run.peer != peer:
            raise Refused(
                ErrorCode.NO_SUCH_MIGRATION,
                f"{self._host.name} has no migration {migration} from {peer}",
                hint="it was discarded here: after a restart, or because its source was silent",
            )
        slot.target.last_contact = time.monotonic()
        return slot

    def _part(self, peer: str, migration: str) -> Target:
        """The target of a stream, while it takes any."""
        target = self._slot(peer, migration).target
        if target.run.phase not in TAKES_PARTS:
            raise Refused(ErrorCode.TOO_LATE, f"{migration} is {target.run.phase} here, and takes no more parts")
        return target

    async def _ended(self, peer: str, migration: str) -> Phase | None:
        entry = await self._host.journal.get(migration, Role.TARGET)
        return entry.phase if entry is not None and entry.peer == peer else None

    async def _step(self, peer: str, migration: str, call: Callable[[Target], Coroutine[Any, Any, T]]) -> T:
        """One step of the story, alone, and to its end even if the link breaks meanwhile."""
        slot = self._slot(peer, migration)

        async def locked() -> T:
            async with slot.lock:
                try:
                    return await call(slot.target)
                finally:
                    slot.target.last_contact = time.monotonic()

        return await self._apart(locked())

    async def _settle(self, migration: str, *, asked: bool = False) -> None:
        slot = self._slots.get(migration)
        if slot is None:
            return
        async with slot.lock:
            await slot.target.forget(asked=asked)
        if slot.target.run.phase is Phase.DONE:  # one that waits for the decision goes on waiting
            self._remove(slot)

    async def _throw_away(self, migration: str, *, unasked: bool = False) -> None:
        slot = self._slots.get(migration)
        if slot is None:
            return
        slot.target.stop_waiting()
        async with slot.lock:
            # not before: whoever had the lock may have proved the restore, or let the copy run
            phase = slot.target.run.phase
            if machine.may_run(phase):
                raise Refused(ErrorCode.TOO_LATE, f"{migration} is decided and runs here")
            if unasked and not machine.may_expire(phase):
                return
            await slot.target.discard()
        self._remove(slot)

    def _remove(self, slot: _Slot) -> None:
        self._slots.pop(slot.target.run.id, None)
        self.on_end()
        if slot.watch is not None and slot.watch is not asyncio.current_task():
            slot.watch.cancel()

    async def _watch(self, slot: _Slot) -> None:
        """What a target does when its source is silent: before PREPARED its lease ends, from then on it asks."""
        migration = slot.target.run.id
        tracing.works_for(migration)
        while migration in self._slots:
            await asyncio.sleep(self._host.settings.deadlines.ask_again)
            silent = time.monotonic() - slot.target.last_contact
            phase = slot.target.run.phase
            if slot.lock.locked():
                continue
            if machine.may_expire(phase) and silent > LEASE_SECONDS and not slot.target.busy:
                log.warning("%s: its source has been silent for %d s; discarded", migration, silent)
                await self._guarded(slot, self._throw_away(migration, unasked=True))
            elif phase in (Phase.PREPARED, Phase.STRANDED) and silent > ASK_AFTER_SECONDS:
                await self._guarded(slot, self._ask(slot))
            elif phase is Phase.RUNNING:
                await self._guarded(slot, self._settle(migration))

    async def _ask(self, slot: _Slot) -> None:
        run = slot.target.run
        answer = await self._learn(slot)
        next_phase = machine.answer_to_asking(run.phase, answer)
        if next_phase is Phase.RUNNING:
            async with slot.lock:
                await slot.target.go()
            await self._settle(run.id)
        elif next_phase is Phase.DISCARDED:
            await self._throw_away(run.id)

    async def _learn(self, slot: _Slot) -> DecisionKind:
        run = slot.target.run
        try:
            return await self._asking.ask_peer(run.peer, run.id)
        except Exception as error:
            slot.unheard.because(error)
            return await self._asking.read_retained(run.peer, run.id)

    async def _guarded(self, slot: _Slot, work: Coroutine[Any, Any, None]) -> None:
        """What is nobody's request: when it fails, `_watch` tries it again."""
        try:
            await work
        except Exception as error:
            slot.failing.because(error)

    # --- recovery, operator, end ---

    def recover(self, entry: Entry) -> None:
        """Take up a migration found in the journal after a restart (rule 6)."""
        run = Run(self._host.journal, entry)
        target = Target(self._host, run, offer_from(entry.record))
        slot = self._add(target, admission.needs(target.offer, image_room(target.offer), 0))
        self._spawn(self._guarded(slot, self._take_up(slot)), f"take up {entry.id}")

    async def _take_up(self, slot: _Slot) -> None:
        run = slot.target.run
        tracing.works_for(run.id)
        match machine.on_restart(Role.TARGET, run.phase):
            case OnRestart.TAKE_BACK:
                await self._throw_away(run.id)
            case OnRestart.GO_ON:
                await self._settle(run.id)
            case OnRestart.ASK:
                await self._ask(slot)

    async def resolve(self, migration: str, decision: DecisionKind) -> None:
        """A person's word for a copy whose source never comes back, or the rest of its memory does not (rule 8)."""
        slot = self._slots.get(migration)
        if slot is None:
            raise Refused(ErrorCode.NO_SUCH_MIGRATION, f"no open migration {migration} comes to this host")
        phase = slot.target.run.phase
        state = await slot.target.following.state()
        if phase is Phase.RUNNING and state is not Arrival.WHOLE and decision is DecisionKind.COMMIT:
            await self._apart(self._settle(migration, asked=True))
            return
        if decision is DecisionKind.COMMIT:
            thrown_away.check_may_run(slot.target.offer)
        if decision not in machine.RESOLUTIONS.get((Role.TARGET, phase), {}):
            raise Refused(ErrorCode.TOO_LATE, f"{migration} is {phase} here: there is nothing to {decision}")
        if decision is DecisionKind.COMMIT:
            async with slot.lock:
                await slot.target.go()
            await self._guarded(slot, self._settle(migration))
        else:
            await self._throw_away(migration)

    def container_signalled(self, container_id: str, sent: str) -> None:
        """Somebody has sent a signal to what has come: if that was to end it, its own restart policy came too late."""
        for target in self.open():
            if target.container_id == container_id and not target.run.unheard:
                target.run.stopped |= restarting.is_meant_to_end(sent, target.offer.create.get("StopSignal", ""))

    def open(self) -> list[Target]:
        return [slot.target for slot in self._slots.values()]

    async def close(self) -> None:
        """End what is under way. What is not decided is thrown away; PREPARED waits in the journal."""
        for migration, slot in list(self._slots.items()):
            if machine.may_expire(slot.target.run.phase):
                await self._guarded(slot, self._throw_away(migration, unasked=True))
        for task in list(self._work):
            task.cancel()
        await asyncio.gather(*self._work, return_exceptions=True)

    def _spawn(self, work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        task = asyncio.create_task(work, name=name)
        self._work.add(task)
        task.add_done_callback(self._work.discard)
        return task

    async def _apart(self, work: Coroutine[Any, Any, T]) -> T:
        return await asyncio.shield(self._spawn(work, "step of a target"))
