"""What both engines showed of real containers, as recorded, with changes at will. No tests."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from agent.doors import docker_model
from agent.doors.docker_model import Container
from agent.migration import spec
from agent.migration.spec import Spec

DATA = Path(__file__).parent / "data"
ENGINES = ("docker26", "docker28")
SAID: dict[str, dict[str, Any]] = {name: json.loads((DATA / f"inspect-{name}.json").read_text()) for name in ENGINES}
NAMES = sorted(SAID["docker26"]["containers"])


def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def container(engine: str, name: str, **changes: Any) -> Container:
    """A recorded container; `changes` are dotted paths in its inspect, with __ for the dot."""
    raw = copy.deepcopy(SAID[engine]["containers"][name])
    for path, value in changes.items():
        *above, last = path.split("__")
        node = raw
        for key in above:
            node = node[key]
        node[last] = value
    return docker_model.container(raw)


def described(engine: str, found: Container) -> Spec:
    said = SAID[engine]
    image = said["images"].get(found.image)
    return spec.spec_of(
        found,
        docker_model.image(image) if image else None,
        {name: docker_model.network(raw) for name, raw in said["networks"].items()},
        {name: docker_model.volume(raw) for name, raw in said["volumes"].items()},
    )


def create(engine: str, name: str, **changes: Any) -> dict[str, Any]:
    return described(engine, container(engine, name, **changes)).create


def ends(engine: str, name: str, **changes: Any) -> dict[str, Any]:
    found: dict[str, Any] = create(engine, name, **changes)["NetworkingConfig"]["EndpointsConfig"]
    return found
