"""`./scripts/bench`: moves measured from outside, transship beside others, interleaved in one lab."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from lab import shell
from lab.bench import atrest, page, record
from lab.bench.place import SYSTEMS, Bench
from lab.bench.record import Record
from lab.bench.rounds import Rounds, parse
from lab.host import Engine
from lab.shell import LabError

_DOCUMENT = Path(__file__).parents[2] / "docs" / "benchmarks.md"


def main() -> int:
    options = _options()
    shell.unwind_on_sigterm()
    try:
        if options.page:
            records = [each for file in options.page for each in record.read(file)]
            page.write(_DOCUMENT, records)
            print(f"written: {_DOCUMENT}")
            return 0
        records = _measure(options)
    except LabError as error:
        print(f"bench: {error}", *getattr(error, "__notes__", []), sep="\n", file=sys.stderr)
        return 1
    print("\n" + page.tables(records))
    measured = [each for each in record.moves(records) if not each.error]
    return 0 if measured or not options.sizes else 1


def _measure(options: argparse.Namespace) -> list[Record]:
    loads = [parse(text) for text in options.sizes]
    records: list[Record] = []

    def write(one: Record) -> None:
        records.append(one)
        if options.json is not None:
            record.append(options.json, one)

    bench = Bench.up(options.lab, options.systems, options.engines, say)
    try:
        write(bench.about())
        Rounds(bench.cluster.lab, write, say).run(bench.systems, loads, options.runs)
        for host in bench.cluster.lab.hosts.values():
            if options.starts and host.name.startswith("a"):
                for one in atrest.starts(host, options.starts):
                    write(one)
        if options.idle:
            say(f"agents at rest for {options.idle:g} s")
            for each in atrest.idle(bench.cluster, options.idle):
                write(each)
    finally:
        bench.cluster.lab.down()
    return records


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("--systems", type=_words, default=list(SYSTEMS), help=f"of {','.join(SYSTEMS)} (default: all)")
    parser.add_argument(
        "--sizes",
        type=_words,
        default=["64", "256", "1024", "4096", "redis"],
        help="MiB of memory, redis (1 GiB) or redis-MIB (default: 64,256,1024,4096,redis)",
    )
    parser.add_argument("--runs", type=int, default=5, help="of each, beside a warm-up (default: 5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="one record a line is appended to it as it is made")
    parser.add_argument(
        "--engines",
        type=lambda text: [Engine(word) for word in _words(text)],
        default=[Engine.DOCKER28, Engine.DOCKER26],
        help="for transship and bare (default: docker28,docker26)",
    )
    parser.add_argument(
        "--lab", default="bench", help="the lab's name; an older one of that name goes (default: bench)"
    )
    parser.add_argument("--starts", type=int, default=20, help="of `docker run --rm true` with each runtime")
    parser.add_argument("--idle", type=float, default=60.0, help="seconds that the agents are watched at rest")
    parser.add_argument(
        "--page", type=Path, nargs="+", metavar="FILE", help="measure nothing: write docs/benchmarks.md from these"
    )
    return parser.parse_args()


def _words(text: str) -> Sequence[str]:
    return [word for word in text.split(",") if word]


if __name__ == "__main__":
    sys.exit(main())
