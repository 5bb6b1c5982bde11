"""How a campaign came out: one JSON file, and docs/reliability.md written from it."""

import json
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lab.chaos.campaign import Seen
from lab.chaos.journals import ENDED
from lab.chaos.plan import BOTH, MOMENTS, SIDES, Accident, can_be

Row = dict[str, Any]
LONGEST, MOST = 300, 4
"""Of a violation's sentences: how long, and how many."""
CROWDS = ("crowd", "evacuation")
_HEAD = """\
# Reliability

Written by `./scripts/chaos`; not to be edited. {date}, commit {commit}.

**{runs} runs, {violations} with a violation.** Seed {seeds}; {seconds:.0f} s, {median:.1f} s a run in the middle; the
observer looked {looks} times while moves were under way.

A run is one move of one container between Docker 26 and Docker 28 on the lab, with one or two accidents at moments
that the agents' journals tell. Then everything is mended, and the invariants of the hand-over are checked by an
observer that shares no code with the agents (`lab/chaos`). At every look: at most one copy that may run and is not
locked, and none at the target before the decision. At the end: exactly one container, running, its restart policy as it
was; the same process with its memory, unless an accident ended it where it ran; its files and its log without a gap;
the one connection of its client unbroken, and nothing acknowledged missing; no folder, mount, lock, frozen or stopped
task, process, cgroup, volume, shim or open migration left on either host.

{debris}

Moves were asked for by: {strategies}. By pre-copy, which needs another kernel than the lab's, {precopy}.
"""


def row(seen: Seen) -> Row:
    """One run, as the JSON file has it."""
    source = [step.phase for step in seen.steps if step.role == "source"]
    target = [step.phase for step in seen.steps if step.role == "target"]
    last = seen.replies[-1] if seen.replies else None
    return {
        "seed": seen.plan.seed,
        "run": seen.plan.run,
        "plan": str(seen.plan),
        "load": seen.plan.load,
        "strategy": seen.plan.strategy,
        "source": seen.source,
        "migration": seen.migration,
        "seconds": round(seen.seconds, 2),
        "faults": [
            {
                "kind": one.fault.accident,
                "side": one.fault.side,
                "moment": list(one.fault.moment),
                "hit": one.hit,
                "source": one.source_phase,
                "target": one.target_phase,
                "detail": one.detail,
            }
            for one in seen.struck
        ],
        "planned": [[fault.accident, fault.side, list(fault.moment)] for fault in seen.plan.faults],
        "source_phases": source,
        "target_phases": target,
        "ended": next((phase for phase in reversed(source) if phase in ENDED), "not begun" if not source else "open"),
        "reply": str(last.error.code if last.error else last.kind) if last else "",
        "where": seen.verdict.where,
        "went_on": seen.verdict.went_on,
        "lost": seen.verdict.lost,
        "may_have_run": seen.verdict.may_have_run,
        "resolved": seen.verdict.resolved,
        "looks": seen.looks,
        "commands": {name: round(value, 4) for name, value in seen.commands.items() if name != "cancel sent"},
        "violations": seen.verdict.violations,
        "debris": len(seen.verdict.debris),
    }


def summary(rows: list[Row], *, date: str, commit: str, recoveries: Sequence[Mapping[str, float]]) -> Row:
    """The whole of a campaign."""
    kinds = Counter(kind for one in rows for kind in {fault["kind"] for fault in one["faults"] if fault["hit"]})
    wrong = Counter(
        kind for one in rows if one["violations"] for kind in {fault["kind"] for fault in one["faults"] if fault["hit"]}
    )
    return {
        "date": date,
        "commit": commit,
        "runs": len(rows),
        "violations": sum(bool(one["violations"]) for one in rows),
        "debris": sum(one.get("debris", 0) for one in rows),
        "by_fault": {kind: {"runs": kinds[kind], "violations": wrong[kind]} for kind in Accident},
        "recoveries": list(recoveries),
        "each": rows,
    }


def together(parts: Sequence[Row]) -> Row:
    """Several campaigns as one."""
    rows = [row for part in parts for row in part["each"]]
    dates, commits = (list(dict.fromkeys(part[name] for part in parts)) for name in ("date", "commit"))
    whole = summary(
        rows,
        date=", ".join(dates),
        commit=", ".join(commits),
        recoveries=[one for part in parts for one in part["recoveries"]],
    )
    return whole | {name: next(filter(None, (part.get(name) for part in parts)), None) for name in CROWDS}


def write(file: Path, found: Row) -> None:
    file.write_text(json.dumps(found, indent=1) + "\n")


def markdown(found: Row, again: Sequence[Row] = (), emulated: Row | None = None) -> str:
    """docs/reliability.md; `again` are campaigns of runs that were done again since, one by one.

    `emulated`: one in the VM lab, whose kernel can do pre-copy.
    """
    rows = found["each"]
    parts = [_head(found, emulated), _faults(found), _cells(rows), _ends(rows), _figures(found)]
    parts.append("\n".join(["## Violations", "", *_violations(rows, again)]) + "\n")
    return "\n".join([*parts, *([_emulated(emulated, again)] if emulated else [])])


def _emulated(found: Row, again: Sequence[Row]) -> str:
    rows = found["each"]
    ends, looks = Counter(one["ended"] for one in rows), sum(one["looks"] for one in rows)
    told = (
        f"{_by_strategy(rows)}: {found['runs']} runs, {found['violations']} with a violation, on Debian 13's stock "
        f"kernel with cgroup v2, emulated ({found['date']}, commit {found['commit']}; bounds and delays are longer "
        f"there: [the lab](lab.md)). Seed {_seeds(rows)}; the observer looked {looks} times."
    )
    lines = ["## In the VM lab", "", told, ""]
    lines += _fault_table({kind: one for kind, one in found["by_fault"].items() if one["runs"]})
    lines += ["", f"They ended: {', '.join(f'{end} {count}' for end, count in ends.most_common())}.", ""]
    lines += [_debris(found), ""]
    return "\n".join(lines + _violations(rows, again)) + "\n"


def _by_strategy(rows: Sequence[Row]) -> str:
    return ", ".join(f"{name} {count}" for name, count in Counter(one["strategy"] for one in rows).most_common())


def _seeds(rows: Sequence[Row]) -> str:
    return ", ".join(str(seed) for seed in sorted({one["seed"] for one in rows}))


def _head(found: Row, emulated: Row | None) -> str:
    seconds = [one["seconds"] for one in found["each"]]
    looks = sum(one["looks"] for one in found["each"])
    return _HEAD.format(
        date=found["date"],
        commit=found["commit"],
        runs=found["runs"],
        violations=found["violations"],
        seeds=_seeds(found["each"]),
        strategies=_by_strategy(found["each"]),
        debris=_debris(found),
        precopy="some are [below](#in-the-vm-lab)" if emulated else "none was",
        seconds=sum(seconds),
        median=statistics.median(seconds),
        looks=looks,
    )


def _debris(found: Row) -> str:
    """A line of its own: it is no violation, and is hidden from nobody."""
    return (
        f"Debris of dockerd's own: {found['debris']}. Folders of containers that a dockerd which an accident ended has "
        "left half made, and can't load itself ([limits](limits.md#what-a-killed-dockerd-leaves)); they count apart."
    )


def _faults(found: Row) -> str:
    return "\n".join(["## By fault", "", *_fault_table(found["by_fault"])]) + "\n"


def _fault_table(by_fault: Row) -> list[str]:
    lines = ["| fault | runs that it hit | with a violation |", "|---|---|---|"]
    return lines + [f"| {kind} | {one['runs']} | {one['violations']} |" for kind, one in by_fault.items()]


def _cells(rows: list[Row]) -> str:
    hits = Counter(
        (fault["kind"], fault["side"], tuple(fault["moment"]))
        for one in rows
        for fault in one["faults"]
        if fault["hit"]
    )
    tried = Counter((kind, side, tuple(moment)) for one in rows for kind, side, moment in one["planned"])
    heads = [f"{role[0].upper()}: {phase}" for role, phase in MOMENTS]
    lines = [
        "## By moment",
        "",
        "How many runs had a fault just after the source (S) or the target (T) had entered a phase. `0/2`: tried",
        "twice, and what was to be killed did not run just then, or the move had ended before. `-`: not tried; empty:",
        "there is nothing to hit (no CRIU runs before a move is staged). A clock is off for the whole of a move.",
        "",
        f"| fault | side | {' | '.join(heads)} |",
        f"|---|---|{'---|' * len(heads)}",
    ]
    for kind in Accident:
        for side in SIDES.get(kind, BOTH):
            places = [(kind, side, moment) for moment in MOMENTS]
            counts = [_cell(hits[place], tried[place]) if can_be(*place) else "" for place in places]
            lines.append(f"| {kind} | {side} | {' | '.join(counts)} |")
    return "\n".join(lines) + "\n"


def _cell(hits: int, tried: int) -> str:
    return str(hits) if hits else f"0/{tried}" if tried else "-"


def _ends(rows: list[Row]) -> str:
    ends = Counter(one["ended"] for one in rows)
    lost = [one for one in rows if one["lost"]]
    resolved = Counter(one["resolved"] for one in rows if one["resolved"])
    fresh = sum(not one["went_on"] for one in rows)
    lines = ["## How the moves ended", "", *(f"- {end}: {count}" for end, count in ends.most_common())]
    lines.append(f"- started anew, since an accident had ended the container where it ran: {fresh}")
    lines.append(f"- said to be `lost` (post-copy, the rest of its memory could not come any more): {len(lost)}")
    if moments := sum(bool(one.get("may_have_run")) for one in rows):
        lines.append(
            "- the target's host went in the instant in which the decided copy was let go, and nobody can tell whether "
            f"it ran for a moment; a person had the source's go on from the freeze: {moments}"
        )
    lines += [f"- a person's word was needed, `{word}`: {count}" for word, count in resolved.most_common()]
    return "\n".join(lines) + "\n"


def _figures(found: Row) -> str:
    lines = ["## Recovery, cancel, admission", ""]
    open_ones = [one for one in found["recoveries"] if one["open"]]
    if open_ones:
        up, taken = [one["up"] for one in open_ones], [one["taken"] for one in open_ones]
        lines.append(
            f"- An agent that was started with open migrations in its journal ({len(open_ones)} times): up after "
            f"{_spread(up)} from its process's start; the last open one was taken up {_spread(taken)} after being up "
            f"(negative: before); within 2 s of that: {_within(taken, 2.0)}."
        )
    for name in ("cancel answered", "cancel over"):
        values = [one["commands"][name] for one in found["each"] if name in one["commands"]]
        if values:
            lines.append(f"- {name}: {len(values)} times, after {_spread(values)}; within 1 s: {_within(values, 1.0)}.")
    if crowd := found.get("crowd"):
        lines.append(
            f"- {crowd['containers']} containers by as many commands, 6 of them at a time where the host takes 4: "
            f"{crowd['seconds']:.0f} s, {crowd['busy']} times Busy and given again; {_wrong_with(crowd)}."
        )
    if crowd := found.get("evacuation"):
        lines.append(
            f"- An evacuation of {crowd['containers']} containers, 4 at a time: {crowd['seconds']:.0f} s, "
            f"{crowd['together']} moves open at once at most; {_wrong_with(crowd)}."
        )
    return "\n".join(lines) + "\n"


def _wrong_with(crowd: Row) -> str:
    return "; ".join(crowd["wrong"]) or "none lost, none twice, no number of theirs missing, nothing left behind"


def _within(values: Sequence[float], seconds: float) -> str:
    found = sum(value <= seconds for value in values)
    return "all" if found == len(values) else f"{found} of {len(values)}"


def _spread(values: Iterable[float]) -> str:
    found = sorted(values)
    return f"{statistics.median(found):.2f} s in the middle, {found[-1]:.2f} s at most"


def _violations(rows: list[Row], again: Sequence[Row]) -> list[str]:
    wrong = [one for one in rows if one["violations"]]
    said = [f"- {one['plan']}: {'; '.join(_clipped(one['violations']))}{_since(one, again)}" for one in wrong]
    return said or ["No violation."]


def _since(row: Row, again: Sequence[Row]) -> str:
    """How the same run has come out since then."""
    of = (row["seed"], row["run"])
    done = [(part["commit"], one) for part in again for one in part["each"] if (one["seed"], one["run"]) == of]
    if not done:
        return ""
    wrong, commits = sum(bool(one["violations"]) for _, one in done), dict.fromkeys(commit for commit, _ in done)
    return f". **Done again {len(done)} times since ({', '.join(commits)}): {wrong or 'none'} with a violation.**"


def _clipped(found: list[str]) -> list[str]:
    """What is left over may be a long list; the JSON file has all of it."""
    short = [one if len(one) <= LONGEST else one[:LONGEST] + "..." for one in found[:MOST]]
    return short if len(found) <= MOST else [*short, f"and {len(found) - MOST} more"]
