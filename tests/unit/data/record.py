"""Record what both engines say of the containers in containers.json: python tests/unit/data/record.py LAB HOST...

LAB must be up with a host of each engine. Writes inspect-<engine>.json beside this file; nothing of this machine is
in them, since ids, times and the lab's host names are those of the lab's hosts. Leaves nothing on the hosts.
"""

import json
import sys
from pathlib import Path
from typing import Any

from lab import Host, Lab

HERE = Path(__file__).parent
INFO = ("Driver", "DriverStatus", "CgroupVersion", "SecurityOptions", "DockerRootDir")
TABLE: dict[str, Any] = json.loads((HERE / "containers.json").read_text())


def make(host: Host) -> None:
    host.ensure_image("busybox")
    for name, lines in TABLE["images"].items():
        changes = [word for line in lines for word in ("--change", line)]
        source = host.docker("create", "busybox", "true").strip()
        host.docker("commit", *changes, source, name)
        host.docker("rm", source)
    for name, options in TABLE["networks"].items():
        host.docker("network", "create", *options, name)
    for name, options in TABLE["volumes"].items():
        host.docker("volume", "create", *options, name)
    for options in TABLE["containers"].values():
        host.docker("run", "--detach", *options)
    for network, name, *options in TABLE["connect"]:
        host.docker("network", "connect", *options, network, name)


def record(host: Host) -> dict[str, Any]:
    containers = json.loads(host.docker("inspect", *TABLE["containers"]))
    version = json.loads(host.docker("version", "--format", "{{json .Server}}"))
    version["Components"] = [{key: part[key] for key in ("Name", "Version")} for part in version["Components"]]
    info = json.loads(host.docker("info", "--format", "{{json .}}"))
    volumes = sorted({mount["Name"] for found in containers for mount in found["Mounts"] if mount.get("Name")})
    return {
        "version": {key: version[key] for key in ("Version", "ApiVersion", "MinAPIVersion", "Components")},
        "info": {key: info[key] for key in INFO} | {"Runtimes": {key: {} for key in info["Runtimes"]}},
        "containers": {found["Name"].lstrip("/"): found for found in containers},
        "networks": {
            name: json.loads(host.docker("network", "inspect", name))[0]
            for name in (*TABLE["networks"], "bridge", "none")
        },
        "volumes": {found["Name"]: found for found in json.loads(host.docker("volume", "inspect", *volumes))},
        "images": {
            name: json.loads(host.docker("image", "inspect", name))[0] for name in ("busybox", *TABLE["images"])
        },
    }


def remove(host: Host) -> None:
    host.run(["docker", "rm", "--force", "--volumes", *TABLE["containers"]], check=False)
    host.run(["docker", "volume", "rm", "fresh", *TABLE["volumes"]], check=False)
    host.run(["docker", "volume", "prune", "--force"], check=False)
    host.run(["docker", "network", "rm", *TABLE["networks"]], check=False)
    host.run(["docker", "image", "rm", *TABLE["images"]], check=False)


def main(lab: str, *hosts: str) -> None:
    for host in map(Lab.load(lab).hosts.__getitem__, hosts):
        remove(host)
        try:
            make(host)
            said = record(host)
        finally:
            remove(host)
        path = HERE / f"inspect-{host.spec.engine}.json"
        path.write_text(json.dumps(said, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
