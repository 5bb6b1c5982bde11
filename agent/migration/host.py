"""This host as a story sees it: the doors, in one small frozen bundle. Made in daemon.py, faked in tests."""

import asyncio
import os
import shutil
from dataclasses import dataclass, field

from agent.base.config import Settings
from agent.base.errors import CommandFailed
from agent.base.pace import Pace
from agent.base.shell import Shell
from agent.checkpoint import cpuinfo
from agent.doors.docker import Docker
from agent.migration.journal import Journal
from protocol.status import Engine

OF_STRATEGIES = ("mem_dirty_track", "uffd-noncoop")
"""What strategies ask for, as `criu check --feature` calls it: to know what was written since, and lazy pages."""
OF_RESTORES = ("timens", "seccomp_suspend", "get_rseq_conf")
"""What a restore may need: the clock as it was, filters of system calls, the restartable sequences of glibc."""
FEATURES = OF_STRATEGIES + OF_RESTORES


@dataclass(frozen=True, slots=True)
class Host:
    """The doors of one host."""

    settings: Settings
    docker: Docker
    shell: Shell
    journal: Journal
    pace: Pace = field(default_factory=Pace)
    """What all migrations that leave keep to together, while their containers run."""
    _features: dict[str, tuple[str, ...]] = field(default_factory=dict, repr=False, compare=False)
    """By CRIU's version: the kernel stays what it is while we run."""
    _version: dict[tuple[object, ...], str] = field(default_factory=dict, repr=False, compare=False)
    _cpu: dict[str, str] = field(default_factory=dict, repr=False, compare=False)
    """The processor, by CRIU's version; and whether one of another host would do, by that one's image."""

    @property
    def name(self) -> str:
        return self.settings.host

    async def engine(self) -> Engine:
        """Docker and CRIU as they are now; either may have been upgraded under us."""
        engine = await self.docker.engine(self.settings.runtime)
        version = await self.criu_version()
        if version and version not in self._features:
            found = await asyncio.gather(*map(self._has_feature, FEATURES))
            self._features[version] = tuple(name for name, there in zip(FEATURES, found, strict=True) if there)
        return engine.model_copy(update={"criu": version, "criu_features": self._features.get(version, ())})

    async def _has_feature(self, name: str) -> bool:
        """Ask CRIU, which asks the kernel; version numbers say nothing about how a kernel was built."""
        try:
            await self.shell.run("criu", "check", "--feature", name, label="criu", timeout=10)
        except CommandFailed:
            return False
        return True

    async def cpu(self) -> str:
        """What this processor can do, as CRIU's own image of it; empty where CRIU can't tell."""
        version = await self.criu_version()
        if version and version not in self._cpu:
            self._cpu[version] = await cpuinfo.dumped(self.shell)
        return self._cpu.get(version, "")

    async def against_cpu(self, image: str) -> str:
        """What a restore from a host with that processor would miss here; empty: nothing."""
        version = await self.criu_version()
        if not version or not image or image in self._cpu.values():  # without a CRIU that is what there is to say
            return ""
        key = f"{version} {image}"
        if key not in self._cpu:
            self._cpu[key] = await cpuinfo.lacking(self.shell, image)
        return self._cpu[key]

    async def criu_version(self) -> str:
        """As it is now; asked again only when its file is another one."""
        program = _program()
        if program not in self._version:
            self._version.clear()
            self._version[program] = await self._asked_version()
        version = self._version[program]
        if not program:
            self._version.clear()
        return version

    async def _asked_version(self) -> str:
        try:
            done = await self.shell.run("criu", "--version", label="criu", timeout=10)
        except CommandFailed:
            return ""
        first = done.stdout.splitlines()[0] if done.stdout else ""
        return first.removeprefix("Version:").strip()


def _program() -> tuple[object, ...]:
    """Which file CRIU is; nothing where there is none."""
    path = shutil.which("criu")
    if path is None:
        return ()
    try:
        about = os.stat(path)  # noqa: PTH116 - a path as the search gave it
    except OSError:
        return ()
    return path, about.st_ino, about.st_size, about.st_mtime_ns
