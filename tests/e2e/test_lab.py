"""The lab keeps its promises while it is up: real engines, real CRIU, a network that can be cut."""

import asyncio
import json
import ssl
import subprocess
import sys
import tomllib
from collections.abc import Iterator

import aiomqtt
import pytest

from lab import CommandFailed, Engine, Host, Lab, LabError, shell
from lab.broker import Access
from tests.e2e.lab_support import HOSTS, NAME, start_counter

FETCH = """import sys, time, urllib.request
start = time.monotonic()
size = len(urllib.request.urlopen(sys.argv[1], timeout=5).read())
print(size, time.monotonic() - start)"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab.up(NAME, HOSTS) as lab:
        yield lab


@pytest.fixture(params=[spec.name for spec in HOSTS])
def host(lab: Lab, request: pytest.FixtureRequest) -> Host:
    return lab[request.param]


def count(host: Host, name: str) -> int:
    return int(host.docker("logs", "--tail", "1", name) or -1)


def wait_for_more(host: Host, name: str, than: int) -> None:
    shell.wait_until(f"{name} counts past {than}", lambda: count(host, name) > than, timeout=10)


def dump(host: Host, container: str, name: str) -> subprocess.CompletedProcess[str]:
    folders = ["--image-path", f"/run/{name}/images", "--work-path", f"/run/{name}/work"]
    # runc would make them for root alone, and a restore with userns-remap reads them as another user.
    host.run(["mkdir", "-p", folders[1], folders[3]])
    runc = ["runc", "--root", host.runtime_root, "checkpoint", "--leave-running", *folders, container]
    return host.run(runc, check=False)


def test_each_host_runs_the_engine_it_was_asked_for(host: Host) -> None:
    info = json.loads(host.docker("info", "--format", "{{json .}}"))
    assert info["ServerVersion"].startswith("26." if host.spec.engine is Engine.DOCKER26 else "28.")
    assert info["ExperimentalBuild"]
    assert info["CgroupVersion"] == "2" or not host.spec.cgroup2
    assert info["Driver"] == ("overlayfs" if host.spec.containerd_store else "overlay2")
    assert ("name=userns" in info["SecurityOptions"]) == host.spec.userns_remap
    assert "transship" not in info["Runtimes"], "the product registers its runtime, not the lab"


def test_criu_works_and_keeps_what_it_learned_of_the_kernel(host: Host) -> None:
    host.run(["criu", "check"])
    host.run(["test", "-s", "/run/criu.kdat"])
    assert "Version: 4.2" in host.run(["criu", "--version"]).stdout


def test_a_frozen_container_survives_two_dumps(host: Host) -> None:
    container = start_counter(host, "frozen")
    for attempt in range(2):
        host.docker("pause", "frozen")
        before = count(host, "frozen")
        result = dump(host, container, f"frozen{attempt}")
        assert result.returncode == 0, result.stderr
        assert host.docker("inspect", "--format", "{{.State.Status}}", "frozen") == "paused"
        assert count(host, "frozen") == before
        host.docker("unpause", "frozen")
        wait_for_more(host, "frozen", before)
    host.docker("rm", "--force", "frozen")


def test_a_dump_is_restored_by_runc_and_goes_on_where_it_was(host: Host) -> None:
    container = start_counter(host, "restored", "--network", "none")
    host.docker("pause", "restored")
    dumped_at = count(host, "restored")
    assert dump(host, container, "restored").returncode == 0
    # The paused container keeps its root mounted, so a second one can be restored beside it on the same root.
    namespace = host.runtime_root.rpartition("/")[2]
    bundle = f"/run/containerd/io.containerd.runtime.v2.task/{namespace}/{container}/config.json"
    configuration = json.loads(host.node.read(bundle))
    configuration.pop("hooks", None)
    configuration["linux"]["cgroupsPath"] = "/copy"
    host.node.write("/run/copy/config.json", json.dumps(configuration))
    runc = "runc --root /run/copy/state"
    folders = "--bundle /run/copy --image-path /run/restored/images --work-path /run/copy/work"
    host.run(["sh", "-c", f"{runc} restore --detach {folders} --pid-file /run/copy/pid copy >/run/copy/out 2>&1"])
    shell.wait_until("it counts on", lambda: host.node.read("/run/copy/out").count("\n") > 2, timeout=10)
    assert host.node.read("/run/copy/out").split()[:2] == [str(dumped_at + 1), str(dumped_at + 2)]
    host.run(["sh", "-c", f"{runc} delete --force copy; rm -r /run/copy"])
    host.docker("rm", "--force", "restored")


@pytest.mark.parametrize("name", ["userns26", "userns28"])
def test_a_process_that_is_not_root_is_dumped_under_userns_remap(lab: Lab, name: str) -> None:
    host = lab[name]
    container = start_counter(host, "nobody", "--user", "1000:1000")
    host.docker("pause", "nobody")
    result = dump(host, container, "nobody")
    assert result.returncode == 0, result.stderr
    host.docker("rm", "--force", "nobody")


def test_images_are_the_same_on_every_host_of_one_store(lab: Lab) -> None:
    for name, layers in (("busybox", 1), ("py", 2), ("layers", 3)):
        ids = set()
        for host in (lab["plain26"], lab["plain28"]):
            host.ensure_image(name)
            image = json.loads(host.docker("image", "inspect", name))[0]
            ids.add(image["Id"])
            assert len(image["RootFS"]["Layers"]) == layers
        assert len(ids) == 1
    shown = lab["plain26"].docker("run", "--rm", "layers", "sh", "-c", "ls /data; cat /data/changed")
    assert shown.split() == ["changed", "from-second", "from-third", *["as", "the", "third", "layer", "has", "it"]]


@pytest.fixture
def served(lab: Lab) -> Iterator[None]:
    """Serve files of 1, 1M and 8M bytes on plain26."""
    lab["plain26"].run(["sh", "-c", "mkdir -p /srv; for size in 1 1M 8M; do truncate -s $size /srv/$size; done"])
    argv = ["python3", "-u", "-m", "http.server", "--bind", "::", "--directory", "/srv", "80"]
    server = lab["plain26"].popen(argv, stdout=shell.PIPE, stderr=shell.DEVNULL, text=True)
    assert server.stdout is not None
    with server.stdout as out:
        assert out.readline().startswith("Serving")
        yield
        shell.end(server)


def fetch(lab: Lab, url: str) -> float:
    """Fetch a file at the client's place, and tell how many seconds it took."""
    return float(lab.client_run([sys.executable, "-c", FETCH, url]).stdout.split()[1])


@pytest.mark.usefixtures("served")
def test_hosts_and_client_reach_each_other_by_name_and_in_both_families(lab: Lab) -> None:
    assert lab["plain28"].run(["python3", "-c", FETCH, "http://plain26/1"]).stdout.startswith("1 ")
    fetch(lab, "http://10.77.0.11/1")
    fetch(lab, "http://[fd77::b]/1")


@pytest.mark.usefixtures("served")
def test_a_cable_can_be_cut_slowed_and_healed(lab: Lab) -> None:
    lab.slow("plain26", "8mbit")
    assert fetch(lab, "http://10.77.0.11/1M") > 0.5
    lab.cut("plain26")
    assert "NO-CARRIER" in lab["plain26"].run(["ip", "link", "show", "eth0"]).stdout
    with pytest.raises(CommandFailed):
        fetch(lab, "http://10.77.0.11/1")
    lab.heal("plain26")
    assert fetch(lab, "http://10.77.0.11/8M") < 4  # more than twice as fast as the slow cable could


def test_an_unknown_link_host_or_image_is_named_in_the_error(lab: Lab) -> None:
    with pytest.raises(LabError, match="no link nonsense"):
        lab.cut("nonsense")
    with pytest.raises(LabError, match="no host nonsense"):
        lab["nonsense"]
    with pytest.raises(LabError, match="no image nonsense"):
        lab["plain26"].ensure_image("nonsense")


def client(access: Access, password: str | None = None) -> aiomqtt.Client:
    return aiomqtt.Client(
        access.address,
        access.port,
        username=access.user,
        password=password or access.password,
        tls_context=ssl.create_default_context(cafile=str(access.ca_file)),
        protocol=aiomqtt.ProtocolVersion.V5,
    )


async def test_a_retained_message_outlives_the_broker(lab: Lab) -> None:
    topic = "transship/v1/hosts/plain26/status"  # one that the shipped access list gives to this host
    async with client(lab.broker.local_access("plain26")) as agent:
        await agent.publish(topic, "still here", qos=1, retain=True)
    lab.broker.restart()
    async with client(lab.broker.local_access()) as controller, asyncio.timeout(30):
        await controller.subscribe(topic)
        message = await anext(aiter(controller.messages))
        assert message.payload == b"still here"


async def test_a_wrong_password_is_refused(lab: Lab) -> None:
    with pytest.raises(aiomqtt.MqttError):
        async with client(lab.broker.local_access(), password="wrong"):
            pass


def test_a_host_reaches_the_broker_with_its_certificate_and_checks_the_brokers(lab: Lab) -> None:
    pki = "/etc/transship/pki"
    code = f"""import socket, ssl
context = ssl.create_default_context(cafile='{pki}/ca.crt')
context.load_cert_chain('{pki}/host.crt', '{pki}/host.key')
with context.wrap_socket(socket.create_connection(('broker', 8883)), server_hostname='broker') as connection:
    print(connection.version())"""
    assert lab["plain28"].run(["python3", "-c", code]).stdout == "TLSv1.3\n"
    assert lab["plain28"].run(["stat", "--format=%a", f"{pki}/host.key"]).stdout == "600\n"


def test_containers_run_on_while_dockerd_is_dead(lab: Lab) -> None:
    host = lab["plain28"]
    # Without live-restore the next dockerd stops what it finds running: quickly, in this case.
    container = start_counter(host, "orphan", "--stop-signal", "KILL")
    host.kill_dockerd()
    with pytest.raises(CommandFailed):
        host.docker("ps")
    states = host.run(["runc", "--root", host.runtime_root, "list"]).stdout.splitlines()
    assert [line.split()[2] for line in states if line.startswith(container)] == ["running"]
    host.start_dockerd()
    host.docker("start", "orphan")
    host.docker("rm", "--force", "orphan")


def test_dockerd_can_be_restarted(lab: Lab) -> None:
    host = lab["plain26"]
    start_counter(host, "restarted", "--restart", "always", "--stop-signal", "KILL")
    before = host.node.daemon("dockerd")
    host.restart_dockerd()
    assert host.node.daemon("dockerd") != before
    wait_for_more(host, "restarted", 0)
    host.docker("rm", "--force", "restarted")


def test_a_host_boots_with_its_disks_after_a_power_cut(lab: Lab) -> None:
    host = lab["plain26"]
    start_counter(host, "powerless", "--restart", "always")
    host.docker("pause", "powerless")  # a frozen process must not keep the host from ending
    host.node.write("/etc/kept", "yes")
    host.run(["touch", "/run/lost"])
    host.kill()
    assert not host.node.running()
    host.start()
    assert host.node.read("/etc/kept") == "yes"
    host.run(["test", "!", "-e", "/run/lost"])
    wait_for_more(host, "powerless", 0)
    host.docker("rm", "--force", "powerless")


def test_a_host_shuts_down_in_order_and_boots_again(lab: Lab) -> None:
    host = lab["plain28"]
    start_counter(host, "ordered", "--restart", "always", "--stop-signal", "KILL")
    host.reboot()
    assert lab.status()["plain28"] == "up"
    wait_for_more(host, "ordered", 0)
    host.docker("rm", "--force", "ordered")
    host.stop()
    assert lab.status()["plain28"] == "off"
    host.start()


def test_a_command_that_hangs_is_ended_and_named(lab: Lab) -> None:
    with pytest.raises(CommandFailed, match="plain26: sleep 4321: took more than"):
        lab["plain26"].run(["sleep", "4321"], timeout=0.2)
    processes = lab["plain26"].run(["ps", "--no-headers", "-eo", "args"]).stdout
    assert "sleep 4321" not in processes.splitlines()


def test_commands_and_daemons_are_in_the_hosts_own_cgroup(lab: Lab) -> None:
    for spec in HOSTS:
        lines = lab[spec.name].run(["cat", "/proc/self/cgroup"]).stdout.splitlines()
        assert [line for line in lines if ".." in line] == []


def test_the_checkout_is_importable_in_a_host_and_read_only(lab: Lab) -> None:
    host = lab["plain28"]
    python = ["/opt/transship/bin/python", "-c"]
    assert host.run([*python, "import agent; print(agent.__file__)"]).stdout.startswith("/opt/transship-src/agent/")
    assert host.run(["touch", "/opt/transship-src/new"], check=False).returncode != 0


def test_an_agent_that_ends_at_once_is_reported_with_its_log(lab: Lab) -> None:
    host = lab["plain28"]
    with pytest.raises(LabError, match="transship-agent on plain28 ended"):
        host.start_agent(config={"nonsense": {"key": [1]}}, ready=lambda: False)
    assert host.agent_log() != ""
    assert not host.agent.running()
    written = tomllib.loads(host.node.read("/etc/transship/agent.toml"))
    assert written["nonsense"] == {"key": [1]}
    assert written["peer"]["allow"] == [spec.name for spec in HOSTS if spec.name != "plain28"]
    host.stop_agent()
    host.kill_agent()
