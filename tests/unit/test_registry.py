"""References to a registry, and images that are none of ours."""

import json
from pathlib import Path

import pytest

from agent.base.errors import CorruptPart, Refused
from agent.base.shell import Shell
from agent.vault.registry import FromRegistry, reference, tls


@pytest.mark.parametrize(
    ("store", "wanted"),
    [
        ("oci:registry:5000/web", "registry:5000/web:5f0c"),
        ("oci:registry:5000/web:monday", "registry:5000/web:monday"),
        ("oci:example.org/a/b/c:1", "example.org/a/b/c:1"),
    ],
)
def test_a_reference_has_a_tag(store: str, wanted: str) -> None:
    assert reference(store, "5f0c") == wanted


def test_a_name_without_a_registry_is_refused() -> None:
    with pytest.raises(Refused, match="no registry"):
        reference("oci:web", "x")


def test_tls_is_left_out_only_where_the_settings_say_so() -> None:
    assert tls("a:5000/web:1", ("a:5000",), "dest") == ("--dest-tls-verify=false",)
    assert tls("a:5001/web:1", ("a:5000",), "dest") == ()


class Pulls(Shell):
    """A skopeo that leaves this layout."""

    def __init__(self, folder: Path, files: dict[str, str]) -> None:
        self._folder, self._files = folder, files

    async def run(self, *argv: str, **_: object) -> None:  # type: ignore[override]
        assert argv[0] == "skopeo"
        for name, text in self._files.items():
            (self._folder / name).parent.mkdir(parents=True, exist_ok=True)
            (self._folder / name).write_text(text)


DIGEST = "ab" * 32
BLOB = f"blobs/sha256/{DIGEST}"


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"index.json": "nothing"},
        {"index.json": '{"manifests": []}'},
        {"index.json": json.dumps({"manifests": [{"digest": "sha256:../../../etc/passwd"}]})},
        {"index.json": json.dumps({"manifests": [{"digest": f"sha256:{DIGEST}"}]}), BLOB: '{"layers": []}'},
        {
            "index.json": json.dumps({"manifests": [{"digest": f"sha256:{DIGEST}"}]}),
            BLOB: json.dumps({"layers": [{"digest": "sha256:/etc/shadow"}]}),
        },
    ],
)
async def test_an_image_that_is_no_checkpoint_is_refused(files: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "layout"
    source = FromRegistry(Pulls(folder, files), folder, "a:5000/web:1", ())
    with pytest.raises(CorruptPart, match="no image of a checkpoint"):
        async for _ in source.read():
            pass
    source.close()
    assert not folder.exists()
