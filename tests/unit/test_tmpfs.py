"""What lies in /run/transship can be run, also where /run itself is mounted noexec, as Debian's is."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.base.shell import Shell
from agent.doors import tmpfs

pytestmark = pytest.mark.root


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Path]:
    """A /run as Debian's initramfs makes it."""
    place = tmp_path / "run"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "nosuid,nodev,noexec", "tmpfs", place], check=True)
    yield place
    subprocess.run(["umount", "--recursive", place], check=True)


def runs(folder: Path) -> bool:
    script = folder / "gate.sh"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o700)
    try:
        return subprocess.run([script], check=False).returncode == 0
    except PermissionError:
        return False


async def test_a_script_there_can_be_run(run: Path) -> None:
    assert not runs(run)
    home = run / "transship"
    await tmpfs.make_home(Shell(), home)
    assert runs(home)
    assert home.stat().st_mode & 0o777 == 0o711


async def test_what_is_there_already_stays_when_the_agent_starts_again(run: Path) -> None:
    home = run / "transship"
    await tmpfs.make_home(Shell(), home)
    (home / "handover").mkdir()
    await tmpfs.make_home(Shell(), home)
    assert (home / "handover").is_dir()


async def test_nothing_is_mounted_where_it_can_be_run_as_it_is(tmp_path: Path) -> None:
    home = tmp_path / "transship"
    await tmpfs.make_home(Shell(), home)
    assert home.is_dir()
    assert not home.is_mount()
