"""What the door asks of dockerd for each of its wishes; one that is fulfilled already is no error."""

from typing import Any

import pytest
from aiohttp import web

from agent.base.errors import DockerFailed
from agent.doors.docker import Docker
from tests.unit import pretended_dockerd, recorded
from tests.unit.pretended_dockerd import Dockerd

dockerd = pytest.fixture(pretended_dockerd.dockerd)
docker = pytest.fixture(pretended_dockerd.docker)


async def test_what_is_gone_already_is_removed(dockerd: Dockerd, docker: Docker) -> None:
    await docker.remove("web")
    await docker.remove_image("web")
    await docker.remove_network("web")
    await docker.remove_volume("web")
    assert await docker.find("web") is None
    assert await docker.image("web") is None
    assert await docker.network("web") is None
    assert await docker.volume("web") is None
    assert not await docker.kill("web")
    assert "DELETE /v1.45/containers/web?force=1&v=0" in dockerd.asked


async def test_a_removal_under_way_is_waited_for(dockerd: Dockerd, docker: Docker) -> None:
    dockerd.on("DELETE /containers/web", {"message": "removal of container web is already in progress"}, status=409)
    dockerd.on("POST /containers/web/wait", {"StatusCode": 0})
    await docker.remove("web")
    assert dockerd.asked[-1] == "POST /v1.45/containers/web/wait?condition=removed"


async def test_another_conflict_is_not_waited_for(dockerd: Dockerd, docker: Docker) -> None:
    dockerd.on("DELETE /containers/web", {"message": "cannot remove container: it is running"}, status=409)
    with pytest.raises(DockerFailed, match="it is running"):
        await docker.remove("web", force=False)


async def test_a_kill_of_what_has_ended_is_no_error(dockerd: Dockerd, docker: Docker) -> None:
    dockerd.on("POST /containers/web/kill", {"message": "container is not running"}, status=409)
    assert not await docker.kill("web", "SIGTERM")
    assert dockerd.asked[-1].endswith("kill?signal=SIGTERM")


async def test_stop_says_signal_and_seconds_where_they_are_given(dockerd: Dockerd, docker: Docker) -> None:
    dockerd.on("POST /containers/web/stop", status=304)
    await docker.stop("web")
    await docker.stop("web", signal="SIGINT", seconds=3)
    assert [text.partition("stop")[2] for text in dockerd.asked[1:]] == ["", "?signal=SIGINT&t=3"]


async def test_only_the_restart_policy_is_updated(dockerd: Dockerd, docker: Docker) -> None:
    bodies: list[Any] = []

    async def update(request: web.Request) -> web.Response:
        bodies.append(await request.json())
        return web.json_response({"Warnings": None})

    dockerd.on("POST /containers/web/update", update)
    await docker.set_restart_policy("web", {"Name": "on-failure", "MaximumRetryCount": 3})
    assert bodies == [{"RestartPolicy": {"Name": "on-failure", "MaximumRetryCount": 3}}]


async def test_only_running_execs_are_told(dockerd: Dockerd, docker: Docker) -> None:
    raw = recorded.SAID["docker28"]["containers"]["plain"]
    dockerd.on("GET /containers/plain/json", {**raw, "ExecIDs": ["a", "b", "c"]})
    process = {"entrypoint": "sh", "arguments": ["-c", "sleep 9"]}
    dockerd.on("GET /exec/a/json", {"ID": "a", "Running": True, "Pid": 42, "ProcessConfig": process})
    dockerd.on("GET /exec/b/json", {"ID": "b", "Running": False, "Pid": 0, "ProcessConfig": process})
    [found] = await docker.running_execs(await docker.inspect("plain"))
    assert (found.id, found.pid, found.command) == ("a", 42, "sh -c sleep 9")


async def test_a_name_with_odd_characters_stays_one_name(dockerd: Dockerd, docker: Docker) -> None:
    await docker.network("a b?c#d")
    await docker.image("registry:5000/team/app:1")
    assert dockerd.asked[1:] == ["GET /v1.45/networks/a b?c#d", "GET /v1.45/images/registry:5000/team/app:1/json"]
