"""Docker: the only importer of aiodocker. What can be asked of dockerd, each call seen, bounded and renamed.

Every call goes through one gate, `_call`: printed before and after to `agent.wire`, bounded by a deadline except where
said, its errors renamed, its connection closed whatever happens. Answers leave as the dataclasses of docker_model.
What a call means for a migration is not decided here.
"""

import asyncio
import contextlib
import json
import logging
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any, Self, TypeVar
from urllib.parse import quote

import aiodocker
import aiohttp

from agent.base.errors import DockerFailed, Refused, StepTimeout
from agent.doors import docker_events, docker_model
from agent.doors.docker_events import DockerEvent
from agent.doors.docker_model import Container, Exec, Image, Json, Network, Summary, Volume
from protocol.errors import ErrorCode
from protocol.status import Engine

wire = logging.getLogger("agent.wire")
log = logging.getLogger(__name__)
T = TypeVar("T")

OLDEST_API = (1, 44)
"""Docker 25: several networks at create, a MAC address for each."""
NEWEST_API = (1, 51)
"""Docker 28.5: the newest whose fields migration/fields.py knows. Docker 29 still speaks it."""
CHUNK = 1 << 18
NOT_FOUND, CONFLICT, NO_CONNECTION = 404, 409, 900  # 900 is aiodocker's own


def unavailable(error: Exception) -> Refused | None:
    """The refusal that this error is before anything was touched; None if Docker did answer."""
    if not isinstance(error, DockerFailed) or error.http_status:
        return None
    return Refused(ErrorCode.DOCKER_UNAVAILABLE, error.message, hint=error.hint, detail=error.detail)


class Docker:
    """One dockerd. An async context manager, or `close()` it."""

    def __init__(self, url: str, timeout: float) -> None:
        self._url = url
        self._timeout = timeout
        self._opened: tuple[aiodocker.Docker, aiohttp.BaseConnector] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        opened, self._opened = self._opened, None
        if opened is not None:
            client, connector = opened
            await client.close()
            await connector.close()

    # The gate

    def _client(self) -> aiodocker.Docker:
        if self._opened is None:
            # A connection for each call: a kept one may be closed by a dockerd that restarts, just as a POST goes out.
            connector: aiohttp.BaseConnector
            if self._url.startswith("unix://"):
                connector = aiohttp.UnixConnector(self._url.removeprefix("unix://"), force_close=True, limit=0)
                client = aiodocker.Docker("unix://localhost", connector=connector)
            else:
                connector = aiohttp.TCPConnector(force_close=True, limit=0)
                client = aiodocker.Docker(self._url, connector=connector)
            self._opened = client, connector
        return self._opened[0]

    async def _negotiated(self) -> aiodocker.Docker:
        """The client, speaking the newest version that both sides know."""
        client = self._client()
        if client.api_version == "auto":
            # aiodocker would take the daemon's newest, with fields that nobody here has heard of.
            spoken = (await client._query_json("version", versioned_api=False))["ApiVersion"]
            if _version(spoken) < OLDEST_API:
                raise DockerFailed(f"Docker's API {spoken} is too old", hint="Docker 25 or newer is needed")
            client.api_version = "v{}.{}".format(*min(_version(spoken), NEWEST_API))
        return client

    @contextlib.asynccontextmanager
    async def _call(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str | bool | int] | None = None,
        body: Json | None = None,
        data: AsyncIterator[bytes] | None = None,
        timeout: float | None,
        streams: bool = False,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Ask, and hand out the answer; with `streams` the deadline ends with its headers.

        Raises:
            DockerFailed: Docker said no, in its own words; or could not be reached (`unavailable` tells).
            StepTimeout: it took longer than `timeout` seconds.

        """
        shown = _shown(method, path, params or {})
        wire.debug("> docker %s", shown)  # never the body: an environment holds passwords
        began, status = time.monotonic(), 0
        try:
            with self._renamed(shown, timeout):
                async with asyncio.timeout(timeout) as deadline:
                    client = await self._negotiated()
                    query = client._query(
                        path,
                        method,
                        params=params,
                        data=json.dumps(body) if body is not None else data,
                        headers={"Content-Type": "application/x-tar" if data is not None else "application/json"},
                        timeout=None,
                    )
                    async with query as response:
                        status = response.status
                        if streams:
                            deadline.reschedule(None)
                        try:
                            yield response
                        finally:
                            response.close()
        except DockerFailed as error:
            status = status or error.http_status
            raise
        finally:
            wire.debug("= %s in %.3f s (%s)", status or "no answer", time.monotonic() - began, shown)

    @contextlib.contextmanager
    def _renamed(self, shown: str, seconds: float | None) -> Iterator[None]:
        try:
            yield
        except aiodocker.DockerError as error:
            if error.status != NO_CONNECTION:
                raise DockerFailed(_sentence(error.message), http_status=error.status) from error
            raise self._lost(f"Docker can't be reached at {self._url}", error) from error
        except TimeoutError:
            raise StepTimeout(f"Docker did not answer {shown} within {seconds:g} s") from None
        except (aiohttp.ClientError, ConnectionError) as error:
            raise self._lost(f"the connection to Docker broke during {shown}", error) from error

    def _lost(self, message: str, error: Exception) -> DockerFailed:
        if self._opened is not None:
            self._opened[0].api_version = "auto"  # it may come back as another version
        return DockerFailed(message, hint="is dockerd running, and may this agent use its socket?", detail=[str(error)])

    async def _ask(self, parse: Callable[[Any], T], method: str, path: str, **kwargs: Any) -> T:
        async with self._call(method, path, **{"timeout": self._timeout, **kwargs}) as response:
            answer = await response.read()
        try:
            return parse(json.loads(answer))
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise DockerFailed(f"Docker's answer to {method} /{path} is not understood: {error!r}") from error

    async def _ask_for(self, parse: Callable[[Any], T], path: str) -> T | None:
        """Get a thing that need not be there."""
        try:
            return await self._ask(parse, "GET", path)
        except DockerFailed as error:
            if error.http_status == NOT_FOUND:
                return None
            raise

    async def _do(self, method: str, path: str, *, fine: tuple[int, ...] = (), **kwargs: Any) -> bool:
        """Have something done; False where the status is one of those that mean: so it is already."""
        try:
            async with self._call(method, path, **{"timeout": self._timeout, **kwargs}) as response:
                await response.read()
        except DockerFailed as error:
            if error.http_status in fine:
                return False
            raise
        return True

    # The engine

    async def engine(self, runtime: str = "transship") -> Engine:
        """What dockerd is; CRIU is not Docker's to know."""
        version = await self._ask(dict, "GET", "version")
        return await self._ask(lambda info: docker_model.engine(version, info, runtime), "GET", "info")

    async def data_root(self) -> str:
        """Docker's folder; below userns-remap that of the remapped user."""
        return await self._ask(lambda info: str(info["DockerRootDir"]), "GET", "info")

    async def volume_drivers(self) -> tuple[str, ...]:
        return await self._ask(docker_model.volume_drivers, "GET", "info")

    @contextlib.asynccontextmanager
    async def events(self, since: int | None = None) -> AsyncIterator[AsyncIterator[DockerEvent]]:
        """Subscribe; within the block, the events from `since` (nanoseconds, inclusive) on.

        dockerd drops events for a reader that is slow: read on, whatever there is to do about them. The iterator never
        ends by itself: when dockerd goes away it raises DockerFailed.
        """
        params = {} if since is None else {"since": docker_events.since(since)}
        async with self._call("GET", "events", params=params, timeout=self._timeout, streams=True) as response:
            yield self._events(response)

    async def _events(self, response: aiohttp.ClientResponse) -> AsyncIterator[DockerEvent]:
        with self._renamed("GET /events", None):
            async for line in docker_events.lines(response.content.iter_any()):
                try:
                    event = docker_events.parse(line)
                except ValueError as error:
                    log.warning("skipped an event: %s: %r", error, line[:200])
                    continue
                yield event
        raise self._lost("Docker's stream of events ended", EOFError("end of stream"))

    # Containers

    async def inspect(self, ref: str) -> Container:
        return await self._ask(docker_model.container, "GET", _path("containers", ref, "json"))

    async def find(self, ref: str) -> Container | None:
        return await self._ask_for(docker_model.container, _path("containers", ref, "json"))

    async def list(self, all: bool = True) -> tuple[Summary, ...]:  # noqa: A002 - Docker's word
        """Does not wait for a container that is just being started, as `inspect` does."""
        return await self._ask(lambda rows: tuple(map(docker_model.summary, rows)), "GET", _LIST, params={"all": all})

    async def create(self, name: str, body: Json) -> str:
        return await self._ask(lambda done: str(done["Id"]), "POST", _CREATE, params={"name": name}, body=body)

    async def start(self, ref: str) -> None:
        """Has no deadline: on a target the runtime holds it until the images are there."""
        await self._do("POST", _path("containers", ref, "start"), timeout=None)

    async def stop(self, ref: str, signal: str = "", seconds: int | None = None) -> None:
        """Waits as long as the container takes: `seconds`, or its own stop timeout, and then the kill."""
        params: dict[str, str | int] = {}
        if signal:
            params["signal"] = signal
        if seconds is not None:
            params["t"] = seconds
        limit = None if seconds is None else seconds + self._timeout
        await self._do("POST", _path("containers", ref, "stop"), params=params, timeout=limit, fine=(NOT_FOUND,))

    async def kill(self, ref: str, signal: str = "SIGKILL") -> bool:
        """False if there was nothing to send it to."""
        path = _path("containers", ref, "kill")
        return await self._do("POST", path, params={"signal": signal}, fine=(NOT_FOUND, CONFLICT))

    async def remove(self, ref: str, force: bool = True, volumes: bool = False) -> None:
        """Make sure that it is gone."""
        try:
            params = {"force": force, "v": volumes}
            await self._do("DELETE", _path("containers", ref), params=params, fine=(NOT_FOUND,))
        except DockerFailed as error:
            if error.http_status != CONFLICT or "already in progress" not in error.message:
                raise
            path = _path("containers", ref, "wait")
            await self._do("POST", path, params={"condition": "removed"}, fine=(NOT_FOUND,))

    async def rename(self, ref: str, name: str) -> None:
        await self._do("POST", _path("containers", ref, "rename"), params={"name": name})

    async def set_restart_policy(self, ref: str, policy: Json) -> None:
        await self._do("POST", _path("containers", ref, "update"), body={"RestartPolicy": dict(policy)})

    async def wait_exit(self, ref: str) -> int:
        """Has no deadline. The exit code."""
        path = _path("containers", ref, "wait")
        return await self._ask(lambda end: int(end["StatusCode"]), "POST", path, timeout=None)

    async def memory(self, ref: str) -> int:
        """Bytes in RAM that a dump must carry: anonymous and shared memory, without the cache of files."""
        params = {"stream": False, "one-shot": True}
        return await self._ask(docker_model.memory, "GET", _path("containers", ref, "stats"), params=params)

    async def running_execs(self, found: Container) -> tuple[Exec, ...]:
        """Commands that run in it beside its own: `docker exec`, and probes of its health."""
        paths = [_path("exec", exec_id, "json") for exec_id in found.exec_ids]
        asked = [await self._ask_for(docker_model.running_exec, path) for path in paths]
        return tuple(entry for entry in asked if entry is not None and entry.running)

    # Images

    async def image(self, ref: str) -> Image | None:
        return await self._ask_for(docker_model.image, _path("images", ref, "json"))

    async def images(self) -> tuple[Image, ...]:
        ids = await self._ask(lambda rows: sorted({row["Id"] for row in rows}), "GET", "images/json")
        found = [await self.image(image_id) for image_id in ids]
        return tuple(entry for entry in found if entry is not None)

    async def save_image(self, ref: str) -> AsyncIterator[bytes]:
        """The image as a `docker save` tarball; read no faster than it is taken. Has no deadline."""
        async with self._call("GET", _path("images", ref, "get"), timeout=None) as response:
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
            async with self._call("POST", "images/load", params=params, data=watched(), timeout=None) as response:
                loaded = _loaded([line async for line in docker_events.lines(response.content.iter_any())])
        except DockerFailed:
            if broken:
                raise broken[0] from None  # whatever dockerd made of the half that it got
            raise
        if broken:
            raise broken[0]
        return loaded

    async def tag_image(self, ref: str, repo: str, tag: str = "latest") -> None:
        await self._do("POST", _path("images", ref, "tag"), params={"repo": repo, "tag": tag})

    async def remove_image(self, ref: str, force: bool = False) -> None:
        await self._do("DELETE", _path("images", ref), params={"force": force}, fine=(NOT_FOUND,))

    # Networks and volumes

    async def network(self, ref: str) -> Network | None:
        return await self._ask_for(docker_model.network, _path("networks", ref))

    async def networks(self) -> tuple[Network, ...]:  # without the addresses that are taken
        return await self._ask(lambda rows: tuple(map(docker_model.network, rows)), "GET", "networks")

    async def create_network(self, body: Json) -> str:
        return await self._ask(lambda done: str(done["Id"]), "POST", "networks/create", body=body)

    async def remove_network(self, ref: str) -> None:
        await self._do("DELETE", _path("networks", ref), fine=(NOT_FOUND,))

    async def volume(self, name: str) -> Volume | None:
        return await self._ask_for(docker_model.volume, _path("volumes", name))

    async def create_volume(self, body: Json) -> Volume:
        return await self._ask(docker_model.volume, "POST", "volumes/create", body=body)

    async def remove_volume(self, name: str, force: bool = False) -> None:
        await self._do("DELETE", _path("volumes", name), params={"force": force}, fine=(NOT_FOUND,))


_LIST, _CREATE = "containers/json", "containers/create"
_ID = re.compile(r"[0-9a-f]{64}")


def _path(*parts: str) -> str:
    return "/".join(quote(part, safe="/:@") for part in parts)


def _shown(method: str, path: str, params: Mapping[str, str | bool | int]) -> str:
    query = "&".join(f"{key}={int(said) if isinstance(said, bool) else said}" for key, said in params.items())
    return _ID.sub(lambda match: match[0][:12], f"{method} /{path}{'?' if query else ''}{query}")


def _sentence(said: str) -> str:
    """Docker's words; aiodocker takes them out of their JSON only if its content type is written just so."""
    with contextlib.suppress(ValueError, LookupError, TypeError):
        said = json.loads(said)["message"]
    return said.strip()


def _version(text: str) -> tuple[int, int]:
    major, minor = text.split(".")[:2]
    return int(major), int(minor)


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
