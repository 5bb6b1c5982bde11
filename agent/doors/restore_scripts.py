"""The scripts that runc and CRIU call in a restore; what they wait for and say is in the hand-over folder, too."""

from collections.abc import Sequence
from pathlib import Path

from agent.checkpoint.criu import CriuOptions
from agent.network import identity, lock
from agent.runtime import handover

HOOK = """\
#!/bin/sh
# Run by runc in the blackout, with a script for the new network namespace; nothing in that is restored yet.
read -r state || [ -n "$state" ]
pid=${state#*\\"pid\\":}
pid=${pid%%[,\\}]*}
# on the host's own network nothing is to be set
[ /proc/self/ns/net -ef /proc/"$pid"/ns/net ] && exit 0
exec nsenter --net=/proc/"$pid"/ns/net /bin/sh -e "$1" "$pid"
"""

FIRST = """\
nft -f {folder}/{lock} & nft=$!
ip -batch {folder}/{addresses}
wait $nft
# a socket may be bound to an address that is not there yet, or not any more (identity.bind_as_usual)
printf 1 >/proc/sys/net/ipv4/ip_nonlocal_bind
. {folder}/{sysctls}
# from here on dockerd may attach the network; read-write, since nobody may be there to read
echo "$1" 1<>{folder}/{made}
"""
FILES = {
    "lock": handover.LOCK,
    "addresses": handover.ADDRESSES,
    "sysctls": handover.SYSCTLS,
    "made": handover.MADE,
}
WRAPPER = {"passed": handover.PASSED, "armed": handover.ARMED, "criu": handover.CRIU}
HOLDING = {"release": handover.RELEASE, "held": handover.HELD, "run": handover.RUN}

CRIU = """\
#!/bin/sh
# What runc finds as `criu`. It asks for the version before anything else, and waits here until it may look into the
# images. CRIU itself waits for the first of them. An end of file is the end of the runtime.
[ -e {folder}/{passed} ] || read -r armed <{folder}/{armed} || exit 1
PATH={tools}:${{PATH#*:}}
# its end is seen by the runtime: runc waits on for what a killed CRIU had restored by then
echo $$ 1<>{folder}/{criu}
exec criu "$@"
"""

HOLD = """\
#!/bin/sh
# Called by CRIU at each stage. At `pre-resume` every task is restored and held by ptrace, one step before it runs:
# CRIU waits here for the word. Its fifo is opened read-write, since an end of file would be taken for the word.
case $CRTOOLS_SCRIPT_ACTION in
pre-resume)
    exec 3<>{folder}/{release}
    echo "$CRTOOLS_INIT_PID" >{folder}/{held}
    until read -r word <&3 && [ "$word" = {run} ]; do :; done ;;
esac
"""


def put_scripts(path: Path, folder: Path, options: CriuOptions, stand_in: Sequence[str]) -> None:
    """What a restore calls, written into `path`; when it does they lie in `folder`."""
    _put(path / handover.HOLD, HOLD.format(folder=folder, **HOLDING))
    (path / handover.CRIU_CONF).write_text(options.for_restore(folder / handover.HOLD))
    (path / handover.LOCK).write_text(lock.RULES)
    (path / handover.ADDRESSES).write_text(identity.stand_in(stand_in))
    (path / handover.FIRST).write_text(FIRST.format(folder=folder, **FILES))
    _put(path / handover.HOOK, HOOK)


def put_wrapper(folder: Path, tools: Path) -> None:
    """What runc finds as `criu`, with a folder of tools that CRIU is to find before others."""
    _put(folder / handover.BIN / "criu", CRIU.format(folder=folder, tools=tools, **WRAPPER))


def _put(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o700)
