"""The peer link's TLS, at a real port: who gets in, who does not, and certificates that change while it is in use."""

import asyncio
import logging
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest

from agent import certificates
from agent.base import pki
from agent.base.config import Deadlines, PeerLink
from agent.base.errors import AgentError, Refused, TransferFailed
from agent.base.shell import Shell
from agent.doors import peer_client
from agent.doors.peer_client import PROBE_CHUNK, PeerClient
from agent.doors.peer_server import PeerServer, Stream
from protocol.errors import ErrorCode
from protocol.peer import Decision, DecisionKind, Probed

ROOT = Path(__file__).parents[2]
MIGRATION = "m-0123456789abcdef"
REFUSED_BY_TLS = (AgentError, ssl.SSLError, ConnectionError)


class Handler:
    """Answers what a test asks; everything else of a peer would be an AttributeError."""

    def __init__(self) -> None:
        self.got = bytearray()
        self.came = asyncio.Event()
        self.peers: list[str] = []

    async def decision(self, peer: str, migration: str) -> Decision:
        self.peers.append(peer)
        return Decision(decision=DecisionKind.PENDING)

    async def images(self, peer: str, migration: str, stream: Stream) -> None:
        async for chunk in stream:
            self.got += chunk
            self.came.set()

    async def probe(self, peer: str, stream: Stream) -> Probed:
        async for chunk in stream:
            self.got += chunk
        return Probed(rate=1)


class Authority:
    """A CA, and the hosts that it names."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        folder.mkdir(exist_ok=True)
        self._folder = folder
        self.certificate, self._key = pki.make_ca(name, 10)

    def host(self, name: str, *, days: int = 5, port: int = 0, allow: tuple[str, ...] = (), **uses: bool) -> PeerLink:
        """The settings of a host with a new certificate, in files of its own, which are replaced if they are there."""
        certificate, key = pki.issue(self.certificate, self._key, name, [name], ["127.0.0.1"], days, **uses)
        files = {end: self._folder / f"{name}.{end}" for end in ("ca", "crt", "key")}
        for end, content in (("ca", self.certificate), ("crt", certificate), ("key", key)):
            part = files[end].with_suffix(".part")
            part.write_bytes(content)
            part.replace(files[end])
        return PeerLink(
            listen="127.0.0.1", port=port, ca=files["ca"], certificate=files["crt"], key=files["key"], allow=allow
        )


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@asynccontextmanager
async def listening(link: PeerLink) -> AsyncIterator[Handler]:
    handler = Handler()
    server = PeerServer(link, cast("Any", handler), cast("Any", handler))
    await server.start()
    try:
        yield handler
    finally:
        await server.close()


@asynccontextmanager
async def client(link: PeerLink, port: int, name: str = "target") -> AsyncIterator[PeerClient]:
    async with PeerClient(link, Deadlines(connect=3, go=3), name, lambda: f"https://127.0.0.1:{port}") as peer:
        yield peer


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "pki")


async def test_a_peer_on_the_list_gets_in_under_the_name_in_its_certificate(authority: Authority) -> None:
    link = authority.host("target", port=free_port(), allow=("source",))
    async with listening(link) as handler, client(authority.host("source"), link.port) as peer:
        assert (await peer.decision(MIGRATION)).decision is DecisionKind.PENDING
    assert handler.peers == ["source"]


async def test_a_certificate_of_the_right_authority_is_not_enough(authority: Authority) -> None:
    link = authority.host("target", port=free_port(), allow=("source",))
    async with listening(link) as handler, client(authority.host("stranger"), link.port) as peer:
        with pytest.raises(Refused, match="stranger is not an allowed peer") as caught:
            await peer.decision(MIGRATION)
    assert caught.value.info().code is ErrorCode.PEER_NOT_ALLOWED
    assert handler.peers == []


@pytest.mark.parametrize("wrong", ["unknown authority", "expired", "for servers only"])
async def test_a_certificate_that_is_not_good_ends_the_handshake(
    authority: Authority, tmp_path: Path, wrong: str
) -> None:
    link = authority.host("target", port=free_port(), allow=("source",))
    match wrong:
        case "unknown authority":
            other = Authority(tmp_path / "other", "ca").host("source")
            caller = other.model_copy(update={"ca": link.ca})  # it takes the target for good, and is not taken itself
        case "expired":
            caller = authority.host("source", days=0)
        case _:
            caller = authority.host("source", client=False)
    async with listening(link) as handler, client(caller, link.port) as peer:
        with pytest.raises(REFUSED_BY_TLS):
            await peer.decision(MIGRATION)
    assert handler.peers == []


@pytest.mark.parametrize("wrong", ["unknown authority", "expired", "another name", "for clients only"])
async def test_a_source_takes_no_other_for_its_target(authority: Authority, tmp_path: Path, wrong: str) -> None:
    caller, port = authority.host("source"), free_port()
    match wrong:
        case "unknown authority":
            link = Authority(tmp_path / "other").host("target", port=port, allow=("source",))
        case "expired":
            link = authority.host("target", port=port, days=0, allow=("source",))
        case "another name":
            link = authority.host("stranger", port=port, allow=("source",))
        case _:
            link = authority.host("target", port=port, server=False, allow=("source",))
    async with listening(link) as handler, client(caller, port) as peer:
        with pytest.raises(Refused) as caught:
            await peer.decision(MIGRATION)
    assert caught.value.info().code is ErrorCode.PEER_NOT_ALLOWED
    assert handler.peers == []


async def shaken(port: int, context: ssl.SSLContext) -> str:
    """The version of TLS that was agreed upon; a byte is read, since a client is refused after its handshake."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="target")
    try:
        writer.write(b"GET /v1/migrations/m-0/decision HTTP/1.1\r\nHost: target\r\n\r\n")
        if not await asyncio.wait_for(reader.read(1), 5):
            raise ConnectionResetError("hung up")
        return str(writer.get_extra_info("ssl_object").version())
    finally:
        writer.close()


def context_of(link: PeerLink) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(link.ca)
    context.load_cert_chain(link.certificate, link.key)
    return context


async def test_nothing_older_than_tls_1_3_is_spoken(authority: Authority) -> None:
    link = authority.host("target", port=free_port(), allow=("source",))
    context = context_of(authority.host("source"))
    async with listening(link):
        assert await shaken(link.port, context) == "TLSv1.3"
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await shaken(link.port, context)


async def test_a_caller_without_a_certificate_never_reaches_http(authority: Authority) -> None:
    link = authority.host("target", port=free_port(), allow=("source",))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(link.ca)
    async with listening(link):
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await shaken(link.port, context)


# --- certificates that change


def serial(port: int, caller: PeerLink) -> str:
    with (
        socket.create_connection(("127.0.0.1", port), timeout=5) as plain,
        context_of(caller).wrap_socket(plain, server_hostname="target") as secured,
    ):
        return str((secured.getpeercert() or {})["serialNumber"])


async def test_a_new_certificate_is_shown_at_once_and_a_running_stream_goes_on(authority: Authority) -> None:
    link, caller = authority.host("target", port=free_port(), allow=("source",)), authority.host("source")
    more = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield b"before "
        await more.wait()
        yield b"after"

    async with listening(link) as handler, client(caller, link.port) as peer:
        first = await asyncio.to_thread(serial, link.port, caller)
        sending = asyncio.create_task(peer.send_images(MIGRATION, body()))
        await asyncio.wait_for(handler.came.wait(), 5)
        authority.host("target")
        authority.host("source")
        assert await asyncio.to_thread(serial, link.port, caller) != first
        await peer.decision(MIGRATION)  # the client has new ones too, and its pool has a connection of before
        more.set()
        await asyncio.wait_for(sending, 5)
    assert bytes(handler.got) == b"before after"


async def test_with_a_new_authority_those_of_the_old_one_stay_outside(authority: Authority, tmp_path: Path) -> None:
    link, caller = authority.host("target", port=free_port(), allow=("source",)), authority.host("source")
    async with listening(link) as handler:
        async with client(caller, link.port) as peer:
            await peer.decision(MIGRATION)
        renewed = Authority(link.ca.parent, "renewed")
        renewed.host("target")
        kept = Authority(tmp_path / "old")
        kept.certificate, kept._key = authority.certificate, authority._key
        old = kept.host("source").model_copy(update={"ca": link.ca})  # takes the target, shows what was good before
        async with client(old, link.port) as peer:
            with pytest.raises(REFUSED_BY_TLS):
                await peer.decision(MIGRATION)
        async with client(renewed.host("source"), link.port) as peer:
            await peer.decision(MIGRATION)
    assert handler.peers == ["source"] * 2


async def test_an_old_client_takes_up_what_its_host_was_given(authority: Authority) -> None:
    """A move that is under way when the authority changes makes its next connections with the new one."""
    link, caller = authority.host("target", port=free_port(), allow=("source",)), authority.host("source")
    async with client(caller, link.port) as peer:
        async with listening(link):
            await peer.decision(MIGRATION)
        renewed = Authority(link.ca.parent, "renewed")
        renewed.host("target")
        renewed.host("source")
        async with listening(link) as handler:
            await peer.decision(MIGRATION)
    assert handler.peers == ["source"]


async def test_files_that_do_not_fit_each_other_change_nothing(
    authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    link, caller = authority.host("target", port=free_port(), allow=("source",)), authority.host("source")
    async with listening(link) as handler, client(caller, link.port) as peer:
        await peer.decision(MIGRATION)
        for one in (link, caller):
            one.key.write_bytes(pki.make_ca("another", 1)[1])
        async with client(authority.host("source"), link.port) as second:
            await second.decision(MIGRATION)
        await peer.decision(MIGRATION)
    assert handler.peers == ["source"] * 3
    assert "are not usable; those before stay in use" in caplog.text
    caller.key.write_bytes(b"no key")
    with pytest.raises(TransferFailed, match="not usable"):
        PeerClient(caller, Deadlines(), "target", lambda: "")


async def test_a_link_is_not_judged_by_its_beginning_alone_however_slow_it_is(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer_client, "PROBE_SECONDS", 0.0)
    link, caller = authority.host("target", port=free_port(), allow=("source",)), authority.host("source")
    async with listening(link) as handler, client(caller, link.port) as peer:
        await peer.probe(MIGRATION)
    assert len(handler.got) == 2 * PROBE_CHUNK


# --- certificates that end


def looked(*files: Path, now: datetime) -> tuple[datetime | None, str]:
    return certificates.look(files, pki.ends(map(str, files)), 30, now)


@pytest.mark.parametrize(
    ("days", "warning"), [(31, ""), (29, "ends in 28 days"), (1, "ends in 0 days"), (0, "has ended at")]
)
def test_the_end_is_said_in_good_time(authority: Authority, days: int, warning: str) -> None:
    long, _ = pki.make_ca("long", 1000)
    link = authority.host("target", days=days)
    link.ca.write_bytes(long)
    until, said = looked(link.certificate, link.ca, now=datetime.now(UTC) + timedelta(seconds=1))
    assert until is not None
    assert abs(until - datetime.now(UTC) - timedelta(days=days)) < timedelta(minutes=1)
    assert (warning in said) if warning else said == ""


def test_an_authority_that_ends_first_counts(authority: Authority) -> None:
    link = authority.host("target", days=500)
    until, said = looked(link.certificate, link.ca, now=datetime.now(UTC))
    assert until == pki.expiry(authority.certificate)
    assert str(link.ca) in said


def test_a_file_that_is_no_certificate_is_said(tmp_path: Path) -> None:
    (tmp_path / "crt").write_text("no certificate")
    assert "is not usable" in looked(tmp_path / "crt", now=datetime.now(UTC))[1]


async def test_certificates_are_read_by_another_process(authority: Authority) -> None:
    link = authority.host("target", days=5)
    files = [link.certificate, link.ca, link.ca.with_name("gone")]
    said = await certificates.ends(Shell(), files)
    assert said == pki.ends(map(str, files))
    assert datetime.fromisoformat(said[0]) == pki.expiry(link.certificate.read_bytes())
    assert said[2].startswith("!")


class Said:
    """What the announcer was asked to say."""

    def __init__(self) -> None:
        self.statuses: list[tuple[datetime | None, str]] = []
        self.events: list[str] = []
        self._one_more = asyncio.Event()

    async def certificates(self, until: datetime | None, warning: str) -> None:
        self.statuses.append((until, warning))
        self._one_more.set()

    async def until(self, count: int) -> None:
        async with asyncio.timeout(60):
            while len(self.statuses) < count:
                self._one_more.clear()
                await self._one_more.wait()

    async def publish_event(self, event: Any) -> None:
        self.events.append(event.kind)


async def test_the_watch_says_it_once_and_takes_up_a_change_when_told(
    authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    from agent.base.config import Broker, Settings

    caplog.set_level(logging.INFO)
    link = authority.host("target", days=3)
    link.key.chmod(0o644)
    said, reloads, up = Said(), asyncio.Queue[None](), asyncio.Event()
    up.set()
    settings = Settings(host="target", peer=link, broker=Broker(tls=False))
    watch = certificates.Certificates(settings, cast("Any", said), lambda: reloads.put_nowait(None), up.wait, Shell())
    task = asyncio.create_task(watch.run())
    await said.until(1)
    watch.look_now()
    await said.until(2)
    Authority(link.ca.parent).host("target", days=9)  # its authority lasts for 10 days
    watch.look_now()
    await said.until(3)
    assert reloads.qsize() == 3
    task.cancel()
    assert said.events == ["certificates-warning"] * 2  # another text, after the change
    assert ["ends in 2 days" in warning for _, warning in said.statuses] == [True, True, False]
    assert f"{link.key} can be read by others" in caplog.text
