"""`transship checkpoints`: what is in the hosts' own folders; remove one, pin one."""

from agent.base.errors import Refused
from agent.cli.checkpoint import holder
from agent.cli.controller import Controller, checked
from agent.cli.listing import ago
from agent.cli.output import OK, Out, size
from protocol.base import new_command_id
from protocol.checkpoint import CheckpointInfo
from protocol.commands import ListCheckpoints, PinCheckpoint, RemoveCheckpoint
from protocol.errors import ErrorCode


async def show(controller: Controller, out: Out, host: str | None) -> int:
    names = [one.host for one in await controller.hosts() if one.online and host in (None, one.host)]
    if host is not None and not names:
        raise Refused(ErrorCode.HOST_OFFLINE, f"{host} is not online", hint="`transship hosts` shows which are")
    found: list[tuple[str, CheckpointInfo]] = []
    for name in names:
        reply = await controller.ask(name, ListCheckpoints(id=new_command_id()))
        found += [(name, info) for info in reply.checkpoints or ()]
    if out.as_json:
        for name, info in found:
            out.item({**info.model_dump(mode="json"), "at_host": name})
        return OK
    rows = [
        (
            info.id,
            name,
            info.container,
            ago(info.at),
            size(info.bytes),
            " ".join(word for word, so in (("pinned", info.pinned), ("sealed", info.encrypted)) if so),
        )
        for name, info in sorted(found, key=lambda each: each[1].at)
    ]
    out.table(("ID", "HOST", "CONTAINER", "TAKEN", "SIZE", ""), rows, empty="no checkpoints")
    return OK


async def remove(controller: Controller, out: Out, checkpoint: str, host: str | None, *, force: bool) -> int:
    command = checked(RemoveCheckpoint, checkpoint=checkpoint, force=force)
    there = host or await holder(controller, checkpoint)
    await controller.ask(there, command)
    if out.as_json:
        out.item({"ok": True, "id": checkpoint, "host": there})
    out.say(f"{checkpoint} is removed from {there}")
    return OK


async def pin(controller: Controller, out: Out, checkpoint: str, host: str | None, *, pinned: bool) -> int:
    command = checked(PinCheckpoint, checkpoint=checkpoint, pinned=pinned)
    there = host or await holder(controller, checkpoint)
    await controller.ask(there, command)
    if out.as_json:
        out.item({"ok": True, "id": checkpoint, "host": there, "pinned": pinned})
    out.say(f"{checkpoint} on {there} {'is kept' if pinned else 'may go when its time has come'}")
    return OK
