"""Rounds of pre-copy at the target: a chain of images in one tmpfs, in which no page is kept that a later one replaces.

CRIU looks for a page in the newest images first, and follows the link `parent` to those before them.
"""

import contextlib
from pathlib import Path

from agent.base.errors import CommandFailed, CorruptPart, Refused, StepFailed
from agent.base.shell import Shell
from agent.checkpoint import criu
from agent.doors.handover import HandOver
from agent.doors.peer_server import Stream
from agent.migration import admission, arrival
from agent.migration.host import Host
from agent.migration.run import Run
from protocol.errors import ErrorCode
from protocol.peer import Offer, SentPart

DEDUP_SECONDS = 60.0


async def take(stream: Stream, shell: Shell, hand_over: HandOver, offer: Offer, number: int) -> SentPart:
    """Take in the images of a round, and let go of the pages that it replaces; number 0 are those of the freeze.

    Raises:
        Refused: rounds were not offered.
        CorruptPart: one is missing before it.

    """
    folder, room = hand_over.images, arrival.image_room(offer)
    if number == 0:
        await arrival.take_segments(stream, folder, limit=room)
        return stream.part("images")
    if not offer.rounds:
        raise Refused(ErrorCode.BAD_COMMAND, f"{offer.container} was not offered for rounds of pre-copy")
    here = folder / criu.round_name(number)
    if number > 1 and not (folder / criu.round_name(number - 1)).is_dir():
        raise CorruptPart(f"round {number} has come without the one before it")
    here.mkdir(mode=0o700)
    await arrival.take_segments(stream, here, limit=room, aside={})
    if number > 1:
        (here / criu.PARENT).symlink_to(f"../{criu.round_name(number - 1)}")
        await _let_go_of_replaced(shell, here)
    return stream.part(f"images:{number}")


async def _let_go_of_replaced(shell: Shell, folder: Path) -> None:
    """CRIU punches holes into the images before, where these have a newer page."""
    try:
        await shell.run(*criu.dedup_command(folder), label="dedup", timeout=DEDUP_SECONDS, cwd=str(folder))
    except CommandFailed as error:
        raise StepFailed(f"the images of rounds can't be laid over each other: {error}", detail=error.detail) from error


def chain(images: Path, rounds: int) -> None:
    """Link the images of the freeze to the last round.

    Raises:
        CorruptPart: it is not here.

    """
    if rounds:
        if not (images / criu.round_name(rounds)).is_dir():
            raise CorruptPart(f"round {rounds} is not here")
        with contextlib.suppress(FileExistsError):
            (images / criu.PARENT).symlink_to(criu.round_name(rounds))


async def turn_lazy(host: Host, run: Run, hand_over: HandOver, offer: Offer) -> Offer:
    """Let CRIU leave what is missing to its lazy-pages daemon; the offer, as it is then.

    Raises:
        Refused: that can't be had here, or was not offered.

    """
    if against := next(admission.against_postcopy(await host.engine()), None):
        raise Refused(against.code, against.message, hint=against.hint)
    if not offer.rounds:
        raise Refused(ErrorCode.BAD_COMMAND, f"{offer.container} was not offered for rounds of pre-copy")
    offer = offer.model_copy(update={"lazy": True})
    await run.note_down(offer=offer.model_dump(mode="json"))
    hand_over.turn_lazy()
    return offer
