"""The examples of docs/contract.md in each language, at a real broker."""

from pathlib import Path

import pytest

from tests.contract import examples
from tests.contract.conftest import Mosquitto
from tests.contract.stories import StoryHost, container

PATIENCE = 20.0
SAYS = {
    "py": ("accepted as m-", "frozen: ", "moved; frozen for"),
    "sh": ('"kind":"accepted"', '"kind":"finished"'),
    "mjs": ("accepted as m-", "frozen: ", "moved; frozen for"),
}
REFUSED = {
    "py": "there is no container x on node-a (untouched)\n",
    "sh": '"consequence":"untouched"',
    "mjs": "there is no container x on node-a (untouched)\n",
}


@pytest.mark.parametrize("language", examples.LANGUAGES)
async def test_example_moves_a_container_and_says_why_it_can_not(
    mosquitto: Mosquitto, tmp_path: Path, language: str
) -> None:
    broker = {"MQTT_HOST": "127.0.0.1", "MQTT_PORT": str(mosquitto.port)}
    program = examples.command(language, tmp_path)
    async with StoryHost("node-a", mosquitto.settings, [container("node-a", "web")], pace=0.05).running():
        code, said = await examples.run([*program, "node-a", "web", "node-b"], broker, PATIENCE)
        assert code == 0, said
        for words in SAYS[language]:
            assert words in said
        code, said = await examples.run([*program, "node-a", "x", "node-b"], broker, PATIENCE)
    assert code == 1
    assert REFUSED[language] in said
