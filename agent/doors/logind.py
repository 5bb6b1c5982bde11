"""logind: the only door to D-Bus. Delays a shutdown of the host until what is to be done before it is done.

A delay lock is an open file: logind waits with the shutdown until it is closed, but not for longer than its own
InhibitDelayMaxSec. Watching its signal without the lock would be a race against the end of everything.
"""

import asyncio
import contextlib
import io
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dbus_fast import Message
    from dbus_fast.aio import MessageBus

log = logging.getLogger("agent.logind")

NAME, PATH = "org.freedesktop.login1", "/org/freedesktop/login1"
MANAGER = "org.freedesktop.login1.Manager"
SIGNAL = "PrepareForShutdown"
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
CALL_SECONDS = 10.0
SYSTEM_BUS = Path("/run/dbus/system_bus_socket")


class Logind:
    """One connection, made again when it is lost. Where there is no system bus, not even its library is in memory."""

    def __init__(self, going_down: Callable[[float], None], called_off: Callable[[], None]) -> None:
        """`going_down` is told how many seconds logind gives; `called_off` that the host stays up after all."""
        self._going_down = going_down
        self._called_off = called_off
        self.lock: io.FileIO | None = None
        """As long as it is open the host does not go down."""
        self._bus: MessageBus | None = None
        self.preparing = False
        """Whether it has said that the host goes down."""

    async def run(self) -> None:
        """Hold the lock and listen, until cancelled."""
        pause = FIRST_PAUSE
        try:
            while True:
                try:
                    bus = await self._connect()
                    pause = FIRST_PAUSE
                    await bus.wait_for_disconnect()  # type: ignore[no-untyped-call]
                except (OSError, TimeoutError, EOFError) as error:
                    log.info("no logind: %s", error)
                self.release()
                self._disconnect()  # one whose logind did not answer would go on to be told of shutdowns
                await asyncio.sleep(pause)
                pause = min(pause * 2, LONGEST_PAUSE)
        finally:
            self.release()
            self._disconnect()

    async def _connect(self) -> "MessageBus":
        """Raises OSError, EOFError or TimeoutError: there is no bus, or no logind on it."""
        if not SYSTEM_BUS.exists():
            raise FileNotFoundError(f"{SYSTEM_BUS} is not there")
        from dbus_fast import BusType
        from dbus_fast.aio import MessageBus
        from dbus_fast.errors import AuthError

        async with asyncio.timeout(CALL_SECONDS):
            try:
                self._bus = bus = MessageBus(bus_type=BusType.SYSTEM, negotiate_unix_fd=True)
                await bus.connect()
            except AuthError as error:
                raise PermissionError(f"the system bus does not take us: {error}") from error
            rule = f"type='signal',sender='{NAME}',interface='{MANAGER}',member='{SIGNAL}'"
            bus.add_message_handler(self._heard)
            await self._call("AddMatch", "s", [rule], name="org.freedesktop.DBus", path="/org/freedesktop/DBus")
            await self._take()
        return bus

    async def _take(self) -> None:
        """Take the lock; where the host goes down already, logind refuses."""
        words = ["shutdown", "transship", "containers are hibernated or moved away first", "delay"]
        answer = await self._call("Inhibit", "ssss", words)
        self.release()
        self.lock = io.FileIO(answer.unix_fds[0])
        log.info("a shutdown of the host waits for this agent, for %.0f s at most", await self.most_seconds())

    async def most_seconds(self) -> float:
        """How long logind waits for whoever delays a shutdown."""
        with contextlib.suppress(TimeoutError, OSError):
            words = [MANAGER, "InhibitDelayMaxUSec"]
            answer = await self._call("Get", "ss", words, interface="org.freedesktop.DBus.Properties")
            return int(answer.body[0].value) / 1e6
        return 5.0  # its default

    def release(self) -> None:
        """Nothing more is to be done: the host may go down."""
        if self.lock is not None:
            self.lock.close()
            self.lock = None

    def _disconnect(self) -> None:
        if self._bus is not None:
            self._bus.disconnect()
            self._bus = None

    def _heard(self, message: "Message") -> None:
        from dbus_fast import MessageType

        if message.message_type is not MessageType.SIGNAL or message.member != SIGNAL:
            return
        self.preparing = bool(message.body[0])
        self._tasks = asyncio.create_task(self._tell(), name="a shutdown of the host")

    async def _tell(self) -> None:
        if self.preparing:
            self._going_down(await self.most_seconds())
            return
        self._called_off()
        with contextlib.suppress(TimeoutError, OSError):
            await self._take()

    async def _call(
        self,
        member: str,
        signature: str,
        body: list[str],
        *,
        name: str = NAME,
        path: str = PATH,
        interface: str = MANAGER,
    ) -> "Message":
        from dbus_fast import Message, MessageType

        if self._bus is None:
            raise OSError("not connected")
        if name != NAME:
            interface = name
        message = Message(
            destination=name, path=path, interface=interface, member=member, signature=signature, body=body
        )
        async with asyncio.timeout(CALL_SECONDS):
            answer = await self._bus.call(message)
        if answer is None or answer.message_type is MessageType.ERROR:
            raise OSError(f"{answer.error_name}: {answer.body}" if answer else f"{name} does not answer")
        return answer
