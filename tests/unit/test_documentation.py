"""The documentation: what is made of the code is as the code is, and all of it is a site without a broken link."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from agent.base import config
from agent.cli import reference

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["commands.md", "settings.md", "contract.md"])
def test_the_reference_is_that_of_the_code(name: str) -> None:
    assert (ROOT / "docs" / name).read_text() == reference.pages()[name], "run: python -m agent.cli.reference"


def test_every_setting_says_what_it_is() -> None:
    tables = [field.annotation for field in config.Settings.model_fields.values() if reference._is_table(field)]
    silent = [
        f"{model.__name__}.{name}"
        for model in [config.Settings, *tables]
        for name, field in model.model_fields.items()
        if not reference._is_table(field) and name not in {*reference._docstrings(model), "port"}
    ]
    assert silent == []


def test_the_reference_has_every_command_and_option() -> None:
    page = (ROOT / "docs/commands.md").read_text()
    for words in ("migrate", "evacuate", "checkpoints rm", "pki host", "criu dump"):
        assert f"## transship {words}\n" in page
    assert "| `--to HOST` | Where it is to run. Required. |" in page
    assert "| `--detach, -d` | Do not wait for the end. |" in page


class Found(HTMLParser):
    """What a browser would load, and paragraphs that look like Markdown that was not understood."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        said = dict(attributes)
        if tag == "link" and said.get("rel") != "canonical":
            self.loads.append(said.get("href") or "")
        if tag in {"script", "img", "iframe", "source", "object"}:
            self.loads.append(said.get("src") or said.get("data") or "")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With --strict: a link to what is not there fails it."""
    place = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [str(ROOT / "scripts/docs"), str(place)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return place


def test_the_site_has_every_page(site: Path) -> None:
    pages = [*(ROOT / "docs").glob("*.md"), *(ROOT / "docs/decisions").glob("0*.md")]
    menu = (site / "index.html").read_text()
    for page in pages:
        name = str(page.relative_to(ROOT)).replace(".md", ".html")
        assert (site / name).exists()
        assert f'href="{name}"' in menu, f"{name} is not in the menu"


def test_the_site_loads_nothing_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        found = Found()
        found.feed(page.read_text())
        assert found.loads, page
        assert not [one for one in found.loads if re.match(r"(?:https?:)?//", one)], page


def test_no_list_or_table_is_left_as_text(site: Path) -> None:
    """Markdown of a site wants an empty line before a list, the repository's viewer does not."""
    left = [
        f"{page.relative_to(site)}: {text[:60]}"
        for page in site.rglob("*.html")
        for text in re.findall(r"<p>((?:(?!</p>).)*)</p>", page.read_text(), re.DOTALL)
        if re.search(r"^(?:[-*] |\d\. |\|)", text, re.MULTILINE)
    ]
    assert left == []


def test_a_broken_link_fails_the_site(tmp_path: Path) -> None:
    """By mkdocs itself, with the settings of the site: the check is not one that can't fail."""
    (tmp_path / "tree/docs/decisions").mkdir(parents=True)
    settings = (ROOT / "docs/mkdocs.yml").read_text()
    (tmp_path / "mkdocs.yml").write_text(settings.partition("nav:")[0] + "nav: [README.md]\n")
    (tmp_path / "hooks.py").write_text((ROOT / "docs/hooks.py").read_text())
    (tmp_path / "tree/README.md").write_text("# a\n[b](#nowhere) [c](nothing.md) [d](nothing/)\n")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(tmp_path / "mkdocs.yml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path)
    assert done.returncode != 0
    for broken in ("#nowhere", "nothing.md", "nothing/"):
        assert f"'{broken}'" in done.stderr
