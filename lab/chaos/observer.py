"""Watches both hosts while accidents happen: at every look at most one copy may run and be unlocked (handover.md).

A thread of its own, which enters network namespaces to ask for their locks. What it can't see in one instant it looks
at twice: a copy counts as running beside another only if it runs before and after the look at the other.
"""

import threading
import time
from collections.abc import Sequence

from lab.chaos import kernel
from lab.chaos.kernel import Copy
from lab.host import Host

LOOK_SECONDS = 0.02


class Observer:
    """Started for a run; `violations` are sentences."""

    def __init__(self, hosts: Sequence[Host]) -> None:
        self._hosts = hosts
        self._source = ""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="observer", daemon=True)
        self.violations: list[str] = []
        self.looks = 0
        self.running_together = 0
        """Looks at which both had tasks that could run; their locks decided."""
        self.target_ran_at: float | None = None
        """When the target's copy was first seen to run unlocked; the source must have decided by then."""

    def start(self, source: str) -> None:
        self._source = source
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(10)

    def _watch(self) -> None:
        while not self._stop.wait(LOOK_SECONDS):
            try:
                self._look()
            except Exception as error:
                self._say(f"the observer itself failed: {type(error).__name__}: {error}")
                return

    def _look(self) -> None:
        self.looks += 1
        running = [copy for host in self._hosts for copy in kernel.copies(host) if copy.runnable]
        if len(running) > 1:
            self._together(running)
        elif len(running) == 1 and running[0].host != self._source:
            self._early(running[0])

    def _together(self, running: list[Copy]) -> None:
        self.running_together += 1
        unlocked = [copy for copy in running if kernel.locked(copy) is False]
        if len(unlocked) < 2:
            if unlocked and unlocked[0].host != self._source:
                self._early(unlocked[0])
            return
        still = [copy for copy in unlocked if self._again(copy) and kernel.locked(copy) is False and self._again(copy)]
        if len(still) > 1:
            self._say(f"two copies run and are unlocked: {[(copy.host, copy.tasks) for copy in still]}")

    def _early(self, copy: Copy) -> None:
        """The target's copy may run unlocked only once the source has decided: the judge compares."""
        seen = time.time()
        if self.target_ran_at is None and kernel.locked(copy) is False and self._again(copy):
            self.target_ran_at = seen

    def _again(self, copy: Copy) -> bool:
        now = [found for host in self._hosts if host.name == copy.host for found in kernel.copies(host)]
        return any(found.container == copy.container and found.runnable for found in now)

    def _say(self, what: str) -> None:
        if what not in self.violations:
            self.violations.append(f"{time.strftime('%H:%M:%S')} {what}")
