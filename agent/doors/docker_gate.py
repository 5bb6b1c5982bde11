"""The gate to dockerd: the only importer of aiodocker. Each call seen, bounded and renamed, whatever it asks for.

A call is printed before and after to `agent.wire`, bounded by a deadline except where said, its errors renamed, its
connection closed whatever happens. What there is to ask stands in docker.py and docker_checkpoints.py.
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

from agent.base.errors import DockerFailed, StepTimeout
from agent.doors.docker_model import Json

wire = logging.getLogger("agent.wire")
T = TypeVar("T")

OLDEST_API = (1, 44)
"""Docker 25: several networks at create, a MAC address for each."""
NEWEST_API = (1, 51)
"""Docker 28.5: the newest whose fields migration/fields.py knows. Docker 29 still speaks it."""
NOT_FOUND, CONFLICT, NO_CONNECTION = 404, 409, 900  # 900 is aiodocker's own


class Gate:
    """The way to one dockerd. An async context manager, or `close()` it."""

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
    async def call(
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
            with self.renamed(shown, timeout):
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
    def renamed(self, shown: str, seconds: float | None) -> Iterator[None]:
        try:
            yield
        except aiodocker.DockerError as error:
            if error.status != NO_CONNECTION:
                raise DockerFailed(_sentence(error.message), http_status=error.status) from error
            raise self.lost(f"Docker can't be reached at {self._url}", error) from error
        except TimeoutError:
            raise StepTimeout(f"Docker did not answer {shown} within {seconds:g} s") from None
        except (aiohttp.ClientError, ConnectionError) as error:
            raise self.lost(f"the connection to Docker broke during {shown}", error) from error

    def lost(self, message: str, error: Exception) -> DockerFailed:
        if self._opened is not None:
            self._opened[0].api_version = "auto"  # it may come back as another version
        return DockerFailed(message, hint="is dockerd running, and may this agent use its socket?", detail=[str(error)])

    async def ask(self, parse: Callable[[Any], T], method: str, path: str, **kwargs: Any) -> T:
        async with self.call(method, path, **{"timeout": self._timeout, **kwargs}) as response:
            answer = await response.read()
        try:
            return parse(json.loads(answer))
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise DockerFailed(f"Docker's answer to {method} /{path} is not understood: {error!r}") from error

    async def ask_for(self, parse: Callable[[Any], T], path: str) -> T | None:
        """Get a thing that need not be there."""
        try:
            return await self.ask(parse, "GET", path)
        except DockerFailed as error:
            if error.http_status == NOT_FOUND:
                return None
            raise

    async def do(self, method: str, path: str, *, fine: tuple[int, ...] = (), **kwargs: Any) -> bool:
        """Have something done; False where the status is one of those that mean: so it is already."""
        try:
            async with self.call(method, path, **{"timeout": self._timeout, **kwargs}) as response:
                await response.read()
        except DockerFailed as error:
            if error.http_status in fine:
                return False
            raise
        return True


_ID = re.compile(r"[0-9a-f]{64}")


def path_of(*parts: str) -> str:
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
