"""The examples of docs/contract.md, each in its language, move a real container: the lab's broker, TLS, a password."""

from pathlib import Path

import pytest

from lab.cluster import MOVE_SECONDS, Cluster
from lab.workloads import run_counter
from tests.contract import examples
from tests.e2e.support import clean, counts_on

A, B = "a26", "b28"


def broker(cluster: Cluster) -> dict[str, str]:
    """What the examples read."""
    access = cluster.lab.broker.local_access()
    said = {"HOST": access.address, "PORT": str(access.port), "CA": str(access.ca_file)}
    return {
        f"MQTT_{key}": value for key, value in {**said, "USERNAME": access.user, "PASSWORD": access.password}.items()
    }


@pytest.mark.parametrize("language", examples.LANGUAGES)
async def test_example_moves_a_container(moves: Cluster, tmp_path: Path, language: str) -> None:
    program = examples.command(language, tmp_path)
    name = f"example-{language}"
    run_counter(moves[A], name)
    try:
        code, said = await examples.run([*program, A, name, B], broker(moves), MOVE_SECONDS)
        assert code == 0, said
        assert "accepted" in said
        await counts_on(moves[B], name)
    finally:
        await clean(moves, A, B)
