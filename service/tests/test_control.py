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
from nas_assistant.control import Backend, ControlClient, ControlServer, Grant
from nas_assistant.desk import Desk
from nas_assistant.engine import (
    EngineBusy,
    EngineUnavailable,
    Failure,
    Kind,
    Model,
    Outcome,
    QuotaExceeded,
)
from nas_assistant.keys import KeyRing
from nas_assistant.metrics import Metrics
from nas_assistant.state import Ledger

from .conftest import SECRET, api_key, call_of

RING = KeyRing([api_key()])
BACKEND = Backend(Model("default", Kind.CHAT, 1), "/engine.sock", "secret")


@asynccontextmanager
async def _line(
    path: Path, slots: int, queue: int, ring: KeyRing = RING
) -> AsyncIterator[ControlServer]:
    desk = Desk(Admission(slots, queue), ring, Ledger(path), Metrics())
    server = ControlServer(desk, {"metrics": desk.metrics})
    await server.start(path / "control.sock")
    server.publish("test", [BACKEND.model], {}, "")
    server.open(BACKEND)
    yield server
    await server.close()


def _never() -> None:
    raise AssertionError("the line was lost")


async def _client(path: Path, lost: Callable[[], None] = _never) -> ControlClient:
    client = ControlClient(path / "control.sock", KeyRing(), lost)
    await client.connect()
    return client


async def _hold(client: ControlClient, stack: AsyncExitStack) -> Grant:
    return await stack.enter_async_context(client.slot(call_of("default")))


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.01)


async def check_two_workers_share_the_limit(path: Path) -> None:
    async with _line(path, slots=1, queue=1), AsyncExitStack() as held:
        first, second = await _client(path), await _client(path)
        assert (await _hold(first, held)).backend == BACKEND
        other = AsyncExitStack()
        waiting = asyncio.create_task(_hold(second, other))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        with pytest.raises(EngineBusy):
            await _hold(first, held)
        await held.aclose()
        assert (await waiting).backend == BACKEND
        await other.aclose()
        await first.close()
        await second.close()


async def check_no_patience_takes_what_is_free(path: Path) -> None:
    async with _line(path, slots=1, queue=4), AsyncExitStack() as held:
        client = await _client(path)
        hasty = call_of("default", patience=0)
        await held.enter_async_context(client.slot(hasty))
        with pytest.raises(EngineBusy):
            await held.enter_async_context(client.slot(hasty))
        await held.aclose()
        await held.enter_async_context(client.slot(hasty))
        await held.aclose()
        await client.close()


async def check_another_try_counts_unless_the_first_did(path: Path) -> None:
    ring = KeyRing([api_key(requests_per_minute=1), api_key("other", "x", requests_per_minute=1)])
    async with _line(path, slots=1, queue=4, ring=ring) as server, AsyncExitStack() as held:
        client = await _client(path)
        with pytest.raises(EngineUnavailable) as unknown:
            await held.enter_async_context(client.slot(call_of("unknown")))
        assert not unknown.value.counted
        again = call_of("default", fallback="context")
        async with client.slot(again):
            waiting = asyncio.create_task(_hold_as(client, "other"))
            await asyncio.sleep(0.05)
            server.publish("test", [], {}, "lost")
            with pytest.raises(EngineUnavailable) as lost:
                await waiting
            assert lost.value.counted
        server.publish("test", [BACKEND.model], {}, "")
        server.open(BACKEND)
        with pytest.raises(QuotaExceeded, match="1 requests a minute"):
            await held.enter_async_context(client.slot(again))
        async with client.slot(call_of("default", fallback="busy", again=True)):
            pass
        await client.close()


async def _hold_as(client: ControlClient, key: str) -> None:
    async with client.slot(call_of("default", key)):
        pass


async def check_a_worker_that_dies_gives_everything_back(path: Path) -> None:
    async with _line(path, slots=1, queue=4), AsyncExitStack() as stack:
        first, second = await _client(path), await _client(path)
        await _hold(first, stack)
        behind = asyncio.create_task(_hold(first, AsyncExitStack()))
        waiting = asyncio.create_task(_hold(second, stack))
        await asyncio.sleep(0.05)
        await first.close()
        assert (await waiting).backend == BACKEND
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
        server.publish("test", [], {"default": "the engine ended"}, "the engine ended")
        with pytest.raises(EngineUnavailable, match="the engine ended"):
            await waiting
        assert (client.state.ready, client.state.reason) == (False, "the engine ended")
        with pytest.raises(EngineUnavailable):
            await _hold(client, stack)
        server.open(BACKEND)
        server.publish("test", [BACKEND.model], {}, "")
        await _until(lambda: client.state.ready)
        await client.close()


async def check_nonsense_drops_only_its_own_connection(path: Path) -> None:
    async with _line(path, slots=1, queue=1), AsyncExitStack() as stack:
        client = await _client(path)
        for nonsense in (b"junk\n", b"[]\n", b'{"op":"x","id":1}\n', b"x" * 100_000 + b"\n"):
            reader, writer = await asyncio.open_unix_connection(str(path / "control.sock"))
            writer.write(nonsense)
            assert b"keys" in await reader.readline()
            assert b"state" in await reader.readline()
            assert await reader.read() == b""
            writer.close()
        assert (await _hold(client, stack)).backend == BACKEND
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
    client = ControlClient(path / "control.sock", KeyRing(), lambda: None)
    with pytest.raises(ConnectionError, match="hung up"):
        await client.connect()
    await client.close()
    server.close()


async def check_a_model_that_is_not_there_is_waited_for(path: Path) -> None:
    other = Backend(Model("other", Kind.CHAT, 1), "/other.sock", "secret")
    async with _line(path, slots=1, queue=4) as server, AsyncExitStack() as stack:
        client = await _client(path)
        server.kinds["lost"] = Kind.EMBEDDING
        server.publish("test", [BACKEND.model, other.model], {"lost": "it is damaged"}, "")
        await _until(lambda: len(client.state.models) == 2)
        assert client.state.unusable == {"lost": "it is damaged"}
        assert client.state.kinds == {"lost": Kind.EMBEDDING}
        server.changed.clear()
        waiting = asyncio.create_task(stack.enter_async_context(client.slot(call_of("other"))))
        await server.changed.wait()
        assert not waiting.done()
        server.open(other)
        assert (await waiting).backend == other
        with pytest.raises(EngineUnavailable, match="it is damaged"):
            await stack.enter_async_context(client.slot(call_of("lost")))
        await client.close()


async def check_limits_of_a_key_hold_for_all_workers(path: Path) -> None:
    ring = KeyRing([api_key(parallel=1), api_key("other", "x")])
    async with _line(path, slots=4, queue=4, ring=ring), AsyncExitStack() as held:
        first, second = await _client(path), await _client(path)
        await _hold(first, held)
        with pytest.raises(QuotaExceeded, match="1 requests at once"):
            await _hold(second, held)
        await held.enter_async_context(second.slot(call_of("default", "other")))
        await held.aclose()
        await asyncio.sleep(0.05)
        await _hold(second, held)
        await held.aclose()
        await first.close()
        await second.close()


async def check_what_was_used_is_counted_once(path: Path) -> None:
    ring = KeyRing([api_key(tokens_per_day=100)])
    async with _line(path, slots=1, queue=4, ring=ring):
        client = await _client(path)
        async with client.slot(call_of("default")) as grant:
            grant.outcome = Outcome(200, 90, 10, 30, 0.4, 2.0)
        with pytest.raises(QuotaExceeded, match="has used 100"):
            await _hold(client, AsyncExitStack())
        client.note(Failure(401, "invalid_api_key"))
        client.note(Failure(429, "rate_limit_exceeded"))  # which is counted by that reason already
        client.note(Failure(500, "internal_error", had_slot=True))
        lines = (await client.report("metrics")).splitlines()
        assert sum("nas_assistant_refused_total{" in line for line in lines) == 2
        labels = 'key="owner",model="default"'
        for line in (
            f'nas_assistant_requests_total{{{labels},status="200"}} 1.0',
            'nas_assistant_tokens_total{key="owner",kind="cached",model="default"} 30.0',
            'nas_assistant_tokens_total{key="owner",kind="completion",model="default"} 10.0',
            'nas_assistant_refused_total{reason="limited"} 1.0',
            'nas_assistant_refused_total{reason="invalid_api_key"} 1.0',
            'nas_assistant_first_token_seconds_bucket{le="0.5",model="default"} 1.0',
            'nas_assistant_tokens_per_second_bucket{le="5.0",model="default"} 1.0',
            "nas_assistant_waiting 0.0",
        ):
            assert line in lines, line
        with pytest.raises(EngineUnavailable):
            await client.report("nothing")
        await client.close()


async def check_workers_know_the_keys(path: Path) -> None:
    ring = KeyRing([api_key()])
    async with _line(path, slots=1, queue=1, ring=ring) as server:
        seen = KeyRing()
        client = ControlClient(path / "control.sock", seen, lambda: None)
        await client.connect()
        assert seen.find(SECRET) == api_key()
        ring.replace([api_key("other", "x")])
        server.publish_keys()
        await _until(lambda: seen.find(SECRET) is None)
        # One that was on its way.
        with pytest.raises(QuotaExceeded, match="'owner' is no more"):
            await _hold(client, AsyncExitStack())
        await client.close()


@pytest.mark.parametrize(
    "check",
    [
        check_two_workers_share_the_limit,
        check_no_patience_takes_what_is_free,
        check_another_try_counts_unless_the_first_did,
        check_a_worker_that_dies_gives_everything_back,
        check_a_cancelled_waiter_leaves_the_queue,
        check_a_lost_engine_empties_the_queue,
        check_nonsense_drops_only_its_own_connection,
        check_a_worker_notices_that_the_line_is_lost,
        check_a_worker_does_not_start_without_a_state,
        check_a_model_that_is_not_there_is_waited_for,
        check_limits_of_a_key_hold_for_all_workers,
        check_what_was_used_is_counted_once,
        check_workers_know_the_keys,
    ],
)
def test_control(tmp_path: Path, check: Callable[[Path], Awaitable[None]]) -> None:
    async def run() -> None:
        async with asyncio.timeout(10):
            await check(tmp_path)

    asyncio.run(run())
