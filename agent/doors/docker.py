"""Docker: what can be asked of dockerd, through docker_gate.py. Answers leave as the dataclasses of docker_model.

What a call means for a migration is not decided here.
"""

import contextlib
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator

import aiohttp

from agent.base.errors import DockerFailed, Refused
from agent.doors import docker_events, docker_model
from agent.doors.docker_events import DockerEvent
from agent.doors.docker_gate import CONFLICT, NOT_FOUND, Gate, path_of
from agent.doors.docker_model import Container, Exec, Image, Json, Network, Summary, Volume
from protocol.errors import ErrorCode
from protocol.status import Engine

log = logging.getLogger(__name__)

CHUNK = 1 << 18
_LIST, _CREATE = "containers/json", "containers/create"


def unavailable(error: Exception) -> Refused | None:
    """The refusal that this error is before anything was touched; None if Docker did answer."""
    if not isinstance(error, DockerFailed) or error.http_status:
        return None
    return Refused(ErrorCode.DOCKER_UNAVAILABLE, error.message, hint=error.hint, detail=error.detail)


class Docker(Gate):
    """One dockerd. An async context manager, or `close()` it."""

    # The engine

    async def engine(self, runtime: str = "transship") -> Engine:
        """What dockerd is; CRIU is not Docker's to know."""
        version = await self.ask(dict, "GET", "version")
        return await self.ask(lambda info: docker_model.engine(version, info, runtime), "GET", "info")

    async def data_root(self) -> str:
        """Docker's folder; below userns-remap that of the remapped user."""
        return await self.ask(lambda info: str(info["DockerRootDir"]), "GET", "info")

    async def volume_drivers(self) -> tuple[str, ...]:
        return await self.ask(docker_model.volume_drivers, "GET", "info")

    @contextlib.asynccontextmanager
    async def events(self, since: int | None = None) -> AsyncIterator[AsyncIterator[DockerEvent]]:
        """Subscribe; within the block, the events from `since` (nanoseconds, inclusive) on.

        dockerd drops events for a reader that is slow: read on, whatever there is to do about them. The iterator never
        ends by itself: when dockerd goes away it raises DockerFailed.
        """
        params = {} if since is None else {"since": docker_events.since(since)}
        async with self.call("GET", "events", params=params, timeout=self._timeout, streams=True) as response:
            yield self._events(response)

    async def _events(self, response: aiohttp.ClientResponse) -> AsyncIterator[DockerEvent]:
        with self.renamed("GET /events", None):
            async for line in docker_events.lines(response.content.iter_any()):
                try:
                    event = docker_events.parse(line)
                except ValueError as error:
                    log.warning("skipped an event: %s: %r", error, line[:200])
                    continue
                yield event
        raise self.lost("Docker's stream of events ended", EOFError("end of stream"))

    # Containers

    async def inspect(self, ref: str) -> Container:
        return await self.ask(docker_model.container, "GET", path_of("containers", ref, "json"))

    async def find(self, ref: str) -> Container | None:
        return await self.ask_for(docker_model.container, path_of("containers", ref, "json"))

    async def list(self, all: bool = True) -> tuple[Summary, ...]:  # noqa: A002 - Docker's word
        """Does not wait for a container that is just being started, as `inspect` does."""
        return await self.ask(lambda rows: tuple(map(docker_model.summary, rows)), "GET", _LIST, params={"all": all})

    async def create(self, name: str, body: Json) -> str:
        return await self.ask(lambda done: str(done["Id"]), "POST", _CREATE, params={"name": name}, body=body)

    async def start(self, ref: str) -> None:
        """Has no deadline: on a target the runtime holds it until the images are there."""
        await self.do("POST", path_of("containers", ref, "start"), timeout=None)

    async def stop(self, ref: str, signal: str = "", seconds: int | None = None) -> None:
        """Waits as long as the container takes: `seconds`, or its own stop timeout, and then the kill."""
        params: dict[str, str | int] = {}
        if signal:
            params["signal"] = signal
        if seconds is not None:
            params["t"] = seconds
        limit = None if seconds is None else seconds + self._timeout
        await self.do("POST", path_of("containers", ref, "stop"), params=params, timeout=limit, fine=(NOT_FOUND,))

    async def kill(self, ref: str, signal: str = "SIGKILL") -> bool:
        """False if there was nothing to send it to."""
        path = path_of("containers", ref, "kill")
        return await self.do("POST", path, params={"signal": signal}, fine=(NOT_FOUND, CONFLICT))

    async def pause(self, ref: str) -> None:
        await self.do("POST", path_of("containers", ref, "pause"))

    async def unpause(self, ref: str) -> None:
        await self.do("POST", path_of("containers", ref, "unpause"))

    async def remove(self, ref: str, force: bool = True, volumes: bool = False) -> None:
        """Make sure that it is gone."""
        try:
            params = {"force": force, "v": volumes}
            await self.do("DELETE", path_of("containers", ref), params=params, fine=(NOT_FOUND,))
        except DockerFailed as error:
            if error.http_status != CONFLICT or "already in progress" not in error.message:
                raise
            path = path_of("containers", ref, "wait")
            await self.do("POST", path, params={"condition": "removed"}, fine=(NOT_FOUND,))

    async def rename(self, ref: str, name: str) -> None:
        await self.do("POST", path_of("containers", ref, "rename"), params={"name": name})

    async def set_restart_policy(self, ref: str, policy: Json) -> None:
        await self.do("POST", path_of("containers", ref, "update"), body={"RestartPolicy": dict(policy)})

    async def wait_exit(self, ref: str) -> int:
        """Has no deadline. The exit code."""
        path = path_of("containers", ref, "wait")
        return await self.ask(lambda end: int(end["StatusCode"]), "POST", path, timeout=None)

    async def memory(self, ref: str) -> int:
        """Bytes in RAM that a dump must carry: anonymous and shared memory, without the cache of files."""
        params = {"stream": False, "one-shot": True}
        return await self.ask(docker_model.memory, "GET", path_of("containers", ref, "stats"), params=params)

    async def running_execs(self, found: Container) -> tuple[Exec, ...]:
        """Commands that run in it beside its own: `docker exec`, and probes of its health."""
        paths = [path_of("exec", exec_id, "json") for exec_id in found.exec_ids]
        asked = [await self.ask_for(docker_model.running_exec, path) for path in paths]
        return tuple(entry for entry in asked if entry is not None and entry.running)

    # Images

    async def image(self, ref: str) -> Image | None:
        return await self.ask_for(docker_model.image, path_of("images", ref, "json"))

    async def images(self) -> tuple[Image, ...]:
        ids = await self.ask(lambda rows: sorted({row["Id"] for row in rows}), "GET", "images/json")
        found = [await self.image(image_id) for image_id in ids]
        return tuple(entry for entry in found if entry is not None)

    async def save_image(self, ref: str) -> AsyncGenerator[bytes, None]:
        """The image as a `docker save` tarball; read no faster than it is taken. Has no deadline."""
        async with self.call("GET", path_of("images", ref, "get"), timeout=None) as response:
            async for chunk in response.content.iter_chunked(CHUNK):
                yield chunk

    async def load_image(self, chunks: AsyncIterator[bytes]) -> tuple[str, ...]:
        """Load a `docker save` tarball as it comes in; the names or ids loaded. Has no deadline.

        Raises:
            Exception: whatever `chunks` raised; dockerd has then seen the connection break, not an end.

        """
        broken: list[Exception] = []

        async def watched() -> AsyncIterator[bytes]:
            try:
                async for chunk in chunks:
                    yield chunk
            except Exception as error:
                broken.append(error)
                raise

        try:
            params = {"quiet": True}
            async with self.call("POST", "images/load", params=params, data=watched(), timeout=None) as response:
                loaded = _loaded([line async for line in docker_events.lines(response.content.iter_any())])
        except DockerFailed:
            if broken:
                raise broken[0] from None  # whatever dockerd made of the half that it got
            raise
        if broken:
            raise broken[0]
        return loaded

    async def tag_image(self, ref: str, repo: str, tag: str = "latest") -> None:
        await self.do("POST", path_of("images", ref, "tag"), params={"repo": repo, "tag": tag})

    async def remove_image(self, ref: str, force: bool = False) -> None:
        await self.do("DELETE", path_of("images", ref), params={"force": force}, fine=(NOT_FOUND,))

    # Networks and volumes

    async def network(self, ref: str) -> Network | None:
        return await self.ask_for(docker_model.network, path_of("networks", ref))

    async def networks(self) -> tuple[Network, ...]:  # without the addresses that are taken
        return await self.ask(lambda rows: tuple(map(docker_model.network, rows)), "GET", "networks")

    async def create_network(self, body: Json) -> str:
        return await self.ask(lambda done: str(done["Id"]), "POST", "networks/create", body=body)

    async def remove_network(self, ref: str) -> None:
        await self.do("DELETE", path_of("networks", ref), fine=(NOT_FOUND,))

    async def disconnect(self, network: str, endpoint: str) -> None:
        """Make sure that it has no endpoint of that name, by force; not for one whose container is there."""
        body = {"Container": endpoint, "Force": True}
        await self.do("POST", path_of("networks", network, "disconnect"), body=body, fine=(NOT_FOUND,))

    async def volume(self, name: str) -> Volume | None:
        return await self.ask_for(docker_model.volume, path_of("volumes", name))

    async def create_volume(self, body: Json) -> Volume:
        return await self.ask(docker_model.volume, "POST", "volumes/create", body=body)

    async def remove_volume(self, name: str, force: bool = False) -> None:
        await self.do("DELETE", path_of("volumes", name), params={"force": force}, fine=(NOT_FOUND,))


def _loaded(said: list[bytes]) -> tuple[str, ...]:
    names: list[str] = []
    for line in said:
        word = json.loads(line)
        if "error" in word:
            raise DockerFailed(str(word["error"]).strip(), http_status=200)
        title, _, name = word.get("stream", "").strip().partition(": ")
        if title in ("Loaded image", "Loaded image ID"):
            names.append(name)
    return tuple(names)
