"""The members by name, and what our own of them say. No bytes are read or written here."""

import re
from typing import Any, Literal

from pydantic import JsonValue

from agent import __version__
from protocol.base import ContainerId, HostName, Timestamp, WireModel
from protocol.checkpoint import CheckpointId
from protocol.peer import Offer

MANIFEST = "migration/manifest.json"
CONFIG = "config.dump"
SPEC = "spec.dump"
NETWORKS = "network.status"
BINDS = "bind.mounts"
LAYERS = "layers/"
LOG = "ctr.log"
LOGS = "migration/log/"
INIT = "migration/init"
VOLUMES = "volumes/"
ROOT = "rootfs-diff.tar"
DELETED = "deleted.files"
PRINTED = "migration/printed"
IMAGES = "checkpoint/"
STATS = "stats-dump"
DUMP_LOG = "dump.log"
TAKEN = "migration/taken.json"
HASHES = "migration/hashes.json"

SHM_BYTES = 64 << 20
MOST_JSON_BYTES = 16 << 20
IMAGE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class Manifest(WireModel):
    """The first member: whose checkpoint this is, and all that a restore has to know before the rest comes."""

    format: Literal["transship-checkpoint"] = "transship-checkpoint"
    version: Literal[1] = 1
    id: CheckpointId
    at: Timestamp
    agent_version: str
    host: HostName
    container: str
    container_id: ContainerId
    left_running: bool
    image_included: bool
    offer: Offer
    """As for a move to the host itself; whoever restores it names the migration and the target."""
    notes: tuple[str, ...] = ()
    """What will not be exactly as before, each a sentence."""


class Taken(WireModel):
    """What is known only afterwards."""

    tasks: int
    frozen_ms: float
    """From the freeze until the tasks ran on, or until all that must stand still had been read."""
    dump_ms: float


class MemberHash(WireModel):
    """One member as it was written."""

    name: str
    sha256: str
    bytes: int


class Hashes(WireModel):
    """The last member."""

    algorithm: Literal["sha256"] = "sha256"
    members: tuple[MemberHash, ...]


def volume_member(name: str) -> str:
    return f"{VOLUMES}{name}.tar"


def config_dump(manifest: Manifest, created: str, runtime: str) -> dict[str, JsonValue]:
    """The reduced record that CRI-O writes (checkpointctl's lib/metadata.go), and what Podman's import asks for beside.

    Podman knows an image by the digest of its configuration. In the containerd image store it has another id: there
    Podman finds it only by its name, and says so.
    """
    at = manifest.at.isoformat().replace("+00:00", "Z")
    image, attached = manifest.offer.image, bool(manifest.offer.networks)
    return {
        "id": manifest.container_id,
        "name": manifest.container,
        "rootfsImage": image.name,
        "rootfsImageRef": image.id,
        "rootfsImageName": image.name,
        "rootfsImageID": image.id.removeprefix("sha256:"),
        "runtime": runtime,
        "createdTime": created or at,
        "checkpointedTime": at,
        "restoredTime": "0001-01-01T00:00:00Z",
        "restored": False,
        "createNetNS": True,
        "networkMode": "bridge" if attached else "none",
        "newNetworks": {"podman": {"interface_name": "eth0"}} if attached else {},
        "shmSize": SHM_BYTES,
        "stopSignal": 15,
        "stopTimeout": 10,
        "logDriver": "k8s-file",
        "cgroupsMode": "enabled",
    }


def annotations(container: str, container_id: str, image: str, image_id: str) -> dict[str, str]:
    """What is said of the checkpoint beside it: in spec.dump, and on an image made of it (lib/annotations.go)."""
    return {
        "org.criu.checkpoint.engine.name": "transship",
        "org.criu.checkpoint.engine.version": __version__,
        "org.criu.checkpoint.container.name": container,
        "org.criu.checkpoint.container.id": container_id,
        "org.criu.checkpoint.rootfsImageName": image,
        "org.criu.checkpoint.rootfsImageUserRequested": image,
        "org.criu.checkpoint.rootfsImageID": image_id,
        "org.criu.checkpoint.runtime.name": "runc",
    }


def spec_dump(spec: dict[str, Any], manifest: Manifest) -> dict[str, Any]:
    """The OCI runtime's configuration; by its annotations checkpointctl finds the name."""
    image = manifest.offer.image
    ours = annotations(manifest.container, manifest.container_id, image.name, image.id)
    said = {**(spec.get("annotations") or {}), **ours}
    # hooks are this host's own: dockerd's network hook means nothing anywhere else
    portable = {key: value for key, value in spec.items() if key != "hooks"}
    return {**portable, "annotations": {**said, "io.kubernetes.cri.container-name": manifest.container}}


def network_status(offer: Offer) -> dict[str, Any]:
    """As Podman writes it."""
    return {
        network.name: {
            "interfaces": {
                f"eth{number}": {
                    "subnets": [{"ipnet": address} for address in network.addresses],
                    "mac_address": network.mac,
                }
            }
        }
        for number, network in enumerate(offer.networks)
    }
