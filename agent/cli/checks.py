"""`transship setup --check`: what this host still lacks, as a table. Changes nothing."""

import asyncio
import re
import secrets
import shutil
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from agent.base import config
from agent.base.config import Settings
from agent.base.errors import AgentError
from agent.base.shell import Shell
from agent.cli import setup
from agent.cli.output import FAILED, OK, Out
from agent.cli.registration import DaemonJson, DockerApi
from agent.cli.setup import RUNTIME, Places
from agent.doors.mqtt_link import connect
from protocol.reading import explain

CRIU_WANTED: Final = (4, 2)
"""Older ones fail on current kernels: 4.1 can't dump TCP sockets from Linux 6.16 on."""
COMMAND_SECONDS: Final = 30.0


class Verdict(StrEnum):
    """How it is."""

    GOOD = "good"
    DOUBTFUL = "doubtful"  # it will do, with a limit
    MISSING = "missing"  # no move will work


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    what: str
    verdict: Verdict
    said: str
    hint: str = ""


def good(what: str, said: str) -> Finding:
    return Finding(what, Verdict.GOOD, said)


def doubtful(what: str, said: str, hint: str) -> Finding:
    return Finding(what, Verdict.DOUBTFUL, said, hint)


def missing(what: str, said: str, hint: str) -> Finding:
    return Finding(what, Verdict.MISSING, said, hint)


def check(out: Out, places: Places) -> int:
    return tell(out, asyncio.run(look(places)))


def tell(out: Out, findings: list[Finding]) -> int:
    """Show them; the exit code."""
    lacking = any(one.verdict is Verdict.MISSING for one in findings)
    if out.as_json:
        for one in findings:
            out.item({"what": one.what, "verdict": one.verdict, "said": one.said, "hint": one.hint})
        out.item({"ok": not lacking})
    else:
        _show(out, findings)
    return FAILED if lacking else OK


def _show(out: Out, findings: list[Finding]) -> None:
    from rich.text import Text

    marks = {Verdict.GOOD: ("✔", "green"), Verdict.DOUBTFUL: ("!", "yellow"), Verdict.MISSING: ("✘", "red")}
    rows = []
    for one in findings:
        mark, style = marks[one.verdict]
        said = Text(one.said)
        if one.hint:
            said.append(f"\n{one.hint}", style="dim")
        rows.append((Text(mark, style=f"bold {style}"), Text(one.what, style="bold"), said))
    out.table(("", "WHAT", "HOW IT IS"), rows, empty="")


async def look(places: Places, shell: Shell | None = None) -> list[Finding]:
    """Everything, whatever fails."""
    runner = shell or Shell()
    found, told = settings(places)
    docker = _docker(places)
    tools = await asyncio.gather(_criu(runner), _criu_check(runner), _runc(runner))
    return [
        told,
        *docker,
        _launcher(places),
        *tools,
        _nft(),
        _run_folder(places),
        *_folders(places),
        *(_peers(found), *_certificates(found), await _broker(found)),
        *(await _service(runner, places)),
    ]


def settings(places: Places) -> tuple[Settings, Finding]:
    what = "settings"
    if not places.settings.exists():
        return Settings(), missing(what, f"there is no {places.settings}", "`transship setup` writes an example")
    try:
        return config.load(places.settings), good(what, f"{places.settings}")
    except ValidationError as error:
        return Settings(), missing(what, "; ".join(explain(error)), f"mend {places.settings}")
    except ValueError as error:
        return Settings(), missing(what, f"no TOML: {error}", f"mend {places.settings}")


def _docker(places: Places) -> list[Finding]:
    api = DockerApi(places.docker)
    register = "`transship setup` registers it, without a restart"
    try:
        version = api.get("/version")
        runtimes = api.runtimes()
    except AgentError as error:
        return [missing("dockerd", error.message, error.hint)]
    found = [good("dockerd", f"{version.get('Version')} (API {version.get('ApiVersion')})")]
    path = runtimes.get(RUNTIME, {}).get("path")
    try:
        written = RUNTIME in DaemonJson.read(places.daemon_json).content.get("runtimes", {})
    except AgentError as error:
        return [*found, missing("runtime", error.message, error.hint)]
    if path == str(places.launcher) and not written:
        found.append(doubtful("runtime", f"dockerd knows it, {places.daemon_json} does not", register))
    elif path == str(places.launcher):
        found.append(good("runtime", f"{RUNTIME} is registered"))
    else:
        found.append(missing("runtime", f"dockerd does not know {RUNTIME}" if not path else f"is {path}", register))
    return found


def _launcher(places: Places) -> Finding:
    what, hint = "launcher", "`transship setup` writes it"
    if not places.launcher.exists():
        return missing(what, f"there is no {places.launcher}", hint)
    if places.launcher.read_text() != setup.launcher():
        return missing(what, f"{places.launcher} is of another version or installation", hint)
    return good(what, str(places.launcher))


async def _criu(shell: Shell) -> Finding:
    what, hint = "criu", f"install CRIU {'.'.join(map(str, CRIU_WANTED))} or newer"
    try:
        done = await shell.run("criu", "--version", timeout=COMMAND_SECONDS)
    except AgentError as error:
        return missing(what, error.message, hint)
    found = re.search(r"Version:\s*(\d+)\.(\d+)(\S*)", done.stdout)
    if found is None:
        return doubtful(what, "says no version", hint)
    version = int(found.group(1)), int(found.group(2))
    text = f"{version[0]}.{version[1]}{found.group(3)}"
    return good(what, text) if version >= CRIU_WANTED else doubtful(what, f"{text} is old", hint)


async def _criu_check(shell: Shell) -> Finding:
    what = "criu check"
    try:
        done = await shell.run("criu", "check", timeout=COMMAND_SECONDS, check=False)
    except AgentError as error:
        return missing(what, error.message, "")
    if done.code == 0:
        return good(what, "the kernel has what CRIU needs")
    last = next((line for line in reversed(done.stderr_tail) if "Error" in line), "it failed and said nothing")
    return missing(what, last, "`criu check` as root says more")


async def _runc(shell: Shell) -> Finding:
    try:
        done = await shell.run("runc", "--version", timeout=COMMAND_SECONDS)
    except AgentError as error:
        return missing("runc", error.message, "the runtime hands on to runc: it must be on dockerd's PATH")
    return good("runc", done.stdout.partition("\n")[0].removeprefix("runc version "))


def _nft() -> Finding:
    path = shutil.which("nft")
    return good("nft", path) if path else missing("nft", "is not installed", "install nftables: it locks networks")


def _run_folder(places: Places) -> Finding:
    what = "/run"
    try:
        kinds = [
            line.split()[2] for line in (places.root / "proc/self/mounts").read_text().splitlines() if " /run " in line
        ]
    except OSError:
        kinds = []
    if kinds and kinds[-1] == "tmpfs":
        return good(what, "is a tmpfs")
    return missing(what, "is no tmpfs", "CRIU images pass through /run in memory, and CRIU keeps its cache there")


def _folders(places: Places) -> list[Finding]:
    findings = []
    for folder, mode in places.folders.items():
        if not folder.is_dir():
            findings.append(missing("folder", f"there is no {folder}", "`transship setup` makes it"))
        elif folder.stat().st_mode & 0o777 & ~mode:
            findings.append(doubtful("folder", f"{folder} is open to others", "`transship setup` closes it"))
    return findings or [good("folders", "are there")]


def _peers(settings: Settings) -> Finding:
    allowed = ", ".join(settings.peer.allow)
    if allowed:
        return good("peers", f"{settings.host} may exchange containers with {allowed}")
    return missing("peers", "none is allowed", "name them in peer.allow")


def _certificates(settings: Settings) -> list[Finding]:
    """Try them on each other: a handshake in memory finds what an agent would find, and names the moment of expiry."""
    link, what = settings.peer, "certificates"
    hint = f"`transship pki host {settings.host} --ip ADDRESS` makes them"
    gone = [str(file) for file in (link.ca, link.certificate, link.key) if not file.exists()]
    if gone:
        return [missing(what, f"not there: {', '.join(gone)}", hint)]
    try:
        shown = handshake(link.ca, link.certificate, link.key)
    except (ssl.SSLError, OSError) as error:
        return [missing(what, f"do not fit: {error}", hint)]
    findings = [_named(settings.host, shown), _lasting(shown, link.expiry_warning_days)]
    if link.key.stat().st_mode & 0o077:
        findings.append(doubtful(what, f"{link.key} can be read by others", f"chmod 600 {link.key}"))
    return findings


def _named(host: str, shown: dict[str, object]) -> Finding:
    names = [value for part in shown.get("subject", ()) for key, value in part if key == "commonName"]  # type: ignore[attr-defined]
    if names == [host]:
        return good("certificates", f"name {host}")
    return missing("certificates", f"name {', '.join(names)}, not {host}", "they must be those of this host")


def _lasting(shown: dict[str, object], soon: float) -> Finding:
    until = datetime.fromtimestamp(ssl.cert_time_to_seconds(str(shown["notAfter"])), UTC)
    days = (until - datetime.now(UTC)).days
    if days < soon:
        return doubtful("certificates", f"end in {days} days", "`transship pki host --force` makes new ones")
    return good("certificates", f"are valid for {days} days")


def handshake(ca: Path, certificate: Path, key: Path) -> dict[str, object]:
    """A TLS handshake of the host with itself, both sides shown the same certificate; what the certificate says."""
    sides = []
    for purpose in (ssl.PROTOCOL_TLS_SERVER, ssl.PROTOCOL_TLS_CLIENT):
        context = ssl.SSLContext(purpose)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(ca)
        context.load_cert_chain(certificate, key)
        sides.append(context)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = sides[0].wrap_bio(to_server, to_client, server_side=True)
    client = sides[1].wrap_bio(to_client, to_server)
    waiting: list[Callable[[], None]] = [client.do_handshake, server.do_handshake]
    for _ in range(20):
        if not waiting:
            break
        step = waiting.pop(0)
        try:
            step()
        except ssl.SSLWantReadError:
            waiting.append(step)
    shown = client.getpeercert()
    return dict(shown or {})


async def _broker(settings: Settings) -> Finding:
    where = f"{settings.broker.host}:{settings.broker.port}"
    try:
        async with connect(settings.broker, f"transship-check-{secrets.token_hex(6)}"):
            return good("broker", where)
    except AgentError as error:
        return missing("broker", error.message, error.hint)


async def _service(shell: Shell, places: Places) -> list[Finding]:
    if not places.systemd_runs:
        return []
    done = await shell.run("systemctl", "is-active", setup.UNIT, timeout=COMMAND_SECONDS, check=False)
    state = done.stdout.strip() or "unknown"
    if state == "active":
        return [good("service", f"{setup.UNIT} is active")]
    return [doubtful("service", f"{setup.UNIT} is {state}", f"systemctl enable --now {setup.UNIT}")]
