"""What mkdocs.yml can't say: which pages there are besides those that it names.

The decisions, and every page that somebody has added to docs/ and not to the menu: such a page is to be found, not lost.
"""

from pathlib import Path
from typing import Any


def on_config(config: Any) -> Any:
    """Complete the menu."""
    tree = Path(config.docs_dir)
    named = set(_pages(config.nav))
    others = [page for page in _below(tree, "docs") if page not in named]
    config.nav += [{"Also": others}] if others else []
    config.nav.append({"Decisions": _below(tree, "docs/decisions")})
    return config


def _below(tree: Path, folder: str) -> list[str]:
    return sorted(str(path.relative_to(tree)) for path in (tree / folder).glob("*.md"))


def _pages(entry: Any) -> list[str]:
    if isinstance(entry, str):
        return [entry]
    within = entry.values() if isinstance(entry, dict) else entry
    return [page for one in within for page in _pages(one)]
