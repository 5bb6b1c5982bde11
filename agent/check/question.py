"""`check`: the preflight of a move that is not made, here and on every host that it could go to. All reasons."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from agent.base.errors import AgentError, Refused
from agent.base.tasks import all_of
from agent.doors.peer_client import PeerClient
from agent.migration import choosing, compression, known, preflight
from agent.migration.host import Host
from agent.migration.known import Hosts
from agent.migration.run import Run
from agent.migration.sources import Peers
from protocol.base import new_migration_id, utc_now
from protocol.check import ContainerCheck, PeerCheck, Verdict
from protocol.commands import Check, Migrate, TcpPolicy
from protocol.errors import ErrorCode, Reason
from protocol.peer import Against, Offer

log = logging.getLogger("agent.check")

ALIVE: Final = frozenset({"running", "paused", "restarting"})
AT_ONCE: Final = 4
"""Containers that are looked at."""
BATCH: Final = 25
"""Offers in one question: an offer may be long (environment, labels), a message is not."""


@dataclass(frozen=True, slots=True)
class Looked:
    """One container, and what this side has against it."""

    id: str
    name: str
    reasons: tuple[Reason, ...] = ()
    offer: Offer | None = None
    pids: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()
    precopy: tuple[Reason, ...] = ()
    """Against that strategy alone."""


class Questions:
    """Asks this host and the others."""

    def __init__(
        self, host: Host, hosts: Hosts, peers: Peers, moving: Callable[[str], Run | None] = lambda container_id: None
    ) -> None:
        self._host = host
        self._hosts = hosts
        self._peers = peers
        self._moving = moving

    async def check(self, command: Check) -> tuple[ContainerCheck, ...]:
        """Answer the command.

        Raises:
            Refused: there is no such container, or no such host.
            DockerFailed: dockerd does not answer.

        """
        ids = await self._meant(command)
        names = self._names(command.to)
        gate = asyncio.Semaphore(AT_ONCE)

        async def one(container_id: str) -> Looked | None:
            async with gate:
                return await self.look(container_id, tcp=command.tcp)

        looked = [found for found in await all_of([one(each) for each in ids]) if found is not None]
        answers = await all_of([self.ask(name, looked) for name in names])
        return tuple(
            ContainerCheck(
                container=found.name,
                container_id=found.id,
                memory_bytes=found.offer.memory_bytes if found.offer is not None else 0,
                reasons=found.reasons,
                peers=tuple(answer[found.id] for answer in answers),
                notes=found.notes,
            )
            for found in looked
        )

    async def _meant(self, command: Check) -> list[str]:
        if command.container is None:
            rows = [row for row in await self._host.docker.list() if row.state in ALIVE]
            return [row.id for row in sorted(rows, key=lambda row: row.name)]
        found = await self._host.docker.find(command.container)
        if found is None:
            raise Refused(
                ErrorCode.NO_SUCH_CONTAINER,
                f"there is no container {command.container} on {self._host.name}",
                hint="`transship ps` lists them",
            )
        return [found.id]

    def _names(self, to: str | None) -> list[str]:
        if to == self._host.name:
            raise Refused(ErrorCode.SAME_HOST, f"this is {to}: ask about another host")
        return [to] if to else self.others()

    def others(self) -> list[str]:
        """The hosts that containers may be given to."""
        return sorted(name for name in self._host.settings.peer.allow if name != self._host.name)

    # --- this side

    async def look(self, container_id: str, *, tcp: TcpPolicy = TcpPolicy.AUTO, measured: bool = True) -> Looked | None:
        """The preflight of a move to anywhere; None if it is gone."""
        if (run := self._moving(container_id)) is not None:
            reason = Reason(code=ErrorCode.BUSY, message=f"it is part of a move already, {run.id}")
            return Looked(container_id, run.container, (reason,))
        found = await self._host.docker.find(container_id)
        if found is None:
            return None
        migration = new_migration_id()  # of a move that is not made
        request = Migrate(id=migration, container=container_id, to=self._host.name, tcp=tcp)
        try:
            examined = await preflight.look_at(self._host, request, migration, measured=measured)
        except Refused as refused:
            return Looked(container_id, found.name, refused.reasons or (reason_of(refused),))
        except AgentError as error:
            return Looked(container_id, found.name, (reason_of(error),))
        except (OSError, LookupError, ValueError) as error:  # it has ended while it was looked at
            log.info("%s could not be looked at: %r", found.name, error)
            reason = Reason(code=ErrorCode.NOT_RUNNING, message=f"it could not be looked at: {error}")
            return Looked(container_id, found.name, (reason,))
        subject = examined.subject
        if subject is None:
            return Looked(container_id, found.name, examined.reasons)
        pids = tuple(subject.cgroup.tasks())
        precopy = subject.against_precopy
        return Looked(container_id, found.name, examined.reasons, subject.offer, pids, subject.notes, precopy)

    # --- the other side

    async def rate(self, name: str) -> float | None:
        """Bytes a second of the link to a peer; None if that can't be told now."""
        try:
            self._check(name)
            async with self._peers(name) as peer:
                return (await peer.probe(new_migration_id())).rate
        except AgentError:
            return None

    async def ask(self, name: str, looked: Sequence[Looked], rate: float | None = None) -> Mapping[str, PeerCheck]:
        """What a peer says of each; `rate`: of the link to it, if that has been measured."""
        try:
            self._check(name)
            async with self._peers(name) as peer:
                if rate is None:
                    rate = (await peer.probe(new_migration_id())).rate
                said = await self._said(peer, [found.offer for found in looked if found.offer is not None])
        except AgentError as error:
            reasons = (error.reasons if isinstance(error, Refused) else ()) or (reason_of(error),)
            return {found.id: PeerCheck(host=name, verdict=Verdict.NO, reasons=reasons) for found in looked}
        answers = iter(said)
        return {
            found.id: await self._judged(name, found, next(answers) if found.offer is not None else Against(), rate)
            for found in looked
        }

    async def _said(self, peer: PeerClient, offers: Sequence[Offer]) -> list[Against]:
        said: list[Against] = []
        for begin in range(0, len(offers), BATCH):
            migration, now = new_migration_id(), utc_now()
            some = [
                offer.model_copy(update={"target": peer.name, "migration": migration, "sent_at": now})
                for offer in offers[begin : begin + BATCH]
            ]
            said += await peer.check(migration, some)
        return said

    async def _judged(self, name: str, found: Looked, said: Against, rate: float) -> PeerCheck:
        if found.offer is None or found.reasons or said.reasons:
            return PeerCheck(host=name, verdict=Verdict.NO, reasons=said.reasons)
        request = Migrate(id=found.offer.migration, container=found.id, to=name)
        fixed = await choosing.shown(self._host.journal)
        chosen = await compression.choose(request, rate, list(found.pids))
        had = {"precopy": not (found.precopy or said.precopy), "postcopy": not said.postcopy}
        at_once = await choosing.always_at_once(found.pids)
        blackout = choosing.predictions(found.offer.memory_bytes, chosen.rate, fixed, at_once=at_once, **had)
        return PeerCheck(
            host=name,
            verdict=Verdict.COLD if said.postcopy else Verdict.YES,
            blackout_ms={strategy: round(ms, 1) for strategy, ms in blackout.items()},
            reasons=said.postcopy,
        )

    def _check(self, name: str) -> None:
        status = known.peer(self._host, self._hosts, name)
        if status.engine is None or not status.engine.docker:
            raise Refused(ErrorCode.DOCKER_UNAVAILABLE, f"the dockerd of {name} does not answer")


def reason_of(error: AgentError) -> Reason:
    """An error as a reason."""
    return Reason(code=error.code, message=error.message, hint=error.hint)


def names(reasons: Iterable[Reason]) -> tuple[str, ...]:
    """Their codes, each once."""
    return tuple(dict.fromkeys(reason.name for reason in reasons))
