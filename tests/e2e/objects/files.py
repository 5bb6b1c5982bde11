"""Files and what watches them."""

import array
import contextlib
import ctypes
import fcntl
import hashlib
import os
import select
import socket
import struct
import tempfile
import termios
from collections.abc import Iterator

from objects.held import Differs, another, call, held, libc, readable, same, true

GHOST = 20 << 20
IN_CREATE, IN_MODIFY, IN_DELETE = 0x100, 0x2, 0x200


@held
def pipe_with_data() -> Iterator[None]:
    read, write = os.pipe()
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 1 << 18)
    os.set_blocking(read, False)
    full = os.urandom(200_000)
    os.write(write, full)
    while True:
        yield
        same(fcntl.fcntl(read, fcntl.F_GETPIPE_SZ), 1 << 18, "its size")
        same(os.get_blocking(read), False, "whether it blocks")
        same(hashlib.md5(os.read(read, 1 << 20)).digest(), hashlib.md5(full).digest(), "what was in it")
        with contextlib.suppress(BlockingIOError):
            raise Differs(f"more in it: {os.read(read, 10)!r}")
        os.write(write, full)


@held
def full_pipe_with_a_waiting_writer() -> Iterator[None]:
    """A child is blocked in a write of more than the pipe holds."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        while True:
            os.write(write, bytes(range(256)) * 1024)
    while True:
        yield
        left = 1 << 18
        while left:
            true(readable(read), "the writer does not go on")
            chunk = os.read(read, min(left, 256))
            same(chunk, bytes(range(256)), "what came out")
            left -= len(chunk)


@held
def fifo() -> Iterator[None]:
    os.mkfifo("/fifo")
    both = os.open("/fifo", os.O_RDWR)
    reader = os.open("/fifo", os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open("/fifo", os.O_WRONLY)
    while True:
        os.write(writer, b"in the fifo")
        yield
        same(os.read(reader, 100), b"in the fifo")
        os.write(both, b"again")
        same(os.read(reader, 100), b"again")


def _watching(folder: str) -> Iterator[None]:
    """A watch on a folder and one on a file in it."""
    os.makedirs(f"{folder}/watched/below", exist_ok=True)
    with open(f"{folder}/watched/below/file", "w") as file:
        file.write("x")
    watch = call("inotify_init1", os.O_NONBLOCK)
    mask = IN_CREATE | IN_MODIFY | IN_DELETE
    on_folder = call("inotify_add_watch", watch, f"{folder}/watched".encode(), mask)
    on_file = call("inotify_add_watch", watch, f"{folder}/watched/below/file".encode(), mask)
    while True:
        yield
        with contextlib.suppress(BlockingIOError):
            raise Differs(f"events of the move itself: {os.read(watch, 4096)!r}")
        open(f"{folder}/watched/new", "w").close()
        with open(f"{folder}/watched/below/file", "a") as file:
            file.write("y")
        os.unlink(f"{folder}/watched/new")
        events, data = [], os.read(watch, 4096)
        while data:
            number, kinds, _, length = struct.unpack_from("iIII", data)
            events.append((number, kinds, data[16 : 16 + length].rstrip(b"\0")))
            data = data[16 + length :]
        same(events, [(on_folder, IN_CREATE, b"new"), (on_file, IN_MODIFY, b""), (on_folder, IN_DELETE, b"new")])


@held
def inotify_on_overlay() -> Iterator[None]:
    return _watching("/srv")


@held
def inotify_on_tmpfs() -> Iterator[None]:
    return _watching("/dev/shm")


@held
def inotify_on_volume() -> Iterator[None]:
    return _watching("/volume")


@held
def epoll_set() -> Iterator[None]:
    """With a socket, an eventfd, a pipe and one edge-triggered; one registered by a descriptor closed since."""
    poll = select.epoll()
    left, right = socket.socketpair()
    event = os.eventfd(0)
    read, write = os.pipe()
    edge = os.eventfd(0)
    poll.register(left, select.EPOLLIN)
    poll.register(event, select.EPOLLIN)
    poll.register(read, select.EPOLLIN | select.EPOLLONESHOT)
    poll.register(edge, select.EPOLLIN | select.EPOLLET)
    twin = os.dup(event)
    poll.register(twin, select.EPOLLIN)
    while True:
        yield
        same(poll.poll(0), [], "ready before anything has happened")
        right.send(b"x")
        os.eventfd_write(event, 1)
        os.write(write, b"x")
        os.eventfd_write(edge, 1)
        wanted = sorted([left.fileno(), event, twin, read, edge])
        same(sorted(fd for fd, _ in poll.poll(1)), wanted, "ready")
        same(sorted(fd for fd, _ in poll.poll(0)), sorted([left.fileno(), event, twin]), "ready again")
        left.recv(1)
        os.read(event, 8)
        os.read(edge, 8)
        os.read(read, 1)
        poll.modify(read, select.EPOLLIN | select.EPOLLONESHOT)


@held
def eventfd() -> Iterator[None]:
    counter = os.eventfd(0, os.EFD_NONBLOCK)
    while True:
        os.eventfd_write(counter, 7)
        yield
        same(os.eventfd_read(counter), 7)
        with contextlib.suppress(BlockingIOError):
            raise Differs(f"it counts {os.eventfd_read(counter)}")


@held
def unlinked_file() -> Iterator[None]:
    """20 MiB in a file that has no name any more; a temporary file without one from the start."""
    fd = os.open("/srv/gone", os.O_RDWR | os.O_CREAT)
    digest = hashlib.md5()
    for _ in range(GHOST >> 20):  # in memory it would be in that of every child too
        piece = os.urandom(1 << 20)
        os.write(fd, piece)
        digest.update(piece)
    os.unlink("/srv/gone")
    os.lseek(fd, 12345, os.SEEK_SET)
    nameless = os.open("/srv", os.O_TMPFILE | os.O_RDWR, 0o600)
    os.write(nameless, b"nameless")
    with tempfile.TemporaryFile(dir="/dev/shm") as on_tmpfs:
        on_tmpfs.write(b"on tmpfs")
        on_tmpfs.flush()
        while True:
            yield
            same(os.lseek(fd, 0, os.SEEK_CUR), 12345, "its offset")
            same(os.fstat(fd).st_size, GHOST, "its size")
            with os.fdopen(os.dup(fd), "rb") as file:
                file.seek(0)
                same(hashlib.file_digest(file, "md5").digest(), digest.digest(), "its content")
            os.lseek(fd, 12345, os.SEEK_SET)
            same(os.fstat(fd).st_nlink, 0, "its links")
            same(os.pread(nameless, 100, 0), b"nameless")
            same(os.pread(on_tmpfs.fileno(), 100, 0), b"on tmpfs")
            true(not os.path.exists("/srv/gone"), "it has a name again")


@held
def named_semaphore() -> Iterator[None]:
    """The C library opens it by a name that it removes again, after it has given the file its real one."""
    libc.sem_open.restype = ctypes.c_void_p
    semaphore = ctypes.c_void_p(libc.sem_open(b"/kept", os.O_CREAT, 0o600, 3))
    true(os.path.exists("/dev/shm/sem.kept"), "it has no file to begin with")
    value = ctypes.c_int()
    turn = 3
    while True:
        yield
        libc.sem_getvalue(semaphore, ctypes.byref(value))
        same(value.value, turn)
        said = another("import ctypes; l = ctypes.CDLL(None); l.sem_open.restype = ctypes.c_void_p; "
                       "print(l.sem_post(ctypes.c_void_p(l.sem_open(b'/kept', 0))))")  # fmt: skip
        same(said, "0", "another process finds it")
        turn += 1
        libc.sem_getvalue(semaphore, ctypes.byref(value))
        same(value.value, turn, "after the other one's post")
        same([name for name in os.listdir("/dev/shm") if name.startswith("link_remap")], [], "left over")


@held
def offsets_and_flags() -> Iterator[None]:
    """A descriptor shared with a child moves for both; append, close-on-exec and direct stay."""
    shared = os.open("/srv/shared", os.O_RDWR | os.O_CREAT)
    os.write(shared, b"0123456789")
    os.lseek(shared, 3, os.SEEK_SET)
    append = os.open("/srv/shared", os.O_WRONLY | os.O_APPEND)
    os.set_inheritable(append, True)
    away, back = os.pipe(), os.pipe()
    if os.fork() == 0:
        while os.read(away[0], 1):
            os.lseek(shared, 1, os.SEEK_CUR)
            os.write(back[1], b"x")
        os._exit(0)
    expected = 3
    while True:
        yield
        os.write(away[1], b"x")
        os.read(back[0], 1)
        expected += 1
        same(os.lseek(shared, 0, os.SEEK_CUR), expected, "the shared offset")
        same(fcntl.fcntl(append, fcntl.F_GETFL) & os.O_APPEND, os.O_APPEND, "append")
        same([os.get_inheritable(append), os.get_inheritable(shared)], [True, False], "close-on-exec")


@held
def file_locks() -> Iterator[None]:
    """flock, POSIX and open-file-description locks: another process is still kept out."""
    with open("/srv/flock", "w") as by_flock, open("/srv/posix", "w") as by_posix, open("/srv/ofd", "w") as by_ofd:
        fcntl.flock(by_flock, fcntl.LOCK_EX)
        fcntl.lockf(by_posix, fcntl.LOCK_EX, 10, 100)
        lock = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        fcntl.fcntl(by_ofd, 37, lock)  # F_OFD_SETLK
        with open("/volume/flock", "w") as on_volume:
            fcntl.flock(on_volume, fcntl.LOCK_SH)
            while True:
                yield
                for path, how in (("srv/flock", "flock"), ("srv/posix", "lockf"), ("srv/ofd", "lockf")):
                    said = another(f"import fcntl; fcntl.{how}(open('/{path}', 'r+'), fcntl.LOCK_EX | fcntl.LOCK_NB)")
                    true("BlockingIOError" in said, f"{path} is not locked any more: {said!r}")
                said = another(
                    "import fcntl; fcntl.lockf(open('/srv/posix','r+'), fcntl.LOCK_EX|fcntl.LOCK_NB, 9, 200)"
                )
                same(said, "", "beside the locked range")
                take = "fcntl.flock(open('/volume/flock', 'r+'), fcntl.LOCK_{}|fcntl.LOCK_NB)"
                same(another("import fcntl; " + take.format("SH")), "", "a shared lock beside a shared one")
                true("Blocking" in another("import fcntl; " + take.format("EX")), "the shared lock is gone")


@held
def pseudo_terminal() -> Iterator[None]:
    """A terminal within the container, with settings and with something typed and something printed."""
    master, slave = os.openpty()
    settings = termios.tcgetattr(slave)
    settings[3] &= ~(termios.ECHO | termios.ICANON)
    termios.tcsetattr(slave, termios.TCSANOW, settings)
    termios.tcsetwinsize(master, (33, 111))
    name = os.ttyname(slave)
    while True:
        yield
        same(termios.tcgetattr(slave)[3], settings[3], "its settings")
        same(termios.tcgetwinsize(slave), (33, 111), "its size")
        same(os.ttyname(slave), name, "its name")
        os.write(master, b"typed")
        same(os.read(slave, 100), b"typed")
        os.write(slave, b"printed")
        same(os.read(master, 100), b"printed")


@held
def signal_driven_owner() -> Iterator[None]:
    read, _write = os.pipe()
    fcntl.fcntl(read, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(read, 10, 12)  # F_SETSIG, SIGUSR2
    while True:
        yield
        same(fcntl.fcntl(read, fcntl.F_GETOWN), os.getpid(), "owner")
        same(fcntl.fcntl(read, 11), 12, "signal")


@held
def descriptors_in_flight() -> Iterator[None]:
    """A descriptor that was sent over a UNIX socket and not received yet."""
    left, right = socket.socketpair()
    while True:
        read, write = os.pipe()
        os.write(write, b"by the sent one")
        left.sendmsg([b"take"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [read]))])
        os.close(read)
        yield
        message, fds, _, _ = socket.recv_fds(right, 100, 1)
        same(message, b"take")
        same(os.read(fds[0], 100), b"by the sent one")
        os.close(fds[0])
        os.close(write)


@held
def unlinked_working_folder() -> Iterator[None]:
    os.mkdir("/srv/home")
    fd = os.open("/srv/home", os.O_RDONLY | os.O_DIRECTORY)
    away, back = os.pipe(), os.pipe()
    if os.fork() == 0:
        os.chdir("/srv/home")
        while os.read(away[0], 1):
            os.write(back[1], os.readlink("/proc/self/cwd").encode())
        os._exit(0)
    os.write(away[1], b"x")
    os.read(back[0], 100)
    os.rmdir("/srv/home")
    while True:
        yield
        os.write(away[1], b"x")
        same(os.read(back[0], 100), b"/srv/home (deleted)")
        same(os.fstat(fd).st_nlink, 0, "links of the open folder")
