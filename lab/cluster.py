"""A lab with an agent on each host, and a controller for it: what demo, end-to-end tests and bench stand on."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlencode

from agent.base import config
from agent.cli.controller import Controller
from agent.doors.mqtt_link import connect
from lab import relays
from lab.host import Host, HostSpec
from lab.lab import Lab
from lab.service import Mode
from lab.shell import PATIENCE, LabError
from protocol import topics
from protocol.base import new_command_id
from protocol.commands import Cancel, Command, Migrate, Reply, ReplyKind
from protocol.errors import ErrorCode
from protocol.reading import read
from protocol.status import MigrationStatus, Phase

READY_SECONDS = 60.0 * PATIENCE
MOVE_SECONDS = 300.0 * PATIENCE
HTTP_PORT = 9469
TRANSSHIP = "/opt/transship/bin/transship"


class Cluster:
    """Hosts that are ready to give and take containers."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab

    @classmethod
    def up(
        cls,
        name: str,
        specs: Sequence[HostSpec],
        *,
        mode: Mode = Mode.DEVELOP,
        agent: Mapping[str, Any] | None = None,
        say: Callable[[str], None] = lambda line: None,
    ) -> Self:
        """Bring a lab up and an agent on each host; `agent` is in every agent's configuration, whenever it starts."""
        lab = Lab.up(name, list(specs), mode=mode)
        cluster = cls(lab)
        try:
            for host in lab.hosts.values():
                say(f"{host.name}: transship setup; transship agent")
                host.run([TRANSSHIP, "setup"], timeout=60)
                host.agent.always(deadlines(PATIENCE) | dict(agent or {}))
                host.start_agent()
            asyncio.run(cluster.until_ready())
        except BaseException:
            lab.down()
            raise
        return cluster

    @classmethod
    def load(cls, name: str) -> Self:
        return cls(Lab.load(name))

    def __getitem__(self, host: str) -> Host:
        return self.lab[host]

    @property
    def broker(self) -> config.Broker:
        """How a controller on this machine reaches the broker."""
        access = self.lab.broker.local_access()
        return config.Broker(
            host=access.address,
            port=access.port,
            ca=Path(access.ca_file),
            username=access.user,
            password=access.password,
        )

    def open_dashboard(self, host: str) -> str:
        """Have a host's agent serve the dashboard to this machine; its address, which signs in as the controller."""
        node, access = self[host].node, self.lab.broker.local_access()
        self[host].agent.stop()
        http = {"port": HTTP_PORT, "listen": "0.0.0.0", "dashboard": True, "broker_url": self.lab.broker.web_url}
        self[host].start_agent(config={"http": http})
        asyncio.run(self.until_ready())
        port = relays.start(self.lab.switch, node, "http", HTTP_PORT)
        return f"http://127.0.0.1:{port}/dashboard/#{urlencode({'user': access.user, 'password': access.password})}"

    @asynccontextmanager
    async def controller(self) -> AsyncIterator[Controller]:
        async with Controller(self.broker) as controller:
            yield controller

    async def until_ready(self, *, docker: bool = True) -> None:
        """Wait until every agent has said that it is online, and that its dockerd and the runtime are."""
        async with asyncio.timeout(READY_SECONDS), self.controller() as controller:
            while True:
                ready = {
                    one.host
                    for one in await controller.hosts()
                    if one.online and (not docker or (one.engine is not None and one.engine.runtime_registered))
                }
                if ready >= set(self.lab.hosts):
                    return
                ended = [host.name for host in self.lab.hosts.values() if not host.agent.running()]
                if ended:
                    raise LabError(f"the agent on {ended[0]} has ended:\n{self.lab[ended[0]].agent_log()[-3000:]}")
                await asyncio.sleep(0.05 * PATIENCE)

    async def migrate(self, container: str, source: str, target: str, **fields: Any) -> Reply:
        """Move a container by a command over MQTT; the last reply."""
        return await self.ask(source, migration(container, target, **fields))

    async def ask(self, host: str, command: Command) -> Reply:
        """The last reply to a command, whether it was done or not."""
        async with asyncio.timeout(MOVE_SECONDS), self.controller() as controller:
            return [reply async for reply in controller.command(host, command)][-1]

    async def send_raw(self, host: str, payload: bytes) -> Reply:
        """Publish anything at all as a command; what is answered."""
        replies, correlation = topics.replies("raw"), b"raw"
        async with asyncio.timeout(READY_SECONDS), connect(self.broker, "raw") as link:
            await link.subscribe(replies)
            await link.publish(topics.command(host), payload, response_topic=replies, correlation=correlation)
            async for message in link.messages():
                if message.correlation == correlation:
                    return read(Reply, message.payload)
        raise LabError("the broker went away")

    @asynccontextmanager
    async def moving(self, container: str, source: str, target: str, **fields: Any) -> AsyncIterator["Moving"]:
        """A migration that was accepted and is under way within the block."""
        async with asyncio.timeout(MOVE_SECONDS), self.controller() as controller:
            replies = controller.command(source, migration(container, target, **fields))
            first = await anext(replies)
            if first.kind is not ReplyKind.ACCEPTED:
                raise LabError(f"refused at once: {first.error}")
            yield Moving(controller, source, first, replies)


def deadlines(patience: float) -> dict[str, Any]:
    """For agents on a slow machine; on any other they have those that users have."""
    if patience == 1:
        return {}
    usual = config.Deadlines()
    slower = ("connect", "offer", "stage", "freeze", "dump", "prepare", "go", "docker")
    return {"deadlines": {name: getattr(usual, name) * patience for name in slower}}


def migration(container: str, target: str, **fields: Any) -> Migrate:
    """A command that was never sent before."""
    return Migrate.model_validate({"id": new_command_id(), "container": container, "to": target, **fields})


class Moving:
    """A migration under way: watch it, cancel it, wait for its end."""

    def __init__(self, controller: Controller, source: str, first: Reply, replies: AsyncIterator[Reply]) -> None:
        assert first.migration is not None
        self.id = first.migration
        self._controller = controller
        self._source = source
        self._replies = replies

    async def until(self, *phases: Phase) -> MigrationStatus:
        """Wait for a phase, or the end."""
        async for status in self.changes():
            if status.phase in phases:
                return status
        raise LabError(f"{self.id} ended without {', '.join(phases)}")

    def changes(self) -> AsyncIterator[MigrationStatus]:
        """Each status from now on, to the end."""
        return self._controller.watch_migration(self.id, self._source)

    async def until_error(self, code: ErrorCode) -> MigrationStatus:
        """Wait until it says that this is wrong, or for its end."""
        async for status in self.changes():
            if status.error is not None and status.error.code is code:
                return status
        raise LabError(f"{self.id} ended without {code}")

    async def cancel(self) -> Reply:
        command = Cancel(id=new_command_id(), migration=self.id)
        return [reply async for reply in self._controller.command(self._source, command)][-1]

    async def end(self) -> Reply:
        """The last reply."""
        return [reply async for reply in self._replies][-1]
