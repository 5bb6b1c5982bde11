"""Every reason against a move: its code stands in the table, in the docs, and beside something that shows it.

Most are shown by a container in the lab (tests/e2e/test_check.py). Those that need another kind of host, another
processor or a plugin are shown here, by what such a host or such a container has said.
"""

import os
import re
from collections.abc import Callable, Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from agent.migration import admission, confinement, obstacles, preflight
from agent.migration.view import Process, View
from agent.network.sockets import Bound
from protocol.base import utc_now
from protocol.errors import ErrorCode, Reason, Why
from protocol.peer import Network, Volume
from protocol.reasons import ABOUT, against, page
from protocol.status import Engine
from tests.e2e.reason_cases import CASES
from tests.unit import moves, recorded

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/reasons.md"
LIKE = Engine(docker="28.5.2", criu="4.2.1", criu_features=("timens", "uffd-noncoop"), runtime_registered=True)
ELSEWHERE = {
    Why.NO_MEMORY: "tests/e2e/test_refusals.py",
    Why.NO_SPACE: "tests/e2e/test_refusals.py",
    Why.CRIU_VERSION: "tests/e2e/test_refusals.py",
    Why.CORDONED: "tests/e2e/test_check.py",
    Why.USERNS_REMAP: "tests/e2e/test_check.py",
    Why.NETWORK_MISSING: "tests/e2e/test_fidelity_networks.py",
}
"""Shown in the lab, but not by a container alone."""


def of(*found: Iterable[Reason]) -> list[Why | None]:
    return [reason.why for reasons in found for reason in reasons]


def container(**changes: Any) -> Iterable[Reason]:
    process = Process(100, 1, "app", "S", 1, 0, {}, ())
    return obstacles.obstacles(recorded.container("docker28", "plain", **changes), View(100, (process,)))


def engines(here: Engine = LIKE, there: Engine = LIKE, **changes: Any) -> Iterable[Reason]:
    offer = moves.offer(engine=there, **{"machine": os.uname().machine, **changes})
    return admission._engines(None, here, offer)  # type: ignore[arg-type]


def belongings(network: Network | None = None, volume: Volume | None = None) -> Iterable[Reason]:
    return obstacles.belongings_against([network] if network else [], [volume] if volume else [])


def stopped() -> Iterable[Reason]:
    return container(State__Running=False, State__Status="exited")


def confined(there: Engine, *options: str) -> Iterable[Reason]:
    return confinement.against({"HostConfig": {"SecurityOpt": list(options)}}, there, LIKE, ())


def clock(seconds: float) -> Iterable[Reason]:
    return admission.at_arrival(moves.offer(sent_at=utc_now() - timedelta(seconds=seconds)), 5.0)


def hardware(**wanted: Any) -> Iterable[Reason]:
    return admission._hardware(moves.offer(create={"HostConfig": wanted}))


def lacks(feature: str) -> Engine:
    return LIKE.model_copy(update={"criu_features": tuple(each for each in LIKE.criu_features if each != feature)})


RECORDED: dict[Why, Callable[[], Iterable[Reason]]] = {
    Why.NOT_RUNNING: stopped,
    Why.RUNTIME: lambda: container(HostConfig__Runtime="runsc"),
    Why.LOG_PLUGIN: lambda: container(HostConfig__LogConfig={"Type": "acme/logs:1"}),
    Why.MOUNT: lambda: container(Mounts=[{"Type": "image", "Destination": "/i"}]),
    Why.FOREIGN_PROCESS: lambda: obstacles.obstacles(
        recorded.container("docker28", "plain"),
        View(100, (Process(100, 1, "app", "S", 1, 0, {}, ()), Process(200, 7, "gdb", "S", 1, 0, {}, ()))),
    ),
    Why.TCP_OPTION: lambda: obstacles.network_against((), ["MD5 signatures (TCP_MD5SIG)"]),
    Why.BOUND_INTERFACE: lambda: obstacles.bound_against(
        Bound(frozenset(), frozenset({"eth0"})), (), address_moves_along=True
    ),
    Why.NETWORK_GONE: lambda: belongings(Network(name="n", driver="")),
    Why.NETWORK_DRIVER: lambda: belongings(Network(name="n", driver="overlay")),
    Why.VOLUME_DRIVER: lambda: belongings(volume=Volume(kind="volume", name="v", destination="/v", driver="netapp")),
    Why.NOT_SET_UP: lambda: engines(LIKE.model_copy(update={"runtime_registered": False})),
    Why.ARCHITECTURE: lambda: engines(machine="s390x"),
    Why.CGROUP_VERSION: lambda: engines(LIKE.model_copy(update={"cgroup_version": 1})),
    Why.KERNEL_FEATURE: lambda: engines(lacks("timens")),
    Why.NO_POSTCOPY: lambda: admission.against_postcopy(lacks("uffd-noncoop")),
    Why.NO_PRECOPY: lambda: admission.against_precopy(lacks("mem_dirty_track")),
    Why.CLOCK_SKEW: lambda: clock(60),
    Why.CORES: lambda: hardware(NanoCpus=10**15),
}


@pytest.mark.parametrize("why", RECORDED)
def test_a_reason_is_said_of_what_was_recorded(why: Why) -> None:
    assert of(RECORDED[why]()) == [why]


def test_hosts_that_are_alike_have_nothing_against_each_other() -> None:
    assert of(engines(), clock(1), clock(-1), confined(LIKE), admission.against_postcopy(LIKE)) == []


def test_selinux_has_to_be_there_for_what_it_confines() -> None:
    confining = LIKE.model_copy(update={"selinux": True})
    assert of(confined(confining)) == [Why.LSM]
    assert of(confined(confining, "label=disable"), confined(confining, "label:disable")) == []


@pytest.mark.parametrize(("filtered", "suspends", "said"), [(True, True, []), (False, False, []), (True, False, 1)])
async def test_a_filter_of_system_calls_has_to_be_suspended(
    filtered: bool, suspends: bool, said: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Host:
        async def engine(self) -> Engine:
            return LIKE.model_copy(update={"criu_features": ("seccomp_suspend",) if suspends else ()})

    monkeypatch.setattr(preflight.shutil, "which", lambda name: name)
    view = View(100, (Process(100, 1, "app", "S", 1, 0, {}, (), seccomp=filtered),))
    assert of(await preflight._engine(Host(), view)) == (said and [Why.SECCOMP])  # type: ignore[arg-type]


async def test_tools_have_to_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    class Host:
        async def engine(self) -> Engine:
            return LIKE

    monkeypatch.setattr(preflight.shutil, "which", lambda name: None)
    found = await preflight._engine(Host(), View(100, ()))  # type: ignore[arg-type]
    assert of(found) == [Why.TOOL_MISSING] * 3


async def test_a_processor_that_lacks_something_is_named_by_what_it_lacks() -> None:
    class Host:
        async def against_cpu(self, image: str) -> str:
            return "CPU avx512f feature is missing" if image == "old" else ""

    [reason] = await admission._processor(Host(), moves.offer(cpu="old"))  # type: ignore[arg-type]
    assert (reason.why, "avx512f" in reason.message) == (Why.CPU, True)
    assert await admission._processor(Host(), moves.offer(cpu="same")) == ()  # type: ignore[arg-type]


# --- the table


BESIDE = {
    Why.SECCOMP: test_a_filter_of_system_calls_has_to_be_suspended,
    Why.TOOL_MISSING: test_tools_have_to_be_there,
    Why.CPU: test_a_processor_that_lacks_something_is_named_by_what_it_lacks,
}
UNSHOWN = {
    Why.IMAGE_REMOVED: "dockerd keeps the image of a container that runs; only its files can be lost",
    Why.STORAGE_DRIVER: "the lab has overlays only",
    Why.LIMIT: "tests/unit/test_admission.py",
}


def shown() -> dict[str, str]:
    lab = dict.fromkeys(CASES, "a container in the lab")
    elsewhere = {why: f"the lab, `{where}`" for why, where in ELSEWHERE.items()}
    here = dict.fromkeys((*RECORDED, *BESIDE), "recorded input")
    unshown = {
        why: f"`{why_not}`" if why_not.startswith("tests/") else f"not shown: {why_not}"
        for why, why_not in UNSHOWN.items()
    }
    return {**here, **unshown, **elsewhere, **lab}


def test_every_reason_is_in_the_table_and_shown_by_something() -> None:
    assert set(ABOUT) == set(Why)
    assert set(shown()) == set(Why)
    assert not set(RECORDED) & set(CASES)


def test_what_is_said_to_show_a_reason_speaks_of_it() -> None:
    for why, where in ELSEWHERE.items():
        text = (ROOT / where).read_text()
        assert f"Why.{why.name}" in text or f"ErrorCode.{ABOUT[why].code.name}" in text, (why, where)


def test_every_reason_is_used_by_the_agent() -> None:
    code = "".join(path.read_text() for path in (ROOT / "agent").rglob("*.py"))
    assert {why for why in Why if not re.search(rf"\bWhy\.{why.name}\b", code)} == set()


def test_the_page_has_the_table_of_now() -> None:
    if os.environ.get("TRANSSHIP_WRITE_DOCS"):
        PAGE.write_text(page(PAGE.read_text(), shown()))
    assert PAGE.read_text() == page(PAGE.read_text(), shown()), "TRANSSHIP_WRITE_DOCS=1 writes it"


def test_a_reason_says_its_error_code_too() -> None:
    assert against(Why.TERMINAL, "x").code is ErrorCode.NOT_MIGRATABLE
    assert against(Why.TERMINAL, "x").name == "terminal"
    assert Reason(code=ErrorCode.HOST_OFFLINE, message="x").name == "host-offline"
    with pytest.raises(ValueError, match="the page has no"):
        page("nothing", {})
