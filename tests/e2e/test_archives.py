"""What is in an archive: shown by ourselves, and read by the programs of others."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from lab.cluster import Cluster
from lab.host import Host
from lab.shell import Completed
from lab.workloads import run_counter
from tests.e2e.archives import give_tools, remove, run, said
from tests.e2e.support import counts_on

NAME, PLAIN, SEALED, KEY = "ck-shown", "/root/checkpoint-shown.tar.zst", "/root/checkpoint-sealed.tar", "/root/key"


@dataclass(frozen=True, slots=True)
class Shown:
    """A host that has archives of a container of two processes, plain and sealed, and what others read them with."""

    cluster: Cluster
    host: Host

    def run(self, words: str, **options: Any) -> Completed:
        return run(self.cluster, self.host.name, words, **options)

    def said(self, words: str) -> dict[str, Any]:
        return said(self.cluster, self.host.name, words)


@pytest.fixture(scope="module", params=["a26", "b28"])
def shown(keeps: Cluster, request: pytest.FixtureRequest) -> Iterator[Shown]:
    host = keeps[request.param]
    found = Shown(keeps, host)
    remove(host, NAME)
    run_counter(host, NAME, "--init", "--volume", "ck-shown-data:/data")
    host.docker("exec", NAME, "sh", "-c", "echo kept > /data/file; rm /etc/passwd")
    found.run(f"head -c 32 /dev/urandom > {KEY}; head -c 32 /dev/urandom > {KEY}.other")
    found.run(f"transship checkpoint {NAME} -R --to {PLAIN}")
    found.run(f"transship checkpoint {NAME} -R --to {SEALED} --key-file {KEY} --with-image")
    give_tools(host)
    yield found
    remove(host, NAME)
    host.docker("volume", "rm", "ck-shown-data", check=False)


async def test_inspect_shows_whose_it_is_and_what_is_in_it(shown: Shown) -> None:
    found = shown.said(f"transship inspect {PLAIN}")
    members = {each["name"]: each["bytes"] for each in found["members"]}
    assert found["container"] == NAME
    assert found["host"] == shown.host.name
    assert found["image"] == "py"
    assert found["taken"]["tasks"] == 2
    assert sum(size for name, size in members.items() if name.startswith("checkpoint/pages-")) > 16 << 20
    assert {"config.dump", "spec.dump", "rootfs-diff.tar", "deleted.files", "ctr.log", "stats-dump"} < members.keys()
    assert "volumes/ck-shown-data.tar" in members
    text = shown.run(f"transship inspect {PLAIN} --verify").stdout
    assert "sound: all" in text
    assert NAME in text


async def test_it_is_packed_with_zstd_and_root_s_alone(shown: Shown) -> None:
    assert shown.run(f"stat -c %a:%u {PLAIN} {SEALED}").stdout.split() == ["600:0", "600:0"]
    assert shown.run(f"head -c 4 {PLAIN} | od -An -tx1").stdout.split() == ["28", "b5", "2f", "fd"]


async def test_verify_finds_a_changed_byte(shown: Shown) -> None:
    shown.run(f"transship checkpoint {NAME} -R --compress none --to /root/plain.tar")
    shown.run("printf X | dd of=/root/plain.tar bs=1 seek=4000000 conv=notrunc status=none")
    bad = shown.run("transship inspect /root/plain.tar --verify", check=False)
    assert bad.returncode == 1
    assert "not sound" in bad.stderr


FLIP = """
import subprocess, sys, tarfile
found = {}
with tarfile.open("/root/every.tar") as tar:
    members = [(each.name, each.offset_data + each.size // 2) for each in tar if each.size]
for name, place in members:
    with open("/root/every.tar", "r+b") as file:
        def flip():
            file.seek(place)
            byte = file.read(1)
            file.seek(place)
            file.write(bytes([byte[0] ^ 1]))
            file.flush()
        flip()
        done = subprocess.run(["transship", "inspect", "/root/every.tar", "--verify"], capture_output=True, text=True)
        flip()
    print(done.returncode, name)
"""


async def test_verify_finds_it_in_every_member(shown: Shown) -> None:
    """One bit in the middle of each, one after the other; put back, it is sound again."""
    shown.run(f"transship checkpoint {NAME} -R --compress none --to /root/every.tar")
    shown.host.node.write("/root/flip.py", FLIP)
    lines = shown.run("python3 /root/flip.py", timeout=280).stdout.splitlines()
    found = dict(line.split(" ", 1)[::-1] for line in lines)
    assert len(found) > 25
    assert {
        "migration/manifest.json",
        "migration/hashes.json",
        "rootfs-diff.tar",
        "ctr.log",
        "dump.log",
    } <= found.keys()
    assert {name for name, code in found.items() if code not in ("1", "2")} == set()
    assert "sound: all" in shown.run("transship inspect /root/every.tar --verify").stdout


async def test_checkpointctl_shows_it(shown: Shown) -> None:
    text = shown.run(f"checkpointctl show {PLAIN}").stdout
    assert NAME in text
    assert "py" in text


async def test_checkpointctl_inspects_it_with_its_processes_files_and_memory(shown: Shown) -> None:
    [found] = json.loads(shown.run(f"checkpointctl inspect {PLAIN} --ps-tree --stats --files --format json").stdout)
    assert found["container_name"] == NAME
    assert found["image"] == "py"
    assert found["process_tree"]["command"] == "docker-init"
    assert [child["command"] for child in found["process_tree"]["children"]] == ["python3"]
    assert found["statistics"]["pages_written"] > 4096
    assert "/count" in json.dumps(found["file_descriptors"])
    tree = shown.run(f"checkpointctl inspect {PLAIN} --ps-tree --metadata --mounts").stdout
    assert "python3" in tree
    assert "org.criu.checkpoint.engine.name: transship" in tree


async def test_checkpointctl_lists_a_folder_of_them(shown: Shown) -> None:
    text = shown.run("checkpointctl list /root").stdout
    assert NAME in text


async def test_other_tar_programs_take_its_layers(shown: Shown) -> None:
    """rootfs-diff.tar and the volumes are tars for anybody; what the layer hides is in deleted.files."""
    shown.run(
        f"transship checkpoint {NAME} -R --compress none --to /root/tared.tar; rm -rf /root/out; mkdir /root/out",
    )
    shown.run("tar -C /root/out --warning=no-unknown-keyword -xf /root/tared.tar")
    assert (
        shown.run("tar --warning=no-unknown-keyword -xOf /root/out/volumes/ck-shown-data.tar file").stdout == "kept\n"
    )
    assert "count" in shown.run("tar --warning=no-unknown-keyword -tf /root/out/rootfs-diff.tar").stdout.split()
    assert "/etc/passwd" in json.loads(shown.run("cat /root/out/deleted.files").stdout)
    spec = json.loads(shown.run("cat /root/out/spec.dump").stdout)
    assert spec["process"]["args"][:2] == ["/sbin/docker-init", "--"]


async def test_a_sealed_archive_is_opened_by_its_key_alone(shown: Shown) -> None:
    raw = shown.run(f"grep -c python3 {SEALED}", check=False).stdout.strip()
    assert raw == "0", "nothing of it can be read"
    for key in ("", f"--key-file {KEY}.other"):
        refused = shown.run(f"transship restore {SEALED} --name ck-sealed {key}", check=False)
        assert refused.returncode == 2, refused
        assert "sealed" in refused.stderr
    try:
        shown.run(f"transship inspect {SEALED} --verify --key-file {KEY}")
        shown.run(f"transship restore {SEALED} --name ck-sealed --key-file {KEY}")
        await counts_on(shown.host, "ck-sealed")
    finally:
        remove(shown.host, "ck-sealed")
        shown.host.docker("volume", "rm", "ck-sealed-ck-shown-data", check=False)
