"""The outlook of every running container, kept up to date by what happens, and by nothing else: no clock asks.

    a container started, changed, or got another network   -> it is looked at, and every peer is asked about it
    a peer came, went, or is another (engine, cordon)      -> it is asked about all, by what was seen of them last
    a peer's containers changed (names, ports, room)       -> the same, some time later, with all that changed till then

Events come in crowds, so each waits for those that follow it. While a migration is under way here nothing is done:
a blackout needs the processors more.
"""

import asyncio
import logging
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from agent.base.errors import AgentError
from agent.check.question import BATCH, Looked, Questions, names
from agent.doors.docker_events import DockerEvent
from protocol.base import utc_now
from protocol.check import Outlook, PeerCheck, PeerOutlook, Verdict
from protocol.errors import Reason
from protocol.peer import Offer
from protocol.status import HostStatus

log = logging.getLogger("agent.check")

CROWD_SECONDS: Final = 1.0
"""What follows within this time is looked at together."""
PEER_SECONDS: Final = 30.0
"""From when a peer's containers change until it is asked anew; and until one that did not answer is asked again."""
LONGEST_SECONDS: Final = 600.0
CHANGES: Final = frozenset({"start", "update", "rename", "pause", "unpause", "connect", "disconnect", "restart"})
EXEC: Final = "exec-session"
UNREACHABLE: Final = frozenset({"peer-unreachable", "transfer-failed", "step-timeout", "peer-not-allowed"})
ROUND_MS: Final = 10


class Keeper:
    """Knows what is to be looked at anew, and does it."""

    def __init__(
        self, questions: Questions, busy: Callable[[], bool], tell: Callable[[str], None], host: str = ""
    ) -> None:
        """`tell` is called with the id of a container that has another outlook now."""
        self._questions = questions
        self._busy = busy
        self._tell = tell
        self._host = host
        self._outlooks: dict[str, Outlook] = {}
        self._seen: dict[str, _Seen] = {}
        self._containers: set[str] = set()
        """To be looked at."""
        self._peers: set[str] = set()
        """To be asked about all."""
        self._rates: dict[str, float] = {}
        self._known: dict[str, tuple[object, object]] = {}
        self._later: dict[str, asyncio.TimerHandle] = {}
        self._pauses: dict[str, float] = {}
        self._woken = asyncio.Event()
        self._changed: set[str] = set()
        """Told when the peers have been asked, too: one message for all that is new of a container."""

    def outlook(self, container_id: str) -> Outlook | None:
        return self._outlooks.get(container_id)

    # --- what happens

    async def on_event(self, event: DockerEvent) -> None:
        """Docker has told something."""
        container_id = event.container_id
        if not container_id:
            return
        if event.action in ("die", "destroy"):
            self._forget(container_id)
        elif event.action in CHANGES or (event.action == "exec_die" and self._has_exec(container_id)):
            self._containers.add(container_id)
            self.wake()

    def _has_exec(self, container_id: str) -> bool:
        outlook = self._outlooks.get(container_id)
        return outlook is not None and EXEC in outlook.reasons

    def _forget(self, container_id: str) -> None:
        self._containers.discard(container_id)
        self._seen.pop(container_id, None)
        if self._outlooks.pop(container_id, None) is not None:
            self._tell(container_id)

    def listed(self, running: Iterable[str]) -> None:
        """All that run, after a start or a break: those that nothing is known of are looked at."""
        there = set(running)
        for gone in set(self._seen) - there:
            self._forget(gone)
        self._containers |= there - set(self._seen)
        self.wake()

    def heard(self, status: HostStatus) -> None:
        """A host has said something of itself."""
        if status.host == self._host or status.host not in self._questions.others():
            return
        before, now = self._known.get(status.host), (_kind(status), _load(status))
        self._known[status.host] = now
        if before is None or before[0] != now[0]:
            self._rates.pop(status.host, None)
            self._pauses.pop(status.host, None)
            self._peers.add(status.host)
            self.wake()
        elif before[1] != now[1]:
            self._ask_later(status.host, PEER_SECONDS)

    def _ask_later(self, name: str, seconds: float) -> None:
        if name not in self._later:
            self._later[name] = asyncio.get_running_loop().call_later(seconds, self._ask_now, name)

    def _ask_now(self, name: str) -> None:
        self._later.pop(name, None)
        self._peers.add(name)
        self.wake()

    def wake(self) -> None:
        """Something has happened, or a migration has ended."""
        self._woken.set()

    # --- what is done about it

    async def run(self) -> None:
        """Go on until cancelled."""
        try:
            while True:
                if not (self._containers or self._peers):
                    await self._woken.wait()
                self._woken.clear()
                await asyncio.sleep(CROWD_SECONDS)
                try:
                    await self._catch_up()
                except AgentError as error:
                    log.info("the outlook of some containers is not known: %s", error.message)
                except Exception:
                    log.exception("the outlook of some containers is not known")
        finally:
            for timer in self._later.values():
                timer.cancel()

    async def _calm(self) -> None:
        while self._busy():
            self._woken.clear()
            await self._woken.wait()

    async def _catch_up(self) -> None:
        """Some containers, one after the other, then each peer about those, or about all; and so on to the end."""
        while self._containers or self._peers:
            try:
                fresh = await self._look_at_some()
                peers, self._peers = self._peers, set()
                for name in self._questions.others():
                    ids = set(self._seen) if name in peers else fresh
                    await self._ask(name, sorted(ids & set(self._seen)))
            finally:
                changed, self._changed = self._changed, set()
                for container_id in sorted(changed):
                    self._tell(container_id)

    async def _look_at_some(self) -> set[str]:
        found: set[str] = set()
        while self._containers and len(found) < BATCH:
            await self._calm()
            if self._containers:
                container_id = self._containers.pop()
                if await self._look(container_id):
                    found.add(container_id)
        return found

    async def _look(self, container_id: str) -> bool:
        looked = await self._questions.look(container_id, measured=False)
        if looked is None or self._containers & {container_id}:
            return False
        self._seen[container_id] = _Seen(looked)
        self._say(container_id, reasons=looked.reasons)
        return True

    async def _ask(self, name: str, ids: list[str]) -> None:
        if not ids:
            return
        await self._calm()
        looked = [self._seen[each].looked() for each in ids if each in self._seen]
        if name not in self._rates and (rate := await self._questions.rate(name)):
            self._rates[name] = rate
        answers = await self._questions.ask(name, looked, self._rates.get(name))
        for container_id, answer in answers.items():
            self._say(container_id, peer=answer)
        if any(UNREACHABLE & set(names(answer.reasons)) for answer in answers.values()):
            pause = self._pauses[name] = min(self._pauses.get(name, PEER_SECONDS / 2) * 2, LONGEST_SECONDS)
            self._ask_later(name, pause)
        else:
            self._pauses.pop(name, None)

    def _say(
        self, container_id: str, *, reasons: tuple[Reason, ...] | None = None, peer: PeerCheck | None = None
    ) -> None:
        """Put an answer in its place; it is told if it is another one now."""
        if container_id not in self._seen:
            return  # it has ended meanwhile
        before = self._outlooks.get(container_id)
        here = names(reasons) if reasons is not None else before.reasons if before else ()
        peers: Mapping[str, PeerOutlook] = before.peers if before else {}
        others = set(self._questions.others())
        peers = {name: outlook for name, outlook in peers.items() if name in others}
        if reasons:
            peers = {name: PeerOutlook(verdict=Verdict.NO, reasons=outlook.reasons) for name, outlook in peers.items()}
        if peer is not None:
            peers = {**peers, peer.host: _short(peer)}
        if before is None or (here, peers) != (before.reasons, before.peers):
            self._outlooks[container_id] = Outlook(found_at=utc_now(), reasons=here, peers=peers)
            self._changed.add(container_id)


class _Seen:
    """What was seen of a container, kept small: there may be a thousand."""

    def __init__(self, looked: Looked) -> None:
        self._id, self._name, self._reasons, self._precopy = looked.id, looked.name, looked.reasons, looked.precopy
        self._offer = zlib.compress(looked.offer.model_dump_json().encode(), 1) if looked.offer is not None else b""

    def looked(self) -> Looked:
        offer = Offer.model_validate_json(zlib.decompress(self._offer)) if self._offer else None
        return Looked(self._id, self._name, self._reasons, offer, precopy=self._precopy)


def _short(peer: PeerCheck) -> PeerOutlook:
    return PeerOutlook(
        verdict=peer.verdict,
        blackout_ms={name: round(ms / ROUND_MS) * ROUND_MS for name, ms in sorted(peer.blackout_ms.items())},
        reasons=names(peer.reasons),
    )


def _kind(status: HostStatus) -> object:
    """What a host is: another one is asked anew at once."""
    return status.online, status.engine, status.cordoned, status.peer_url, status.kernel, status.machine


def _load(status: HostStatus) -> object:
    """What it is busy with."""
    return status.running, status.migrations
