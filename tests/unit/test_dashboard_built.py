"""The dashboard's page, as it is kept here: made of its sources, whole, and with nothing in it from elsewhere."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from agent import dashboard

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "agent/dashboard/source"


@pytest.mark.skipif(shutil.which("npm") is None, reason="node and npm are not installed")
def test_the_page_is_what_its_sources_make() -> None:
    done = subprocess.run(
        [ROOT / "scripts/dashboard", "--check"], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_file_of_the_page_is_served_and_no_other() -> None:
    assert {file.name for file in dashboard.BUILT.iterdir()} == set(dashboard.TYPES)
    served = dict(dashboard.pages("wss://broker:9001"))
    index = served["/dashboard/"]()
    assert "script-src 'self'" in index.headers["Content-Security-Policy"]
    for name in re.findall(r'(?:src|href)="\./([^"]+)"', index.body.decode()):
        assert served[f"/dashboard/{name}"]().body
    assert json.loads(served["/dashboard/broker.json"]().body) == {"url": "wss://broker:9001"}
    assert served["/"]().headers["Location"] == "/dashboard/"


def test_the_page_asks_no_other_server_for_anything() -> None:
    page = (dashboard.BUILT / "index.html").read_text() + (dashboard.BUILT / "dashboard.css").read_text()
    assert not re.findall(r"(?:https?:)?//[a-z]|@import|url\((?!data:)", page)
    script = (dashboard.BUILT / "dashboard.js").read_text()
    assert not re.findall(r"importScripts\([\"']http|fetch\([\"'`]https?:|src=[\"']https?:", script)


def test_the_lock_file_names_versions_and_hashes_and_no_registry() -> None:
    assert "omit-lockfile-registry-resolved=true" in (SOURCE / ".npmrc").read_text().split()
    packages = json.loads((SOURCE / "package-lock.json").read_text())["packages"]
    others = {path: entry for path, entry in packages.items() if path}
    assert others
    for path, entry in others.items():
        assert "resolved" not in entry, path
        assert entry["integrity"].startswith("sha512-"), path


@pytest.mark.skipif(shutil.which("git") is None or not (ROOT / ".git").exists(), reason="it is no checkout")
def test_nothing_that_was_fetched_for_it_is_kept_here() -> None:
    listed = ["git", "ls-files", "--", ".dashboard", "*node_modules*"]
    assert subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, timeout=30, check=True).stdout == ""
