"""Which migration the code that runs just now works for: a context variable, which tasks inherit; logs read it.

Nothing is decided by it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_MIGRATION: ContextVar[str] = ContextVar("migration", default="")


def migration() -> str:
    """The migration that is worked for; empty where it is none."""
    return _MIGRATION.get()


def works_for(migration: str) -> None:
    """From here on this task, and every task that it starts, works for a migration."""
    _MIGRATION.set(migration)


@contextmanager
def working_for(migration: str) -> Iterator[None]:
    """The same for a block, in a task that does other things afterwards."""
    token = _MIGRATION.set(migration)
    try:
        yield
    finally:
        _MIGRATION.reset(token)
