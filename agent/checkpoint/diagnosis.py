"""What is likely behind a failed dump or restore: known lines of CRIU and runc, what they mean, and what helps.

The table is read from top to bottom, and the first line that fits counts: what is special comes before what is general.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from agent.base.errors import CommandFailed, DumpFailed, RestoreFailed
from agent.checkpoint import logs


@dataclass(frozen=True, slots=True)
class Cause:
    """One known cause."""

    sign: re.Pattern[str]
    """In a line of CRIU's or runc's log."""
    meaning: str
    remedy: str


def _cause(sign: str, meaning: str, remedy: str) -> Cause:
    return Cause(re.compile(sign), meaning, remedy)


CAUSES = (
    _cause(
        r"io_uring",
        "it uses io_uring, which CRIU can't carry",
        "switch it off in the program's settings, or forbid it with a seccomp profile",
    ),
    _cause(
        r"Can't dump half of stream unix connection|external socket is used",
        "it holds a UNIX connection to a process outside the container (D-Bus, docker.sock, syslog, a JVM attach)",
        "let the program close it, or do not mount that socket into the container",
    ),
    _cause(
        r"fsnotify|inotify|Can't dump that handle|irmap",
        "it watches files (inotify) that CRIU can't find again",
        "install a CRIU newer than 4.2, or have the program watch by polling",
    ),
    _cause(
        r"Can't dump ghost file|ghost-limit",
        "it holds a file open that was deleted and is larger than may go into the images",
        "free memory or let the program close the file",
    ),
    _cause(
        r"Can't link remap|Unaccessible path opened",
        "it has a file open that its path does not lead to any more: something is mounted over it",
        "let the program close the file, or take away what is mounted there",
    ),
    _cause(
        r"[Ff]ile locks are hold|Some file locks",
        "it holds file locks that reach beyond the container",
        "let it release them; a lock on a shared volume belongs to all who use it",
    ),
    _cause(
        r"Can't dump nested|nested (pid|mnt|net) namespace|mount namespaces",
        "something in it has made namespaces of its own (a sandbox, or containers within the container)",
        "CRIU carries one level only: end what was started inside, or take it without",
    ),
    _cause(
        r"Don't have tty to inherit|tty.*(inherit|session)|Found dangling tty|external terminal",
        "it has a terminal (-t)",
        "create the container without -t",
    ),
    _cause(
        r"Can't get rlimit \d+: Operation not permitted|CAP_SYS_RESOURCE",
        "this machine's root lacks CAP_SYS_RESOURCE, and a process in it has another user",
        "run the agent with all capabilities, or dockerd with userns-remap",
    ),
    _cause(
        r"Can't get 1:16 opt",
        "this CRIU is too old for this kernel's TCP sockets",
        "install CRIU 4.2 or newer",
    ),
    _cause(
        r"[Cc]onnected TCP socket|tcp-established|Consider using --tcp-established",
        "it has established TCP connections, and was told neither to keep nor to close them",
        "--tcp keep takes them along where the address stays, --tcp close drops them",
    ),
    _cause(
        r"Can't bind.*(Cannot assign requested address|Address already in use)|inet: .*bind.*: (Cannot assign|Address)",
        "an address or port that it had is not to be had here",
        "restore it where the address is free, or as a clone with --name and --tcp close",
    ),
    _cause(
        r"File .* has bad size|bad build-ID|File .* has bad mode|Can't open file .*: No such file",
        "a file that it has open is not what it was when it was dumped",
        "restore it with the files of the checkpoint: the same image, volumes as they were; mounted host files too",
    ),
    _cause(
        r"mnt: .*(No such file|Not a directory|Can't (mount|bind)|[Nn]o mapping)|Can't lookup mount|mount .* failed",
        "something that is mounted in it is not here, or is a folder instead of a file",
        "have every bind mount's path there, of the same kind",
    ),
    _cause(
        r"mismatched lsm|lsm profile|apparmor|selinux",
        "its security profile (AppArmor, SELinux) is not the one that it had",
        "load the same profile on both hosts",
    ),
    _cause(
        r"[Cc]pu.*(incompat|missing|required)|xsave|cpuinfo.*fail|FPU.*(mismatch|unsupported)",
        "this processor lacks something that the program may use",
        "restore it on a host with the same or a newer processor",
    ),
    _cause(
        r"vdso|rseq",
        "CRIU is too old for this kernel or C library",
        "install CRIU 4.2 or newer on both hosts",
    ),
    _cause(
        r"Timeout reached|Can't freeze|Unable to freeze|freezer",
        "not all of it could be brought to a halt in time",
        "a process waits for a slow disk or network file system; try again when that answers",
    ),
    _cause(
        r"cg: Can't move .*cpuset",
        "the cores that it may use are not set, or not to be had here",
        "compare --cpuset-cpus with the cores of this host",
    ),
    _cause(
        r"/dev/nvidia|cuda|amdgpu|/dev/kfd",
        "it uses a graphics processor",
        "CRIU needs its plugin for that device; transship does not move such containers",
    ),
    _cause(
        r"No space left on device|Cannot allocate memory|ENOMEM|ENOSPC",
        "there was not enough memory for the images",
        "free memory, or take it when the program needs less",
    ),
    _cause(
        r"Pid \d+ is busy|Can't fork for \d+: File exists|pid.*already exists",
        "a process id that it had is taken in its namespace",
        "restore it where nothing else runs in the same pid namespace",
    ),
    _cause(
        r"Unsupported file type|Can't (dump|lookup) .*(socket|family)|Unknown socket|packet socket|netlink",
        "it has a file or socket of a kind that CRIU does not know",
        "the lines say which; let the program close it first",
    ),
    _cause(
        r"cr-restore.*killed by signal 9",
        "the kernel has ended a task of it for want of memory: at its memory limit a restore needs one or two MiB more",
        "give it some MiB more before (docker update --memory)",
    ),
    _cause(
        r"cgroup.*(No such file|[Ff]ail)|cg: ",
        "the cgroup controllers are not those that it had",
        "use hosts with the same cgroup version",
    ),
)


def cause_of(lines: Iterable[str]) -> Cause | None:
    """The first known cause that one of the lines is a sign of."""
    said = list(lines)
    found = [line for line in said if "Error" in line] or said
    for cause in CAUSES:
        if any(cause.sign.search(line) for line in found):
            return cause
    return None


def hint(cause: Cause | None, kept: Path | None, host: str) -> str:
    """What can be done about it, and where the whole log is."""
    said = [cause.remedy] if cause is not None else []
    if kept is not None:
        said.append(f"CRIU's whole log is at {kept} on {host}")
    return "; ".join(said)


def dump_failed(log: Path, keep_as: str, host: str, error: CommandFailed) -> DumpFailed:
    """The error of a dump that runc or CRIU has given up: their own lines, the likely cause, where the log is."""
    lines = logs.digest(log)
    kept = logs.keep(log, keep_as)
    cause = cause_of((*lines, *error.detail))
    return DumpFailed(
        "CRIU could not dump the container" + (f": probably {cause.meaning}" if cause is not None else ""),
        hint=hint(cause, kept, host),
        detail=lines or error.detail,
    )


def restore_failed(log: Path, keep_as: str, host: str, reason: str, step: str) -> RestoreFailed:
    """The same of a restore; `reason` is Docker's, of a start that has failed, and `step` what was waited for."""
    lines = logs.digest(log)
    kept = logs.keep(log, keep_as)
    cause = cause_of(lines) if lines else None
    if cause is not None:
        reason = f"probably {cause.meaning}"
    return RestoreFailed(
        f"the container can't be {step} here" + (f": {reason}" if reason else ""),
        hint=hint(cause, kept, host),
        detail=(*lines, *([reason] if reason and cause is None else [])),
    )
