"""Any bytes and any entries, drawn by chance, stay inside of the root."""

import os
from array import array
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from agent.base.errors import CorruptPart, StepFailed
from agent.prework.tar import Entry, Kind
from tests.unit.handmade_tar import STREAM
from tests.unit.test_prework_support import SMALL, applied, is_root, picture, written


@given(position=st.integers(0, len(STREAM) - 1), value=st.integers(0, 255), more=st.binary(max_size=40))
@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
def test_damaged_stream_does_no_damage(
    tmp_path_factory: pytest.TempPathFactory, position: int, value: int, more: bytes
) -> None:
    damaged = bytearray(STREAM)
    damaged[position : position + 1 + len(more)] = bytes([value]) + more
    confined(tmp_path_factory, bytes(damaged))


def confined(factory: pytest.TempPathFactory, stream: bytes) -> None:
    base = factory.mktemp("fuzz")
    root, outside = base / "root", base / "outside"
    for path in (root, outside):
        path.mkdir()
        (path / "file").write_text("untouched")
    (root / "out").symlink_to("../outside")
    (root / "dir").mkdir()
    before = picture(outside)
    # An owner that the stream asks for can be given by root only.
    with suppress(CorruptPart if is_root() else StepFailed):
        applied(root, stream, devices=False, limits=SMALL)
    assert picture(outside) == before
    assert sorted(os.listdir(base)) == ["outside", "root"]


EVIL = [
    "out",
    "dir",
    "file",
    "a",
    "out/file",
    "dir/a",
    "a/b",
    "..",
    "../outside",
    "/tmp/x",
    "",
    "dir/../..",
    "a/b/c",
    ".",
]
names = st.sampled_from(EVIL)
entries = st.builds(
    Entry,
    st.sampled_from(sorted(Kind, key=lambda kind: kind.value)),
    names,
    mode=st.integers(0, 0o7777),
    uid=st.integers(0, 2**32),
    gid=st.integers(0, 2**32),
    mtime_ns=st.integers(-(2**63), 2**63),
    link=names,
    device=st.just((1, 3)),
    xattrs=st.sampled_from([(), (("user.x", b"y"),), (("trusted.overlay.opaque", b"y"),), (("nonsense", b""),)]),
    opaque=st.booleans(),
    unmapped=st.sampled_from(["", "u", "ug", "zzz"]),
    base=st.integers(0, 10),
)


@given(st.lists(st.tuples(entries, st.integers(0, 2000), st.booleans()), max_size=12))
@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@example([(Entry(Kind.SYMLINK, "a", link="../outside"), 0, False), (Entry(Kind.FILE, "a/file"), 5, False)])
@example([(Entry(Kind.SOCKET, "a"), 0, False), (Entry(Kind.PATCH, "a"), 0, False)])
def test_any_stream_stays_inside(
    tmp_path_factory: pytest.TempPathFactory, drawn: list[tuple[Entry, int, bool]]
) -> None:
    content = []
    for entry, size, as_sparse in drawn:
        has_data = entry.kind in (Kind.FILE, Kind.PATCH)
        entry.size = size if has_data else 0
        entry.extents = array("q", (0, size)) if has_data and (as_sparse or entry.kind is Kind.PATCH) else None
        content.append((entry, bytes(size) if has_data else b""))
    confined(tmp_path_factory, written(content))


@given(st.binary(max_size=4000))
@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
def test_noise_is_corrupt(tmp_path_factory: pytest.TempPathFactory, noise: bytes) -> None:
    confined(tmp_path_factory, written([])[:-1024] + noise)
