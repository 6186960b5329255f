# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Models that come and go as they are asked for: the real supervisor's side and a real line to it,
with engines that are stand-ins.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from nas_assistant import engines as module
from nas_assistant import pool
from nas_assistant.admission import Admission
from nas_assistant.checks import Checked, CheckedModel
from nas_assistant.control import Backend, ControlClient, ControlServer
from nas_assistant.desk import Desk
from nas_assistant.engine import EngineUnavailable, Kind, Model
from nas_assistant.engine_process import EngineFailed
from nas_assistant.engines import Engines
from nas_assistant.keys import KeyRing
from nas_assistant.memory import MemoryNeed
from nas_assistant.metrics import Metrics
from nas_assistant.settings import Settings
from nas_assistant.state import Ledger

from .conftest import api_key, call_of, minimal_config, settled

NAMES = ("default", "large", "other")


class StandIn:
    """An engine that does nothing. ``broken`` ones fail; ``ends`` lets one end by its model."""

    running: list[str] = []  # noqa: RUF012 - of all of them
    most: int = 0
    broken: set[str] = set()  # noqa: RUF012
    ends: dict[str, asyncio.Event] = {}  # noqa: RUF012
    verified: list[str] = []  # noqa: RUF012

    def __init__(self, _: object, model: CheckedModel, *__: object) -> None:
        self.name = model.settings.name
        self.backend = Backend(model.model, f"/{self.name}.sock", "key")

    async def start(self) -> None:
        await asyncio.sleep(0.01)
        if self.name in StandIn.broken:
            raise EngineFailed("the engine ended with exit code 1 | no such tensor")
        StandIn.running.append(self.name)
        StandIn.most = max(StandIn.most, len(StandIn.running))
        StandIn.ends[self.name] = asyncio.Event()

    async def end(self) -> str:
        await StandIn.ends[self.name].wait()
        return "the engine ended with signal SIGKILL | last words"

    async def stop(self) -> None:
        if self.name in StandIn.running:
            StandIn.running.remove(self.name)

    def kill(self) -> None:
        pass


@pytest.fixture
def settings(write_config: Callable[[str], Path]) -> Settings:
    extra = [f"[model:{name}]\nfile = {name}.gguf\nsha256 = {'1' * 64}" for name in NAMES[1:]]
    return settled(Settings.load(write_config(minimal_config() + "\n".join(extra)), {}))


@asynccontextmanager
async def running(settings: Settings, path: Path) -> AsyncIterator[tuple[ControlClient, Engines]]:
    """Room is for two of the three."""
    models = {
        name: CheckedModel(
            settings.models[name],
            path / name,
            Model(name, Kind.CHAT, 1),
            MemoryNeed(10, 0, 0, 0, 0, 0, gateway=5),
            threads=1,
        )
        for name in NAMES
    }
    checked = Checked(settings, models, {"damaged": "it is damaged"}, room=20)
    desk = Desk(Admission(1, 8), KeyRing([api_key()]), Ledger(path), Metrics())
    control = ControlServer(desk, {})
    await control.start(path / "control.sock")
    engines = Engines(settings, checked, "wheel", path, desk, control)
    await engines.start()
    task = asyncio.create_task(engines.run())
    client = ControlClient(path / "control.sock", KeyRing(), lambda: None)
    await client.connect()
    try:
        yield client, engines
    finally:
        await client.close()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await engines.stop()
        await control.close()
    assert StandIn.running == []


async def ask(client: ControlClient, model: str) -> str:
    async with client.slot(call_of(model)) as grant:
        return grant.backend.socket


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.01)


async def check_models_come_and_go(client: ControlClient, _: Engines) -> None:
    assert StandIn.running == ["default"]
    assert await ask(client, "large") == "/large.sock"
    assert StandIn.running == ["default", "large"]
    await ask(client, "default")
    # No room for three: the one that was used longest ago goes.
    assert await ask(client, "other") == "/other.sock"
    assert sorted(StandIn.running) == ["default", "other"]
    assert await ask(client, "large") == "/large.sock"
    assert sorted(StandIn.running) == ["large", "other"]
    assert client.state.ready
    assert sorted(client.state.models) == sorted(NAMES)
    assert StandIn.most == 2


async def check_what_was_away_is_read_again(client: ControlClient, _: Engines) -> None:
    # The first of them was read before the start.
    for name in ("large", "other", "default"):
        await ask(client, name)
    assert StandIn.verified == ["large", "other", "default"]


async def check_nobody_is_cut_off_for_another(client: ControlClient, _: Engines) -> None:
    async with AsyncExitStack() as held:
        for name in ("default", "large"):
            await held.enter_async_context(client.slot(call_of(name)))
        waiting = asyncio.create_task(ask(client, "other"))
        behind = asyncio.create_task(ask(client, "default"))
        await asyncio.sleep(0.3)
        assert not waiting.done()
        assert not behind.done()
        assert StandIn.running == ["default", "large"]
        await held.aclose()
        assert await waiting == "/other.sock"
        # Who waited behind gets there too, if by another load.
        assert await behind == "/default.sock"
    assert StandIn.most == 2


async def check_all_get_their_turn(client: ControlClient, _: Engines) -> None:
    answers = [ask(client, NAMES[number % 3]) for number in range(8)]
    assert len(await asyncio.gather(*answers)) == 8
    assert StandIn.most == 2


async def check_one_that_does_not_load(client: ControlClient, _: Engines) -> None:
    StandIn.broken.add("large")
    with pytest.raises(EngineUnavailable, match=r"'large' cannot be loaded: the engine ended with"):
        await ask(client, "large")
    # Nobody tries again at once, and the others go on.
    assert "exit code 1" in client.state.unusable["large"]
    assert "no such tensor" not in client.state.unusable["large"]
    with pytest.raises(EngineUnavailable, match="cannot be loaded"):
        await ask(client, "large")
    assert await ask(client, "other") == "/other.sock"
    assert client.state.ready


async def check_one_that_ends_comes_back(client: ControlClient, engines: Engines) -> None:
    await ask(client, "large")
    StandIn.running.remove("large")
    StandIn.ends["large"].set()
    await until(lambda: "large" in client.state.unusable)
    assert client.state.ready, "the chosen one is there"
    assert engines.in_memory("large")
    with pytest.raises(EngineUnavailable, match="SIGKILL, it is being started again"):
        await ask(client, "large")
    await until(lambda: "large" in client.state.models)
    assert await ask(client, "large") == "/large.sock"
    StandIn.running.remove("default")
    StandIn.ends["default"].set()
    await until(lambda: "SIGKILL" in client.state.reason)


async def check_who_leaves_is_not_waited_for(client: ControlClient, _: Engines) -> None:
    async with AsyncExitStack() as held:
        for name in ("default", "large"):
            await held.enter_async_context(client.slot(call_of(name)))
        waiting = asyncio.create_task(ask(client, "other"))
        await asyncio.sleep(0.3)
        waiting.cancel()
        await asyncio.sleep(0.1)
    # One that was to make room is asked as before.
    assert await ask(client, "default") == "/default.sock"
    assert await ask(client, "large") == "/large.sock"
    assert sorted(StandIn.running) == ["default", "large"]


@pytest.mark.parametrize(
    "check",
    [
        check_models_come_and_go,
        check_what_was_away_is_read_again,
        check_nobody_is_cut_off_for_another,
        check_all_get_their_turn,
        check_one_that_does_not_load,
        check_one_that_ends_comes_back,
        check_who_leaves_is_not_waited_for,
    ],
)
def test_engines(
    tmp_path: Path,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    check: Callable[[ControlClient, Engines], Awaitable[None]],
) -> None:
    monkeypatch.setattr(module, "EngineProcess", StandIn)
    monkeypatch.setattr(module, "_LOOK_AGAIN", 0.05)
    monkeypatch.setattr(pool, "_MIN_STAY", 0.1)
    monkeypatch.setattr(
        CheckedModel, "verify", lambda model: StandIn.verified.append(model.settings.name)
    )
    StandIn.verified.clear()
    StandIn.running.clear()
    StandIn.broken.clear()
    StandIn.most = 0

    async def run() -> None:
        async with asyncio.timeout(20), running(settings, tmp_path) as (client, engines):
            await check(client, engines)

    asyncio.run(run())
