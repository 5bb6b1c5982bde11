"""A peer with a valid certificate that wants more than is its own: another's migration, the whole disk, a way out."""

import os
import subprocess
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from pydantic import ValidationError

from agent.base.errors import CorruptPart, Refused, StepFailed
from agent.checkpoint import segments
from agent.checkpoint.segments import END, SegmentWriter, header, padding
from agent.doors.peer_server import Stream
from agent.migration import admission, belongings
from agent.migration.targets import MOST_PROBE_BYTES, Targets
from agent.prework.container_log import FRAME, FrameCheck
from agent.runtime import restore
from protocol.errors import ErrorCode
from protocol.peer import Manifest, Volume
from protocol.status import Phase
from tests.unit import moves
from tests.unit.moves import ID, SOURCE
from tests.unit.test_targets import World, copy, gone, world

__all__ = ["copy", "gone", "world"]  # fixtures
THIEF = "thief"
Ask = Callable[[Targets], Coroutine[Any, Any, object]]


def stream(*chunks: bytes) -> Stream:
    async def body() -> AsyncIterator[bytes]:
        for chunk in chunks:
            yield chunk

    return Stream(body())


MANIFEST = Manifest(parts=(), images=(), tasks=0)
REQUESTS: dict[str, Ask] = {
    "layers": lambda targets: targets.layers(THIEF, ID, stream(b"x")),
    "create": lambda targets: targets.create(THIEF, ID),
    "log": lambda targets: targets.log(THIEF, ID, stream(b"x")),
    "stage": lambda targets: targets.stage(THIEF, ID),
    "files": lambda targets: targets.files(THIEF, ID, "root:0", stream(b"x")),
    "printed": lambda targets: targets.printed(THIEF, ID, stream(b"x")),
    "images": lambda targets: targets.images(THIEF, ID, stream(b"x")),
    "round": lambda targets: targets.round(THIEF, ID, 1, stream(b"x")),
    "follow": lambda targets: targets.follow(THIEF, ID),
    "prepare": lambda targets: targets.prepare(THIEF, ID, MANIFEST),
    "pages": lambda targets: targets.pages(THIEF, ID, cast("Any", None)),
    "arrived": lambda targets: targets.arrived(THIEF, ID),
    "go": lambda targets: targets.go(THIEF, ID),
    "alive": lambda targets: targets.alive(THIEF, ID),
    "forget": lambda targets: targets.forget(THIEF, ID),
    "discard": lambda targets: targets.discard(THIEF, ID),
}


def test_every_request_is_tried() -> None:
    from agent.doors.peer_server import PeerHandler

    asked = {name for name in vars(PeerHandler) if not name.startswith("_")}
    assert asked - set(REQUESTS) == {"probe", "check", "offer", "decision"}, (
        "those are of nobody's migration, or tried below"
    )


@pytest.mark.parametrize("request_name", REQUESTS)
@pytest.mark.parametrize("phase", [Phase.RESERVED, Phase.PREPARED])
async def test_the_migration_of_another_host_is_out_of_reach(
    world: World, copy: int, phase: Phase, request_name: str
) -> None:
    if phase is Phase.RESERVED:
        await world.offered()
    else:
        await world.found(phase, copy)
    before = world.targets.open()[0].last_contact
    with pytest.raises(Refused) as caught:
        await REQUESTS[request_name](world.targets)
    assert caught.value.info().code is ErrorCode.NO_SUCH_MIGRATION
    assert await world.phase() is phase
    assert world.targets.open()[0].last_contact == before, "it does not even keep it alive"


@pytest.mark.parametrize("request_name", ["go", "arrived"])
async def test_nor_is_one_that_has_ended(world: World, copy: int, request_name: str) -> None:
    await world.found(Phase.RUNNING, copy)
    await world.ended(Phase.DONE)
    with pytest.raises(Refused):
        await REQUESTS[request_name](world.targets)


async def test_an_id_that_is_known_is_not_offered_again(world: World) -> None:
    await world.offered()
    for peer in (THIEF, SOURCE):
        with pytest.raises(Refused) as caught:
            await world.targets.offer(peer, moves.offer(source=peer))
        assert caught.value.info().code is ErrorCode.BUSY


async def test_no_image_is_loaded_that_was_not_asked_for(world: World) -> None:
    await world.offered()
    with pytest.raises(Refused, match="was not asked for"):
        await world.targets.layers(SOURCE, ID, stream(b"x"))


@pytest.mark.parametrize("part", ["files", "log", "printed", "images", "round"])
async def test_nothing_is_written_to_what_is_proved_or_runs(world: World, copy: int, part: str) -> None:
    await world.found(Phase.PREPARED, copy)
    await_part: dict[str, Ask] = {
        "files": lambda targets: targets.files(SOURCE, ID, "root:9", stream(b"x")),
        "log": lambda targets: targets.log(SOURCE, ID, stream(b"x")),
        "printed": lambda targets: targets.printed(SOURCE, ID, stream(b"x")),
        "images": lambda targets: targets.images(SOURCE, ID, stream(b"x")),
        "round": lambda targets: targets.round(SOURCE, ID, 1, stream(b"x")),
    }
    with pytest.raises(Refused) as caught:
        await await_part[part](world.targets)
    assert caught.value.info().code is ErrorCode.TOO_LATE


async def test_a_measurement_ends(world: World) -> None:
    async def for_ever() -> AsyncIterator[bytes]:
        while True:
            yield bytes(1 << 20)

    endless = Stream(for_ever())
    with pytest.raises(Refused, match="more than any measurement needs"):
        await world.targets.probe(SOURCE, endless)
    assert endless.bytes <= MOST_PROBE_BYTES + (1 << 20)


# --- what an offer may say


@pytest.mark.parametrize(
    "changes",
    [
        {"memory_bytes": -(1 << 50)},  # would be taken from what others have reserved
        {"files_bytes": -1},
        {"tasks": 1 << 70},
        {"init": "/../../../etc/cron.d/x"},  # a name of a file here
        {"init": "ab"},
        {"create": {"HostConfig": 5}},
        {"create": {"HostConfig": {"PortBindings": {"80/tcp": [7]}}}},
        {"create": {"HostConfig": {"SecurityOpt": [{}]}}},
        {"create": {"NetworkingConfig": {"EndpointsConfig": {"net": []}}}},
        {"create": {"NetworkingConfig": {"EndpointsConfig": {"net": {"IPAMConfig": {"IPv4Address": "x"}}}}}},
        {"create": {"NetworkingConfig": {"EndpointsConfig": {"net": {"IPAMConfig": {"IPv4Address": 7}}}}}},
        {"networks": [{"name": "n", "driver": "bridge", "create": {"IPAM": {"Config": [{"Subnet": False}]}}}]},
        {"create": {"HostConfig": {"Sysctls": {"net.x'; id >/tmp/x; '": "1"}}}},  # would be run
        {"create": {"HostConfig": {"CgroupParent": "/x\naction-script /tmp/x"}}},  # would be an option of CRIU's
        {"networks": [{"name": "n", "driver": "bridge", "addresses": ["fe80::1%lo\nvrf exec default id"]}]},
        {"listening": [{"protocol": "tcp", "address": "::", "port": 70_000}]},
        {"image": {"name": "i", "id": "i", "diff_ids": (), "size": -5}},
    ],
)
def test_an_offer_out_of_shape_is_none(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        moves.offer(**changes)


@pytest.mark.parametrize("name", ["../x", "", "a/b", ".hidden", "x" * 200])
def test_an_image_has_a_plain_name(name: str) -> None:
    with pytest.raises(ValidationError):
        Manifest.model_validate({"parts": [], "images": [{"name": name, "size": 1}], "tasks": 1})


@pytest.mark.parametrize("text", ["0-99999999999999", "a", "3-", "-1", "1-2-3"])
def test_a_list_of_cores_costs_little(text: str) -> None:
    with suppress(Refused):
        assert len(admission.cores_of(text)) <= admission.MOST_CORES + 1


@pytest.mark.parametrize("key", ["net.x'; id; '", "net.x\ny", "net.$(id)", "net.x y", ""])
def test_the_runtime_itself_runs_no_name_of_a_setting(key: str) -> None:
    """What is in the bundle comes from dockerd, which does not look at it."""
    with pytest.raises(ValueError, match="no setting"):
        restore.settings({key: "1"}, of_interfaces=False)


def test_the_runtime_quotes_the_value_of_a_setting() -> None:
    hostile = "1' >/dev/null; echo 'x"
    script = restore.settings({"net.ipv4.x": hostile}, of_interfaces=False).replace(">'/proc/sys/net/ipv4/x'", "")
    assert subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout == hostile


def test_the_runtime_writes_one_option_for_a_cgroup(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no cgroup"):
        restore.name_cgroup({"linux": {"cgroupsPath": "/x\naction-script /tmp/x"}}, str(tmp_path))


# --- streams


def segment(name: str, at: int, data: bytes) -> bytes:
    return header(name, at, len(data)) + data + padding(len(data))


def test_a_stream_of_many_files_holds_few_open(tmp_path: Path) -> None:
    names = [f"file-{number}" for number in range(3 * segments.MOST_OPEN)]
    writer = SegmentWriter(tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    for at in (0, 2):
        for name in names:
            writer.feed(segment(name, at, b"ab"))
    assert len(os.listdir("/proc/self/fd")) - before <= segments.MOST_OPEN
    writer.feed(END)
    writer.finish()
    assert {(tmp_path / name).read_bytes() for name in names} == {b"abab"}


@pytest.mark.parametrize("offset", ["-1", "7fffffffffffffff", "ffffffffffffffffff"])
def test_a_segment_lies_where_a_file_can_have_one(tmp_path: Path, offset: str) -> None:
    good = bytearray(segment("pages-1.img", 0, b"x"))
    good[:100] = f"pages-1.img@{offset}".encode().ljust(100, b"\0")
    good[148:156] = b" " * 8
    good[148:156] = b"%06o\0 " % sum(good[:512])
    with pytest.raises(CorruptPart):
        SegmentWriter(tmp_path).feed(bytes(good))


@pytest.mark.parametrize("number", [0, 3, 7, 255])
def test_what_was_printed_goes_to_no_other_descriptor(number: int) -> None:
    with pytest.raises(CorruptPart, match="stream"):
        FrameCheck().feed(FRAME.pack(number, 5) + b"there")


@pytest.mark.parametrize("cut", [1, 4, 7])
def test_what_was_printed_is_whole(cut: int) -> None:
    whole = FrameCheck()
    for byte in FRAME.pack(1, 5) + b"there" + FRAME.pack(2, 0):
        whole.feed(bytes([byte]))
    whole.finish()
    part = FrameCheck()
    part.feed((FRAME.pack(1, 5) + b"there")[:-cut])
    with pytest.raises(CorruptPart, match="cut off"):
        part.finish()


async def test_a_disk_is_not_filled_to_the_brim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def data_root() -> str:
        return str(tmp_path)

    limits = SimpleNamespace(disk_reserve_bytes=1 << 60)
    host = SimpleNamespace(
        name="b", docker=SimpleNamespace(data_root=data_root), settings=SimpleNamespace(limits=limits)
    )
    monkeypatch.setattr(admission, "LOOK_BYTES", 10)
    got = []
    with pytest.raises(StepFailed, match="about to be full"):
        async for chunk in admission.while_room(cast("Any", host), aiter(stream(b"12345", b"12345", b"never"))):
            got.append(chunk)
    assert got == [b"12345"]


# --- folders that somebody else may write to


class Noted:
    """A run that only remembers."""

    def __init__(self) -> None:
        self.record: dict[str, Any] = {}

    async def note_down(self, **more: Any) -> None:
        self.record.update(more)


def as_nobody(work: Callable[[], None]) -> None:
    """Whoever has no right but to the folder that is theirs; where tests are no root they have none more either."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
            work()
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0


@pytest.fixture
def allowed(tmp_path: Path) -> Path:
    """What `bind_copy` names; another user may write in it. Outside of it is a folder that is not to be touched."""
    for path in (tmp_path, *tmp_path.parents):
        if path.is_relative_to("/tmp") and path != Path("/tmp"):
            path.chmod(0o755)
    folder, outside = tmp_path / "allowed", tmp_path / "outside"
    for path in (folder, outside):
        path.mkdir()
    (outside / "precious").write_text("untouched")
    folder.chmod(0o777)
    return folder


def bind(place: Path) -> Volume:
    return Volume(kind="bind", name=str(place), destination="/x", copyable=True)


async def test_a_symlink_planted_in_place_of_a_bind_mount_leads_nowhere(allowed: Path, tmp_path: Path) -> None:
    run, place = Noted(), allowed / "user/data"

    await belongings._make_folder(cast("Any", run), 0, [allowed], place)
    with belongings.bind_folder(cast("Any", run), "0") as fd:
        assert os.path.samestat(os.fstat(fd), place.stat())

    def swap() -> None:
        (allowed / "user").rename(allowed / "aside")
        (allowed / "user").symlink_to(tmp_path / "outside")

    (tmp_path / "outside/data").mkdir()
    (tmp_path / "outside/data/precious").write_text("untouched")
    as_nobody(swap)
    with (
        pytest.raises(Refused, match="changed the way"),
        belongings.bind_folder(cast("Any", run), "0"),
    ):
        pass
    # taken back: through the symlink it would be somebody else's that is emptied
    made = run.record["binds"]["0"]
    belongings._unmake_folder(Path(made["base"]), Path(made["place"]), made["made"])
    belongings._unmake_folder(Path(made["base"]), Path(made["place"]), "")
    assert (tmp_path / "outside/data/precious").read_text() == "untouched"
    assert (tmp_path / "outside/precious").read_text() == "untouched"


async def test_an_allowed_folder_that_is_not_there_is_made_and_taken_back(tmp_path: Path) -> None:
    base, run = tmp_path / "srv/copied", Noted()
    await belongings._make_folder(cast("Any", run), 0, [base], base / "user/data")
    assert (base / "user/data").is_dir()
    assert base.stat().st_mode & 0o777 == 0o755
    with belongings.bind_folder(cast("Any", run), "0") as fd:
        os.close(os.open("content", os.O_CREAT | os.O_WRONLY, 0o600, dir_fd=fd))
    nothing = SimpleNamespace(docker=None)
    await belongings.take_back(cast("Any", nothing), cast("Any", run))
    assert not base.exists()
    await belongings.take_back(cast("Any", nothing), cast("Any", run))


async def test_a_symlink_on_the_way_while_it_is_made_is_refused(
    allowed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Noted()
    note = run.note_down

    async def too_late(**more: Any) -> None:
        """Between the look and the deed: the journal takes its time."""
        await note(**more)
        as_nobody(lambda: (allowed / "user").symlink_to(tmp_path / "outside"))

    monkeypatch.setattr(run, "note_down", too_late)
    with pytest.raises(Refused, match="changed the way"):
        await belongings._make_folder(cast("Any", run), 0, [allowed], allowed / "user/data")
    assert sorted(os.listdir(tmp_path / "outside")) == ["precious"]


async def test_what_was_made_for_a_bind_mount_goes_again(allowed: Path) -> None:
    run = Noted()
    (allowed / "there").mkdir()
    (allowed / "there/old").mkdir()
    for number, place in enumerate((allowed / "new/deep", allowed / "there/old")):
        await belongings._make_folder(cast("Any", run), number, [allowed], place)
        (place / "content").write_text("x")
    for made in run.record["binds"].values():
        belongings._unmake_folder(Path(made["base"]), Path(made["place"]), made["made"])
    assert sorted(str(path.relative_to(allowed)) for path in allowed.rglob("*")) == ["there", "there/old"]


async def test_a_volume_that_is_a_way_to_elsewhere_is_not_written_to(tmp_path: Path) -> None:
    """With these options Docker's own driver mounts any folder of the host at the volume's place."""

    async def volume(name: str) -> object:
        return SimpleNamespace(mountpoint=str(tmp_path))

    run = Noted()
    run.record["volumes"] = {"data": "data", "etc": "etc"}
    host = SimpleNamespace(docker=SimpleNamespace(volume=volume), name="b")
    options = {"type": "none", "o": "bind", "device": "/etc"}
    offer = moves.offer(
        volumes=[
            Volume(kind="volume", name="etc", destination="/x", options=options),
            Volume(kind="volume", name="data", destination="/y"),
        ]
    )
    assert await belongings.volume_path(cast("Any", host), cast("Any", run), offer, "data") == tmp_path
    with pytest.raises(Refused) as caught:
        await belongings.volume_path(cast("Any", host), cast("Any", run), offer, "etc")
    assert caught.value.info().code is ErrorCode.VOLUME_CONFLICT
