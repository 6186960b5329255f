# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""The line between supervisor and workers, over a real Unix socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from nas_assistant.admission import Admission
from nas_assistant.control import Backend, ControlClient, ControlServer
from nas_assistant.engine import EngineBusy, EngineUnavailable, LoadedModel

BACKEND = Backend(LoadedModel("default", True, 1), "/engine.sock", "secret")


@asynccontextmanager
async def _line(path: Path, slots: int, queue: int) -> AsyncIterator[ControlServer]:
    server = ControlServer(Admission(slots, queue))
    await server.start(path / "control.sock")
    server.publish({"default": BACKEND}, "")
    yield server
    await server.close()


def _never() -> None:
    raise AssertionError("the line was lost")


async def _client(path: Path, lost: Callable[[], None] = _never) -> ControlClient:
    client = ControlClient(path / "control.sock", lost)
    await client.connect()
    return client


async def _hold(client: ControlClient, stack: AsyncExitStack) -> Backend:
    return await stack.enter_async_context(client.slot("default", "owner"))


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.01)


async def check_two_workers_share_the_limit(path: Path) -> None:
    async with _line(path, slots=1, queue=1), AsyncExitStack() as held:
        first, second = await _client(path), await _client(path)
        assert await _hold(first, held) == BACKEND
        other = AsyncExitStack()
        waiting = asyncio.create_task(_hold(second, other))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        with pytest.raises(EngineBusy):
            await _hold(first, held)
        await held.aclose()
        assert await waiting == BACKEND
        await other.aclose()
        await first.close()
        await second.close()


async def check_a_worker_that_dies_gives_everything_back(path: Path) -> None:
    async with _line(path, slots=1, queue=4), AsyncExitStack() as stack:
        first, second = await _client(path), await _client(path)
        await _hold(first, stack)
        behind = asyncio.create_task(_hold(first, AsyncExitStack()))
        waiting = asyncio.create_task(_hold(second, stack))
        await asyncio.sleep(0.05)
        await first.close()
        assert await waiting == BACKEND
        with pytest.raises(EngineUnavailable, match="supervisor"):
            await behind
        await second.close()


async def check_a_cancelled_waiter_leaves_the_queue(path: Path) -> None:
    async with _line(path, slots=1, queue=1), AsyncExitStack() as stack:
        client = await _client(path)
        await _hold(client, stack)
        waiting = asyncio.create_task(_hold(client, stack))
        await asyncio.sleep(0.05)
        waiting.cancel()
        await asyncio.sleep(0.05)
        following = asyncio.create_task(_hold(client, AsyncExitStack()))
        await asyncio.sleep(0.05)
        assert not following.done()
        following.cancel()
        await client.close()


async def check_a_lost_engine_empties_the_queue(path: Path) -> None:
    async with _line(path, slots=1, queue=4) as server, AsyncExitStack() as stack:
        client = await _client(path)
        await _hold(client, stack)
        waiting = asyncio.create_task(_hold(client, stack))
        await asyncio.sleep(0.05)
        server.publish({}, "the engine ended")
        with pytest.raises(EngineUnavailable, match="the engine ended"):
            await waiting
        assert (client.state.ready, client.state.reason) == (False, "the engine ended")
        with pytest.raises(EngineUnavailable):
            await _hold(client, stack)
        server.publish({"default": BACKEND}, "")
        await _until(lambda: client.state.ready)
        await client.close()


async def check_nonsense_drops_only_its_own_connection(path: Path) -> None:
    async with _line(path, slots=1, queue=1), AsyncExitStack() as stack:
        client = await _client(path)
        for nonsense in (b"junk\n", b"[]\n", b'{"op":"x","id":1}\n', b"x" * 100_000 + b"\n"):
            reader, writer = await asyncio.open_unix_connection(str(path / "control.sock"))
            writer.write(nonsense)
            assert b"state" in await reader.readline()
            assert await reader.read() == b""
            writer.close()
        assert await _hold(client, stack) == BACKEND
        await client.close()


async def check_a_worker_notices_that_the_line_is_lost(path: Path) -> None:
    lost: list[bool] = []
    async with _line(path, slots=1, queue=1):
        client = await _client(path, lambda: lost.append(True))
        assert client.state.ready
    await _until(lambda: lost == [True])
    assert (client.state.ready, client.state.reason) == (False, "the supervisor is gone")
    await client.close()


async def check_a_worker_does_not_start_without_a_state(path: Path) -> None:
    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_unix_server(hang_up, path / "control.sock")
    client = ControlClient(path / "control.sock", lambda: None)
    with pytest.raises(ConnectionError, match="hung up"):
        await client.connect()
    await client.close()
    server.close()


@pytest.mark.parametrize(
    "check",
    [
        check_two_workers_share_the_limit,
        check_a_worker_that_dies_gives_everything_back,
        check_a_cancelled_waiter_leaves_the_queue,
        check_a_lost_engine_empties_the_queue,
        check_nonsense_drops_only_its_own_connection,
        check_a_worker_notices_that_the_line_is_lost,
        check_a_worker_does_not_start_without_a_state,
    ],
)
def test_control(tmp_path: Path, check: Callable[[Path], Awaitable[None]]) -> None:
    async def run() -> None:
        async with asyncio.timeout(10):
            await check(tmp_path)

    asyncio.run(run())
