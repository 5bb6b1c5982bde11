"""The host's folder of checkpoints, what retention removes from it, and what a clone has of its own."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from agent.base.config import Checkpoints
from agent.base.errors import Refused
from agent.vault.clone import as_clone, volume_names
from agent.vault.store import Store, too_many
from protocol.checkpoint import CheckpointInfo
from protocol.commands import TcpPolicy
from protocol.peer import Network, Volume
from tests.unit import moves

NOW = datetime(2026, 1, 31, tzinfo=UTC)


def info(
    number: int, container: str = "web", days: float = 0, size: int = 10, *, pinned: bool = False
) -> CheckpointInfo:
    return CheckpointInfo(
        id=f"{number:012x}",
        container=container,
        host="a",
        at=NOW - timedelta(days=days, seconds=-number),
        place="-",
        bytes=size,
        pinned=pinned,
    )


def gone(found: list[CheckpointInfo], **settings: float) -> set[int]:
    kept = Checkpoints.model_validate(settings)
    return {int(each.id, 16) for each in too_many(found, kept, NOW.timestamp())}


def test_without_a_wish_everything_is_kept() -> None:
    assert gone([info(1, days=1000), info(2)]) == set()


def test_the_newest_of_each_container_are_kept() -> None:
    found = [info(1), info(2), info(3), info(4, "db"), info(5, pinned=True)]
    assert gone(found, keep_count=2) == {1}


def test_what_is_too_old_goes_and_what_is_pinned_stays() -> None:
    found = [info(1, days=8), info(2, days=6), info(3, days=100, pinned=True)]
    assert gone(found, keep_days=7) == {1}


def test_the_oldest_go_until_the_rest_is_small_enough() -> None:
    found = [info(1, days=3), info(2, days=2), info(3, days=1), info(4, days=9, size=25, pinned=True)]
    assert gone(found, keep_bytes=40) == {1, 2}


def test_what_is_removed_for_one_reason_counts_for_the_others() -> None:
    assert gone([info(1, days=9), info(2), info(3)], keep_days=5, keep_bytes=20) == {1}


def kept(store: Store, number: int, *, complete: bool = True) -> Path:
    path = store.new_file("web", f"{number:012x}", "zstd")
    path.write_bytes(b"archive")
    if complete:
        store.note(info(number))
    return path


def test_the_folder_lists_what_is_complete(tmp_path: Path) -> None:
    store = Store(Checkpoints(folder=tmp_path / "made"))
    path = kept(store, 1)
    kept(store, 2, complete=False)
    [found] = store.all()
    assert (found.id, found.place, found.bytes) == (f"{1:012x}", str(path), 7)
    assert path.name == f"checkpoint-web-{1:012x}.tar.zst"
    assert store.path_of(found.id) == path


def test_what_is_pinned_is_removed_by_force_only(tmp_path: Path) -> None:
    store = Store(Checkpoints(folder=tmp_path))
    kept(store, 1)
    store.pin(f"{1:012x}", pinned=True)
    with pytest.raises(Refused, match="pinned"):
        store.remove(f"{1:012x}")
    store.remove(f"{1:012x}", force=True)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(Refused, match="no checkpoint"):
        store.remove(f"{1:012x}")


def test_half_an_archive_is_swept_away(tmp_path: Path) -> None:
    store = Store(Checkpoints(folder=tmp_path))
    kept(store, 1)
    (tmp_path / ".checkpoint-web-2.tar.part").write_bytes(b"half")
    store.sweep()
    assert len(store.all()) == 1
    assert not list(tmp_path.glob("*.part"))


def test_a_clone_has_addresses_ports_and_volumes_of_its_own() -> None:
    offer = moves.offer().model_copy(
        update={
            "create": {
                "Hostname": "kept",
                "HostConfig": {
                    "PortBindings": {"80/tcp": [{"HostIp": "", "HostPort": "8080"}]},
                    "Binds": ["data:/data:ro", "/srv:/srv"],
                    "Mounts": [{"Type": "volume", "Source": "other", "Target": "/other"}],
                },
                "NetworkingConfig": {
                    "EndpointsConfig": {
                        "net": {"IPAMConfig": {"IPv4Address": "10.0.0.9"}, "MacAddress": "02:00:00:00:00:01"}
                    }
                },
            },
            "networks": (Network(name="net", driver="bridge", addresses=("10.0.0.9/24",), mac="02:00:00:00:00:01"),),
            "volumes": (
                Volume(kind="volume", name="data", destination="/data"),
                Volume(kind="volume", name="other", destination="/other"),
                Volume(kind="volume", name="f" * 64, destination="/anonymous", anonymous=True),
                Volume(kind="bind", name="/srv", destination="/srv"),
            ),
        }
    )
    clone, notes = as_clone(offer, "two")
    host = clone.create["HostConfig"]
    assert clone.create["NetworkingConfig"]["EndpointsConfig"]["net"] == {}
    assert clone.networks[0].addresses == ()
    assert host["PortBindings"] == {"80/tcp": [{"HostIp": "", "HostPort": ""}]}
    assert host["Binds"] == ["two-data:/data:ro", "/srv:/srv"]
    assert host["Mounts"][0]["Source"] == "two-other"
    assert volume_names(offer, clone) == {"data": "two-data", "other": "two-other", "f" * 64: "f" * 64}
    assert (clone.container, clone.tcp, clone.create["Hostname"]) == ("two", TcpPolicy.CLOSE, "kept")
    assert offer.create["HostConfig"]["Binds"][0] == "data:/data:ro", "the original is as it was"
    assert any("80/tcp" in note for note in notes)
