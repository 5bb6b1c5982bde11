"""States that a TCP connection, or a bound UDP socket, can be in: made by its two sides, and looked at after a move.

Each case is a generator: what stands before its yield makes the state, what stands after it looks whether it goes on.
"""

import contextlib
import fcntl
import hashlib
import socket
import struct
import termios
from collections.abc import Callable, Iterator

from lab.shell import wait_until
from tests.e2e.stream_support import Console

SOON = 10.0
BIG = bytes(range(256)) * 4096

Case = Callable[[Console, int, bool], Iterator[None]]


def half_closed_inside(inside: Console, port: int, v6: bool) -> Iterator[None]:
    """FIN_WAIT2: the container has said its last word, and still listens."""
    name = f"half_inside_{port}"
    outside = inside.pair(name, port, v6=v6)
    inside.do(f"{name}.sendall(b'the last word')")
    inside.do(f"{name}.shutdown(socket.SHUT_WR)")
    assert outside.recv(100) == b"the last word"
    assert outside.recv(100) == b""
    yield
    outside.sendall(b"an answer")
    assert inside.do(f"{name}.recv(100).decode()") == "an answer"
    outside.close()
    assert inside.do(f"{name}.recv(100).decode()") == ""


def half_closed_outside(inside: Console, port: int, v6: bool) -> Iterator[None]:
    """CLOSE_WAIT, with what came before the end not read yet."""
    name = f"half_outside_{port}"
    outside = inside.pair(name, port, v6=v6)
    outside.sendall(b"not read yet")
    outside.shutdown(socket.SHUT_WR)
    yield
    assert inside.do(f"{name}.recv(100).decode()") == "not read yet"
    assert inside.do(f"{name}.recv(100).decode()") == ""
    inside.do(f"{name}.sendall(b'an answer')")
    assert outside.recv(100) == b"an answer"


def stopped_reader_outside(inside: Console, port: int, v6: bool) -> Iterator[None]:
    """The container's send queue is full; its thread waits in the middle of a sendall."""
    name = f"full_{port}"
    outside = inside.pair(name, port, v6=v6)
    inside.do(f"{name}.settimeout(None)")
    inside.do(f"threading.Thread(target={name}.sendall, args=(bytes(range(256)) * 4096 * 20,), daemon=True).start()")
    yield
    digest, left = hashlib.sha256(), len(BIG) * 20
    while left:
        data = outside.recv(min(left, 1 << 20))
        assert data, f"the connection ended {left} bytes too early"
        digest.update(data)
        left -= len(data)
    assert digest.digest() == hashlib.sha256(BIG * 20).digest()


def stopped_reader_inside(inside: Console, port: int, v6: bool) -> Iterator[None]:
    """The container has not read what the client has sent until nothing more went."""
    name = f"unread_{port}"
    outside = inside.pair(name, port, v6=v6)
    outside.settimeout(0.2)
    sent = 0
    with contextlib.suppress(TimeoutError):
        while True:
            sent += outside.send(BIG[sent % 256 : (sent % 256) + 65536])
    yield
    outside.settimeout(20)
    outside.shutdown(socket.SHUT_WR)
    code = f"(lambda data: [len(data), data == (bytes(range(256)) * (len(data) // 256 + 1))[:len(data)]])({name}_all)"
    inside.do(f"{name}_all = {name}.makefile('rb').read()")
    assert inside.do(code) == [sent, True]


def starved_inside(inside: Console, port: int, v6: bool) -> Iterator[None]:
    """The container has no memory for more, and has shut its window while a segment before the last one was lost."""
    name = f"starved_{port}"
    outside = inside.pair(name, port, v6=v6)
    outside.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    outside.sendall(BIG[:60_000])
    wait_until("all of it is there", lambda: unacknowledged(outside) == 0, SOON)
    inside.do(f"{name}.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)")
    inside.do(f"{name}.settimeout(None)")  # with one, Python takes a false alarm of the kernel's for the end
    inside.do("fed = {}")
    inside.do(f"starving = [*globals().get('starving', []), {name}]")
    with lossy(inside, port):
        outside.sendall(BIG[60_000:60_100])
    outside.sendall(BIG[60_100:60_200])
    wait_until("what was lost is sent again", lambda: sent_again(outside) > 0, SOON)
    yield
    # all at once, since the other side asks ever more seldom
    inside.do(
        "for each in starving: threading.Thread(target=lambda s=each: fed.update({s: s.recv(60200, 256)})).start()"
    )
    inside.do("starving.clear()")
    wait_until("the container reads all of it", lambda: inside.do(f"{name} in fed") is True, 40)
    assert inside.do(f"fed[{name}] == (bytes(range(256)) * 4096)[:60200]") is True


@contextlib.contextmanager
def lossy(inside: Console, port: int) -> Iterator[None]:
    """Nothing that is sent to a port arrives. The switch drops it: where the sender's kernel does, it was not sent."""
    lab = inside.cluster.lab
    rules = "add table bridge lossy\nadd chain bridge lossy via { type filter hook forward priority 0; }\n"
    lab.controller_run(["nft", "-f", "-"], input=f"{rules}add rule bridge lossy via tcp dport {port} drop\n")
    try:
        yield
    finally:
        lab.controller_run(["nft", "delete", "table", "bridge", "lossy"])


def unacknowledged(connection: socket.socket) -> int:
    """Bytes that were sent, or are to be."""
    (found,) = struct.unpack("=i", fcntl.ioctl(connection, termios.TIOCOUTQ, bytes(4)))
    return int(found)


def sent_again(connection: socket.socket) -> int:
    """How many segments were (tcp_info: tcpi_total_retrans)."""
    (found,) = struct.unpack_from("=I", connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104), 100)
    return int(found)


def silence_ms(connection: socket.socket) -> int:
    """How long nothing was acknowledged by the other side (tcp_info: tcpi_last_ack_recv)."""
    (found,) = struct.unpack_from("=I", connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104), 56)
    return int(found)


def idle_with_keepalive(inside: Console, port: int, v6: bool) -> Iterator[None]:
    """Nothing is said but by the kernels, every second."""
    name = f"idle_{port}"
    outside = inside.pair(name, port, v6=v6)
    for option, value in (("KEEPIDLE", 1), ("KEEPINTVL", 1), ("KEEPCNT", 8)):
        inside.do(f"{name}.setsockopt(socket.IPPROTO_TCP, socket.TCP_{option}, {value})")
        outside.setsockopt(socket.IPPROTO_TCP, getattr(socket, f"TCP_{option}"), value)
    inside.do(f"{name}.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)")
    outside.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    yield
    # a round of it on the target, at least: something is heard again since which the silence was longer
    silences = [silence_ms(outside)]

    def heard() -> bool:
        silences.append(silence_ms(outside))
        return silences[-1] < silences[-2]

    wait_until("the other side's kernel answers", heard, SOON)
    outside.sendall(b"still there?")
    assert inside.do(f"{name}.recv(100).decode()") == "still there?"


def connecting_out(inside: Console, port: int, v6: bool) -> Iterator[None]:
    """SYN_SENT: the other side does not answer yet, since its backlog is full."""
    name, address = f"syn_sent_{port}", inside.client_address(v6)

    family = socket.AF_INET6 if v6 else socket.AF_INET
    server = inside.at_client(lambda: socket.create_server((address, port), family=family, backlog=0))
    inside.at_client(lambda: socket.create_connection((address, port), timeout=5))
    inside.do(f"{name} = socket.socket(socket.{family.name})")
    inside.do(f"{name}.setblocking(False)")
    inside.do(f"{name}.connect_ex(({address!r}, {port}))")
    assert inside.do(f"{name}.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]") == 2, "SYN_SENT"
    yield
    server.settimeout(20)
    server.accept()[0].close()
    accepted = inside.at_client(lambda: server.accept()[0])
    inside.do(f"{name}.settimeout(20)")
    inside.do(f"{name}.sendall(b'at last')")
    assert accepted.recv(100) == b"at last"


def not_accepted_yet(inside: Console, port: int, v6: bool) -> Iterator[None]:
    """Taken in by the kernel, with data that it has acknowledged; the program accepts after a while only."""
    name = f"waiting_{port}"
    family = "socket.AF_INET6" if v6 else "socket.AF_INET"
    inside.do(f"{name}_server = socket.create_server(({inside.address(v6)!r}, {port}), family={family})")
    inside.do(f"{name}_found = []")
    late = f"lambda: (time.sleep(2), {name}_found.append({name}_server.accept()[0]))"
    inside.do(f"threading.Thread(target={late}, daemon=True).start()")
    outside = inside.connect(port, v6=v6)
    outside.sendall(b"acknowledged")
    yield
    assert inside.do(f"{name}_found[0].recv(100).decode()") == "acknowledged"
    inside.do(f"{name}_found[0].sendall(b'an answer')")
    assert outside.recv(100) == b"an answer"


def within_the_container(inside: Console, port: int, v6: bool) -> Iterator[None]:
    """To its own outer address: over lo, with data in both directions."""
    name, address = f"own_{port}", inside.address(v6)
    family = "socket.AF_INET6" if v6 else "socket.AF_INET"
    inside.do(f"{name}_server = socket.create_server(({address!r}, {port}), family={family})")
    inside.do(f"{name}_there = socket.create_connection(({address!r}, {port}), timeout=20)")
    inside.do(f"{name}_here = {name}_server.accept()[0]")
    inside.do(f"{name}_there.sendall(b'there'), {name}_here.sendall(b'here')")
    yield
    assert inside.do(f"[{name}_here.recv(100).decode(), {name}_there.recv(100).decode()]") == ["there", "here"]
    inside.do(f"{name}_there.sendall(b'again')")
    assert inside.do(f"{name}_here.recv(100).decode()") == "again"


def udp(inside: Console, port: int, v6: bool) -> Iterator[None]:
    """A bound socket, and one that is connected to the client."""
    name = f"udp_{port}"
    family = socket.AF_INET6 if v6 else socket.AF_INET
    outside = inside.at_client(lambda: socket.socket(family, socket.SOCK_DGRAM))
    outside.bind((inside.client_address(v6), port))
    outside.settimeout(1)
    inside.do(f"{name} = socket.socket(socket.{family.name}, socket.SOCK_DGRAM)")
    inside.do(f"{name}.bind(({inside.address(v6)!r}, {port}))")
    inside.do(f"{name}.connect(({inside.client_address(v6)!r}, {port}))")
    inside.do(f"{name}.settimeout(5)")
    yield
    for _ in range(10):  # datagrams may get lost
        inside.do(f"{name}.send(b'ping')")
        with contextlib.suppress(TimeoutError):
            message, sender = outside.recvfrom(100)
            assert (message, sender[:2]) == (b"ping", (inside.address(v6), port))
            break
    else:
        raise AssertionError("nothing comes")
    outside.sendto(b"pong", (inside.address(v6), port))
    assert inside.do(f"{name}.recv(100).decode()") == "pong"


CASES: list[Case] = [
    half_closed_inside,
    half_closed_outside,
    stopped_reader_outside,
    stopped_reader_inside,
    within_the_container,
    udp,
    starved_inside,
    idle_with_keepalive,
    connecting_out,  # its clock runs, and the next one's
    not_accepted_yet,
]
