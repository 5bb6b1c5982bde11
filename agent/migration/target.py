"""The target's side of one migration, from the offer to the last trace of it; handover.md is the law.

    reserve -> [layers] -> stage -> files ... images -> prepare -> go -> forget
                                                          `-> discard, from anywhere before go

Every method is asked for by the source over the peer link, one at a time (targets.py sees to that). The copy never
runs unasked: `go` is the only place that releases it.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from agent.base.errors import Cancelled, Refused, StepFailed
from agent.base.tasks import both
from agent.checkpoint import freezer, proc
from agent.checkpoint.criu import CriuOptions
from agent.checkpoint.diagnosis import restore_failed
from agent.doors.handover import HandOver, RestoreResult, StagedInfo
from agent.doors.peer_server import Stream
from agent.migration import (
    admission,
    arrival,
    belongings,
    cleared,
    creating,
    fitting,
    held,
    restarting,
    rounds,
    runcs_state,
    thrown_away,
)
from agent.migration.following import Following
from agent.migration.host import Host
from agent.migration.run import Run
from agent.network import identity, lock
from agent.prework import container_log, init
from agent.runtime import handover
from protocol.errors import ErrorCode
from protocol.peer import Arrival, Created, Manifest, Offer, Prepared, Running, SentPart, Staged
from protocol.status import Phase

log = logging.getLogger("agent.target")

STREAM_END_SECONDS = 10.0
START_SECONDS = 10.0
"""For dockerd to attach the network to what is restored; it takes well under a second."""
RESUME_LOOK_SECONDS = 0.001


class Target:
    """One container on its way to this host."""

    def __init__(self, host: Host, run: Run, offer: Offer) -> None:
        self._host = host
        self.run = run
        self.offer = offer
        self._hand_over: HandOver | None = None
        self._staged: StagedInfo | None = None
        self._start: asyncio.Task[None] | None = None
        self._following: Following | None = None
        self._parts: dict[str, SentPart] = {}
        self._streams = 0
        self._given_up = asyncio.Event()
        self._quiet = asyncio.Event()
        self.last_contact = time.monotonic()

    @property
    def busy(self) -> bool:
        """Whether a stream is coming in just now."""
        return self._streams > 0

    @property
    def container_id(self) -> str:
        """Of the container here; empty before it is created."""
        return str(self.run.record.get("container_id", ""))

    @property
    def following(self) -> Following:
        """The memory that comes when it runs already, where that is so."""
        if self._following is None:
            self._following = Following(self._host, self.run, self._hand_over_again(), lazy=self.offer.lazy)
        return self._following

    # --- the container still runs at the source ---

    async def layers(self, stream: Stream) -> None:
        if not self.run.record.get("image_wanted", True):  # with an image come tags, and they would be others' here
            raise Refused(ErrorCode.BAD_COMMAND, f"the image of {self.offer.container} is here, and was not asked for")
        await self._host.docker.load_image(admission.while_room(self._host, aiter(stream)))
        self._took(stream.part("layers"))

    async def create(self) -> Created:
        """Create the container, with no restart policy, and what it needs around it."""
        await belongings.provide(self._host, self.run, self.offer)
        created = await creating.create(self._host, self.run, self.offer)
        await belongings.take_over_volumes(self._host, self.run, self.offer, created)
        return Created(container_id=created, notes=tuple(self.run.notes))

    async def log(self, stream: Stream) -> None:
        """The log files so far. dockerd notes their size at the start, so they have to be there before it."""
        places = container_log.places(Path(await self._host.docker.data_root()), self.container_id)
        places["local.log"].parent.mkdir(mode=0o700, exist_ok=True)
        with self._streaming():
            await arrival.take_segments(stream, places["json.log"].parent, places)
            self._took(stream.part("log"))
        for path in places.values():
            if path.exists():
                path.chmod(0o640)  # as dockerd makes them

    async def stage(self) -> Staged:
        """Call the container's start: all that dockerd, containerd and the runtime can do before the freeze is done."""
        self._hand_over = HandOver(self._host.shell, self.container_id)
        await self._hand_over.lay_out(
            image_bytes=arrival.image_room(self.offer),
            options=CriuOptions(tcp=self.offer.tcp),
            stand_in=self._addresses(),
            sources={init.PLACE: init.kept(self.offer.init)} if self.offer.init else {},
            lazy=self.offer.lazy,
        )
        await self.following.expect()
        self._start = asyncio.create_task(
            self._host.docker.start(self.container_id), name=f"start {self.container_id[:12]}"
        )
        await self._next_event("staged")
        self._staged = self._hand_over.staged()
        if self._staged.network_attached_early and not self.offer.rehearsal:
            # the network comes with a hook of dockerd's own, before the restore: no stand-in is needed
            self._hand_over.without_stand_in()
        await self.run.enter(Phase.STAGED)
        return Staged(network_attached_early=self._staged.network_attached_early)

    async def files(self, name: str, stream: Stream) -> None:
        """One pass of the writable layer (`root:N`), a volume (`volume:NAME:N`) or a bind mount (`bind:NUMBER:N`)."""
        with self._streaming():
            if name == "init":
                await init.keep(self.offer.init, aiter(stream))
            elif name == arrival.DESCRIPTORS:
                await arrival.take_descriptors(stream, self._hand_over_again().images)
                self._hand_over_again().arm()  # what runc and CRIU can do without the images they do now
            else:
                await arrival.take_files(self._host, self.run, self.offer, self._staged, name, stream)
            self._took(stream.part(name))

    # --- the blackout ---

    async def printed(self, stream: Stream) -> None:
        """What the container has printed since its log files were sent; the runtime prints it again."""
        if self._hand_over is None:
            raise StepFailed("the container is not staged here")
        with self._streaming():
            await self._hand_over.keep_printed(aiter(stream))
            self._took(stream.part("printed"))

    async def images(self, stream: Stream, number: int = 0) -> None:
        """CRIU's images, or those of a round of pre-copy."""
        if self._hand_over is None:
            raise StepFailed("the container is not staged here")
        with self._streaming():
            part = await rounds.take(stream, self._host.shell, self._hand_over, self.offer, number)
            self._took(part)

    async def follow(self) -> None:
        """What is left after rounds of pre-copy follows when it runs: have the page channel for it."""
        self.offer = await rounds.turn_lazy(self._host, self.run, self._hand_over_again(), self.offer)
        self._following = None
        await self.following.expect()

    async def prepare(self, manifest: Manifest) -> Prepared:
        """Check that all of it is here, restore, and prove that it was a restore.

        Raises:
            CorruptPart: something is missing or changed; nothing is restored.
            RestoreFailed: runc or CRIU failed, or there is no proof.

        """
        assert self._hand_over is not None
        arrival.check(manifest, self._parts, self._hand_over.images)
        rounds.chain(self._hand_over.images, manifest.rounds)
        await self.run.enter(Phase.RESTORING)
        await asyncio.to_thread(self._hand_over.finish_images)
        if self._staged is not None:
            self._hand_over.give_images_to(self._staged.ids)
        self._hand_over.arm()
        await self.following.ask(self._given_up)
        self._hand_over.say(handover.RESTORE)
        await self._restored()
        self.following.wait_with_the_rest()
        result = self._hand_over.result()
        await both(self._taken_over(), held.or_why_it_ended(self._proved(manifest, result), self._start))
        await self.run.enter(Phase.PREPARED, pid=result.pid, pid_start=proc.start_time(result.pid))
        return Prepared(
            tasks=manifest.tasks,
            restore_ms=round((result.ended - result.began) * 1000, 3),
            phases=tuple(self.run.phases),
        )

    async def _proved(self, manifest: Manifest, result: RestoreResult) -> None:
        """It was a restore, and what is restored can't run by an accident of CRIU's either."""
        arrival.prove(manifest, self._hand_over_again().images, result)
        group = freezer.cgroup_of(result.pid)
        await freezer.freeze(group, self._host.settings.deadlines.freeze)
        await self.following.guard(group)
        await runcs_state.take_over(self._host.shell, self._hand_over_again().path, result.runc)

    async def _taken_over(self) -> None:
        """From here on dockerd has the container, whatever becomes of this agent."""
        assert self._start is not None
        hand_over = self._hand_over_again()
        result = await hand_over.outcome(START_SECONDS)
        if result is not None and not await held.is_started(self._start, result, START_SECONDS):
            await self._end_copy(hand_over)
        await self._start

    async def go(self) -> Running:
        """The source has decided: unlock, announce, let the tasks run. Safe to repeat."""
        thrown_away.check_may_run(self.offer)
        if not self.run.record.get("released"):
            await self._check_copy()
            if self.run.phase is Phase.PREPARED:
                await self.run.enter(Phase.RUNNING)
            await self._let_run()
            await self.run.note_down(released=True)
            await self.following.look()  # the guard may have come just before the thaw
        self._hand_over_again().runs()
        return Running(
            phases=tuple(self.run.phases),
            notes=tuple(self.run.notes),
            network_ms=self.run.figures.get("network_ms"),
            cpu_s=round(self.run.cpu_seconds(), 3),
        )

    async def _check_copy(self) -> None:
        """The copy that was proved has to be there still: RUNNING is never said of one that is not."""
        phase = self.run.phase
        if phase not in (Phase.PREPARED, Phase.RUNNING, Phase.STRANDED):
            raise Refused(ErrorCode.TOO_LATE, f"{self.run.id} is {phase} here: there is nothing to let run")
        there = held.is_there(self.run) and await self.following.state() is not Arrival.LOST
        if phase is Phase.RUNNING and not there:
            await self.run.enter(Phase.STRANDED, may_have_run=True)
        if phase is Phase.STRANDED or not there:
            raise held.gone(self.run)

    async def _let_run(self) -> None:
        """Unlock, announce, release. Frames of the announcement pass by the lock: they are out before that is gone."""
        pid = int(self.run.record["pid"])
        await both(self._release(pid), self._announce(pid))

    async def _release(self, pid: int) -> None:
        group = freezer.cgroup_of(pid)  # before: a program may end as soon as it runs
        began = time.monotonic()
        await lock.unlock(self._host.shell, pid)
        self.run.figures["network_ms"] = (time.monotonic() - began) * 1000
        self._hand_over_again().release()
        self.following.go_on()
        await freezer.thaw(group)
        async with asyncio.timeout(self._host.settings.deadlines.go):
            while any(task.tracer for task in proc.tasks(group.tasks())):
                await asyncio.sleep(RESUME_LOOK_SECONDS)

    async def _announce(self, pid: int) -> None:
        try:
            said = await asyncio.to_thread(identity.announce, pid)
            log.info("%s announced %s", self.run.id, ", ".join(said) or "no address")
        except OSError as error:  # the container runs all the same; its neighbours learn a little later
            self.run.notes.append(f"the addresses could not be announced: {error}")

    # --- afterwards ---

    async def settle(self) -> None:
        """Clear the hand-over, and give the container its restart policy. Safe to repeat."""
        docker, policy = self._host.docker, self.offer.restart_policy
        await runcs_state.see_to(self._hand_over_again(), self.run.record)
        await self._clear_hand_over()  # first: while it is there, a start by whomever can only become a restore
        await freezer.thaw_empty(self.container_id)  # nobody can delete what died while its memory was waited for
        await restarting.set_back(docker, self.run, self.container_id, policy)
        await restarting.start_as_docker_would(docker, self.container_id, policy, stopped=self.run.stopped)

    async def forget(self, *, asked: bool = False) -> None:
        """Settle a copy that runs; one that is to run and was not let yet is let first. Nothing in any other phase.

        Nor one whose memory is not all here, unless that is `asked`, by a source that has given it up or by a person.
        """
        if self.run.phase is Phase.RUNNING:
            await self.go()
            await self._network_as_usual()
            if await self.following.look() is not Arrival.WHOLE and not await self.following.give_up(asked=asked):
                return
            await self.settle()
            await self.run.enter(Phase.DONE)

    async def discard(self) -> None:
        """Make sure that nothing of this migration is here. The container goes before its hand-over folder does."""
        await self._streams_to_end()
        if self.container_id:
            await self._end_copy(self._hand_over_again())
            await cleared.remove(self._host.docker, self._host.shell, self.container_id)
        elif self.run.record.get("creating"):
            await belongings.remove_half_created(self._host.docker, self.offer)
        await self._clear_hand_over()
        await belongings.take_back(self._host, self.run)
        if self.run.phase is not Phase.DISCARDED:
            await self.run.enter(Phase.DISCARDED)

    async def _end_copy(self, hand_over: HandOver) -> None:
        """Make sure that no task of the copy is left: one that waits is sent away, one that is held dies unreleased."""
        if not hand_over.path.exists():
            return
        await self.following.stop()
        hand_over.say(handover.DISCARD)
        result = await hand_over.outcome(held.HUNG_SECONDS if self.offer.lazy else self._host.settings.deadlines.docker)
        hand_over.send_away()
        if result is not None and result.pid:
            await held.end(hand_over, result)
        else:
            await held.end_in_part(hand_over)
        if self._start is not None:  # not before: a dockerd that could not start it waits for the end of what is held
            await asyncio.wait({self._start}, timeout=self._host.settings.deadlines.docker)
            if self._start.done() and not self._start.cancelled():
                self._start.exception()  # it failed, as it should

    def _hand_over_again(self) -> HandOver:
        """The hand-over folder; after a restart of the agent, the one that an earlier one made."""
        if self._hand_over is None:
            self._hand_over = HandOver(self._host.shell, self.container_id)
        return self._hand_over

    async def _clear_hand_over(self) -> None:
        if self.container_id:
            await self.following.stop()
            await self._hand_over_again().clear()

    def stop_waiting(self) -> None:
        """Make a step that waits for the runtime give up, so that the discard can begin."""
        self._given_up.set()

    # --- parts of the above ---

    @contextlib.contextmanager
    def _streaming(self) -> Iterator[None]:
        self._streams += 1
        try:
            yield
        finally:
            self._streams -= 1
            self.last_contact = time.monotonic()
            self._quiet.set()

    async def _streams_to_end(self) -> None:
        """The source has broken them off; what they write to must not be taken away under them."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STREAM_END_SECONDS):
                while self._streams:
                    self._quiet.clear()
                    await self._quiet.wait()

    async def _network_as_usual(self) -> None:
        """What was there for the restore alone goes; nobody minds that it stays until here."""
        pid = int(self.run.record["pid"])
        if proc.start_time(pid) == self.run.record["pid_start"]:
            stand_in = self._addresses() if self._hand_over_again().stand_in() else ()
            sysctls = fitting.host_config(self.offer.create).get("Sysctls") or {}
            await identity.as_usual(self._host.shell, pid, stand_in, sysctls)

    def _addresses(self) -> list[str]:
        return [address for network in self.offer.networks for address in network.addresses]

    def _took(self, part: SentPart) -> None:
        self._parts[part.name] = part

    async def _restored(self) -> None:
        """Both have to be: the tasks restored and held, and what they had printed before printed again."""
        wanted = {"held", "printed"}
        while wanted:
            wanted.discard(await self._next_event(*sorted(wanted)))

    async def _next_event(self, *wanted: str) -> str:
        """The runtime's word, or the reason why there is none."""
        assert self._hand_over is not None
        assert self._start is not None
        word = await held.next_word(self._hand_over, self._start, self._given_up, wanted)
        if word in wanted:
            return word
        if self._given_up.is_set():
            raise Cancelled(f"the source has taken the migration of {self.offer.container} back")
        if word:
            await held.end_in_part(self._hand_over)  # dockerd waits for the end of what a killed CRIU has left
        reason = await held.why_not(self._start, self._host.settings.deadlines.docker)
        log = self._hand_over.work / "restore.log"
        raise restore_failed(log, f"{self.run.id}-restore.log", self._host.name, reason, wanted[-1])


def offer_from(record: Mapping[str, Any]) -> Offer:
    """The offer as the journal has it."""
    return Offer.model_validate(record["offer"])
