"""Everything that `docker inspect` shows of a container is the same after a move from Docker 26 to 28, and back."""

import asyncio
import json
from collections.abc import Collection, Mapping
from typing import Any

from agent.migration.fields import KNOWN_FIELDS, NOT_TRIED, Fate, differences, fields_of
from lab.cluster import Cluster
from lab.host import Host
from protocol.errors import Consequence
from tests.e2e.fidelity import WAIT, inspect, move_all, remove, told
from tests.e2e.support import until

NETWORKS = {
    "front": (
        *("--subnet=10.90.1.0/24", "--gateway=10.90.1.254", "--ip-range=10.90.1.128/25"),
        *("--aux-address=printer=10.90.1.129", "--ipv6", "--subnet=fd90:1::/64", "--label=tier=front"),
        "--opt=com.docker.network.bridge.name=br-front",
    ),
    "back": ("--internal", "--attachable", "--subnet=10.90.2.0/24"),
    "chosen": (),
    "lan": ("--driver=macvlan", "--subnet=10.91.0.0/24", "--subnet=fd91::/64", "--ipv6", "--opt=parent=eth0"),
}
SECCOMP = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["acct"], "action": "SCMP_ACT_ERRNO"}]}
# Each with what a user can say of it; together they use every field that can be used on these hosts (see below).
PLAIN: dict[str, tuple[str, ...]] = {
    "plain": (),
    "process": (
        *("--interactive", "--hostname=box", "--domainname=example.test", "--env=GREETING=hello world", "--env=EMPTY="),
        *("--label=a=1", "--label=com.docker.compose.project=shop", "--workdir=/tmp", "--stop-signal=SIGUSR1"),
        *("--stop-timeout=42", "--init", "--health-cmd=true", "--health-interval=90s", "--health-timeout=7s"),
        *("--health-retries=9", "--health-start-period=3s", "--restart=on-failure:3", "--log-driver=local"),
        *("--log-opt=max-size=2m", "--log-opt=max-file=3", "--annotation=org.example.note=kept", "--entrypoint=sh"),
        "--cidfile=/run/process.cid",
    ),
    "limits": (
        *("--memory=64m", "--memory-reservation=32m", "--memory-swap=128m", "--cpus=0.5", "--cpu-shares=512"),
        *("--cpuset-cpus=0", "--cpuset-mems=0", "--pids-limit=77", "--ulimit=nofile=512:1024", "--ulimit=core=0"),
        *("--shm-size=8m", "--oom-score-adj=100", "--sysctl=net.ipv4.ip_unprivileged_port_start=80"),
        *("--sysctl=kernel.msgmax=4096", "--cgroup-parent=/shop", "--restart=unless-stopped", "--oom-kill-disable"),
        "--memory-swappiness=0",
    ),
    "quota": (*("--cpu-period=50000", "--cpu-quota=25000", "--cgroupns=private", "--ipc=none", "--log-driver=none"),),
    "security": (
        *("--cap-drop=ALL", "--cap-add=NET_BIND_SERVICE", "--cap-add=CHOWN", "--read-only", "--restart=always"),
        *("--security-opt=no-new-privileges", "--security-opt=seccomp=unconfined"),
        "--security-opt=apparmor=unconfined",
        *("--security-opt=systempaths=unconfined", "--device=/dev/null:/dev/nothing:r"),
        *("--device-cgroup-rule=c 1:3 r", "--tmpfs=/scratch:size=1m,mode=1770"),
    ),
    "profile": ("--security-opt=seccomp=/run/profile.json", "--log-opt=labels=a,b", "--log-opt=tag={{.Name}}"),
    "mounts": (
        *("--volume=named:/named", "--volume=named:/again:ro", "--volume=/anonymous", "--volume=/etc:/host-etc:ro"),
        *("--volume=/tmp:/host-tmp:rprivate", "--mount=type=volume,target=/anonymous-too,volume-label=x=y"),
        "--mount=type=volume,source=fresh,target=/fresh,volume-nocopy",
        "--mount=type=tmpfs,target=/ram,tmpfs-size=1048576,tmpfs-mode=1770",
        "--mount=type=bind,source=/etc/hostname,target=/host-name,readonly",
        *("--volume-driver=local",),
    ),
    "network": (
        *(
            "--network=name=front,driver-opt=org.example.note=kept",
            "--ip=10.90.1.200",
            "--ip6=fd90:1::200",
            "--network-alias=web",
            "--network-alias=www",
        ),
        *("--mac-address=02:42:0a:5a:01:c8", "--publish=127.0.0.1:8080:80", "--publish=53/udp"),
        *("--publish=9000-9001:9000-9001/tcp", "--expose=7777", "--dns=10.90.1.3", "--dns-search=example.test"),
        *("--dns-option=ndots:2", "--add-host=db:10.90.1.7"),
    ),
    "two-networks": (
        *("--network=name=back,alias=store", "--sysctl=net.ipv4.conf.eth0.log_martians=1"),
        "--network=name=front,alias=shop",
    ),
    "of-dockers-choice": ("--network=chosen",),
    "on-the-lan": ("--network=lan",),
    "bridge-mac": ("--mac-address=02:42:ac:11:77:77", "--publish=8081:81"),
    "offline": ("--network=none", "--rm"),
    "bare": ("--no-healthcheck", "--entrypoint=", "checked"),
    "checked": ("--publish-all", "checked"),
}
# In namespaces, a process that is not root can be dumped with userns-remap only (facts.md).
REMAPPED: dict[str, tuple[str, ...]] = {
    "user": ("--init", "--user=1000:1000", "--group-add=27", "--volume=owned:/owned"),
    "other-user": ("--user=7:7", "--cap-add=SYS_PTRACE", "--tmpfs=/t"),
}
# What Docker 26 does not know.
LATER: dict[str, tuple[str, ...]] = {
    "second-gateway": ("--network=front", "--network=name=chosen,gw-priority=10"),
}
COMMANDS = {"process": ("-c", "tail -f /dev/null"), "checked": ()}
IMAGE = (
    *("FROM busybox", 'ENTRYPOINT ["tail"]', 'CMD ["-f", "/dev/null"]', "ENV FROM_IMAGE=yes", "LABEL from=image"),
    *("EXPOSE 80", "EXPOSE 81/udp", "VOLUME /data", "WORKDIR /srv", "STOPSIGNAL SIGINT"),
    "HEALTHCHECK --interval=30s CMD true",
)


def make(host: Host, table: Mapping[str, tuple[str, ...]], networks: Collection[str] = NETWORKS) -> None:
    """Start the containers of a table, with all that they stand on."""
    host.ensure_image("busybox")
    host.run(["docker", "build", "--tag=checked", "-"], input="\n".join(IMAGE), env={"DOCKER_BUILDKIT": "0"})
    host.run(["rm", "--force", "/run/process.cid"])
    host.node.write("/run/profile.json", json.dumps(SECCOMP))
    host.docker("volume", "create", "--label=keep=yes", "named")
    for name in networks:
        host.docker("network", "create", *NETWORKS[name], name)
    for name, options in table.items():
        words = list(options)
        image = words.pop() if "checked" in words else "busybox"
        made = ("run", "--detach") if name == "plain" else ("create",)  # which say other things of attached clients
        host.docker(*made, "--name", name, *words, image, *COMMANDS.get(name, WAIT[1:]))
    host.docker("start", *table)


async def looks(host: Host, names: Mapping[str, object]) -> dict[str, dict[str, Any]]:
    found = await asyncio.gather(*(asyncio.to_thread(inspect, host, name) for name in names))
    return dict(zip(names, found, strict=True))


def unfaithful(name: str, before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Differences that docs/fidelity.md does not tell of."""
    return [line for line in differences(before, after) if not told_of(name, line)]


def told_of(name: str, difference: str) -> bool:
    # Docker 28 takes the settings of an interface with its network, Docker 26 with the container.
    return name == "two-networks" and ("log_martians" in difference or "DriverOpts" in difference)


async def test_inspect_is_the_same_after_a_move_and_another(pair: Cluster, moves: Cluster) -> None:
    """From 26 to 28, where networks and volumes are missing, and back, where the networks are there."""
    looked: dict[str, dict[str, Any]] = {}
    for cluster, table, first, second, networks in (
        (pair, PLAIN, "a26", "b28", list(NETWORKS)),
        (pair, REMAPPED, "u26", "v28", list(NETWORKS)),
        (moves, LATER, "a28", "b28", ["front", "chosen"]),
    ):
        try:
            make(cluster[first], table, networks)
            before = await looks(cluster[first], table)
            ways_out = {name: way_out(cluster[first], name) for name in table}
            looked |= before
            for source, target in ((first, second), (second, first)):
                await move_all(cluster, table, source, target)
                after = await looks(cluster[target], table)
                wrong = {name: found for name in table if (found := unfaithful(name, before[name], after[name]))}
                assert not wrong, (source, target, wrong)
                check_addresses(before, after)
                assert {name: way_out(cluster[target], name) for name in table} == ways_out
        finally:
            remove_all(cluster, table)
    used = by_whom(looked)
    unused = {path for path in KEPT if not used.get(path)} - set(NOT_TRIED)
    assert not unused, f"no container in the tables says anything of {unused}"
    told({path: sorted(used.get(path, ())) for path in KEPT})


# Each with what a user can say of it that stands against a move, the field, and what is answered.
STAYING: dict[str, tuple[tuple[str, ...], str, str]] = {
    "terminal": (("--tty",), "Config.Tty", "it has a terminal"),
    "privileged": (("--privileged",), "HostConfig.Privileged", "it is privileged"),
    "pid-host": (("--pid=host",), "HostConfig.PidMode", "it shares the process namespace of the host"),
    "ipc-host": (("--ipc=host",), "HostConfig.IpcMode", "it shares the IPC namespace of the host"),
    "ipc-shareable": (("--ipc=shareable",), "HostConfig.IpcMode", "its /dev/shm is a mount on this host"),
    "uts-host": (("--uts=host",), "HostConfig.UTSMode", "it shares the UTS namespace of the host"),
    "network-of": (("--network=container:neighbour",), "HostConfig.NetworkMode", "network namespace of container"),
    "linked": (("--link=neighbour:n",), "HostConfig.Links", "it has legacy links"),
    "paused": ((), "State.Paused", "it is paused"),
    "restarting": (("--restart=always",), "State.Restarting", "is restarting, not running"),
    "executing": ((), "ExecIDs", "`sleep 1000` was started in it by docker exec"),
}
ON_REMAPPED = {"userns-host": (("--userns=host",), "HostConfig.UsernsMode", "it is exempt from user namespace")}


async def test_what_stands_against_a_move_is_named(pair: Cluster) -> None:
    """By each engine; and nothing is touched."""
    shown: dict[str, set[str]] = {}
    places = [
        ("a26", "b28", STAYING),
        ("b28", "a26", STAYING),
        ("u26", "v28", ON_REMAPPED),
        ("v28", "u26", ON_REMAPPED),
    ]
    for source, target, table in places:
        host = pair[source]
        try:
            host.ensure_image("busybox")
            host.docker("run", "-d", "--name", "neighbour", *WAIT)
            for name, (options, _, _) in table.items():
                command = ("busybox", "false") if name == "restarting" else WAIT
                host.docker("run", "-d", "--name", name, *options, *command)
            if table is STAYING:
                host.docker("exec", "--detach", "executing", "sleep", "1000")
                host.docker("pause", "paused")
                await until(lambda: inspect(host, "restarting")["State"]["Restarting"], "it ends")  # noqa: B023
            for name, (_, field, said) in table.items():
                if name == "restarting":  # Docker waits twice as long each time, and it runs for a moment in between
                    await until(lambda: waits_for_its_restart(host), "it waits")  # noqa: B023
                await check_named(pair, name, source, target, said)
                shown.setdefault(field, set()).add(name)
        finally:
            remove(pair, *table, "neighbour")
    told({field: sorted(names) for field, names in shown.items()})
    assert {path for path, field in KNOWN_FIELDS.items() if field.fate is Fate.REFUSED} == {*shown, *NOT_TRIED} - KEPT


def waits_for_its_restart(host: Host) -> bool:
    """For a second and more."""
    found = inspect(host, "restarting")
    return bool(found["State"]["Restarting"]) and int(found["RestartCount"]) >= 5


async def check_named(pair: Cluster, name: str, source: str, target: str, said: str) -> None:
    before = inspect(pair[source], name)["Id"]
    reply = await pair.migrate(name, source, target)
    assert reply.error is not None, f"{name} was moved"
    assert reply.error.consequence is Consequence.UNTOUCHED, (name, reply.error)
    assert said in reply.error.message, (name, reply.error)
    assert inspect(pair[source], name)["Id"] == before
    assert name not in pair[target].docker("ps", "--all", "--format={{.Names}}").split()


def way_out(host: Host, name: str) -> list[str]:
    """The gateways that lead out of it; on which interface is Docker's choice at each start."""
    pid = host.docker("inspect", "--format={{.State.Pid}}", name)
    ways = host.run(["nsenter", f"--net=/proc/{pid}/ns/net", "ip", "route", "show", "default"]).stdout
    return [line.split()[2] for line in ways.splitlines()]


def remove_all(cluster: Cluster, table: Mapping[str, object]) -> None:
    remove(cluster, *table)
    for host in cluster.lab.hosts.values():
        host.docker("network", "rm", *NETWORKS, check=False)
        host.docker("volume", "rm", "named", "fresh", "owned", check=False)


def check_addresses(before: dict[str, dict[str, Any]], after: dict[str, dict[str, Any]]) -> None:
    """Addresses are recreated fields; but where a driver takes wishes, they are the same."""
    keys = ("IPAddress", "IPPrefixLen", "GlobalIPv6Address", "GlobalIPv6PrefixLen", "MacAddress")
    for name in before:
        for network, end in before[name]["NetworkSettings"]["Networks"].items():
            there = after[name]["NetworkSettings"]["Networks"][network]
            if network != "bridge":
                assert {key: end[key] for key in keys} == {key: there[key] for key in keys}, (name, network)


KEPT = {
    path
    for path, field in KNOWN_FIELDS.items()
    if field.fate is Fate.KEPT and path.startswith(("Config.", "HostConfig.", "Mounts", "NetworkSettings.Networks"))
}


def by_whom(looked: dict[str, dict[str, Any]]) -> dict[str, set[str]]:
    """By field, the containers that say something else there than one for which nothing was said."""
    plain = {path: worth(value) for path, _, value in fields_of(looked["plain"])}
    found: dict[str, set[str]] = {}
    for name, said in looked.items():
        for path, _, value in fields_of(said):
            if worth(value) != plain.get(path, "null"):
                found.setdefault(path, set()).add(name)
    return found


def worth(value: object) -> str:
    text = json.dumps(value, sort_keys=True)
    return "null" if text in ('""', "[]", "{}", "false") else text
