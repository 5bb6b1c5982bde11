"""`transship pki`: files around `agent.base.pki`. Keys are for their owner's eyes alone, and never replaced unasked."""

import ipaddress
import os
import re
from dataclasses import dataclass
from pathlib import Path

from agent.base import pki
from agent.base.errors import Refused
from agent.cli.output import OK, Out
from protocol.errors import ErrorCode

HOST_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


@dataclass(frozen=True, slots=True)
class HostWanted:
    """A host to be named."""

    name: str
    dns: tuple[str, ...]
    ips: tuple[str, ...]
    days: int


def make_authority(out: Out, folder: Path, name: str, days: int) -> int:
    certificate, key = folder / "ca.crt", folder / "ca.key"
    for file in (certificate, key):
        if file.exists():
            raise Refused(
                ErrorCode.BAD_COMMAND,
                f"there is an authority already: {file}",
                hint="a new one would make every certificate of the old one worthless; move the old one away first",
            )
    made, secret = pki.make_ca(name, days)
    _write(key, secret, 0o600)
    _write(certificate, made, 0o644)
    out.say(f"✔ {certificate}  goes to every host, and to whoever controls them", "green")
    out.say(f"✔ {key}  signs hosts: keep it from all of them", "green")
    if out.as_json:
        out.item({"ok": True, "certificate": str(certificate), "key": str(key)})
    return OK


def make_host(out: Out, wanted: HostWanted, authority: Path, folder: Path, *, force: bool) -> int:
    if not HOST_NAME.fullmatch(wanted.name):
        raise Refused(
            ErrorCode.BAD_COMMAND,
            f"{wanted.name!r} is no host name",
            hint="lower-case letters, digits and hyphens; the same as `host` in its agent.toml",
        )
    for address in wanted.ips:
        _check_address(address)
    ca, ca_key = authority / "ca.crt", authority / "ca.key"
    if not ca.exists() or not ca_key.exists():
        raise Refused(
            ErrorCode.BAD_COMMAND,
            f"there is no authority in {authority}",
            hint="`transship pki init` makes one; --ca-dir says where it lies",
        )
    certificate, key = folder / "host.crt", folder / "host.key"
    if not force and (certificate.exists() or key.exists()):
        raise Refused(ErrorCode.BAD_COMMAND, f"{folder} has a certificate already", hint="--force replaces it")
    names = (wanted.name, *wanted.dns)
    made, secret = pki.issue(ca.read_bytes(), ca_key.read_bytes(), wanted.name, names, wanted.ips, wanted.days)
    _write(key, secret, 0o600)
    _write(certificate, made, 0o644)
    if folder.resolve() != authority.resolve():
        _write(folder / "ca.crt", ca.read_bytes(), 0o644)
    also = ", ".join((*names[1:], *wanted.ips))
    out.say(f"✔ {folder}/  host.crt, host.key, ca.crt: to /etc/transship/pki of {wanted.name}", "green")
    out.say(f"  valid for {wanted.name}{f', {also}' if also else ''}, {wanted.days} days", "dim")
    if out.as_json:
        out.item({"ok": True, "host": wanted.name, "certificate": str(certificate), "key": str(key)})
    return OK


def _check_address(address: str) -> None:
    try:
        ipaddress.ip_address(address)
    except ValueError:
        raise Refused(ErrorCode.BAD_COMMAND, f"{address!r} is no address", hint="names go to --dns") from None


def _write(file: Path, content: bytes, mode: int) -> None:
    """Written beside and renamed, with its mode from the first byte on."""
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_name(f".{file.name}.{os.getpid()}.new")
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as stream:
        stream.write(content)
    new.chmod(mode)
    new.replace(file)
