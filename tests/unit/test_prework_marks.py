"""The marks that overlayfs leaves in a writable layer (references, whiteouts) are read as it means them."""

import os
import stat
import subprocess
from pathlib import Path

import pytest

from agent.base.errors import StepFailed
from agent.prework.tree import Source
from tests.unit.prework_changes import image
from tests.unit.test_prework_support import applied, assert_same, copies, is_root, let_the_clock_tick, overlays, packed

MIB = 1 << 20
pytestmark = pytest.mark.root


@pytest.mark.parametrize("options", [",redirect_dir=on", ",redirect_dir=on,metacopy=on"])
def test_renamed_directories_kept_as_references_come_from_the_merged_view(tmp_path: Path, options: str) -> None:
    lower = tmp_path / "image"
    lower.mkdir()
    image(lower)
    with overlays(tmp_path, copies(lower), options=options) as (here, there):
        (here.merged / "moved").rename(here.merged / "kept/renamed")
        (here.merged / "kept/renamed/own").write_text("added below a reference")
        (here.merged / "full").rename(here.merged / "fuller")
        (here.merged / "fuller/a").unlink()
        os.chown(here.merged / "big", 4, 4)  # with metacopy its bytes stay in the image
        let_the_clock_tick()
        with pytest.raises(StepFailed, match="image"):
            packed(here.source())
        source = here.source(merged=str(here.merged))
        stream, first = packed(source)
        applied(there.merged, stream)
        assert_same(here.merged, there.merged)
        (here.merged / "kept/renamed/sub/m").write_text("changed below a reference")
        (here.merged / "gone").rename(here.merged / "gone-2")
        (here.merged / "fuller/sub/deep/f").unlink()
        stream, last = packed(source, first.index, live=False)
        applied(there.merged, stream)
        assert_same(here.merged, there.merged)
        assert last.data_bytes < MIB


def test_what_is_mounted_over_a_reference_is_left_out(tmp_path: Path) -> None:
    """The merged view of a running container shows volumes and /etc/hosts, which are not of this layer."""
    lower, other = tmp_path / "image", tmp_path / "other"
    for path in (lower, other):
        path.mkdir()
        image(path)
    (other / "secret").write_text("of the host")
    with overlays(tmp_path, copies(lower), options=",redirect_dir=on") as (here, there):
        (here.merged / "full").rename(here.merged / "fuller")
        mounted = [(other, here.merged / "fuller/sub"), (other / "secret", here.merged / "fuller/a")]
        for what, where in mounted:
            subprocess.run(["mount", "--bind", str(what), str(where)], check=True)
        try:
            stream, _ = packed(here.source(merged=str(here.merged)))
        finally:
            for _, where in mounted:
                subprocess.run(["umount", str(where)], check=True)
        assert b"of the host" not in stream
        applied(there.merged, stream)
        assert os.listdir(there.merged / "fuller/sub") == []


def test_whiteouts_that_are_xattrs_are_whiteouts(tmp_path: Path) -> None:
    lower = tmp_path / "image"
    lower.mkdir()
    image(lower)
    with overlays(tmp_path, copies(lower)) as (here, there):
        (here.upper / "kept").mkdir()
        (here.upper / "kept/k").touch()
        os.setxattr(here.upper / "kept", "trusted.overlay.opaque", b"x")
        os.setxattr(here.upper / "kept/k", "trusted.overlay.whiteout", b"y")
        stream, packed_ = packed(here.source())
        applied(there.merged, stream)
        assert packed_.removed == 1
        assert not (there.merged / "kept/k").exists()


def test_volume_of_a_nested_engine_keeps_its_overlay_marks(tmp_path: Path) -> None:
    """In a plain tree a device 0/0 and trusted.overlay.* are content: the volume may be a Docker's data directory."""
    if not is_root():
        pytest.skip("needs root")
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "diff").mkdir(parents=True)
    target.mkdir()
    os.mknod(source / "diff/deleted", stat.S_IFCHR, os.makedev(0, 0))
    os.setxattr(source / "diff", "trusted.overlay.opaque", b"y")
    stream, _ = packed(Source(str(source)))
    applied(target, stream)
    assert_same(source, target)
    assert os.getxattr(target / "diff", "trusted.overlay.opaque") == b"y"
