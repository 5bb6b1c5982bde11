"""`transship inspect`: an archive read on this machine, by nothing but its bytes. No agent, no broker."""

import asyncio
import os
from dataclasses import dataclass, field
from pathlib import Path

from agent.archive import layout, pipeline
from agent.archive.layout import Manifest, Taken
from agent.archive.reader import ArchiveReader
from agent.base.errors import AgentError, Refused
from agent.cli.output import FAILED, OK, Out, duration, size
from protocol.errors import ErrorCode

LARGEST = 12


@dataclass(slots=True)
class _Found:
    """What was read of an archive so far."""

    manifest: Manifest
    taken: Taken | None = None
    members: list[tuple[str, int]] = field(default_factory=list)

    def total(self, prefix: str) -> int:
        return sum(length for name, length in self.members if name.startswith(prefix))


def inspect(out: Out, archive: Path, key_file: Path | None, *, verify: bool) -> int:
    """Show it; the exit code is 1 if it was to be verified and is not sound."""
    return asyncio.run(_inspect(out, archive, key_file, verify=verify))


async def _inspect(out: Out, archive: Path, key_file: Path | None, *, verify: bool) -> int:
    try:
        key = key_file.read_bytes() if key_file is not None else None
        fd = os.open(archive, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise Refused(ErrorCode.BAD_COMMAND, f"{error.filename} can't be read: {error.strerror}") from None
    wrong = ""
    try:
        reader = ArchiveReader(pipeline.read(fd, key))
        found = _Found(await reader.manifest())
        try:
            await _members(reader, found)
        except AgentError as error:
            wrong = error.message
    finally:
        os.close(fd)
    if out.as_json:
        out.item(_as_json(found, wrong, verify=verify))
    else:
        _show(out, found, archive)
        if wrong:
            out.warn(f"not sound: {wrong}")
        elif verify:
            out.say(f"sound: all {len(found.members)} members are as they were written", "green")
    return FAILED if wrong else OK


async def _members(reader: ArchiveReader, found: _Found) -> None:
    """To the end: a tar has no list of what is in it. So the hashes are compared in any case."""
    while (member := await reader.peek()) is not None and member.name != layout.HASHES:
        await reader.next()
        found.members.append((member.name, member.size))
        if member.name == layout.TAKEN:
            found.taken = await reader.model(Taken)
    await reader.finish()


def _as_json(found: _Found, wrong: str, *, verify: bool) -> dict[str, object]:
    return {
        "ok": not wrong,
        "verified": verify and not wrong,
        "problem": wrong,
        **found.manifest.model_dump(mode="json", exclude={"offer"}),
        "image": found.manifest.offer.image.name,
        "taken": found.taken.model_dump(mode="json") if found.taken else None,
        "members": [{"name": name, "bytes": length} for name, length in found.members],
    }


def _show(out: Out, found: _Found, archive: Path) -> None:
    manifest, offer = found.manifest, found.manifest.offer
    out.say(f"{manifest.container}  ({manifest.id})", "bold")
    rows = [
        ("taken", f"{manifest.at:%Y-%m-%d %H:%M:%S %Z} on {manifest.host}, by transship {manifest.agent_version}"),
        ("container", f"{manifest.container_id[:12]}, which {'went on' if manifest.left_running else 'was stopped'}"),
        ("image", offer.image.name + (", which is in it" if manifest.image_included else "")),
        ("engine", f"{offer.engine.docker}, CRIU {offer.engine.criu}, Linux {offer.kernel} ({offer.machine})"),
    ]
    if found.taken is not None:
        rows.append(("tasks", f"{found.taken.tasks}, which stood still for {duration(found.taken.frozen_ms)}"))
    rows += [("network", f"{each.name} {' '.join(each.addresses)}") for each in offer.networks]
    rows += [(each.kind, f"{each.name} on {each.destination}") for each in offer.volumes]
    rows += [
        ("memory", size(found.total(f"{layout.IMAGES}pages-"))),
        ("writable layer", size(found.total(layout.ROOT))),
        ("archive", f"{size(archive.stat().st_size)}, {size(found.total(''))} unpacked"),
    ]
    out.table(("", ""), rows, empty="")
    for note in manifest.notes:
        out.say(f"note: {note}", "dim")
    largest = sorted(found.members, key=lambda each: -each[1])[:LARGEST]
    out.table(("MEMBER", "SIZE"), [(name, size(length)) for name, length in largest], empty="")
