"""`./scripts/chaos`: a seeded campaign of accidents on the lab."""

import argparse
import asyncio
import contextlib
import json
import math
import sys
import time
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from lab import shell
from lab.chaos import report
from lab.chaos.campaign import Campaign, Seen
from lab.chaos.crowd import Crowd, evacuated, moved
from lab.chaos.ground import LIMIT, A, B, Ground
from lab.chaos.plan import plan
from lab.chaos.recovery import recoveries
from lab.roots import CHECKOUT

NAME = "chaos"
RUN_SECONDS = 240.0 * shell.PATIENCE
DAY = 86_400.0
PAGE = CHECKOUT / "docs" / "reliability.md"


def main() -> int:
    options = _options()
    shell.unwind_on_sigterm()
    if options.write_page:
        first, again, emulated = (
            [json.loads(file.read_text()) for file in each] for each in (options.write_page, options.again, options.vm)
        )
        PAGE.write_text(report.markdown(report.together(first), again, report.together(emulated) if emulated else None))
        return 0
    out = Outcome()
    try:
        asyncio.run(_campaign(options, out))
    finally:
        if out.rows or out.crowd or out.evacuation:
            _write(options, out)
    rows, wrong = out.rows, [row for row in out.rows if row["violations"]]
    for many in (out.crowd, out.evacuation):
        wrong += [{"crowd": what} for what in many.wrong] if many else []
    print(f"{len(rows)} runs, {len(wrong)} with a violation")
    return 1 if wrong else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/chaos", description=__doc__)
    parser.add_argument("--runs", type=int, default=20, help="how many (default: 20)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--first", type=int, default=0, metavar="RUN", help="the number of the first run: to do one again"
    )
    parser.add_argument("--only", type=int, nargs="+", metavar="RUN", help="these runs alone, on one ground")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write how they came out there")
    parser.add_argument("--strategy", help="of every move, in place of those that the seed draws")
    parser.add_argument("--until", metavar="HH:MM", help="begin no run after this time of day (UTC)")
    parser.add_argument("--crowd", type=int, default=0, metavar="N", help="first move so many containers, 4 at a time")
    parser.add_argument("--evacuation", type=int, default=0, metavar="N", help="first evacuate so many, 4 at a time")
    parser.add_argument("--page", action="store_true", help="write docs/reliability.md")
    parser.add_argument("--write-page", type=Path, nargs="+", metavar="FILE", help="write it from JSON files alone")
    parser.add_argument(
        "--again", type=Path, nargs="+", default=[], metavar="FILE", help="with it: runs that were done again since"
    )
    parser.add_argument("--vm", type=Path, nargs="+", default=[], metavar="FILE", help="with it: runs in the VM lab")
    parser.add_argument(
        "--logs", type=Path, metavar="FOLDER", help="keep the agents' logs of runs with a violation there"
    )
    return parser.parse_args()


@dataclass(slots=True)
class Outcome:
    """What there is to be written down, so far."""

    rows: list[report.Row] = field(default_factory=list)
    recoveries: list[dict[str, float]] = field(default_factory=list)
    crowd: Crowd | None = None
    evacuation: Crowd | None = None


async def _campaign(options: argparse.Namespace, out: Outcome) -> None:
    first, last = options.first, options.first + options.runs
    end = time.monotonic() + _seconds_until(options.until, datetime.now(UTC)) if options.until else math.inf
    ground: Ground | None = None
    campaign: Campaign | None = None
    try:
        if options.crowd:
            ground = await _ground()
            out.crowd = await moved(ground.cluster, A, B, options.crowd, together=6, limit=LIMIT)
            print(out.crowd, flush=True)
        if options.evacuation:
            ground = ground or await _ground()
            out.evacuation = await evacuated(ground.cluster, A, B, options.evacuation, limit=LIMIT)
            print(out.evacuation, flush=True)
        for number in options.only or range(first, last):
            if time.monotonic() >= end:
                break
            ground = ground or await _ground()
            campaign = campaign or Campaign(ground, options.seed)
            this = plan(options.seed, number)
            if options.strategy:
                this = replace(this, strategy=options.strategy)
            ground.starts.clear()
            try:
                async with asyncio.timeout(RUN_SECONDS):
                    seen = await campaign.run(this)
            except Exception as error:  # the ground itself is broken: that is looked at, and another one made
                seen = Seen(this)
                seen.verdict.violations.append(f"the run broke off: {type(error).__name__}: {error}")
            out.rows.append(report.row(seen))
            _say(seen)
            out.recoveries += recoveries(ground)
            if seen.verdict.violations:  # whatever it has left there is not the next run's
                _keep_logs(options, ground, seen)
                await _end(ground, campaign)
                ground = campaign = None
            if options.json and number % 10 == 9:
                _write(options, out)
    finally:
        if ground is not None:
            await _end(ground, campaign)


def _seconds_until(time_of_day: str, now: datetime) -> float:
    """From now to where the clock shows that next, or has shown it last: whichever is less than half a day away."""
    hour, minute = map(int, time_of_day.split(":"))
    ahead = (now.replace(hour=hour, minute=minute, second=0, microsecond=0) - now).total_seconds()
    return (ahead + DAY / 2) % DAY - DAY / 2


async def _ground() -> Ground:
    ground = await asyncio.to_thread(Ground.make, NAME)
    await ground.open()
    return ground


async def _end(ground: Ground, campaign: Campaign | None) -> None:
    try:
        if campaign is not None:
            campaign.close()
    except Exception as error:  # it goes with the lab
        print(f"while it was cleared away: {error}", file=sys.stderr)
    await ground.close()


def _say(seen: Seen) -> None:
    struck = "; ".join(
        f"{one.fault.accident} {one.fault.side} at {one.source_phase}/{one.target_phase}"
        + ("" if one.hit else " (nothing to hit)")
        for one in seen.struck
    )
    ends = [step.phase for step in seen.steps if step.role == "source"][-1:]
    last = f"{', '.join(ends) or 'not begun'} at {seen.verdict.where}{'' if seen.verdict.went_on else ', anew'}"
    more = "".join(f" [{what}]" for what in (seen.verdict.resolved, *seen.verdict.debris) if what)
    print(
        f"{seen.plan.run:4} {seen.seconds:5.1f} s {seen.plan.load} {seen.plan.strategy}: {struck} -> {last}{more}",
        flush=True,
    )
    if seen.verdict.violations:
        print(f"VIOLATION {seen.plan}", flush=True)
        for one in seen.verdict.violations:
            print(f"    {one}", flush=True)


def _keep_logs(options: argparse.Namespace, ground: Ground, seen: Seen) -> None:
    if options.logs is None:
        return
    folder = options.logs / f"{seen.plan.seed}-{seen.plan.run}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(json.dumps(report.row(seen), indent=1))
    for host in ground.hosts:
        if host.node.running():
            for name in ("transship-agent", "dockerd", "containerd"):
                (folder / f"{host.name}-{name}.log").write_text(host.node.log_tail(name, 1500))


def _write(options: argparse.Namespace, out: Outcome) -> None:
    commit = "not told"  # in the VM lab the checkout has no history
    with contextlib.suppress(OSError, shell.LabError):
        commit = shell.run(["git", "-C", str(CHECKOUT), "rev-parse", "--short=10", "HEAD"]).stdout.strip()
    date = time.strftime("%Y-%m-%d", time.gmtime())
    whole = report.summary(out.rows, date=date, commit=commit, recoveries=out.recoveries)
    whole |= {
        name: asdict(many) if many else None for name, many in (("crowd", out.crowd), ("evacuation", out.evacuation))
    }
    if options.json:
        report.write(options.json, whole)
    if options.page:
        PAGE.write_text(report.markdown(whole))


if __name__ == "__main__":
    sys.exit(main())
