"""The picture in README.md: what a demo has said of the move there, and nothing from elsewhere."""

import re
from pathlib import Path

from lab import recording

PICTURE = Path(__file__).parents[2] / "docs/pictures/move.svg"
RUN = "A lab: two hosts\nhost-a: Docker 26\n\n2. A controller publishes\n   ok  finished\n\n3. And back\n"


def test_the_picture_has_the_move_there_as_it_was_told() -> None:
    assert recording.told(RUN) == ("$ ./scripts/demo\nhost-a: Docker 26\n\n2. A controller publishes\n   ok  finished")


def test_a_picture_loads_nothing() -> None:
    for svg in (recording.drawn(recording.told(RUN)), PICTURE.read_text()):
        assert "host-a:" in svg
        assert not re.search(r"url\((?!#|\"#)|href|@import|@font-face|<script", svg)
