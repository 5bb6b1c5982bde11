"""`create` and `start` of a container that sleeps: its images are restored in place of a cold start, once.

Started by launcher.sh; no agent is needed, since at boot dockerd is up first. What may be restored is claimed by one
rename before anything is done with it. As long as no task of it has run the claim can be given back, since nothing has
happened to the container yet: so a restore that fails, or a host that crashes, costs nothing. It is used up by the file
`released`, which is on the disk before the tasks are let go: from then on it is never restored again.

`create` returns when CRIU holds every task; `start`, which dockerd calls when it has attached the network, lets them
go. A child of `create` stays until then, and sees to it that nothing is held for ever when dockerd gives up between.
"""

import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from typing import NoReturn

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))  # noqa: PTH100, PTH120

from agent.runtime import asleep, handover, restore

LOOK_SECONDS = 0.05
LEAST_SECONDS = 120.0
SLOWEST = 10e6
"""Bytes a second: a restore that takes longer than its images take at this rate, and the least time, hangs."""


class NotAsItWas(Exception):
    """Something that the images depend on has changed, or CRIU can't restore them."""


def main(argv: list[str]) -> int:
    if "start" in argv and "create" not in argv:
        return let_go(argv)
    container = argv[-1]
    folder = claim(container)
    if folder is None:
        become_runc(argv)
    in_use = os.open(f"{folder}/{asleep.IN_USE}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(in_use, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return fail(argv, "it is being woken already")
    with open(f"{folder}/{asleep.RECORD}") as file:  # noqa: PTH123
        record = json.load(file)
    flags = restore.split_call(argv)[1]
    bundle = restore.option(flags, "--bundle") or restore.option(flags, "-b")
    with open(f"{bundle}/config.json") as file:  # noqa: PTH123
        before = file.read()
    try:
        check(record, json.loads(before))
        wake(argv, folder, record, json.loads(before), in_use)
    except NotAsItWas as why:
        restore.put(f"{bundle}/config.json", before)
        return refuse(argv, folder, record, *why.args)
    return 0


def become_runc(argv: list[str]) -> NoReturn:
    """What any other runtime would be called for."""
    os.execvp("runc", ["runc", *argv])  # noqa: S606


# --- the claim ---


def claim(container: str) -> str | None:
    """Take what sleeps, so that nobody else does; None where there is nothing that was not used."""
    asleep_here, waking = asleep.folder(container), asleep.folder(container) + asleep.WAKING
    if os.path.exists(f"{waking}/{asleep.RELEASED}"):  # noqa: PTH110
        asleep.use_up(waking)  # it ran, and the host crashed before that was cleared away
    with contextlib.suppress(FileNotFoundError):
        os.rename(asleep_here, waking)  # noqa: PTH104
        asleep.sync(asleep.ROOT)
    # else: claimed by a `create` that has ended before it let anything go
    if os.path.exists(f"{waking}/{asleep.RECORD}"):  # noqa: PTH110
        return waking
    shutil.rmtree(waking, ignore_errors=True)  # the last of one that was used up
    return None


def give_back(folder: str) -> None:
    """Nothing of it has run: it sleeps on."""
    os.rename(folder, folder.removesuffix(asleep.WAKING))  # noqa: PTH104
    asleep.sync(asleep.ROOT)


# --- the checks ---


def check(record: asleep.Json, config: asleep.Json) -> None:
    """Whether the images still fit.

    Raises:
        NotAsItWas: they don't.

    """
    now = asleep.fingerprint(config, record["upper"], criu_version())
    if other := asleep.changed(record["fingerprint"], now):
        raise NotAsItWas("incompatible", f"not as they were when it was put to sleep: its {', its '.join(other)}")


def criu_version() -> str:
    """As the agent asks for it."""
    try:
        done = subprocess.run(["criu", "--version"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.split("\n")[0].removeprefix("Version:").strip()


def refuse(argv: list[str], folder: str, record: asleep.Json, code: str, why: str) -> int:
    """What the container's own policy says: a cold start, its memory thrown away; or no start, and it sleeps on."""
    if record["on_stale"] == asleep.COLD:
        subprocess.run(["runc", *restore.split_call(argv)[0], "delete", "--force", argv[-1]], capture_output=True)
        say(record, "wake-refused", code=code, why=why, then=asleep.COLD)
        asleep.use_up(folder)
        become_runc(argv)
    give_back(folder)
    say(record, "wake-refused", code=code, why=why, then=asleep.DOWN)
    return fail(argv, f"{why}; its memory is kept: `transship hibernated` says what can be done")


def fail(argv: list[str], why: str) -> int:
    """Where containerd looks for the reason, and where a person would."""
    message = f"transship: {argv[-1][:12]} is not woken: {why}"
    if log := restore.option(restore.split_call(argv)[0], "--log"):
        with contextlib.suppress(OSError), open(log, "a") as file:  # noqa: PTH123
            now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())  # in this form, or containerd reads none of it
            file.write(json.dumps({"level": "error", "msg": message, "time": now}) + "\n")
    print(message, file=sys.stderr)
    return 1


def say(record: asleep.Json, kind: str, **detail: str) -> None:
    """For the agent to tell, now or when there is one."""
    place = f"{asleep.ROOT}/{asleep.SAID}"
    os.makedirs(place, mode=0o700, exist_ok=True)  # noqa: PTH103
    about = {"container_id": record["container_id"], "container": record["name"], "kind": kind, "at": time.time()}
    restore.put(f"{place}/{time.time_ns()}.json", json.dumps({**about, "detail": detail}))
    with contextlib.suppress(OSError):  # there is no agent
        fifo = os.open(f"{asleep.ROOT}/{asleep.POKE}", os.O_WRONLY | os.O_NONBLOCK)
        os.write(fifo, b"\n")
        os.close(fifo)


# --- the restore ---


def wake(argv: list[str], folder: str, record: asleep.Json, config: asleep.Json, in_use: int) -> None:
    """Restore it, up to where CRIU holds every task.

    Raises:
        NotAsItWas: CRIU could not; nothing has run.

    """
    global_flags, flags, container = restore.split_call(argv)
    bundle = restore.option(flags, "--bundle") or restore.option(flags, "-b")
    early = restore.attaches_early(config)
    shutil.copyfile(f"{folder}/{asleep.CRIU_CONF_KEPT}", f"{folder}/{handover.CRIU_CONF}")
    for fifo in (handover.HELD, handover.RELEASE):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{folder}/{fifo}")  # noqa: PTH108
        os.mkfifo(f"{folder}/{fifo}", 0o600)
    restore.amend_bundle(config, folder)
    restore.mount_from(config, {})
    restore.name_cgroup(config, folder)
    if early:  # the network is there before anything is restored, and its own addresses with it
        restore.put(f"{folder}/{handover.ADDRESSES}", "")
    restore.write(f"{bundle}/config.json", config)
    began = time.monotonic()
    command = [
        *("runc", *global_flags, "restore", "--detach", "--image-path", f"{folder}/{handover.IMAGES}"),
        *("--work-path", f"{folder}/{handover.WORK}", *flags, container),
    ]
    # they keep the claim, too: as long as one of them is at work nobody takes it up again
    held = os.open(f"{folder}/{handover.HELD}", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)  # before anybody can write
    runc = subprocess.Popen(command, start_new_session=True, pass_fds=(in_use,))
    release = os.open(f"{folder}/{handover.RELEASE}", os.O_RDWR | os.O_CLOEXEC)  # keeps the word until it is read
    seconds = LEAST_SECONDS + record["bytes"] / SLOWEST
    pid = restore.first_word(held, os.pidfd_open(runc.pid), seconds)
    os.close(held)
    if not pid:
        if runc.poll() is None:
            os.killpg(runc.pid, 9)
            runc.wait()
            raise NotAsItWas("restore-failed", f"CRIU has not restored it within {seconds:.0f} s")
        code = runc.wait()
        raise NotAsItWas("restore-failed", f"CRIU could not restore it ({code}): {last_error(folder)}")
    restore.put(f"{folder}/{asleep.PID}", str(pid))
    ended = taken_over(f"{restore.option(global_flags, '--root')}/{container}", runc)
    if os.fork() == 0:
        os.setsid()
        code = 1
        try:
            see_through(folder, record, runc.pid, pid, began, ended)
            code = 0
        finally:
            os._exit(code)
    os.close(release)
    with open(restore.option(flags, "--pid-file"), "w") as file:  # noqa: PTH123
        file.write(str(pid))


def last_error(folder: str) -> str:
    """CRIU's own words."""
    try:
        with open(f"{folder}/{handover.WORK}/restore.log", errors="replace") as file:  # noqa: PTH123
            return next((line.strip() for line in reversed(file.readlines()) if "Error" in line), "it says nothing")
    except OSError:
        return "it has no log"


def taken_over(root: str, runc: "subprocess.Popen[bytes]") -> int:
    """What tells the end of the restore: CRIU's own, once runc, which needs nothing more of it, has been ended.

    runc has noted all that it will when CRIU holds the tasks. What fails for it after that, if only its last file can't
    be written, makes it kill what it has restored; and by then that is the only copy (agent/migration/runcs_state.py).
    Its mount goes first: of what is deleted through that nothing would come back.
    """
    criu = [each for each in children(runc.pid) if name_of(each) == "criu"]
    subprocess.run(["umount", "--lazy", f"{root}/criu-root"], check=False, stderr=subprocess.DEVNULL)
    ended = restore.end_of(criu[0]) if criu and not os.path.ismount(f"{root}/criu-root") else None
    if ended is None:
        return os.pidfd_open(runc.pid)
    runc.kill()
    runc.wait()
    return ended


def children(pid: int) -> list[int]:
    found: list[int] = []
    for thread in os.listdir(f"/proc/{pid}/task"):  # noqa: PTH208
        with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{thread}/children") as file:  # noqa: PTH123
            found += map(int, file.read().split())
    return found


def name_of(pid: int) -> str:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/comm") as file:  # noqa: PTH123
        return file.read().strip()
    return ""


def see_through(folder: str, record: asleep.Json, group: int, pid: int, began: float, ended: int) -> None:
    """Wait for the end of the restore, however that is, and clear away what was used."""
    first = restore.end_of(pid)
    while not select.select([ended], [], [], LOOK_SECONDS)[0]:
        if not is_released(folder) and ending(pid):
            # dockerd has given up between `create` and `start`, and waits for the end of what CRIU holds
            for kill in (os.kill, os.killpg):  # runc first, if it is there: it would reap the first process, and
                with contextlib.suppress(ProcessLookupError):  # containerd would never hear of its end
                    kill(group, 9)
    if is_released(folder):
        say(record, "woken", seconds=f"{time.monotonic() - began:.3f}", slept_since=str(record["at"]))
        asleep.use_up(folder)
    else:
        if first is not None:  # what CRIU does not hold any more must not run
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(first, signal.SIGKILL)
        give_back(folder)
        say(record, "wake-failed", code="docker-failed", why="dockerd gave it up before it ran; it sleeps on")


def is_released(folder: str) -> bool:
    return os.path.exists(f"{folder}/{asleep.RELEASED}")  # noqa: PTH110


def ending(pid: int) -> bool:
    """Whether the first process is dead, or about to be."""
    try:
        with open(f"/proc/{pid}/stat") as file:  # noqa: PTH123
            fields = file.read().rsplit(")", 1)[1].split()
    except OSError:
        return True
    return fields[0] in "ZX" or bool(int(fields[6]) & 0x4)


def let_go(argv: list[str]) -> int:
    """`start`: the one moment from which on the images are used up."""
    folder = asleep.folder(argv[-1]) + asleep.WAKING
    try:
        with open(f"{folder}/{asleep.PID}") as file:  # noqa: PTH123
            pid = int(file.read())
    except OSError:  # it was not restored: a cold start
        become_runc(argv)
    if ending(pid):
        return fail(argv, "it was ended before it ran; it sleeps on")
    fifo = os.open(f"{folder}/{handover.RELEASE}", os.O_WRONLY | os.O_NONBLOCK)  # refused where nobody waits
    restore.put(f"{folder}/{asleep.RELEASED}", "")
    asleep.sync(f"{folder}/{asleep.RELEASED}")
    asleep.sync(folder)
    if not os.path.samefile(f"/proc/{pid}/ns/net", "/proc/self/ns/net"):  # noqa: PTH121
        subprocess.run(["nsenter", f"--net=/proc/{pid}/ns/net", "/bin/sh", f"{folder}/{asleep.AWAKE}"], check=False)
    os.write(fifo, handover.RUN.encode() + b"\n")
    return 0


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stderr.flush()
    os._exit(code)
