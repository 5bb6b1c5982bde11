"""What an agent still has to say to its broker, in order. Pure: sends nothing, knows no connection.

Of a retained topic only the newest word counts: a later one takes the place of one that waits. All held words are said
again after each reconnect, since a broker may come back without its memory. Replies wait; events do not.
"""

import asyncio
import itertools
import math
import time
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Publish:
    """A message; an empty retained one clears its topic."""

    topic: str
    payload: bytes
    retain: bool = False
    correlation: bytes | None = None
    lasting: bool = True
    """Whether it waits for a broker that is away."""
    until: float = math.inf
    """When it stops being worth anything, on the monotonic clock."""

    def seconds_left(self) -> int | None:
        """For the broker to keep it; None: for ever."""
        return None if self.until == math.inf else max(1, math.ceil(self.until - time.monotonic()))


@dataclass(frozen=True, slots=True)
class Listen:
    """A subscription. `sweep` ends it at once: it only fetches what is retained below the pattern."""

    pattern: str
    how: Literal["on", "off", "sweep"]


Item = Publish | Listen


class Outbox:
    """An ordered set of things to send; the same key twice is the same thing, said anew."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._waiting: dict[Hashable, Item] = {}
        self._in_flight: set[Hashable] = set()
        self._held: dict[str, Publish] = {}
        self._listening: dict[str, Listen] = {}
        self._numbers = itertools.count()
        self.dropped = 0
        """Events and replies that nobody will get."""
        self.filled = asyncio.Event()
        self.emptied = asyncio.Event()
        self.emptied.set()

    @property
    def held(self) -> Mapping[str, Publish]:
        """Each retained topic with the newest word on it."""
        return self._held

    def hold(self, topic: str, payload: bytes, expiry: float | None = None) -> None:
        """Say this on the retained topic, now and after every reconnect; nothing (b"") clears the topic.

        `expiry` is in seconds; after that the broker drops it, and it is not said again.
        """
        until = math.inf if expiry is None else time.monotonic() + expiry
        message = Publish(topic, payload, retain=True, until=until)
        if payload:
            self._held[topic] = message
        else:
            self._held.pop(topic, None)
        self._put(topic, message)

    def say(self, message: Publish) -> None:
        """Add a message that is not retained."""
        if len(self._waiting) >= self._limit:
            self.dropped += 1
            return
        self._put(next(self._numbers), message)

    def listen(self, pattern: str) -> None:
        self._listening[pattern] = Listen(pattern, "on")
        self._put(("listen", pattern), self._listening[pattern])

    def sweep(self, pattern: str) -> None:
        """Fetch what is retained below the pattern, now and after every reconnect."""
        self._listening[pattern] = Listen(pattern, "sweep")
        self._put(("listen", pattern), self._listening[pattern])

    def stop_listening(self, pattern: str) -> None:
        if self._listening.pop(pattern, None):
            self._put(("listen", pattern), Listen(pattern, "off"))

    def reconnected(self) -> None:
        """Subscribe anew before anything is said: who reads that the host is there may send it a command at once."""
        waiting = self._waiting
        self._in_flight.clear()
        now = time.monotonic()
        self._held = {topic: message for topic, message in self._held.items() if message.until > now}
        self._waiting = {("listen", pattern): listen for pattern, listen in self._listening.items()}
        self._waiting.update(self._held)
        for key, item in waiting.items():
            if isinstance(item, Publish) and item.lasting:
                self._waiting.setdefault(key, item)
        self._wake()

    def disconnected(self) -> None:
        """Drop what does not wait."""
        gone = [key for key, item in self._waiting.items() if isinstance(item, Publish) and not item.lasting]
        for key in gone:
            del self._waiting[key]
        self._in_flight.clear()
        self.dropped += len(gone)
        self._wake()

    def take(self) -> tuple[Hashable, Item] | None:
        """The next thing to send; it stays, and nothing else with its key is given out, until `done` is called."""
        for key, item in self._waiting.items():
            if key not in self._in_flight:
                self._in_flight.add(key)
                self._wake()
                return key, item
        return None

    def done(self, key: Hashable, item: Item) -> None:
        """The broker has it; where a newer word has come meanwhile, that one stays."""
        self._in_flight.discard(key)
        if self._waiting.get(key) is item:
            del self._waiting[key]
        self._wake()

    def _put(self, key: Hashable, item: Item) -> None:
        self._waiting[key] = item
        self._wake()

    def _wake(self) -> None:
        if len(self._waiting) > len(self._in_flight):
            self.filled.set()
        else:
            self.filled.clear()
        if self._waiting:
            self.emptied.clear()
        else:
            self.emptied.set()
