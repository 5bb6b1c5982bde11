"""Every reader of bytes that others write, fed with what chance makes of good ones: a bounded part of scripts/fuzz."""

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from tests.fuzz.seeds import seeds
from tests.fuzz.targets import TARGETS

SEEDS = seeds()
EXAMPLES = 50
quick = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))

cuts = some.tuples(some.integers(0, 1 << 16), some.integers(0, 40), some.binary(max_size=40))
"""At a place, so much is taken out, and this put in."""


def changed(data: bytes, changes: list[tuple[int, int, bytes]]) -> bytes:
    for at, taken, put in changes:
        place = at % (len(data) + 1)
        data = data[:place] + put + data[place + taken :]
    return data


def test_each_target_has_seeds_and_takes_them() -> None:
    assert SEEDS.keys() == TARGETS.keys()
    refused = [(name, at) for name in SEEDS for at, seed in enumerate(SEEDS[name]) if not TARGETS[name].run(seed)]
    assert refused == [("pages", 0)], "a link always ends by breaking; anything else was to be a good example"


@pytest.mark.parametrize("name", TARGETS)
@quick
@given(seed=some.integers(0, 20), changes=some.lists(cuts, max_size=4))
def test_damaged_bytes_are_taken_or_refused(name: str, seed: int, changes: list[tuple[int, int, bytes]]) -> None:
    TARGETS[name].run(changed(SEEDS[name][seed % len(SEEDS[name])], changes))


@pytest.mark.parametrize("name", TARGETS)
@quick
@given(noise=some.binary(max_size=3000))
def test_noise_is_taken_or_refused(name: str, noise: bytes) -> None:
    TARGETS[name].run(noise)


# --- messages, by their structure: damaged bytes are hardly ever JSON

anything = some.recursive(
    some.none() | some.booleans() | some.integers() | some.floats() | some.text(max_size=8) | some.sampled_from(["-1"]),
    lambda inner: some.lists(inner, max_size=3) | some.dictionaries(some.text(max_size=4), inner, max_size=3),
    max_leaves=4,
)


def places(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [path, *(place for key, child in children for place in places(child, (*path, key)))]


def replaced(node: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    copy = dict(node) if isinstance(node, dict) else list(node)
    copy[path[0]] = replaced(copy[path[0]], path[1:], value)
    return copy


@pytest.mark.parametrize("name", ["offer", "command", "peer-message"])
@settings(quick, max_examples=2 * EXAMPLES)
@given(data=some.data())
def test_another_value_anywhere_in_a_message_is_taken_or_refused(name: str, data: some.DataObject) -> None:
    message = json.loads(SEEDS[name][data.draw(some.integers(0, len(SEEDS[name]) - 1))])
    for _ in range(data.draw(some.integers(1, 3))):
        message = replaced(message, data.draw(some.sampled_from(places(message))), data.draw(anything))
    TARGETS[name].run(json.dumps(message).encode())
