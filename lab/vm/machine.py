"""One machine of the VM lab: a qemu process, its disk, and commands run in it. It knows nothing of what they do.

A machine never outlives the thread that started it, and never hangs: every wait is bounded, a kernel that panics ends
the process (`panic=-1` with `-no-reboot`), and so does the end of its owner.
"""

import fcntl
import hashlib
import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from lab import shell
from lab.naming import state_folder
from lab.shell import PATIENCE, CommandFailed, Completed, LabError, Process, TimeoutExpired
from lab.vm import image

BOOT_SECONDS = 240.0 * PATIENCE  # 15 s where the processors are free
DISK_OF_FILES = "/dev/disk/by-id/virtio-files"
_TOO_LONG = 124  # what the guest says when a command had to be killed
# Emulation pays dearly for what guards against other guests on a processor.
_KERNEL = "root=/dev/vda rw console=ttyS0 panic=-1 net.ifnames=0 mitigations=off"
# Emulated, because a machine that runs tests is often one itself; TRANSSHIP_LAB_ACCEL=kvm where that works.
_ACCEL = os.environ.get("TRANSSHIP_LAB_ACCEL", "tcg,thread=multi,tb-size=512")

Output = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Wire:
    """One end of a cable between two machines; frames into the void are lost, as with any cable."""

    here: Path
    there: Path
    number: int
    """Told apart by it: the last part of the hardware address and of the address in 10.78.0.0/24."""

    @property
    def address(self) -> str:
        return f"10.78.0.{self.number}"


@dataclass(frozen=True, slots=True)
class Spec:
    """What a machine shall be."""

    name: str
    memory_mib: int = 3072
    processors: int = 1
    """With two, one may meet the half of an instruction that the kernel is patching on the other: a panic."""
    wire: Wire | None = None
    files: Path | None = None
    """A tar file, readable in the machine at DISK_OF_FILES."""


class Machine:
    """A machine that can be switched on, used, restarted, switched off in order or like a power cut."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.place = state_folder() / f"vm-{spec.name}"
        self.seconds_to_boot = 0.0
        self._process: Process | None = None
        self._port: socket.socket | None = None
        self._unread = b""

    # Life

    def create(self) -> None:
        """Make an empty disk on top of the image; whatever an older machine of this name has left is removed."""
        with self._alone():
            shutil.rmtree(self.place, ignore_errors=True)
        self.place.mkdir(parents=True)
        made = image.ensure()
        shell.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(made.disk), str(self._disk)])

    def start(self) -> None:
        """Switch it on; on return it does what it is told."""
        if self._process is not None:
            raise LabError(f"{self.spec.name} is on already")
        made, began = image.ensure(), time.monotonic()
        ours, theirs = socket.socketpair()
        with theirs, _shared(made.disk) as image_lock, self._alone() as place_lock:
            # The locks are qemu's from then on: the image stays as long as a machine runs on it.
            handles = [theirs.fileno(), image_lock, place_lock]
            with (self.place / "qemu.log").open("w") as log:
                argv = ["setpriv", "--pdeathsig", "KILL", "--", *self._qemu(made, theirs.fileno())]
                self._process = shell.popen(argv, stdout=log, stderr=log, pass_fds=handles)
        self._port, self._unread = ours, b""
        try:
            self._answer(began + BOOT_SECONDS)
        except BaseException:
            self.kill()
            raise
        self.seconds_to_boot = time.monotonic() - began

    def reboot(self, timeout: float = BOOT_SECONDS) -> None:
        """Restart it as `systemctl reboot` does, with the same disk; `timeout` is for the way down."""
        self._down("reboot", timeout)
        self.start()

    def poweroff(self, timeout: float = BOOT_SECONDS) -> None:
        """Switch it off in order; `start` switches it on again, with the same disk."""
        self._down("poweroff", timeout)

    def kill(self) -> None:
        """Cut its power; its disk stays as it was at that moment. Nothing happens if it is off."""
        if self._process is not None:
            shell.end(self._process)
        if self._port is not None:
            self._port.close()
        self._process = self._port = None

    def remove(self) -> None:
        """Cut its power and remove its disk."""
        self.kill()
        shutil.rmtree(self.place, ignore_errors=True)
        self._lock_file.unlink(missing_ok=True)

    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    # Use

    def run(
        self,
        argv: Sequence[str],
        *,
        check: bool = True,
        timeout: float = 60,
        input: str = "",  # noqa: A002 - the name subprocess.run uses
        env: Mapping[str, str] | None = None,
        cwd: str = "/",
        output: Output = lambda text: None,
    ) -> Completed:
        """Run a command in the machine to its end; `output` gets what it says, both streams, as it comes."""
        if self._port is None:
            raise LabError(f"{self.spec.name} is off")
        order = {"argv": list(argv), "timeout": timeout, "stdin": input, "env": dict(env or {}), "cwd": cwd}
        self._port.settimeout(30)
        self._port.sendall(json.dumps(order).encode() + b"\n")
        end, said = time.monotonic() + timeout + 30, []
        while True:
            answer = self._answer(end)
            if "code" in answer:
                break
            said.append(str(answer["out"]))
            output(said[-1])
        code = int(str(answer["code"]))
        if code == _TOO_LONG or (check and code):
            how = f"exit code {code}" if code != _TOO_LONG else f"took more than {timeout:g} s"
            raise CommandFailed([f"{self.spec.name}:", *argv], how, "".join(said))
        return Completed(list(argv), code, "".join(said), "")

    def console(self) -> str:
        """Return what the kernel and systemd have said since it was switched on."""
        file = self.place / "console.log"
        return file.read_text(errors="replace") if file.exists() else ""

    # How

    def _answer(self, end: float) -> dict[str, object]:
        """Read one line from the guest; a machine that ends or says nothing for too long is told apart."""
        assert self._port is not None
        while b"\n" not in self._unread:
            self._port.settimeout(max(0.01, end - time.monotonic()))
            try:
                data = self._port.recv(1 << 16)
            except TimeoutError:
                raise self._failed("does not answer") from None
            except ConnectionError:
                data = b""
            if not data:
                raise self._failed("has ended")
            self._unread += data
        line, _, self._unread = self._unread.partition(b"\n")
        answer: dict[str, object] = json.loads(line)
        return answer

    def _failed(self, how: str) -> LabError:
        error = LabError(f"the machine {self.spec.name} {how}")
        log = self.place / "qemu.log"
        error.add_note((log.read_text() if log.exists() else "") + self.console()[-3000:])
        return error

    def _down(self, verb: str, timeout: float) -> None:
        if self._process is None:
            raise LabError(f"{self.spec.name} is off")
        self.run(["systemctl", "--no-block", verb])
        try:
            self._process.wait(timeout)
        except TimeoutExpired:
            raise self._failed(f"did not {verb} within {timeout:g} s") from None
        finally:
            self.kill()

    def _qemu(self, made: image.Image, port: int) -> list[str]:
        spec = self.spec
        argv = ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
        argv += ["-machine", "q35", "-accel", _ACCEL, "-cpu", "max" if _ACCEL.startswith("tcg") else "host"]
        argv += ["-smp", str(spec.processors), "-m", str(spec.memory_mib), "-name", spec.name]
        identity = hashlib.md5(spec.name.encode(), usedforsecurity=False).hexdigest()
        words = f"{_KERNEL} systemd.hostname={spec.name} systemd.machine_id={identity}"
        if spec.wire:
            words += f" transship.address={spec.wire.address}/24"
        argv += ["-kernel", str(made.kernel), "-initrd", str(made.initrd), "-append", words]
        # "unsafe" is about a power cut of this machine, not of the emulated one.
        argv += ["-drive", f"file={self._disk},if=none,id=disk,format=qcow2,cache=unsafe,discard=unmap"]
        # First, so that it is vda; the other is found by its serial number.
        argv += ["-device", "virtio-blk-pci,drive=disk"]
        if spec.files:
            argv += ["-drive", f"file={spec.files},if=none,id=files,format=raw,readonly=on"]
            argv += ["-device", "virtio-blk-pci,drive=files,serial=files"]
        argv += ["-serial", f"file:{self.place / 'console.log'}", "-device", "virtio-rng-pci"]
        argv += ["-device", "virtio-serial-pci", "-chardev", f"socket,id=port,fd={port}"]
        argv += ["-device", "virtserialport,chardev=port,name=transship"]
        if spec.wire:
            ends = f"local.type=unix,local.path={spec.wire.here},remote.type=unix,remote.path={spec.wire.there}"
            argv += ["-netdev", f"dgram,id=wire,{ends}"]
            argv += ["-device", f"virtio-net-pci,netdev=wire,mac=52:54:00:78:00:{spec.wire.number:02x}"]
        return argv

    @property
    def _disk(self) -> Path:
        return self.place / "disk.qcow2"

    @property
    def _lock_file(self) -> Path:
        return self.place.with_suffix(".lock")

    @contextmanager
    def _alone(self) -> Iterator[int]:
        """Make sure that no other process has this machine on."""
        self._lock_file.parent.mkdir(parents=True, exist_ok=True)
        with self._lock_file.open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise LabError(f"{self.spec.name} is on in another process") from None
            yield lock.fileno()


@contextmanager
def running(spec: Spec) -> Iterator[Machine]:
    """A new machine that is on within the block, and gone after it."""
    machine = Machine(spec)
    machine.create()
    try:
        machine.start()
        yield machine
    finally:
        machine.remove()


@contextmanager
def running_pair(one: Spec, other: Spec) -> Iterator[tuple[Machine, Machine]]:
    """Two new machines on one network, as two hosts that can be restarted apart."""
    ends = [state_folder() / f"vm-{one.name}-{other.name}-{number}" for number in (0, 1)]
    one = replace(one, wire=Wire(ends[0], ends[1], 11))
    other = replace(other, wire=Wire(ends[1], ends[0], 12))
    try:
        with running(one) as first, running(other) as second:
            yield first, second
    finally:
        for end in ends:
            end.unlink(missing_ok=True)


@contextmanager
def _shared(file: Path) -> Iterator[int]:
    with file.open("rb") as handle:
        fcntl.flock(handle, fcntl.LOCK_SH)
        yield handle.fileno()
