"""What is in an archive: shown by ourselves, and read by the programs of others."""

import json
from collections.abc import Iterator

import pytest

from lab.cluster import Cluster
from lab.workloads import run_counter
from tests.e2e.archives import give_tools, remove, run, said
from tests.e2e.support import counts_on

NAME, PLAIN, SEALED, KEY = "ck-shown", "/root/checkpoint-shown.tar.zst", "/root/checkpoint-sealed.tar", "/root/key"


@pytest.fixture(scope="module")
def shown(keeps: Cluster) -> Iterator[Cluster]:
    """A container of two processes, its archive, and a sealed one."""
    host = keeps["b28"]
    remove(host, NAME)
    run_counter(host, NAME, "--init", "--volume", "ck-shown-data:/data")
    host.docker("exec", NAME, "sh", "-c", "echo kept > /data/file; rm /etc/passwd")
    run(keeps, "b28", f"head -c 32 /dev/urandom > {KEY}; head -c 32 /dev/urandom > {KEY}.other")
    run(keeps, "b28", f"transship checkpoint {NAME} -R --to {PLAIN}")
    run(keeps, "b28", f"transship checkpoint {NAME} -R --to {SEALED} --key-file {KEY} --with-image")
    give_tools(host)
    yield keeps
    remove(host, NAME)
    host.docker("volume", "rm", "ck-shown-data", check=False)


async def test_inspect_shows_whose_it_is_and_what_is_in_it(shown: Cluster) -> None:
    found = said(shown, "b28", f"transship inspect {PLAIN}")
    members = {each["name"]: each["bytes"] for each in found["members"]}
    assert found["container"] == NAME
    assert found["host"] == "b28"
    assert found["image"] == "py"
    assert found["taken"]["tasks"] == 2
    assert sum(size for name, size in members.items() if name.startswith("checkpoint/pages-")) > 16 << 20
    assert {"config.dump", "spec.dump", "rootfs-diff.tar", "deleted.files", "ctr.log", "stats-dump"} < members.keys()
    assert "volumes/ck-shown-data.tar" in members
    text = run(shown, "b28", f"transship inspect {PLAIN} --verify").stdout
    assert "sound: all" in text
    assert NAME in text


async def test_it_is_packed_with_zstd_and_root_s_alone(shown: Cluster) -> None:
    assert run(shown, "b28", f"stat -c %a:%u {PLAIN} {SEALED}").stdout.split() == ["600:0", "600:0"]
    assert run(shown, "b28", f"head -c 4 {PLAIN} | od -An -tx1").stdout.split() == ["28", "b5", "2f", "fd"]


async def test_verify_finds_a_changed_byte(shown: Cluster) -> None:
    run(shown, "b28", f"transship checkpoint {NAME} -R --compress none --to /root/plain.tar")
    run(shown, "b28", "printf X | dd of=/root/plain.tar bs=1 seek=4000000 conv=notrunc status=none")
    bad = run(shown, "b28", "transship inspect /root/plain.tar --verify", check=False)
    assert bad.returncode == 1
    assert "not sound" in bad.stderr


async def test_checkpointctl_shows_it(shown: Cluster) -> None:
    text = run(shown, "b28", f"checkpointctl show {PLAIN}").stdout
    assert NAME in text
    assert "py" in text


async def test_checkpointctl_inspects_it_with_its_processes_files_and_memory(shown: Cluster) -> None:
    [found] = json.loads(
        run(shown, "b28", f"checkpointctl inspect {PLAIN} --ps-tree --stats --files --format json").stdout
    )
    assert found["container_name"] == NAME
    assert found["image"] == "py"
    assert found["process_tree"]["command"] == "docker-init"
    assert [child["command"] for child in found["process_tree"]["children"]] == ["python3"]
    assert found["statistics"]["pages_written"] > 4096
    assert "/count" in json.dumps(found["file_descriptors"])
    tree = run(shown, "b28", f"checkpointctl inspect {PLAIN} --ps-tree --metadata --mounts").stdout
    assert "python3" in tree
    assert "org.criu.checkpoint.engine.name: transship" in tree


async def test_checkpointctl_lists_a_folder_of_them(shown: Cluster) -> None:
    text = run(shown, "b28", "checkpointctl list /root").stdout
    assert NAME in text


async def test_other_tar_programs_take_its_layers(shown: Cluster) -> None:
    """rootfs-diff.tar and the volumes are tars for anybody; what the layer hides is in deleted.files."""
    run(
        shown,
        "b28",
        f"transship checkpoint {NAME} -R --compress none --to /root/tared.tar; rm -rf /root/out; mkdir /root/out",
    )
    run(shown, "b28", "tar -C /root/out --warning=no-unknown-keyword -xf /root/tared.tar")
    assert (
        run(shown, "b28", "tar --warning=no-unknown-keyword -xOf /root/out/volumes/ck-shown-data.tar file").stdout
        == "kept\n"
    )
    assert "count" in run(shown, "b28", "tar --warning=no-unknown-keyword -tf /root/out/rootfs-diff.tar").stdout.split()
    assert "/etc/passwd" in json.loads(run(shown, "b28", "cat /root/out/deleted.files").stdout)
    spec = json.loads(run(shown, "b28", "cat /root/out/spec.dump").stdout)
    assert spec["process"]["args"][:2] == ["/sbin/docker-init", "--"]


async def test_a_sealed_archive_is_opened_by_its_key_alone(shown: Cluster) -> None:
    raw = run(shown, "b28", f"grep -c python3 {SEALED}", check=False).stdout.strip()
    assert raw == "0", "nothing of it can be read"
    for key in ("", f"--key-file {KEY}.other"):
        refused = run(shown, "b28", f"transship restore {SEALED} --name ck-sealed {key}", check=False)
        assert refused.returncode == 2, refused
        assert "sealed" in refused.stderr
    try:
        run(shown, "b28", f"transship inspect {SEALED} --verify --key-file {KEY}")
        run(shown, "b28", f"transship restore {SEALED} --name ck-sealed --key-file {KEY}")
        await counts_on(shown["b28"], "ck-sealed")
    finally:
        remove(shown["b28"], "ck-sealed")
        shown["b28"].docker("volume", "rm", "ck-sealed-ck-shown-data", check=False)
