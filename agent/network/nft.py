"""nftables' own library, called in the network namespace of a container by a thread of this process.

The lock stands at both ends of every blackout, up to five times in a move. As a command each costs the start of two
programs, 10 to 20 ms where the machine is busy; here it is one netlink transaction, as in the command itself.
"""

import ctypes
import functools
import threading

from agent.base.errors import CommandFailed
from agent.network.namespace import within

_ONE_AT_A_TIME = threading.Lock()
"""The library has state that all its contexts share."""
FREE_AFTER_SECONDS = 1.0
"""The rules hold when the transaction is sent. Closing the socket takes 10 ms and more: the kernel sees to all
that transactions threw away first (nf_tables_api.c: nf_tables_rcv_nl_event). So it is done later, when no blackout
waits for it; for as long the namespace is kept.
"""
_finished: list[int] = []
"""Contexts to be freed."""


@functools.cache
def _library() -> ctypes.CDLL | None:
    """None where it is not installed by that name: then there is the command."""
    try:
        found = ctypes.CDLL("libnftables.so.1")
    except OSError:
        return None
    found.nft_ctx_new.argtypes, found.nft_ctx_new.restype = (ctypes.c_uint32,), ctypes.c_void_p
    found.nft_ctx_free.argtypes, found.nft_ctx_free.restype = (ctypes.c_void_p,), None
    for name in ("nft_ctx_buffer_error", "nft_ctx_buffer_output"):
        getattr(found, name).argtypes = (ctypes.c_void_p,)
    found.nft_ctx_get_error_buffer.argtypes = (ctypes.c_void_p,)
    found.nft_ctx_get_error_buffer.restype = ctypes.c_char_p
    found.nft_run_cmd_from_buffer.argtypes = (ctypes.c_void_p, ctypes.c_char_p)
    return found


def is_there() -> bool:
    return _library() is not None


def apply(pid: int, rules: str) -> None:
    """Do what `nft -f -` would with these rules in the namespace of `pid`; blocks for some milliseconds.

    Raises:
        CommandFailed: what nft would have said. Nothing of the rules was done: they are one transaction.

    """
    try:
        error = within(pid, lambda: _run(rules))
    except OSError as gone:
        error = str(gone)
    if error is not None:
        last = error.strip().splitlines()[:1] or ["it said nothing"]
        raise CommandFailed(f"nft failed: {last[0]}", detail=tuple(error.splitlines()))


def _run(rules: str) -> str | None:
    library = _library()
    assert library is not None
    with _ONE_AT_A_TIME:
        context = library.nft_ctx_new(0)
        try:
            library.nft_ctx_buffer_error(context)
            library.nft_ctx_buffer_output(context)
            if library.nft_run_cmd_from_buffer(context, rules.encode()) == 0:
                return None
            return (library.nft_ctx_get_error_buffer(context) or b"").decode(errors="replace")
        finally:
            if not _finished:
                later = threading.Timer(FREE_AFTER_SECONDS, _free)
                later.daemon = True  # what is open at the end of this process is closed by that
                later.start()
            _finished.append(context)


def _free() -> None:
    library = _library()
    assert library is not None
    with _ONE_AT_A_TIME:
        for context in _finished:
            library.nft_ctx_free(context)
        _finished.clear()
