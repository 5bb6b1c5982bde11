"""`transship doctor`: a host by itself: can it give and take containers, and is anything left over or running out?

All that `setup --check` looks at, and what only shows on a host in use. `--fix` does what `transship setup` does, and
closes what is open to others, and removes what is left of moves that have ended. It never thaws, unlocks or kills
anything: whose copy that is, a journal has to say.
"""

import asyncio
import contextlib
import os
import secrets
import shutil
from pathlib import Path
from typing import Final

from agent.base.config import Settings
from agent.base.errors import AgentError
from agent.base.shell import Shell
from agent.checkpoint import proc
from agent.cli import checks, leftovers, setup
from agent.cli.checks import Finding, doubtful, good, missing
from agent.cli.output import Out
from agent.cli.registration import DockerApi
from agent.cli.setup import Places
from agent.doors.mqtt_link import Link, NotAllowed, connect
from agent.doors.peer_client import PeerClient
from agent.migration.host import OF_RESTORES, OF_STRATEGIES
from protocol import topics
from protocol.base import new_migration_id, utc_now
from protocol.reading import Unreadable, read
from protocol.status import Event, HostStatus

COMMAND_SECONDS: Final = 30.0
PEER_SECONDS: Final = 10.0
HEARD_SECONDS: Final = 2.0
"""For what is retained at the broker to come."""
SPARE: Final = 2
"""Twice of what is set aside is little room."""
LOGIND: Final = "logind"


def doctor(out: Out, places: Places, *, fix: bool) -> int:
    """0: nothing is missing; 1: something is, and each finding says how to mend it."""
    if fix:
        setup.install(_Quiet() if out.as_json else out, places)
        for line in asyncio.run(_mend(places)):
            out.say(f"✔ {line}", "green")
    return checks.tell(out, asyncio.run(look(places)))


class _Quiet(Out):
    """For a program what was found afterwards is all."""

    def __init__(self) -> None:
        super().__init__(as_json=False)

    def say(self, text: str, style: str = "") -> None:
        pass


async def _mend(places: Places) -> list[str]:
    settings, _ = checks.settings(places)
    key, did = settings.peer.key, []
    if key.exists() and key.stat().st_mode & 0o077:
        key.chmod(0o600)
        did.append(f"{key} closed to others")
    return did + await leftovers.clear(Shell(), settings.state_dir)


async def look(places: Places, shell: Shell | None = None) -> list[Finding]:
    """Everything, whatever fails."""
    runner = shell or Shell()
    settings, _ = checks.settings(places)
    found = await checks.look(places, runner)
    found += [
        await _kernel(runner),
        _cgroup(),
        await _nftables(runner),
        _journal(settings),
        _disk(settings, places),
        _memory(settings),
        *_logind(places),
    ]
    statuses, said = await _at_the_broker(settings)
    found += said
    found += await _peers(settings, statuses)
    return [*found, *await leftovers.look(runner, settings.state_dir)]


async def _kernel(shell: Shell) -> Finding:
    """What strategies and restores ask for, of which some have a substitute."""
    what, release = "kernel", os.uname().release
    features = (*OF_STRATEGIES, *OF_RESTORES)
    has = dict(zip(features, await asyncio.gather(*(_feature(shell, name) for name in features)), strict=True))
    lacks = [name for name in OF_RESTORES if not has[name]]
    if lacks:
        message = f"{release} does not have {', '.join(lacks)}"
        return doubtful(what, message, "containers from hosts that have it can't be restored here")
    without = [name for name in OF_STRATEGIES if not has[name]]
    return good(what, release + (f" (without {', '.join(without)}: docs/strategies.md)" if without else ""))


async def _feature(shell: Shell, name: str) -> bool:
    try:
        done = await shell.run("criu", "check", "--feature", name, timeout=COMMAND_SECONDS, check=False)
    except AgentError:
        return False
    return done.code == 0


def _cgroup(root: Path = Path("/sys/fs/cgroup")) -> Finding:
    if (root / "cgroup.controllers").exists():
        return good("cgroup", "v2")
    if (root / "freezer").is_dir():
        return good("cgroup", "v1")
    return missing("cgroup", f"no freezer below {root}", "boot with cgroup v2 (systemd.unified_cgroup_hierarchy=1)")


async def _nftables(shell: Shell) -> Finding:
    try:
        await shell.run("nft", "list", "tables", timeout=COMMAND_SECONDS)
    except AgentError as error:
        return missing("nftables", error.message, "a kernel with nf_tables: the network is locked by it")
    return good("nftables", "the kernel has it")


def _journal(settings: Settings) -> Finding:
    """A file beside it, written as durably as the journal is."""
    what, trial = "journal", settings.state_dir / f".doctor-{secrets.token_hex(4)}"
    try:
        with trial.open("wb") as file:
            file.write(b"x")
            os.fsync(file.fileno())
    except OSError as error:
        return missing(what, f"{settings.state_dir} can't be written: {error.strerror}", "moves are refused without it")
    finally:
        trial.unlink(missing_ok=True)
    return good(what, f"{settings.state_dir} can be written")


def _disk(settings: Settings, places: Places) -> Finding:
    reserve = settings.limits.disk_reserve_bytes
    roots = [settings.state_dir]
    with contextlib.suppress(AgentError, LookupError):  # that dockerd does not answer is said elsewhere
        roots.append(Path(DockerApi(places.docker).get("/info")["DockerRootDir"]))
    there = [root for root in roots if root.exists()]
    free = {root: shutil.disk_usage(root).free for root in there}
    return _room("disk", {str(root): size for root, size in free.items()}, reserve)


def _memory(settings: Settings) -> Finding:
    return _room("memory", {"memory": proc.memory_available()}, settings.limits.memory_reserve_bytes)


def _room(what: str, free: dict[str, int], reserve: int) -> Finding:
    least = min(free, key=lambda name: free[name])
    said = f"{free[least] >> 20} MiB are free" + (f" at {least}" if what == "disk" else "")
    if free[least] < reserve:
        return missing(
            what, f"{said}, less than the {reserve >> 20} MiB that are set aside", "nothing is taken: free some"
        )
    if free[least] < SPARE * reserve:
        return doubtful(what, said, f"{reserve >> 20} MiB of it are set aside (limits.{what}_reserve_bytes)")
    return good(what, said)


def _logind(places: Places) -> list[Finding]:
    if not places.has_systemd:
        return []
    wrong = [
        file
        for name, file in places.beside_unit.items()
        if not file.exists() or file.read_text() != setup.shipped(name)
    ]
    wrong += [places.unit] if not places.unit.exists() else []
    if wrong:
        hint = "`transship setup` writes it: by logind's own 5 s no container is brought to safety at a shutdown"
        return [doubtful(LOGIND, f"not there, or of another version: {', '.join(map(str, wrong))}", hint)]
    return [good(LOGIND, "waits for containers at a shutdown")]


# --- the broker and the peers


async def _at_the_broker(settings: Settings) -> tuple[dict[str, HostStatus], list[Finding]]:
    """What may be said and heard there; and the hosts that have said something. No broker: said elsewhere."""
    try:
        async with connect(settings.broker, f"transship-doctor-{secrets.token_hex(6)}") as link:
            findings = [await _access(link, settings.host)]
            return await _statuses(link, set(settings.peer.allow)), findings
    except AgentError:
        return {}, []


async def _access(link: Link, host: str) -> Finding:
    what = "broker access"
    event = Event(host=host, at=utc_now(), kind="doctor").model_dump_json().encode()
    try:
        await link.subscribe(topics.command(host), topics.ALL_HOSTS)
        await link.publish(topics.events(host), event)
    except NotAllowed as error:
        return missing(what, error.message, error.hint)
    try:
        await link.publish(topics.events(f"not-{host}"), event)
    except NotAllowed:
        return good(what, f"{host} hears its commands, and speaks for itself alone")
    return doubtful(what, "any host may speak for any other", "use systemd/mosquitto.acl, with a user for each host")


async def _statuses(link: Link, wanted: set[str]) -> dict[str, HostStatus]:
    """What is retained of these hosts, as far as it comes."""
    found: dict[str, HostStatus] = {}
    try:
        async with asyncio.timeout(HEARD_SECONDS):
            async for message in link.messages():
                try:
                    said = read(HostStatus, message.payload)
                except Unreadable:
                    continue
                found[said.host] = said
                if wanted <= set(found):
                    break
    except TimeoutError:
        pass
    return found


async def _peers(settings: Settings, statuses: dict[str, HostStatus]) -> list[Finding]:
    """Each is asked over the peer link: by that it allows this host, and its clock is seen."""
    names = [name for name in settings.peer.allow if name != settings.host]
    online = [name for name in names if name in statuses and statuses[name].online]
    away = [name for name in names if name not in online]
    found = list(await asyncio.gather(*(_peer(settings, name, statuses[name].peer_url) for name in online)))
    if away and statuses:
        found.append(doubtful("peer", f"{', '.join(away)}: offline", "is the agent there running?"))
    return found


async def _peer(settings: Settings, name: str, url: str) -> Finding:
    what = f"peer {name}"
    try:
        async with (
            asyncio.timeout(PEER_SECONDS),
            PeerClient(settings.peer, settings.deadlines, name, lambda: url) as peer,
        ):
            await peer.clock(new_migration_id())  # for the connection
            before = utc_now()
            there = await peer.clock(new_migration_id())
            here = before + (utc_now() - before) / 2
    except TimeoutError:
        return missing(what, f"did not answer within {PEER_SECONDS:g} s", "is its agent running?")
    except AgentError as error:
        return missing(what, error.message, error.hint)
    skew = abs((there - here).total_seconds())
    if skew > settings.limits.clock_skew_s:
        return missing(what, f"its clock differs by {skew:.1f} s", "synchronize both (chrony, systemd-timesyncd)")
    return good(what, f"answers; its clock differs by {skew * 1000:.0f} ms")
