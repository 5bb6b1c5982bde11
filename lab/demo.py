"""`./scripts/demo`: two real Docker hosts, a container that counts, a move there and back, and one that is refused.

Every sentence that it prints about numbers was checked; the exit code is 0 only if all of it was true.
"""

import argparse
import asyncio
import contextlib
import json
import signal
import sys
import time
from dataclasses import dataclass, field
from typing import Any

from agent.cli.timeline import bar, stretches
from lab import shell
from lab.cluster import Cluster
from lab.host import Engine, HostSpec
from lab.shell import LabError
from lab.workloads import Counted, counted, run_counter
from protocol.commands import Reply, ReplyKind
from protocol.errors import ErrorCode
from protocol.status import MigrationReport

NAME = "demo"
CONTAINER = "counter"
A, B = "host-a", "host-b"
MEMORY_MIB = 64
GROW_SECONDS = 30.0


@dataclass
class Story:
    """What is told, and what was found out."""

    as_json: bool
    found: dict[str, Any] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    def say(self, text: str = "") -> None:
        print(text, file=sys.stderr if self.as_json else sys.stdout, flush=True)

    def check(self, so: bool, text: str) -> None:
        self.say(f"   {'ok ' if so else 'NO '} {text}")
        if not so:
            self.wrong.append(text)


def main() -> int:
    options = _options()
    shell.unwind_on_sigterm()
    story = Story(options.json)
    began = time.monotonic()
    cluster: Cluster | None = None
    try:
        story.say("A lab: two hosts in namespaces of this machine, each with its own dockerd, containerd and network;")
        story.say("a broker with TLS between them. (The first time their root file systems are made: a minute or two.)")
        specs = [HostSpec(A, Engine(options.engines[0])), HostSpec(B, Engine(options.engines[1]))]
        cluster = Cluster.up(NAME, specs, say=lambda line: story.say(f"   {line}"))
        story.say(f"   up after {time.monotonic() - began:.1f} s\n")
        if options.dashboard:
            story.say(f"The dashboard, to watch it and to move containers by hand:\n   {cluster.open_dashboard(A)}\n")
        asyncio.run(_tell(story, cluster))
        if options.dashboard:
            story.say("\nThe lab stays up until Ctrl-C.")
            _until_interrupted()
    except LabError as error:
        story.say(f"NO  {error}")
        story.wrong.append(str(error))
    finally:
        if cluster is not None and not options.keep:
            cluster.lab.down()
        elif cluster is not None:
            story.say(f"\nThe lab stays up: python -m lab --lab {NAME} status; ... sh {A} docker ps; ... down")
    ok = not story.wrong
    story.say(f"\n{'All of it was true.' if ok else 'Not true: ' + '; '.join(story.wrong)}")
    if options.json:
        print(json.dumps({"ok": ok, **story.found, "seconds": round(time.monotonic() - began, 1)}))
    return 0 if ok else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/demo", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="leave the lab up")
    parser.add_argument(
        "--dashboard", action="store_true", help="print the address of the dashboard; leave the lab up until Ctrl-C"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line; the story on stderr")
    parser.add_argument(
        "--engines",
        type=lambda text: text.split(","),
        default=[Engine.DOCKER26, Engine.DOCKER28],
        help="of the two hosts: docker26,docker28 (the default), docker28,docker28, ...",
    )
    return parser.parse_args()


def _until_interrupted() -> None:
    with contextlib.suppress(KeyboardInterrupt):
        signal.pause()


async def _tell(story: Story, cluster: Cluster) -> None:
    a, b = cluster[A], cluster[B]
    async with cluster.controller() as controller:
        engines = {one.host: one.engine for one in await controller.hosts()}
    story.found["engines"] = {
        name: {"docker": engine.docker, "runc": engine.runc, "criu": engine.criu}
        for name, engine in engines.items()
        if engine is not None
    }
    for name, engine in story.found["engines"].items():
        story.say(f"{name}: Docker {engine['docker']}, runc {engine['runc']}, CRIU {engine['criu']}")

    story.say(f"\n1. On {A} a container counts: in {MEMORY_MIB} MiB of memory, into a file, and into its log.")
    run_counter(a, CONTAINER, "--restart", "always", mib=MEMORY_MIB)
    await _grow(cluster, A, 100)
    story.say(f"   $ docker logs --tail 3 {CONTAINER}   ->  {_tail(cluster, A)}")

    story.say(f"\n2. A controller publishes: migrate {CONTAINER} to {B}.")
    there = await cluster.migrate(CONTAINER, A, B)
    _moved(story, there, "there")
    await _arrived(story, cluster, A, B)

    story.say(f"\n3. And back, from {B} to {A}.")
    back = await cluster.migrate(CONTAINER, B, A)
    _moved(story, back, "back")
    await _arrived(story, cluster, B, A)

    story.say(f"\n4. Something goes wrong: {B} has a container of that name by now, and refuses.")
    b.ensure_image("busybox")
    b.docker("create", "--name", CONTAINER, "busybox", "true")
    before, pid = counted(a, CONTAINER), _pid(cluster, A)
    refused = await cluster.migrate(CONTAINER, A, B)
    code = refused.error.code if refused.error else None
    story.say(f"   {refused.error.message if refused.error else 'it was not refused'}")
    story.check(refused.kind is ReplyKind.FAILED and code is ErrorCode.NAME_TAKEN, f"refused with the code {code}")
    after = await _grow(cluster, A, len(before.logged) + 20)
    story.check(_pid(cluster, A) == pid, f"the container is alive, and the same process ({pid})")
    widest_ms = 1000 * max(after.gaps_s[len(before.gaps_s) :])
    shortest_ms = min(story.found[key]["blackout_ms"] for key in ("there", "back"))
    story.check(widest_ms < shortest_ms, f"no gap since was a blackout ({widest_ms:.0f} ms at most): it never stopped")
    _result(story, there, back, after)


def _moved(story: Story, reply: Reply, key: str) -> None:
    report = reply.report
    story.check(reply.kind is ReplyKind.FINISHED, f"finished{': ' + reply.error.message if reply.error else ''}")
    if report is None or reply.kind is not ReplyKind.FINISHED:
        raise LabError("the container was not moved")
    _picture(story, report)
    story.found[key] = json.loads(report.model_dump_json(exclude_none=True))


def _picture(story: Story, report: MigrationReport) -> None:
    for each in stretches(report):
        mark = "frozen" if each.frozen else ""
        drawn = bar(each.at_ms, each.ms, report.total_ms, 44)
        story.say(f"   {each.phase:<10} {each.ms:8.1f} ms  {drawn:<44} {mark}")
    story.say(f"   blackout {report.blackout_ms:.0f} ms of {report.total_ms:.0f} ms; {_bytes(report)}")


def _bytes(report: MigrationReport) -> str:
    frozen = sum(part.bytes for part in report.parts if part.frozen)
    return f"{sum(part.bytes for part in report.parts) / 1e6:.1f} MB sent, {frozen / 1e6:.1f} MB of it while frozen"


async def _arrived(story: Story, cluster: Cluster, source: str, target: str) -> None:
    moved_at = len(counted(cluster[target], CONTAINER).logged)
    now = await _grow(cluster, target, moved_at + 50)
    story.say(f"   $ docker logs --tail 3 {CONTAINER}   ->  {_tail(cluster, target)}")
    story.check(now.missing == 0, f"{len(now.logged)} numbers in the log, {len(now.written)} in the file, none missing")
    story.check(now.duplicated == 0 and now.in_order, "none twice, and in order")
    left = cluster[source].docker("ps", "--all", "--format", "{{.Names}}").split()
    story.check(CONTAINER not in left, f"nothing of it is left on {source}")
    policy = cluster[target].docker("inspect", "-f", "{{.HostConfig.RestartPolicy.Name}}", CONTAINER)
    story.check(policy == "always", "its restart policy is what it was: always")


async def _grow(cluster: Cluster, host: str, numbers: int) -> Counted:
    """Wait until the counter has come that far."""
    end = time.monotonic() + GROW_SECONDS
    while time.monotonic() < end:
        now = counted(cluster[host], CONTAINER)
        if min(len(now.logged), len(now.written)) >= numbers:
            return now
        await asyncio.sleep(0.05)
    raise LabError(f"the counter on {host} does not go on: {len(now.logged)} numbers, {numbers} expected")


def _tail(cluster: Cluster, host: str) -> str:
    return " ".join(cluster[host].docker("logs", "--tail", "3", CONTAINER).split())


def _pid(cluster: Cluster, host: str) -> str:
    return cluster[host].docker("inspect", "-f", "{{.State.Pid}}", CONTAINER)


def _result(story: Story, there: Reply, back: Reply, last: Counted) -> None:
    reports = [reply.report for reply in (there, back) if reply.report is not None]
    story.found |= {
        "blackout_ms": [report.blackout_ms for report in reports],
        "total_ms": [report.total_ms for report in reports],
        "phases": [{each.phase: each.at_ms for each in report.phases} for report in reports],
        "missing": last.missing,
        "duplicated": last.duplicated,
        "numbers": len(last.logged),
    }


if __name__ == "__main__":
    # a lab of an earlier `--keep` is taken over by the next run
    sys.exit(main())
