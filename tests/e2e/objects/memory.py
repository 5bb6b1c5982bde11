"""Memory of every kind."""

import ctypes
import fcntl
import hashlib
import mmap
import os
from collections.abc import Iterator

from objects.held import Child, call, held, libc, same, status, true

MAP_NORESERVE = 0x4000
F_ADD_SEALS, F_GET_SEALS, SEALS = 1033, 1034, 0x1 | 0x2 | 0x4  # seal, shrink, grow


@held
def shared_anonymous() -> Iterator[None]:
    """Between two processes, before and after."""
    area = mmap.mmap(-1, 1 << 20)
    area[:6] = b"before"

    def work(line: str) -> str:
        area[100 : 100 + len(line)] = line.encode()
        return area[:6].decode()

    child = Child(work)
    turn = 0
    while True:
        yield
        turn += 1
        same(child.ask(f"child {turn}"), "before", "what the child sees")
        same(area[100:107], f"child {turn}".encode(), "what the child wrote")


@held
def shared_memory_file() -> Iterator[None]:
    content = os.urandom(1 << 18)
    with open("/dev/shm/region", "w+b") as file:
        file.write(content)
        file.flush()
        area = mmap.mmap(file.fileno(), 0)
    turn = 0
    while True:
        yield
        turn += 1
        with open("/dev/shm/region", "rb") as file:
            same(hashlib.md5(file.read()[8:]).digest(), hashlib.md5(content[8:]).digest(), "the file")
            area[:8] = b"%8d" % turn
            file.seek(0)
            same(file.read(8), b"%8d" % turn, "what was written through the mapping")


@held
def memory_file() -> Iterator[None]:
    """A memfd with seals, mapped too."""
    fd = os.memfd_create("kept", os.MFD_ALLOW_SEALING)
    os.write(fd, b"in memory" + b"." * 4087)
    fcntl.fcntl(fd, F_ADD_SEALS, SEALS)
    area = mmap.mmap(fd, 4096)
    turn = 0
    while True:
        yield
        turn += 1
        same(os.pread(fd, 9, 0), b"in memory")
        same(fcntl.fcntl(fd, F_GET_SEALS), SEALS, "seals")
        same(os.readlink(f"/proc/self/fd/{fd}"), "/memfd:kept (deleted)")
        area[100:108] = b"%8d" % turn
        same(os.pread(fd, 8, 100), b"%8d" % turn, "what was written through the mapping")


@held
def sparse() -> Iterator[None]:
    """8 GiB reserved, a few pages of it used."""
    size = 8 << 30
    area = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE)
    places = [0, 1 << 20, 5 << 30, size - 4096]
    for place in places:
        area[place : place + 8] = b"%8x" % (place >> 12)
    while True:
        yield
        for place in places:
            same(area[place : place + 8], b"%8x" % (place >> 12), f"at {place:x}")
        same(area[3 << 30 : (3 << 30) + 4096], bytes(4096), "an unused page")
        true(int(status()["VmRSS"].split()[0]) < 1 << 20, f"it takes {status()['VmRSS']}")


@held
def private_copy_of_a_file() -> Iterator[None]:
    with open("/srv/mapped", "w+b") as file:
        file.write(b"A" * 8192)
        file.flush()
        private = mmap.mmap(file.fileno(), 8192, flags=mmap.MAP_PRIVATE)
        shared = mmap.mmap(file.fileno(), 8192)
    private[:4] = b"mine"
    while True:
        yield
        same(private[:5], b"mineA")
        same(shared[:5], b"AAAAA")
        shared[4096:4101] = b"BBBBB"
        same(private[4096:4101], b"BBBBB", "a page that was not copied yet")


@held
def mapped_file_without_a_name() -> Iterator[None]:
    with open("/srv/library", "w+b") as file:
        file.write(b"library" + bytes(100_000))
        file.flush()
        area = mmap.mmap(file.fileno(), 0)
    os.unlink("/srv/library")
    while True:
        yield
        same(area[:7], b"library")


@held
def protections_and_advice() -> Iterator[None]:
    """No access, locked, not to be dumped, not to be inherited."""
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    place = libc.mmap(None, 5 * 4096, 3, 0x22, -1, 0)
    page = [ctypes.c_void_p(place + number * 4096) for number in range(5)]
    call("mprotect", page[0], ctypes.c_size_t(4096), 0)
    call("mlock", page[1], ctypes.c_size_t(4096))
    call("madvise", page[2], ctypes.c_size_t(4096), 10)  # MADV_DONTFORK
    call("madvise", page[3], ctypes.c_size_t(4096), 18)  # MADV_WIPEONFORK
    call("madvise", page[4], ctypes.c_size_t(4096), 16)  # MADV_DONTDUMP

    def flags() -> dict[int, tuple[str, str]]:
        found, number = {}, -1
        with open("/proc/self/smaps") as file:
            for line in file:
                words = line.split()
                if "-" in words[0] and not words[0].endswith(":"):
                    start = int(words[0].partition("-")[0], 16)
                    inside = place <= start < place + 5 * 4096
                    number, access = ((start - place) // 4096 if inside else -1), words[1]
                elif words[0] == "VmFlags:" and number >= 0:
                    found[number] = (access, " ".join(word for word in words if word in ("lo", "dc", "wf", "dd")))
        return found

    before = flags()
    while True:
        yield
        same(flags(), before)


@held
def own_mapping_layout() -> Iterator[None]:
    """The heap's end, the vDSO's place and the stack are where they were."""

    def places() -> list[str]:
        with open("/proc/self/maps") as file:
            named = [line.split() for line in file if line.rstrip().endswith(("[heap]", "[stack]", "[vdso]"))]
        found: dict[str, str] = {}
        for words in named:
            start, end = words[0].split("-")
            found.setdefault(words[5], end if words[5] == "[stack]" else start)
        return [f"{name} {place}" for name, place in found.items()]

    before = places()
    while True:
        yield
        same(places(), before)
