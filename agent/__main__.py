"""`transship`: the command line, but for the agent itself, which stays for months and carries nothing of it.

Of the libraries that it does carry some bring what no agent needs; they are told so while they are imported.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

SPARED = {
    # aiohttp reads all of the host's authorities at once, 2 MiB, for connections that no agent makes: each of ours has
    # the one authority that it is to trust.
    "SSL_CERT_FILE": os.devnull,
    # Lists of a few handlers are quick enough in Python; the other kind brings the C++ library, 1.3 MiB.
    "FROZENLIST_NO_EXTENSIONS": "1",
}


@contextmanager
def sparing() -> Iterator[None]:
    """What is imported within is so without what `SPARED` says; the environment is as before afterwards."""
    before = {name: os.environ.get(name) for name in SPARED}
    os.environ.update(SPARED)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def plain_agent(words: Sequence[str]) -> tuple[Path | None, int] | None:
    """Of `transship agent` as a service has it: its settings, if they are named, and how much it is to say.

    None: something else is wanted, or there is something wrong with it. Both are for the command line.
    """
    if words[:1] != ["agent"]:
        return None
    import argparse

    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config", type=Path, default=os.environ.get("TRANSSHIP_CONFIG") or None)
    parser.add_argument("--verbose", "-v", action="count", default=0)
    try:
        found, others = parser.parse_known_args(words[1:])
    except argparse.ArgumentError:
        return None
    return None if others else (found.config, found.verbose)


def main() -> None:
    wanted = plain_agent(sys.argv[1:])
    if wanted is None:
        from agent.cli.main import main as command_line

        command_line()
        return
    with sparing():
        from agent.base.config import DEFAULT_FILE
        from agent.daemon import main as run_agent

    settings, verbose = wanted
    sys.exit(run_agent(settings or DEFAULT_FILE, verbose))


if __name__ == "__main__":
    main()
