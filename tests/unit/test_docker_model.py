"""What both engines said, as recorded (data/record.py), becomes the dataclasses that the agent works with."""

import json
from pathlib import Path
from typing import Any

import pytest

from agent.doors import docker_model

DATA = Path(__file__).parent / "data"
ENGINES = ("docker26", "docker28")


def recorded(engine: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((DATA / f"inspect-{engine}.json").read_text())
    return found


@pytest.fixture(params=ENGINES)
def said(request: pytest.FixtureRequest) -> dict[str, Any]:
    return recorded(request.param)


def test_a_plain_container(said: dict[str, Any]) -> None:
    found = docker_model.container(said["containers"]["plain"])
    assert (found.name, found.state, found.running, found.paused, found.tty) == ("plain", "running", True, False, False)
    assert found.pid > 0
    assert found.image == "busybox"
    assert found.image_id == said["images"]["busybox"]["Id"]
    assert found.restart_policy == {"Name": "no", "MaximumRetryCount": 0}
    assert found.log_driver == "json-file"
    assert found.log_path.endswith(f"/containers/{found.id}/{found.id}-json.log")
    assert found.runtime == "runc"
    assert (found.exec_ids, found.mounts, found.health) == ((), (), "")
    [network] = found.networks
    assert network.network == "bridge"
    assert network.network_id == said["networks"]["bridge"]["Id"]
    assert network.addresses[0].startswith("172.17.0.")
    assert network.addresses[0].endswith("/16")


def test_health_policy_and_log_driver(said: dict[str, Any]) -> None:
    found = docker_model.container(said["containers"]["process"])
    assert found.health in ("starting", "healthy")
    assert found.restart_policy == {"Name": "on-failure", "MaximumRetryCount": 3}
    assert (found.log_driver, found.log_path) == ("local", "")
    assert found.labels["com.docker.compose.project"] == "shop"


def test_mounts_of_every_kind(said: dict[str, Any]) -> None:
    mounts = {mount.destination: mount for mount in docker_model.container(said["containers"]["mounts"]).mounts}
    assert (mounts["/named"].kind, mounts["/named"].name, mounts["/named"].writable) == ("volume", "named", True)
    assert (mounts["/again"].name, mounts["/again"].writable) == ("named", False)
    assert len(mounts["/anonymous"].name) == 64
    assert (mounts["/host-etc"].kind, mounts["/host-etc"].source, mounts["/host-etc"].name) == ("bind", "/etc", "")
    assert mounts["/ram"].kind == "tmpfs"


def test_both_address_families_of_a_network(said: dict[str, Any]) -> None:
    [network] = docker_model.container(said["containers"]["network"]).networks
    assert network.addresses == ("10.90.1.200/24", "fd90:1::200/64")
    assert network.mac == "02:42:0a:5a:01:c8"


def test_a_container_without_network_has_no_address(said: dict[str, Any]) -> None:
    found = docker_model.container(said["containers"]["offline"])
    assert [network.addresses for network in found.networks] == [()]
    assert found.auto_remove


def test_images_say_the_same_on_both_engines() -> None:
    older, newer = (docker_model.image(recorded(engine)["images"]["checked"]) for engine in ENGINES)
    assert dict(older.config) == dict(newer.config)
    assert older.diff_ids == newer.diff_ids
    assert older.config["Entrypoint"] == ["sleep"]
    assert "Hostname" not in older.config
    assert older.tags == ("checked:latest",)


def test_engines() -> None:
    older, newer = (docker_model.engine(said["version"], said["info"], "transship") for said in map(recorded, ENGINES))
    assert older.docker.startswith("26.1.5")
    assert newer.docker.startswith("28.5.2")
    assert (older.api, newer.api) == ("1.45", "1.51")
    assert older.runc.startswith("1.1.15")
    assert (older.storage_driver, older.image_store, older.cgroup_version) == ("overlay2", "graphdriver", 1)
    assert not older.userns_remap
    assert not older.runtime_registered
    assert older.criu == ""


def test_an_engine_with_everything_else() -> None:
    info = {
        "Driver": "overlayfs",
        "DriverStatus": [["driver-type", "io.containerd.snapshotter.v1"]],
        "CgroupVersion": "2",
        "SecurityOptions": ["name=seccomp,profile=builtin", "name=userns"],
        "Runtimes": {"runc": {}, "transship": {}},
    }
    found = docker_model.engine({"Version": "28.5.2", "ApiVersion": "1.51", "Components": None}, info, "transship")
    assert (found.image_store, found.cgroup_version, found.userns_remap) == ("containerd", 2, True)
    assert found.runtime_registered


@pytest.mark.parametrize(
    ("status", "health"),
    [
        ("Up 5 minutes", ""),
        ("Up 5 minutes (healthy)", "healthy"),
        ("Up 5 minutes (unhealthy)", "unhealthy"),
        ("Up 2 seconds (health: starting)", "starting"),
        ("Up 5 minutes (Paused)", ""),
        ("Exited (0) 3 minutes ago", ""),
    ],
)
def test_a_line_of_the_list_shows_the_health(status: str, health: str) -> None:
    raw = {"Id": "ab", "Names": ["/other/alias", "/web"], "Image": "x", "State": "running", "Status": status}
    found = docker_model.summary(raw)
    assert (found.name, found.health) == ("web", health)


def test_a_line_of_the_list_shows_published_ports_once() -> None:
    ports = [
        {"IP": "0.0.0.0", "PrivatePort": 80, "PublicPort": 8080, "Type": "tcp"},
        {"IP": "::", "PrivatePort": 80, "PublicPort": 8080, "Type": "tcp"},
        {"PrivatePort": 81, "Type": "udp"},
    ]
    raw = {"Id": "ab", "Names": None, "State": "created", "Ports": ports, "Labels": None}
    assert docker_model.summary(raw).ports == ((8080, "tcp"),)


def test_a_network_knows_which_addresses_are_taken(said: dict[str, Any]) -> None:
    found = docker_model.network(said["networks"]["front"])
    assert (found.driver, found.scope) == ("bridge", "local")
    assert {"10.90.1.200/24", "fd90:1::200/64"} <= set(found.addresses)


@pytest.mark.parametrize("stats", [{"rss": 4096, "shmem": 512, "cache": 9}, {"anon": 4096, "shmem": 512, "file": 9}])
def test_memory_to_be_dumped_is_without_the_cache(stats: dict[str, int]) -> None:
    assert docker_model.memory({"memory_stats": {"usage": 99999, "stats": stats}}) == 4608
