"""What a container's labels wish for when it is stopped or its host goes down (docs/shutdown.md). Pure.

    transship.on-shutdown=hibernate  its memory goes to the disk, and is there at its next start; or evacuate, ignore
    transship.on-stale=down          if its memory can't be used any more it is not started; `cold` starts it anew
    transship.fallback-signal=QUIT   what it is sent when it can't be hibernated; SIGTERM is the default

Evacuation has more of them (labels.py). A label that is not understood is as if it were not there.
"""

import signal
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from agent.base.config import Shutdown
from agent.doors.docker_model import Container
from agent.migration.restarting import number

ON_SHUTDOWN: Final = "transship.on-shutdown"
ON_STALE: Final = "transship.on-stale"
FALLBACK: Final = "transship.fallback-signal"
HIBERNATE, EVACUATE, IGNORE = "hibernate", "evacuate", "ignore"
COLD, DOWN = "cold", "down"
HARMLESS: Final = frozenset({signal.SIGURG, signal.SIGCONT, signal.SIGCHLD, signal.SIGWINCH})
"""Signals that a program which has said nothing about them does not notice."""


@dataclass(frozen=True, slots=True)
class Wishes:
    """What was understood."""

    on_shutdown: str
    on_stale: str
    fallback: int
    stop_signal: int
    """0 where its stop signal ends it before anything can be done."""


def read(container: Container, defaults: Shutdown) -> Wishes:
    labels = container.labels
    stop = number(str(container.raw.get("Config", {}).get("StopSignal") or "SIGTERM"))
    return Wishes(
        on_shutdown=on_shutdown(labels, defaults),
        on_stale=_one_of(labels, ON_STALE, (COLD, DOWN), defaults.on_stale),
        fallback=number(labels.get(FALLBACK, "")) or signal.SIGTERM,
        stop_signal=stop if stop in HARMLESS else 0,
    )


def on_shutdown(labels: Mapping[str, str], defaults: Shutdown) -> str:
    return _one_of(labels, ON_SHUTDOWN, (HIBERNATE, EVACUATE, IGNORE), defaults.default)


def _one_of(labels: Mapping[str, str], label: str, known: tuple[str, ...], otherwise: str) -> str:
    said = labels.get(label, otherwise).strip().lower()
    return said if said in known else otherwise
