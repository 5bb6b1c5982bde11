"""The examples for who writes a controller (docs/examples), as one would start them: here, and on the lab."""

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs/examples"
LANGUAGES = ("py", "sh", "mjs")
NEEDS = {"py": sys.executable, "sh": "mosquitto_sub", "mjs": "npm"}


def command(language: str, place: Path) -> list[str]:
    """How the example is started; what JavaScript needs is where the dashboard's build has it."""
    if not shutil.which(NEEDS[language]):
        pytest.skip(f"{NEEDS[language]} is not installed")
    script = FOLDER / f"migrate.{language}"
    if language == "py":
        return [sys.executable, str(script)]
    if language == "sh":
        return [str(script)]
    subprocess.run([ROOT / "scripts/dashboard", "--modules"], check=True, timeout=240)
    shutil.copy(script, place)
    (place / "node_modules").symlink_to(ROOT / ".dashboard/node_modules")
    return ["node", str(place / script.name)]


async def run(argv: list[str], broker: Mapping[str, str], patience: float) -> tuple[int | None, str]:
    """Its exit code, and what it says."""
    process = await asyncio.create_subprocess_exec(
        *argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={**os.environ, **broker}
    )
    try:
        async with asyncio.timeout(patience):
            said, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        raise
    return process.returncode, said.decode()
