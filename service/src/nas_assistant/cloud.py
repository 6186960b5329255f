# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""A gateway worker's client of upstreams: any API that speaks OpenAI's."""

from __future__ import annotations

import asyncio
import random
import ssl
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import aiohttp
import certifi

from nas_assistant.control import Backend
from nas_assistant.engine import Call, EngineUnavailable, Outcome
from nas_assistant.errors import ApiError, from_cloud
from nas_assistant.settings import Upstream

_CONNECT_SECONDS = 10
_LONGEST_ANSWER = 16 << 20
# A head, a whole answer, may take so many times as long as its silence: 600 s by default, which is
# what OpenAI's clients wait.
_TIMES_SILENCE = 10
# And one event of a stream so many times.
_EVENT_TIMES_SILENCE = 2
# Worth another try: overloaded, or a gateway on the way that lost it.
_PASSING = (429, 500, 502, 503, 504)
# Nothing of the request was read.
_NOT_SENT = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)
# An upstream that asks for more patience than this is not asked again.
_LONGEST_WAIT = 8.0


class Cloud:
    """Asks upstreams. Connections are kept between requests: TLS costs several round trips."""

    def __init__(self, upstreams: Mapping[str, Upstream]) -> None:
        self._upstreams = upstreams
        self._sessions: dict[tuple[str, str], aiohttp.ClientSession] = {}

    async def close(self) -> None:
        """Hang up on all of them."""
        for session in self._sessions.values():
            await session.close()

    @asynccontextmanager
    async def ask(self, backend: Backend, call: Call) -> AsyncIterator[CloudAnswer]:
        """Send a call; try again what may pass. Raises EngineUnavailable."""
        upstream = self._upstreams[backend.model.upstream]
        response = await self._send(upstream, backend, call)
        try:
            yield CloudAnswer(response, upstream, backend.api_key, call.stream)
        finally:
            response.close()

    async def _send(
        self, upstream: Upstream, backend: Backend, call: Call
    ) -> aiohttp.ClientResponse:
        try:
            session = self._session(upstream, backend.certificates)
        except OSError as error:  # no descriptor to be had for the certificates just now
            raise EngineUnavailable(_complaint(upstream, error)) from error
        sent = False
        for attempt in range(upstream.retries + 1):
            last = attempt == upstream.retries
            # Full jitter, so that those who failed together do not come back together.
            wait = random.uniform(0, min(_LONGEST_WAIT, 0.5 * 2**attempt))
            try:
                async with asyncio.timeout(upstream.timeout * _TIMES_SILENCE):
                    response = await session.post(
                        upstream.url + call.path.removeprefix("/v1"),
                        data=call.body,
                        headers={"Authorization": f"Bearer {backend.api_key}"},
                        # Elsewhere the key has no business.
                        allow_redirects=False,
                    )
            except (aiohttp.ClientError, TimeoutError) as error:
                # Who took the request and says nothing is not asked to do it all twice.
                silent = isinstance(error, TimeoutError) and not isinstance(error, _NOT_SENT)
                hopeless = isinstance(error, aiohttp.ClientSSLError)
                sent = sent or not isinstance(error, _NOT_SENT)
                if last or silent or hopeless:
                    raise EngineUnavailable(_complaint(upstream, error), sent=sent) from error
            else:
                sent = True
                asked = response.headers.get("Retry-After", "")
                wait = max(wait, float(asked) if asked.isdecimal() else 0.0)
                if response.status not in _PASSING or last or wait > _LONGEST_WAIT:
                    return response
                response.close()
            await asyncio.sleep(wait)
        raise AssertionError("the last attempt returns or raises")

    def _session(self, upstream: Upstream, certificates: str) -> aiohttp.ClientSession:
        kept = self._sessions.get((upstream.name, certificates))
        if kept is None:
            context = ssl.create_default_context(cafile=certifi.where())
            if certificates:
                context.load_verify_locations(cadata=certificates)
            kept = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=context, limit=0),
                headers={"Content-Type": "application/json"},
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(
                    total=None, connect=_CONNECT_SECONDS, sock_read=upstream.timeout
                ),
            )
            self._sessions[upstream.name, certificates] = kept
        return kept


class CloudAnswer:
    """Implements ``engine.EngineAnswer``."""

    def __init__(
        self, response: aiohttp.ClientResponse, upstream: Upstream, key: str, stream: bool
    ) -> None:
        self._response = response
        self._upstream = upstream
        self._key = key.encode()
        self.outcome = Outcome(response.status)
        wanted = "text/event-stream" if stream else "application/json"
        if response.status == 200 and response.content_type != wanted:
            raise EngineUnavailable(
                f"the cloud {upstream.name!r} answers with {response.content_type} instead of "
                f"{wanted}: its url may be wrong",
                sent=True,
            )

    @property
    def status(self) -> int:
        """The upstream's HTTP status."""
        return self._response.status

    def explain(self, body: bytes) -> ApiError:
        """See ``engine.EngineAnswer.explain``."""
        # It may repeat the key that it does not like.
        body = body.replace(self._key, b"***")
        return from_cloud(self._upstream.name, self.status, self._response.headers, body)

    async def read(self) -> bytes:
        """The whole body."""
        body = bytearray()
        try:
            async with asyncio.timeout(self._upstream.timeout * _TIMES_SILENCE):
                async for chunk in self._response.content.iter_any():
                    body += chunk
                    if len(body) > _LONGEST_ANSWER:
                        raise EngineUnavailable(
                            f"the cloud {self._upstream.name!r} answers with more than "
                            f"{_LONGEST_ANSWER >> 20} MiB",
                            sent=True,
                        )
        except (aiohttp.ClientError, TimeoutError) as error:
            raise EngineUnavailable(_complaint(self._upstream, error), sent=True) from error
        return bytes(body)

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it comes, with the line ends that the engine has."""
        held, last = b"", b""
        pieces = aiter(self._response.content.iter_any())
        # Only while it is the upstream that is waited for, not who reads.
        most = float(self._upstream.timeout * _EVENT_TIMES_SILENCE)
        patience = most
        try:
            while True:
                began = time.monotonic()
                async with asyncio.timeout(patience):
                    chunk = await anext(pieces, None)
                if chunk is None:
                    return
                patience -= time.monotonic() - began
                whole = held + chunk
                held = b"\r" if whole.endswith(b"\r") else b""
                whole = whole.removesuffix(b"\r").replace(b"\r\n", b"\n")
                if b"\n\n" in last + whole:
                    patience = most
                last = whole[-1:] or last
                yield whole
        except (aiohttp.ClientError, TimeoutError) as error:
            raise EngineUnavailable(_complaint(self._upstream, error), sent=True) from error


def _complaint(upstream: Upstream, error: Exception) -> str:
    if isinstance(error, aiohttp.SocketTimeoutError):
        return f"the cloud {upstream.name!r} said nothing for {upstream.timeout} s"
    if type(error) is TimeoutError:
        return f"the cloud {upstream.name!r} sends too slowly"
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return (
            f"the cloud {upstream.name!r} has a certificate that is not good: "
            f"{error.certificate_error}"
        )
    if isinstance(error, aiohttp.ClientConnectionError):
        return f"the cloud {upstream.name!r} cannot be reached: {error or type(error).__name__}"
    return f"the cloud {upstream.name!r} broke off: {error or type(error).__name__}"
