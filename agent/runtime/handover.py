"""Where agent and runtime meet: the hand-over folder of one container. Both sides import this.

/run/transship/handover/CONTAINER-ID/   root only, on a tmpfs; its existence makes the runtime restore
    plan.json       agent -> runtime    how to restore
    criu.conf       agent -> CRIU       options that runc has no flag for
    hook.sh         agent -> runc       runs the script that it is given in the new network namespace
    first           agent -> hook       before anything is restored: lock, addresses, sysctls
    last            runtime -> hook     settings of interfaces, once dockerd has attached them
    hold.sh         agent -> CRIU       run at each of CRIU's stages: says `held`, and waits there for `release`
    lock.nft        the drop tables
    addresses       agent -> hook       stand-in addresses, until dockerd has given the container its own
    log             agent -> runtime    what was printed last, to be printed again
    sysctls         runtime -> hook     settings of the network, as shell commands
    bin/criu        agent -> runc       what runc takes for CRIU: waits until runc may go on, then is CRIU
    armed           fifo, agent -> bin/criu    one line: what runc needs of the images itself is there
    passed          agent -> bin/criu          from then on it does not wait any more
    criu            fifo, bin/criu -> runtime  one line each time that it becomes CRIU: its process
    go              fifo, agent -> runtime     one word: `restore` or `discard`
    events          fifo, runtime -> agent     one line an event: staged, printed, held, failed
    staged.json     runtime -> agent    root file system and bundle; there once the runtime waits
    made            fifo, hook -> runtime      one line: the first process, whose network namespace is locked
    held            fifo, CRIU -> runtime      one line: the first process, when every task is restored and held
    release         fifo, agent -> hold.sh     one word: the tasks run
    restoring       runtime -> `start`         there if `create` has not waited for the restore; the agent waits for it
    restored        runtime -> `start`         there once the tasks are held
    result.json     runtime -> agent    how the restore ended, with times
    images/         tmpfs, CRIU's images; till all are there, `inventory.img` is a fifo, runtime -> CRIU
    tools/tar       agent -> CRIU       what it finds as `tar`: has what is small in contents/, and else is tar
    contents/       agent -> tools/tar  what is in a tmpfs, out of gzip already
    lazy/           the same for CRIU's lazy-pages daemon, agent -> CRIU; links to the images
    work/           CRIU's logs and statistics
"""

import os

ROOT = "/run/transship/handover"

PLAN = "plan.json"
CRIU_CONF = "criu.conf"
HOOK = "hook.sh"
FIRST = "first"
LAST = "last"
HOLD = "hold.sh"
LOCK = "lock.nft"
ADDRESSES = "addresses"
SYSCTLS = "sysctls"
GO = "go"
EVENTS = "events"
MADE = "made"
HELD = "held"
RESTORING = "restoring"
RESTORED = "restored"
BIN = "bin"
ARMED = "armed"
PASSED = "passed"
CRIU = "criu"
RELEASE = "release"
STAGED = "staged.json"
RESULT = "result.json"
LOG = "log"
IMAGES = "images"
INVENTORY = "inventory.img"
"""The image that CRIU opens before any other."""
INVENTORY_THERE = "inventory.there"
"""What has come of it, until it takes its place."""
LAZY = "lazy"
WORK = "work"

RESTORE = "restore"
DISCARD = "discard"
RUN = "go"


def for_fifo(image: bytes) -> bytes:
    """An image for a CRIU that reads it from a fifo that stays open: it asks for a page (criu/bfd.c), or the end."""
    return image.ljust(os.sysconf("SC_PAGE_SIZE"), b"\0")


def folder(container_id: str) -> str:
    return f"{ROOT}/{container_id}"
