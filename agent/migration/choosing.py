"""Which way a container's memory goes: at the beginning of its move, and when a restarted agent takes it up again."""

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from agent.base.errors import Refused
from agent.doors.peer_client import PeerClient
from agent.migration import compression
from agent.migration.host import Host
from agent.migration.journal import Journal
from agent.migration.run import Run
from agent.migration.subject import Subject
from agent.strategy import Strategy, convergence
from agent.strategy.cold import Cold
from agent.strategy.convergence import CRIU_RATE, FIXED_MS
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
"""Of its memory, what a container is expected to write while a last small round goes over; rounds show what it is."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A strategy, and what speaks for it."""

    strategy: str
    reason: str
    predicted_ms: float
    """The blackout."""
    memory_ms: float
    """Of it, what its memory adds."""


def memory_ms(strategy: str, memory: int, rate: float) -> float:
    """What so many bytes add to the blackout over a link of so many a second: cold streams them while it dumps."""
    if strategy == PostCopy.name:
        return 0.0
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


def predictions(memory: int, rate: float, fixed: Mapping[str, float], *, postcopy: bool) -> dict[str, float]:
    """The blackout by each strategy that can be had; of pre-copy, which is taken by name only, rounds show it."""
    names = [Cold.name, *([PostCopy.name] if postcopy else [])]
    return {name: fixed.get(name, FIXED_MS) + memory_ms(name, memory, rate) for name in names}


def choose(request: Migrate, memory: int, link: Probed, fixed: Mapping[str, float] = NOTHING_SHOWN) -> Choice:
    """The strategy that was asked for; for `auto` the safest that keeps to the request's `max_blackout_ms`.

    `fixed`: by strategy, what no memory changes, as far as that is known.

    Raises:
        Refused: none does that may be taken.

    """
    auto = request.strategy is commands.Strategy.AUTO
    # pre-copy is taken by name only, until all of its ways out have been shown in whole moves (docs/strategies.md)
    names = [Cold.name] if auto else [str(request.strategy)]
    if auto and request.allow_postcopy and not link.against_postcopy:
        names.append(PostCopy.name)
    at = f"{memory >> 20} MiB at {link.rate / (1 << 20):.0f} MiB/s"
    limit = request.max_blackout_ms
    too_long: list[str] = []
    for name in names:
        by_memory = memory_ms(name, memory, link.rate)
        predicted = fixed.get(name, FIXED_MS) + by_memory
        # what is asked for by name, and may be throttled or end in post-copy, shows by its rounds what it keeps to
        tries = name == PreCopy.name
        if limit is None or predicted <= limit or tries:
            why = "auto: the safest" if auto else "as asked"
            fits = f", and within {limit} ms" if limit is not None and predicted <= limit else ""
            before = f"; {', '.join(too_long)}" if too_long else ""
            return Choice(name, f"{why}{fits} ({predicted:.0f} ms predicted, {at}){before}", predicted, by_memory)
        too_long.append(f"{name} would take {predicted:.0f} ms")
    hint = "allow a longer one"
    if auto and PostCopy.name not in names:
        hint += f"; post-copy can't be had: {link.against_postcopy}" if link.against_postcopy else ""
        hint += "" if request.allow_postcopy else ", or post-copy with its risk: --allow-postcopy (docs/strategies.md)"
    raise Refused(
        ErrorCode.BLACKOUT_TOO_LONG,
        f"a blackout of at most {limit} ms can't be kept to: {', '.join(too_long)} ({at})",
        hint=hint,
    )


async def find_way(run: Run, host: Host, request: Migrate, subject: Subject, peer: PeerClient) -> None:
    """Measure the link, and note in the run by which strategy the memory goes, and whether what is sent is compressed.

    Raises:
        Refused: as `choose`.

    """
    link = await peer.probe(run.id)
    chosen = await compression.choose(request, link.rate, subject.cgroup.tasks())
    peer.compresses, run.compression, run.compressed = chosen.zstd, chosen, peer.compressed
    fixed = await shown(host.journal)
    choice = choose(request, subject.memory_bytes, link.model_copy(update={"rate": chosen.rate}), fixed)
    run.strategy, run.reason = choice.strategy, choice.reason
    run.figures["predicted_ms"], run.figures["by_memory"] = choice.predicted_ms, choice.memory_ms
    run.figures["link_rate"], run.figures["fixed_ms"] = chosen.rate, choice.predicted_ms - choice.memory_ms
    run.may_follow = request.allow_postcopy and not link.against_postcopy
    if request.rehearse:  # with another strategy the container would be frozen, or away, for the memory's sake
        run.strategy = Cold.name


def strategy_of(run: Run) -> Strategy:
    """The strategy of a migration that is taken up again."""
    return strategies[run.record.get("strategy", Cold.name)]()
