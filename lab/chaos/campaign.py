"""One run after the other: move the container, let the accidents happen when their moments come, mend, judge."""

import asyncio
import contextlib
import time
from dataclasses import dataclass, field

from agent.base.errors import AgentError
from agent.cli.controller import Controller
from lab.chaos import accidents
from lab.chaos.accidents import Struck
from lab.chaos.commands import Commands
from lab.chaos.ground import A, B, Ground
from lab.chaos.inspect_host import containers, debris
from lab.chaos.journals import ENDED, JournalReader, Step
from lab.chaos.judge import Known, Verdict, judge_content, judge_debris, wait_for_rest
from lab.chaos.loads import NAME, Running
from lab.chaos.observer import Observer
from lab.chaos.plan import CONTAINER_RUNS, Accident, Fault, Plan
from lab.cluster import migration
from lab.host import Host
from lab.shell import PATIENCE, LabError
from protocol.commands import Reply

LOOK_SECONDS = 0.004
MOVE_SECONDS = 40.0 * PATIENCE
OPEN_SECONDS = 30.0 * PATIENCE
STILL_SECONDS = 5.0 * PATIENCE
"""Without a step in a journal or an accident: what is broken keeps it from going on."""
ENDS_AGENT = (Accident.AGENT_KILLED, Accident.AGENT_STOPPED, Accident.HOST_GONE)
COMMANDED = (Accident.CANCEL, Accident.DUPLICATE, Accident.STALE)


@dataclass(slots=True)
class Seen:
    """What a run was, for the report."""

    plan: Plan
    seconds: float = 0.0
    source: str = ""
    migration: str = ""
    steps: list[Step] = field(default_factory=list)
    struck: list[Struck] = field(default_factory=list)
    verdict: Verdict = field(default_factory=Verdict)
    replies: list[Reply] = field(default_factory=list)
    commands: dict[str, float] = field(default_factory=dict)
    """Figures of the commands that were given meanwhile, in seconds."""
    looks: int = 0

    @property
    def reached(self) -> set[tuple[str, str]]:
        return {(step.role, step.phase) for step in self.steps}


class Campaign:
    """The container goes on from run to run for as long as it is whole."""

    def __init__(self, ground: Ground, seed: int) -> None:
        self._ground = ground
        self._seed = seed
        self._readers = {host.name: JournalReader(host) for host in ground.hosts}
        self._running: Running | None = None
        self._made_for = -1
        self._known = Known()
        self._made = 0
        self._debris: set[str] = set()
        """Of runs before: it stays where it is."""

    def close(self) -> None:
        for reader in self._readers.values():
            reader.close()
        if self._running is not None:
            self._running.remove()

    async def run(self, plan: Plan) -> Seen:
        """One run, to its verdict; leaves the ground ready for the next one."""
        began = time.monotonic()
        seen = Seen(plan)
        source = await self._container(plan)
        seen.source = source.name
        target = next(host for host in self._ground.hosts if host is not source)
        if any(fault.accident is Accident.CLOCK_OFF for fault in plan.faults):
            await asyncio.to_thread(target.stop_agent)
            await asyncio.to_thread(self._ground.start_agent, target, clock_off=True)
            await self._ground.until_ready()
        observer = Observer(self._ground.hosts)
        for reader in self._readers.values():
            reader.forget_older()
        observer.start(source.name)
        try:
            await self._move(plan, seen, source, target)
            seen.verdict.violations += self._ended_by_themselves(seen)
            await self._mend(plan, target)
            await self._end_what_is_open(seen)
            wrong, listed = await asyncio.to_thread(wait_for_rest, self._ground.hosts)
        finally:
            observer.stop()
        self._look_at_journals(seen)
        _time_cancel(seen)
        verdict = seen.verdict
        seen.looks = observer.looks
        verdict.violations += [*observer.violations, *wrong, *self._too_early(seen, observer)]
        await asyncio.to_thread(self._look_for_debris, seen)
        if len(listed) == 1:
            verdict.where, verdict.container = listed[0].host, listed[0]
            assert self._running is not None
            host = self._ground[verdict.where]
            await asyncio.to_thread(judge_content, host, listed[0], self._running, self._known, seen.struck, verdict)
        if verdict.violations:
            self._made_for = -1  # another container for the next one
        seen.seconds = time.monotonic() - began
        return seen

    async def _container(self, plan: Plan) -> Host:
        """The host that has the container; another one is made after some runs, or when the last is not whole."""
        block = plan.run // CONTAINER_RUNS
        if self._running is None or self._made_for != block or self._running.load is not plan.load:
            if self._running is not None:
                await asyncio.to_thread(self._running.remove)
            self._made += 1
            host = self._ground[A if self._made % 2 else B]
            self._running = Running(self._ground.cluster.lab, plan.load, self._made)
            await asyncio.to_thread(self._running.start, host)
            self._made_for = block
            verdict = Verdict()
            wrong, listed = await asyncio.to_thread(wait_for_rest, self._ground.hosts)
            if wrong:
                raise LabError(f"before the run: {wrong}")
            # of a container that has just been made: its process is whichever it is
            known = Known()
            await asyncio.to_thread(judge_content, host, listed[0], self._running, known, [], verdict)
            self._known = Known(known.token, known.numbers, 1, known.acknowledged)
            return host
        for host in self._ground.hosts:
            if any(one.name == NAME and one.running for one in await asyncio.to_thread(containers, host) or ()):
                return host
        raise LabError(f"{NAME} runs nowhere")

    async def _move(self, plan: Plan, seen: Seen, source: Host, target: Host) -> None:
        """The move, until it has ended at both sides or nothing more is to be expected before everything is mended."""
        command = migration(NAME, target.name, strategy=plan.strategy, allow_postcopy=plan.strategy == "postcopy")
        async with contextlib.AsyncExitStack() as stack:
            controller = await stack.enter_async_context(Controller(self._ground.cluster.broker))
            commands = Commands(self._ground.cluster, source.name, command, seen.commands)
            asking = asyncio.create_task(collect(controller, source.name, command, seen.replies), name="the move")
            under_way: list[asyncio.Task[None]] = []
            waiting = list(plan.faults)
            news = time.monotonic()
            end = news + MOVE_SECONDS
            try:
                while time.monotonic() < end and not self._is_over(seen, asking, under_way):
                    if self._look_at_journals(seen) or not all(task.done() for task in under_way):
                        news = time.monotonic()
                    elif time.monotonic() - news > STILL_SECONDS:
                        break  # it waits for what is mended now
                    for fault in [one for one in waiting if one.moment in seen.reached]:
                        waiting.remove(fault)
                        host = target if fault.side == "target" else source
                        work = self._happen(fault, host, seen, commands)
                        under_way.append(asyncio.create_task(work, name=str(fault)))
                    await asyncio.sleep(LOOK_SECONDS)
                async with asyncio.timeout(60 * PATIENCE):
                    await asyncio.gather(*under_way)
            finally:
                for task in (asking, *under_way):
                    task.cancel()
                await asyncio.gather(asking, *under_way, return_exceptions=True)
                with contextlib.suppress(AgentError):
                    await stack.aclose()
        seen.verdict.violations += commands.wrong

    def _is_over(self, seen: Seen, asking: "asyncio.Task[None]", under_way: list["asyncio.Task[None]"]) -> bool:
        if not seen.migration:
            return asking.done() and all(task.done() for task in under_way)
        source, target = ({step.phase for step in seen.steps if step.role == role} for role in ("source", "target"))
        ended = bool(source & set(ENDED)) and (not target or bool(target & set(ENDED)))
        return ended and all(task.done() for task in under_way)

    def _look_at_journals(self, seen: Seen) -> bool:
        """Take in what they say that is new; whether there was any."""
        before = len(seen.steps)
        for reader in self._readers.values():
            for step in reader.news():
                if not seen.migration and step.phase == "planned":
                    seen.migration = step.migration
                if step.migration == seen.migration:
                    seen.steps.append(step)
        return len(seen.steps) > before

    async def _happen(self, fault: Fault, host: Host, seen: Seen, commands: Commands) -> None:
        await asyncio.sleep(fault.delay_ms / 1000 * PATIENCE)
        phases = {step.role: step.phase for step in seen.steps}
        at = time.time()
        if fault.accident is Accident.CLOCK_OFF:
            hit, detail = True, ""
        elif fault.accident in COMMANDED:
            hit, detail = await commands.give(fault, seen.migration, seen.steps)
        else:
            hit, detail = await accidents.strike(self._ground, fault, host)
        struck = Struck(fault, host.name, hit, at, phases.get("source", ""), phases.get("target", ""), detail)
        seen.struck.append(struck)
        if hit and fault.accident in accidents.MENDS:
            await asyncio.sleep(fault.hold_s)
            struck.detail += await accidents.mend(self._ground, fault, host)

    def _ended_by_themselves(self, seen: Seen) -> list[str]:
        """Agents that nobody has ended."""
        ended = {one.host for one in seen.struck if one.hit and one.fault.accident in ENDS_AGENT}
        hosts = [host for host in self._ground.hosts if host.name not in ended and host.node.running()]
        return [f"the agent on {host.name} has ended by itself" for host in hosts if not host.agent.running()]

    async def _mend(self, plan: Plan, target: Host) -> None:
        if any(fault.accident is Accident.CLOCK_OFF for fault in plan.faults) and target.node.running():
            await asyncio.to_thread(target.stop_agent)
        await asyncio.to_thread(self._ground.mend)
        await self._ground.until_ready()

    async def _end_what_is_open(self, seen: Seen) -> None:
        """Wait until both journals have closed everything; what is left to a person is what a person says."""
        end = time.monotonic() + OPEN_SECONDS
        commands = Commands(self._ground.cluster, seen.source, None, seen.commands)
        while time.monotonic() < end:
            readable = all(reader.readable() for reader in self._readers.values())
            still = [one for reader in self._readers.values() for one in reader.unfinished()]
            if readable and not still:
                break
            word = await commands.resolve_what_needs_a_person(seen)
            if word:
                seen.verdict.resolved = word
                end = max(end, time.monotonic() + OPEN_SECONDS / 2)
            await asyncio.sleep(0.25)
        else:
            still = [one for reader in self._readers.values() for one in reader.unfinished()]
            seen.verdict.violations.append(f"still open after {OPEN_SECONDS:g} s with all mended: {still}")
        await asyncio.to_thread(self._ground.lift_limits)

    def _look_for_debris(self, seen: Seen) -> None:
        for host in self._ground.hosts:
            new = [one for one in debris(host) or () if one not in self._debris]
            judge_debris(host.name, new, seen.struck, seen.verdict)
            self._debris.update(new)

    def _too_early(self, seen: Seen, observer: Observer) -> list[str]:
        if observer.target_ran_at is None:
            return []
        decided = self._readers[seen.source].decided_at(seen.migration)
        if decided is None or decided > observer.target_ran_at:
            return [f"the target's copy ran unlocked at {observer.target_ran_at:.3f}, the decision is of {decided}"]
        return []


def _time_cancel(seen: Seen) -> None:
    """How long after it was sent a cancel was over, by the source's journal."""
    sent = seen.commands.get("cancel sent")
    ends = [step.seen_at for step in seen.steps if step.role == "source" and step.phase in ENDED]
    if sent is not None and ends and len(seen.struck) == 1:
        seen.commands["cancel over"] = ends[0] - sent


async def collect(controller: Controller, host: str, command: object, replies: list[Reply]) -> None:
    """Every reply to the command; ends with the last, or when it can't be told any more."""
    with contextlib.suppress(AgentError):
        async for reply in controller.command(host, command):  # type: ignore[arg-type]
            replies.append(reply)
