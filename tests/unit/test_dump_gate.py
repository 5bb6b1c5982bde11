"""The gate in front of a dump, by the script that CRIU calls: nothing passes without the agent's word."""

import asyncio
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.doors.dump_gate import WAITING, WRITTEN, DumpGate

SECONDS = 10.0


@pytest.fixture
async def gate(tmp_path: Path) -> DumpGate:
    made = DumpGate(tmp_path / "gate")
    made.lay_out()
    return made


class Criu:
    """What CRIU does at a stage: it waits for its script's end, and goes on only after a code of 0."""

    def __init__(self, gate: DumpGate) -> None:
        self._gate = gate
        self._scripts: list[subprocess.Popen[bytes]] = []

    def at(self, stage: str) -> subprocess.Popen[bytes]:
        # of no kin, as CRIU is, which inherits nothing of the agent's
        script = subprocess.Popen(
            [self._gate.script], env={"CRTOOLS_SCRIPT_ACTION": stage, "PATH": os.environ["PATH"]}, close_fds=True
        )
        self._scripts.append(script)
        return script

    def close(self) -> None:
        for script in self._scripts:
            script.kill()
            script.wait()


@pytest.fixture
def criu(gate: DumpGate) -> Iterator[Criu]:
    made = Criu(gate)
    yield made
    made.close()


async def code(script: subprocess.Popen[bytes]) -> int:
    return await asyncio.to_thread(script.wait, SECONDS)


async def test_it_waits_for_the_word_and_passes(gate: DumpGate, criu: Criu) -> None:
    script = criu.at("pre-dump")
    async with asyncio.timeout(SECONDS):
        await gate.heard(WAITING)
    assert script.poll() is None
    gate.open()
    assert await code(script) == 0


@pytest.mark.parametrize("first", ["the word", "the script"])
async def test_it_is_turned_away(gate: DumpGate, criu: Criu, first: str) -> None:
    if first == "the word":
        gate.shut()
    script = criu.at("pre-dump")
    if first == "the script":
        async with asyncio.timeout(SECONDS):
            await gate.heard(WAITING)
        gate.shut()
    assert await code(script) != 0


async def test_the_end_of_the_agent_turns_it_away(gate: DumpGate, criu: Criu) -> None:
    script = criu.at("pre-dump")
    async with asyncio.timeout(SECONDS):
        await gate.heard(WAITING)
    gate.close()
    assert await code(script) != 0


async def test_an_agent_that_was_started_anew_turns_it_away(gate: DumpGate, criu: Criu, tmp_path: Path) -> None:
    """One that comes to the gate when nobody is there waits for whoever comes next."""
    gate.close()
    script = criu.at("pre-dump")
    again = DumpGate(tmp_path / "gate")
    again.shut()
    assert await code(script) != 0
    again.close()


async def test_the_last_image_is_told_and_other_stages_are_not(gate: DumpGate, criu: Criu) -> None:
    for stage in ("network-lock", "network-unlock"):
        assert await code(criu.at(stage)) == 0
    assert await code(criu.at("post-dump")) == 0
    async with asyncio.timeout(SECONDS):
        await gate.heard(WRITTEN)


async def test_nobody_has_to_hear_it(gate: DumpGate, criu: Criu) -> None:
    """CRIU has the tasks in its hands then: a script that waited would hold them for ever."""
    gate.close()
    assert await code(criu.at("post-dump")) == 0


def test_where_there_is_none_nothing_is_said(tmp_path: Path) -> None:
    DumpGate(tmp_path / "none").shut()
    assert not (tmp_path / "none").exists()
