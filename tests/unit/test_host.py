"""What a host says of its tools: CRIU's version as it is now, and what it can do with this kernel."""

from typing import Any, cast

from agent.base.config import Settings
from agent.base.errors import CommandFailed
from agent.base.shell import Done, Shell
from agent.doors.docker import Docker
from agent.migration.host import Host
from agent.migration.journal import Journal
from protocol.status import Engine


class Tools:
    """A shell with a CRIU in it, or none."""

    def __init__(self, version: str, *features: str) -> None:
        self.version, self.features = version, features
        self.asked: list[str] = []

    async def run(self, *argv: str, **_: Any) -> Done:
        if argv == ("criu", "--version") and self.version:
            return Done(argv, 0, f"Version: {self.version}\n", (), 0.0)
        if argv[:3] == ("criu", "check", "--feature"):
            self.asked.append(argv[3])
            if argv[3] in self.features:
                return Done(argv, 0, "", (), 0.0)
        raise CommandFailed(f"{' '.join(argv)} ended with code 1")


class Docker26:
    async def engine(self, runtime: str) -> Engine:
        return Engine(docker="26.1.5")


def host(tools: Tools) -> Host:
    settings = Settings(host="host-a")
    return Host(settings, cast("Docker", Docker26()), cast("Shell", tools), cast("Journal", None))


async def test_features_are_what_criu_finds_in_this_kernel() -> None:
    engine = await host(Tools("4.2.1", "uffd-noncoop")).engine()
    assert (engine.criu, engine.criu_features) == ("4.2.1", ("uffd-noncoop",))


async def test_without_criu_there_are_none() -> None:
    engine = await host(Tools("")).engine()
    assert (engine.criu, engine.criu_features) == ("", ())


async def test_they_are_asked_for_once_and_again_after_an_upgrade() -> None:
    tools = Tools("4.2.1")
    one = host(tools)
    await one.engine()
    asked = len(tools.asked)
    await one.engine()
    assert len(tools.asked) == asked
    tools.version, tools.features = "4.3", ("mem_dirty_track",)
    assert (await one.engine()).criu_features == ("mem_dirty_track",)
