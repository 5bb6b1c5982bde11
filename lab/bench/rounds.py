"""The order of measurements: every system once, then every system again, so that noise hits all of them alike."""

from collections.abc import Callable, Sequence

from lab.bench import meters
from lab.bench.move import measure, unmeasured
from lab.bench.record import Move
from lab.bench.systems.base import Load, System, Unable
from lab.lab import Lab
from lab.shell import LabError

_WARM_MIB = 64
_UNABLE = "unable: "
_GIVE_UP = 2
"""So many failures one after the other, and a system is left out of this load."""
# The source's memory, images of it, and the target's memory, where one machine plays both hosts; and what else runs.
_TIMES, _REST_MIB = 3.0, 1024


def parse(text: str) -> Load:
    """Read `1024`, or `redis`, which has 1 GiB; `redis-64` is a small one."""
    if text == "redis":
        return Load(1024, redis=True)
    size = text.removeprefix("redis-")
    if not size.isdigit() or not 0 < int(size) <= 65536:
        raise LabError(f"{text}: a size is a number of MiB, redis, or redis-MIB")
    return Load(int(size), redis=size != text)


class Rounds:
    """Runs the measurements and hands each record on at once."""

    def __init__(self, lab: Lab, write: Callable[[Move], None], say: Callable[[str], None]) -> None:
        self._lab, self._write, self._say = lab, write, say

    def run(self, systems: Sequence[System], loads: Sequence[Load], runs: int) -> None:
        able = [system for system in systems if self._warm(system)]
        for load in loads:
            for system in able:
                system.equip(load.image)
            self._rounds(able, load, runs)

    def _warm(self, system: System) -> bool:
        """Whether a first move worked; caches are then full on both sides of every system."""
        load = Load(_WARM_MIB)
        system.equip(load.image)
        # Once more for what went wrong, never for what can't be.
        error = ""
        for _ in range(_GIVE_UP):
            error = self._one(system, load, 0)
            if not error or error.startswith(_UNABLE):
                break
        return not error

    def _rounds(self, systems: Sequence[System], load: Load, runs: int) -> None:
        failed = dict.fromkeys(systems, 0)
        for run in range(1, runs + 1):
            # Nobody is always the one after the largest.
            shift = run % len(systems) if systems else 0
            for system in [*systems[shift:], *systems[:shift]]:
                if failed[system] >= _GIVE_UP:
                    continue
                failed[system] = failed[system] + 1 if self._one(system, load, run) else 0

    def _one(self, system: System, load: Load, run: int) -> str:
        """Measure and write one move; what went wrong."""
        need = load.size_mib * _TIMES + _REST_MIB
        if (free := meters.available_mib()) < need:
            record = unmeasured(system, load, run, f"{free:.0f} MiB of memory are free, {need:.0f} needed")
        else:
            try:
                record = measure(self._lab, system, load, run)
            except Unable as reason:
                record = unmeasured(system, load, run, f"{_UNABLE}{reason}")
        self._write(record)
        self._say(line(record))
        return record.error


def line(record: Move) -> str:
    """One record for a person."""
    name = f"{record.system} {record.variant}".strip()
    size = f"{'redis ' if record.workload == 'redis' else ''}{record.size_mib}"
    head = f"{name:20} {record.engine:10} {size:>10} MiB  run {record.run or '-'}"
    if record.error:
        return f"{head}  {record.error}"
    wire = (record.wire_bytes or 0) / 2**20
    return (
        f"{head}  blackout {record.blackout_ms:8.1f} ms  tcp gap {record.tcp_gap_ms:8.1f} ms"
        f"{'' if record.connection_kept else ' (broken)'}  total {record.total_ms:8.0f} ms  wire {wire:7.1f} MiB"
        f"  cpu {record.cpu_s:6.2f} s  rss {record.peak_rss_mib:5.1f} MiB"
    )
