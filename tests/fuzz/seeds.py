"""Good bytes for each reader, to begin from; whatever chance makes of them is hardly ever good."""

import asyncio
import io
import json
import tarfile
import zlib
from pathlib import Path
from typing import Any

import zstandard

from agent.archive import crypt, layout
from agent.base.protobuf import packed
from agent.checkpoint import cores, images
from agent.checkpoint.segments import END, header, padding
from agent.prework.container_log import FRAME
from agent.runtime.pages import ACK, DATA, HEAD, HELLO
from agent.runtime.pages import END as LAST
from protocol import commands, peer, schemas, status
from tests.contract.samples import sample
from tests.fuzz.targets import KEY
from tests.unit import made_archive
from tests.unit.handmade_tar import STREAM

ID = "m-0123456789abcdef"


def good(model: Any) -> bytes:
    schema = schemas.schemas()[schemas.file_name(model)]
    return json.dumps(sample(schema, schema.get("$defs", {}))).encode()


CREATE = {
    "Image": "nginx",
    "HostConfig": {
        "NetworkMode": "net",
        "PortBindings": {"80/tcp": [{"HostIp": "", "HostPort": "8080"}]},
        "CpusetCpus": "0-2,4",
        "NanoCpus": 1,
        "Sysctls": {"net.ipv4.conf.eth0.forwarding": "1"},
        "Devices": [{"PathOnHost": "/dev/null"}],
        "BlkioDeviceReadBps": [{"Path": "/dev/sda", "Rate": 1}],
        "SecurityOpt": ["apparmor=unconfined"],
    },
    "NetworkingConfig": {
        "EndpointsConfig": {
            "net": {
                "IPAMConfig": {"IPv4Address": "10.1.0.2"},
                "MacAddress": "02:42:0a:01:00:02",
                "GwPriority": 1,
                "DriverOpts": {"com.docker.network.endpoint.sysctls": "net.ipv4.conf.IFNAME.forwarding=1"},
            }
        }
    },
}


def an_offer() -> bytes:
    found = json.loads(good(peer.Offer))
    found["create"] = CREATE
    found["networks"] = [
        {
            "name": "net",
            "driver": "bridge",
            "create": {"Name": "net", "IPAM": {"Config": [{"Subnet": "10.1.0.0/24"}]}},
            "addresses": ["10.1.0.2/24", "fd00::2/64"],
        }
    ]
    found["pinned"] = {"net": ["IPv4Address", "MacAddress"]}
    found["tcp"] = "close"
    return json.dumps(found).encode()


def manifest() -> bytes:
    schema = layout.Manifest.model_json_schema()
    return json.dumps(sample(schema, schema.get("$defs", {}))).encode()


def archive() -> bytes:
    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(
            made_archive.archive({layout.MANIFEST: manifest(), "checkpoint/pages-1.img": b"p" * 700})
        )
    finally:
        loop.close()


def foreign() -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.GNU_FORMAT) as tar:
        info = tarfile.TarInfo("l" * 150)
        info.size = 5
        tar.addfile(info, io.BytesIO(b"{}   "))
    return made.getvalue()


def entries(*each: bytes) -> bytes:
    head = images.MAGIC.pack(0x54564319, 0x56303138)
    return head + b"".join(images.SIZE.pack(len(one)) + one for one in each)


def _interrupted() -> bytes:
    """A thread that slept."""
    values = dict.fromkeys(range(1, 28), 1 << 40) | {cores.NUMBERS["ax"]: (1 << 64) - 4, cores.NUMBERS["orig_ax"]: 35}
    registers = b"".join(packed(number, value) for number, value in values.items())
    signals = packed(cores.OWN_SIGNALS, packed(1, packed(1, bytes([15, *bytes(127)]))))
    task = packed(cores.TASK, packed(1, 1))
    return packed(1, 1) + packed(cores.X86, packed(cores.REGISTERS, registers)) + task + packed(cores.THREAD, signals)


def _timer() -> bytes:
    content = b"".join(packed(number, value) for number, value in {1: 7, 4: 1, 5: 1, 7: 0, 8: 0, 9: 3, 10: 5}.items())
    return packed(1, 9) + packed(2, 300) + packed(12, content)


def sealed(plain: bytes) -> bytes:
    written: list[bytes] = []
    sealer = crypt.Sealer(written.append, KEY)
    sealer.write(plain)
    sealer.close()
    return b"".join(written)


def segments() -> bytes:
    parts = [("pages-1.img", 0, b"p" * 600), ("core-1.img", 0, b"c" * 30), ("pages-1.img", 600, b"q" * 50)]
    return b"".join(header(name, at, len(data)) + data + padding(len(data)) for name, at, data in parts) + END


def seeds() -> dict[str, list[bytes]]:
    """For each target, by its name."""
    printed = b"one\ntwo\n" * 20
    core = packed(1, 1) + packed(3, packed(1, 1) + packed(2, 1))
    return {
        "tree": [STREAM],
        "archive": [archive(), foreign()],
        "segments": [segments()],
        "compressed": [zstandard.compress(printed), zlib.compress(printed, wbits=31), printed],
        "sealed": [sealed(printed), sealed(b"p" * 70_000)],
        "frames": [FRAME.pack(1, 4) + b"one\n" + FRAME.pack(2, 0) + FRAME.pack(2, 2) + b"12"],
        "pages": [
            HEAD.pack(HELLO, 0, 0)
            + HEAD.pack(DATA, 0, 5)
            + b"abcde"
            + HEAD.pack(ACK, 50, 0)
            + HEAD.pack(DATA, 3, 4)
            + b"defg"
            + HEAD.pack(LAST, 7, 0)
        ],
        "criu-images": [
            b"\0" + entries(packed(1, 1) + packed(3, b"name"), _timer()),
            b"\1" + entries(packed(2, 1 << 20) + packed(13, 5) + packed(16, 9)),
            b"\2" + entries(packed(1, 1) + packed(2, 0)),
            b"\3" + entries(core),
            b"\3" + entries(_interrupted()),
        ],
        "tmpfs": [zlib.compress(STREAM, wbits=31)],
        "protobuf": [core, _timer()],
        "command": [
            *(good(model) for model in schemas.COMMANDS),
            *(good(model) for model in (status.HostStatus, status.DecisionNotice, commands.Reply)),
        ],
        "offer": [an_offer(), good(peer.Offer)],
        "peer-message": [good(model) for model in (peer.NativeOffer, peer.Manifest, peer.Answer, peer.Prepared)],
    }


def write(name: str, folder: Path) -> None:
    """A corpus for a fuzzer."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds()[name]):
        (folder / f"seed-{number}").write_bytes(seed)
