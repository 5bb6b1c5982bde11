"""One target, by chance that is led by what the code does with it (atheris): `python -m tests.fuzz NAME --cases N`.

Ends at the first finding, whose bytes it keeps. `--replay FILE` feeds them again.
"""

import argparse
import json
import sys
import time
from pathlib import Path

LONGEST_SECONDS = 1200


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("target")
    parser.add_argument("--seconds", type=int, default=LONGEST_SECONDS)
    parser.add_argument("--cases", type=int)
    parser.add_argument("--work", type=Path, default=Path("/tmp/transship-fuzz"))
    parser.add_argument("--replay", type=Path)
    said = parser.parse_args()
    if said.replay:
        from tests.fuzz.targets import TARGETS

        print("taken" if TARGETS[said.target].run(said.replay.read_bytes()) else "refused")
        return 0
    import atheris

    with atheris.instrument_imports(include=["agent", "protocol"], enable_loader_override=False):
        from tests.fuzz import seeds
        from tests.fuzz.targets import TARGETS
    target = TARGETS[said.target]
    corpus = said.work / said.target
    seeds.write(said.target, corpus)
    counted = {"cases": 0, "taken": 0}
    began = time.monotonic()

    def one(data: bytes) -> None:
        counted["cases"] += 1
        counted["taken"] += target.run(data)

    def tell() -> None:
        found = {"target": said.target, **counted, "seconds": round(time.monotonic() - began, 1)}
        (said.work / f"{said.target}.json").write_text(json.dumps(found))

    def counting(data: bytes) -> None:
        one(data)
        if counted["cases"] % 500 == 0 or counted["cases"] == said.cases:
            tell()

    for number, seed in enumerate(seeds.seeds()[said.target]):
        if not target.run(seed) and said.target != "pages":  # a link always ends by breaking
            print(f"{said.target}: seed {number} is refused", file=sys.stderr)
    libfuzzer = [f"-max_total_time={said.seconds}", "-timeout=20", "-rss_limit_mb=2048", "-max_len=20000"]
    libfuzzer += [f"-artifact_prefix={said.work}/{said.target}-", "-verbosity=0", "-print_final_stats=0"]
    if said.cases:
        libfuzzer.append(f"-runs={said.cases}")
    atheris.Setup([sys.argv[0], *libfuzzer, str(corpus)], counting)
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
