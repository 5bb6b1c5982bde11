"""What Docker would have done with a program that ended during its move is done after it."""

import pytest

from agent.migration import restarting
from tests.unit import source_host
from tests.unit.moves import CONTAINER, FakeDocker
from tests.unit.source_host import World, dump_fails

program = pytest.fixture(source_host.program)
world = pytest.fixture(source_host.world)


@pytest.mark.parametrize("signals", [[], ["15"]], ids=["by-itself", "docker-stop"])
async def test_a_program_that_ended_meanwhile_is_started_unless_somebody_stopped_it(
    world: World, monkeypatch: pytest.MonkeyPatch, signals: list[str]
) -> None:
    def ends() -> None:
        for sent in signals:
            world.sources.container_signalled(CONTAINER, sent)
        world.docker.exits(1)

    dump_fails(monkeypatch, ends)
    await world.start()
    await world.end()
    assert world.docker.policy == "always"
    assert world.docker.running is (not signals)


@pytest.mark.parametrize(
    ("policy", "code", "starts"),
    [
        ("always", 0, True),
        ("unless-stopped", 0, True),
        ("on-failure", 1, True),
        ("on-failure", 0, False),
        ("no", 1, False),
    ],
)
async def test_which_policy_starts_what_has_ended(policy: str, code: int, starts: bool) -> None:
    docker = FakeDocker()
    docker.exits(code)
    await restarting.start_as_docker_would(docker, CONTAINER, {"Name": policy})  # type: ignore[arg-type]
    assert docker.running is starts


@pytest.mark.parametrize(
    ("sent", "stop_signal", "meant"),
    [
        ("15", "", True),
        ("1", "", True),
        ("1", "SIGQUIT", False),
        ("3", "SIGQUIT", True),
        ("3", "quit", True),
        ("9", "SIGQUIT", True),
        ("37", "SIGRTMIN+3", True),
        ("", "SIGQUIT", False),
    ],
)
def test_which_signal_is_meant_to_end_a_container(sent: str, stop_signal: str, meant: bool) -> None:
    assert restarting.is_meant_to_end(sent, stop_signal) is meant
