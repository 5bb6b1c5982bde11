"""`docker logs` on the target shows each line from before the move once, in order, and goes on; clients end cleanly."""

import asyncio
import itertools
from collections.abc import Sequence
from functools import partial

from lab import endings
from lab.chaos import kernel
from lab.cluster import Cluster
from lab.host import Host
from lab.shell import end
from tests.e2e.fidelity import move, move_all, remove
from tests.e2e.support import until

# Numbers on both streams, in words of many lengths, each written in two halves: most moments are within a line.
PRINTER = """
import itertools, os, sys, time
for n in itertools.count():
    for fd, name in ((1, "out"), (2, "err")):
        line = f"{name} {n} {'x' * (n % 97)} end\\n".encode()
        os.write(fd, line[: len(line) // 2])
        time.sleep(PAUSE)
        os.write(fd, line[len(line) // 2 :])
        if n % 50 == 0:
            os.write(fd, f"{name} long {'y' * 20000} end\\n".encode())
"""
DRIVERS = {
    "json": (),
    "json-rotated": ("--log-opt=max-size=40k", "--log-opt=max-file=3"),
    "json-packed": ("--log-opt=max-size=40k", "--log-opt=max-file=4", "--log-opt=compress=true"),
    "json-one-file": ("--log-opt=max-size=200k",),
    "local": ("--log-driver=local",),
    "local-rotated": ("--log-driver=local", "--log-opt=max-size=20k", "--log-opt=max-file=5"),
}
WHOLE = ("json", "local")
"""Nothing of them is rotated away."""


def start(host: Host, name: str, *options: str, pause: float = 0.006) -> None:
    host.ensure_image("py")
    host.docker("run", "-d", "--name", name, *options, "py", "python3", "-c", PRINTER.replace("PAUSE", str(pause)))


def printed(host: Host, name: str) -> dict[str, list[str]]:
    """The lines of each stream."""
    done = host.run(["sh", "-c", f"docker logs {name} 2>/tmp/err-{name}; cat /tmp/err-{name} >&2"])
    return {"out": done.stdout.splitlines(), "err": done.stderr.splitlines()}


def last(host: Host, name: str) -> int:
    rows = [line.split() for line in host.docker("logs", "--tail", "3", name).splitlines()]
    return max((int(row[1]) for row in rows if len(row) > 2 and row[1].isdigit()), default=0)


def check(stream: str, lines: Sequence[str], *, whole: bool) -> int:
    """Every line is what was printed, once, in order; how many numbers there are."""
    lines = lines[:-1]  # it may be half printed
    if not whole:
        lines = lines[1:]  # and this one half rotated away
    numbers = []
    for line in lines:
        word, number, *rest = line.split()
        assert word == stream, line[:200]
        if number == "long":
            assert rest == ["y" * 20000, "end"], line[:200]
        else:
            assert line == f"{stream} {number} {'x' * (int(number) % 97)} end", line[:200]
            numbers.append(int(number))
    assert not whole or numbers[:1] == [0]
    assert all(after == before + 1 for before, after in itertools.pairwise(numbers)), numbers
    return len(numbers)


async def test_each_line_is_there_once_and_in_order(pair: Cluster) -> None:
    """Both drivers, with and without rotation, from 26 to 28 and on to 26; in the middle of lines, long ones too."""
    try:
        for name, options in DRIVERS.items():
            start(pair["a26"], name, *options)
        for source, target in (("a26", "b28"), ("b28", "a26")):
            await asyncio.gather(*(goes_on(pair[source], name) for name in DRIVERS))
            before = {name: last(pair[source], name) for name in DRIVERS}
            await move_all(pair, DRIVERS, source, target)
            await asyncio.gather(*(goes_on(pair[target], name) for name in DRIVERS))
            for name in DRIVERS:
                await until(partial(says, pair[target], name, before[name]), f"the log of {name} goes on from there")
    finally:
        remove(pair, *DRIVERS)


def says(host: Host, name: str, before: int) -> bool:
    """Each stream is right, and whether there is enough of it: just after a rotation a log has nothing, or nearly."""
    counts = [check(stream, lines, whole=name in WHOLE) for stream, lines in printed(host, name).items()]
    return len(counts) == 2 and min(counts) > 5 and last(host, name) > before


async def goes_on(host: Host, name: str, more: int = 25) -> None:
    number = await asyncio.to_thread(last, host, name)
    try:
        await until(lambda: last(host, name) > number + more, f"{name} prints at {host.name}")
    except AssertionError as error:
        raise AssertionError(f"{error}, beyond {number}\n{await asyncio.to_thread(at, host, name)}") from None


def at(host: Host, name: str) -> str:
    """Where it is: by its log, by dockerd, and by the kernel."""
    said = [f"log: {line[:80]}" for line in host.docker("logs", "--tail", "3", name, check=False).splitlines()]
    said.append(host.docker("inspect", "--format", "{{json .State}}", name, check=False))
    said.append(kernel.waiting(host, host.docker("inspect", "--format", "{{.Id}}", name, check=False)))
    return "\n".join([*said, endings.of(host, name)])


async def test_clients_on_the_source_get_a_clean_end(pair: Cluster) -> None:
    """`docker logs --follow` and `docker attach` end by themselves, with whole lines; the log goes on at the target."""
    here, there = pair["b28"], pair["a26"]
    name, clients = "followed", []
    try:
        start(here, name, pause=0.01)
        script = f"docker logs --follow {name} >/tmp/follow 2>&1; echo $? >/tmp/follow-ended"
        attach = f"docker attach --no-stdin {name} >/tmp/attach 2>&1; echo $? >/tmp/attach-ended"
        clients += [here.popen(["sh", "-c", text]) for text in (script, attach)]
        both = ["test", "-s", "/tmp/follow", "-a", "-s", "/tmp/attach"]
        await until(lambda: here.run(both, check=False).returncode == 0, "they read")
        await move(pair, name, "b28", "a26")
        await until(lambda: all(client.poll() is not None for client in clients), "they end")
        assert here.run(["cat", "/tmp/follow-ended"]).stdout == "0\n"
        assert here.run(["cat", "/tmp/attach-ended"]).stdout == "137\n", "the copy there was killed"
        await goes_on(there, name, 20)
        followed = [line for line in here.run(["cat", "/tmp/follow"]).stdout.splitlines() if line.startswith("out ")]
        assert followed[:-1] == printed(there, name)["out"][: len(followed) - 1]
    finally:
        remove(pair, name)
        for client in clients:
            end(client)
        here.run(["sh", "-c", "rm -f /tmp/follow* /tmp/attach*"])
