"""Which way a container's memory goes: at the beginning of its move, and when a restarted agent takes it up again.

`auto` takes the safest that keeps to the blackout that is wanted: cold, then pre-copy, whose memory is all across
before the decision, then post-copy, where that is allowed. Where no blackout is wanted, it is cold.
"""

import asyncio
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from agent.base.errors import Refused
from agent.checkpoint import dirty, stacks
from agent.doors.peer_client import PeerClient
from agent.migration import compression
from agent.migration.host import Host
from agent.migration.journal import Journal
from agent.migration.run import Run
from agent.migration.subject import Subject
from agent.strategy import Strategy, convergence
from agent.strategy.cold import Cold
from agent.strategy.convergence import CRIU_RATE, FIXED_MS, Wishes
from agent.strategy.postcopy import PostCopy
from agent.strategy.precopy import PreCopy
from protocol import commands
from protocol.commands import Migrate
from protocol.errors import ErrorCode
from protocol.peer import Probed

strategies: dict[str, Callable[[], Strategy]] = {Cold.name: Cold, PreCopy.name: PreCopy, PostCopy.name: PostCopy}

LAST_MOVES = 7
NOTHING_SHOWN: Mapping[str, float] = MappingProxyType({})
WRITTEN = 0.05
"""Of its memory, what a container is expected to write while a last small round goes over, if it is not looked at."""
LOOKS, LOOK_AGAIN_SECONDS = 4, 0.007
AT_ONCE = (
    "{} MiB of its memory do not follow, but come in the blackout: CRIU takes all of a process for a stack now and then"
)


@dataclass(frozen=True, slots=True)
class Choice:
    """A strategy, and what speaks for it."""

    strategy: str
    reason: str
    predicted_ms: float
    """The blackout."""
    memory_ms: float
    """Of it, what its memory adds."""


def memory_ms(strategy: str, memory: int, rate: float, at_once: int = 0) -> float:
    """What so many bytes add to the blackout over a link of so many a second: cold streams them while it dumps.

    `at_once`: those of them that do not follow in post-copy (agent/checkpoint/stacks.py).
    """
    if strategy == PostCopy.name:
        return memory_ms(Cold.name, at_once, rate)
    if strategy == PreCopy.name:
        return convergence.memory_ms(WRITTEN * memory, rate, memory)
    return memory / min(rate, CRIU_RATE) * 1000 + memory / CRIU_RATE * 1000


async def shown(journal: Journal) -> dict[str, float]:
    """Beside the memory, how long the blackouts of this host's last moves were: the middle one, by strategy."""
    found = {name: await journal.fixed_ms(name, LAST_MOVES) for name in strategies}
    return {name: statistics.median(values) for name, values in found.items() if values}


async def usual_rate(journal: Journal) -> float | None:
    """Bytes a second at which a container's memory moves away from here, by the links of the last moves, if any."""
    rates = await journal.link_rates(LAST_MOVES)
    return 1000 / memory_ms(Cold.name, 1, statistics.median(rates)) if rates else None


def predictions(
    memory: int, rate: float, fixed: Mapping[str, float], *, at_once: int = 0, precopy: bool, postcopy: bool
) -> dict[str, float]:
    """The blackout by each strategy that can be had; by pre-copy of one that writes as expected."""
    names = [Cold.name, *([PreCopy.name] if precopy else []), *([PostCopy.name] if postcopy else [])]
    return {name: fixed.get(name, FIXED_MS) + memory_ms(name, memory, rate, at_once) for name in names}


@dataclass(frozen=True, slots=True)
class Foreseen:
    """What `auto` knows of pre-copy beforehand."""

    against: str = ""
    """Why it can't be had."""
    by_memory: float = 0.0
    """Of the blackout, what is added by what its rounds leave, as it was seen to write."""
    left: int = 0
    """That, in bytes."""


def choose(
    request: Migrate,
    memory: int,
    link: Probed,
    fixed: Mapping[str, float] = NOTHING_SHOWN,
    foreseen: Foreseen | None = None,
    at_once: int = 0,
) -> Choice:
    """The strategy that was asked for; for `auto` the safest that keeps to the request's `max_blackout_ms`.

    `fixed`: by strategy, what no memory changes, as far as that is known. Without `foreseen`, `auto` has no pre-copy.
    `at_once`: as for `memory_ms`.

    Raises:
        Refused: none does that may be taken.

    """
    at = f"{memory >> 20} MiB at {link.rate / (1 << 20):.0f} MiB/s"
    limit = request.max_blackout_ms
    too_long: list[str] = []
    for name in _names(request, link, foreseen):
        by_memory, left = memory_ms(name, memory, link.rate, at_once), ""
        if name == PreCopy.name and foreseen is not None:
            by_memory, left = foreseen.by_memory, f", {foreseen.left / (1 << 20):.1f} left to freeze"
        predicted = fixed.get(name, FIXED_MS) + by_memory
        # what is asked for by name, and may be throttled or end in post-copy, shows by its rounds what it keeps to
        tries = str(request.strategy) == PreCopy.name
        within = limit is not None and predicted <= limit
        if limit is None or within or tries:
            why = "auto: the safest" if request.strategy is commands.Strategy.AUTO else "as asked"
            keeps = f", and within {limit} ms" if within else ""
            before = f"; {', '.join(too_long)}" if too_long else ""
            return Choice(
                name, f"{why}{keeps} ({predicted:.0f} ms predicted, {at}{left}){before}", predicted, by_memory
            )
        too_long.append(f"{name} would take {predicted:.0f} ms")
    raise Refused(
        ErrorCode.BLACKOUT_TOO_LONG,
        f"a blackout of at most {limit} ms can't be kept to: {', '.join(too_long)} ({at})",
        hint=_hint(request, link, foreseen),
    )


def _names(request: Migrate, link: Probed, foreseen: Foreseen | None) -> list[str]:
    """The strategies that may be taken, from the safest on."""
    if request.strategy is not commands.Strategy.AUTO:
        return [str(request.strategy)]
    precopy = foreseen is not None and not foreseen.against
    postcopy = request.allow_postcopy and not link.against_postcopy
    return [Cold.name, *([PreCopy.name] if precopy else []), *([PostCopy.name] if postcopy else [])]


def _hint(request: Migrate, link: Probed, foreseen: Foreseen | None) -> str:
    """What would help where nothing keeps to it."""
    hint = "allow a longer one"
    if request.strategy is not commands.Strategy.AUTO:
        return hint
    if foreseen is not None and not foreseen.against and not request.throttle:
        hint += ", or let it be slowed down meanwhile (--throttle PERCENT)"
    if not request.allow_postcopy and not link.against_postcopy:
        hint += ", or post-copy with its risk: --allow-postcopy (docs/strategies.md)"
    hint += f"; pre-copy can't be had: {foreseen.against}" if foreseen is not None and foreseen.against else ""
    return hint + (f"; post-copy can't be had: {link.against_postcopy}" if link.against_postcopy else "")


async def foresee(run: Run, request: Migrate, subject: Subject, peer: PeerClient, fixed_ms: float) -> Foreseen:
    """Whether pre-copy can be had here and there, and what its rounds would come to, by what is written just now."""
    if subject.against_precopy:
        return Foreseen(subject.against_precopy[0].message)
    [said] = await peer.check(run.id, [subject.offer])
    if said.precopy:
        return Foreseen(f"{said.precopy[0].message} on {peer.name}")
    written = await dirty.watch(subject.pid, subject.cgroup.tasks())
    frozen_rate = run.compression.rate
    rate = min(frozen_rate, (run.rate_limit or frozen_rate) * run.compression.ratio)
    ahead = convergence.Ahead(subject.memory_bytes, written, rate, frozen_rate, fixed_ms)
    last = convergence.foresee(ahead, Wishes(request.max_blackout_ms, request.throttle))
    return Foreseen("", last.predicted_ms - fixed_ms, last.left_bytes)


async def find_way(run: Run, host: Host, request: Migrate, subject: Subject, peer: PeerClient) -> None:
    """Measure the link, and note in the run by which strategy the memory goes, and whether what is sent is compressed.

    Raises:
        Refused: as `choose`.

    """
    probed = await peer.probe(run.id)
    chosen = await compression.choose(request, probed.rate, subject.cgroup.tasks())
    peer.compresses, run.compression, run.compressed = chosen.zstd, chosen, peer.compressed
    memory, link = subject.memory_bytes, probed.model_copy(update={"rate": chosen.rate})
    fixed, foreseen = await shown(host.journal), None
    cold_ms = fixed.get(Cold.name, FIXED_MS) + memory_ms(Cold.name, memory, link.rate)
    limit = request.max_blackout_ms
    if request.strategy is commands.Strategy.AUTO and limit is not None and cold_ms > limit:
        foreseen = await foresee(run, request, subject, peer, fixed.get(PreCopy.name, FIXED_MS))
    at_once = await always_at_once(subject.cgroup.tasks())
    choice = choose(request, memory, link, fixed, foreseen, at_once)
    run.strategy, run.reason = choice.strategy, choice.reason
    run.figures["predicted_ms"], run.figures["by_memory"] = choice.predicted_ms, choice.memory_ms
    run.figures["link_rate"], run.figures["fixed_ms"] = chosen.rate, choice.predicted_ms - choice.memory_ms
    run.may_follow = request.allow_postcopy and not link.against_postcopy
    run.figures["at_once"] = at_once
    if request.rehearse:  # with another strategy the container would be frozen, or away, for the memory's sake
        run.strategy = Cold.name
    if run.strategy == PostCopy.name and at_once:
        run.notes.append(AT_ONCE.format(at_once >> 20))


async def always_at_once(pids: Sequence[int]) -> int:
    """Bytes that would not follow in post-copy at any moment: it is looked at a few times, some milliseconds apart."""
    least = await asyncio.to_thread(stacks.dumped_at_once, pids)
    for _ in range(LOOKS):
        if not least:
            break
        await asyncio.sleep(LOOK_AGAIN_SECONDS)
        least = min(least, await asyncio.to_thread(stacks.dumped_at_once, pids))
    return least


def memory_follows(run: Run, subject: Subject) -> bool:
    """Whether CRIU, if it dumped now, would in post-copy leave as much for later as is expected. May block for a ms."""
    return not subject.offer.lazy or stacks.dumped_at_once(subject.cgroup.tasks()) <= run.figures.get("at_once", 0)


def strategy_of(run: Run) -> Strategy:
    """The strategy of a migration that is taken up again."""
    return strategies[run.record.get("strategy", Cold.name)]()
