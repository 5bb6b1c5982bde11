"""The benchmark measures a move, and writes down all that it promises. No time is asserted: that is the page's part."""

import subprocess
from pathlib import Path

from lab.bench import record
from lab.bench.record import Move, Start

BENCH = Path(__file__).parents[2] / "scripts" / "bench"


def test_one_small_move_makes_one_whole_record(tmp_path: Path) -> None:
    file = tmp_path / "records"
    options = ["--systems", "transship-cold", "--engines", "docker28", "--sizes", "64", "--runs", "1"]
    options += ["--starts", "1", "--idle", "0", "--lab", "benchtest", "--json", str(file)]
    done = subprocess.run([str(BENCH), *options], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert "transship-cold, docker28" in done.stdout
    records = record.read(file)
    warm, measured = [one for one in records if isinstance(one, Move)]
    assert (warm.run, measured.run) == (0, 1)
    assert measured.error == ""
    assert (measured.system, measured.size_mib, measured.workload) == ("transship-cold", 64, "memory")
    assert measured.connection_kept, "a client's connection has moved along"
    # What can't be otherwise, however slow the machine is.
    assert measured.blackout_ms
    assert measured.total_ms
    assert measured.tcp_gap_ms
    assert measured.total_ms > measured.blackout_ms > 1
    assert measured.wire_bytes
    assert 64 << 20 < measured.wire_bytes < 256 << 20
    assert measured.cpu_s is not None
    assert measured.agent_cpu_s is not None
    assert measured.peak_rss_mib
    assert measured.report["blackout"] > 0
    assert [one for one in records if isinstance(one, Start)]
