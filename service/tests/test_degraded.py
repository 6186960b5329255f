# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""A service in mode hybrid that lacks its own model: real checks of real files, the supervisor's
side and a real line to it, with engines that are stand-ins.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from nas_assistant import checks, pool
from nas_assistant import engines as module
from nas_assistant.admission import Admission
from nas_assistant.checks import CheckedModel, StartRefused, check_start
from nas_assistant.control import ControlClient, ControlServer
from nas_assistant.desk import Desk
from nas_assistant.engine import EngineUnavailable, Kind, Outcome
from nas_assistant.engines import Engines
from nas_assistant.keys import KeyRing
from nas_assistant.metrics import Metrics
from nas_assistant.settings import Settings
from nas_assistant.state import Ledger
from nas_assistant.upstream_keys import UpstreamKey
from nas_assistant.upstreams import Upstreams

from .conftest import HYBRID, api_key, call_of, gguf_file, minimal_config
from .test_engines import StandIn, until

WHOLE = gguf_file(template="{{ x }}")
DAMAGED = WHOLE[:-1] + b"\2"
OTHER = gguf_file(template="{{ x }}", context=8192)
FILE, MODEL_IS_GONE = "tiny.gguf", "tiny.gguf does not exist"
LARGE = f"""
[model:large]
file = large.gguf
sha256 = {hashlib.sha256(OTHER).hexdigest()}
context = 2048
"""
# What is worked out from the memory would fit into any.
FIXED = """
[engine]
slots = 4
cache_mib = 128
"""
LOADING = "the model 'default' is being loaded"


@dataclass
class Running:
    """What a test has in its hands."""

    client: ControlClient
    engines: Engines
    upstreams: Upstreams
    desk: Desk
    models: Path

    def put(self, data: bytes, name: str = FILE) -> None:
        """As a download does: whole at once."""
        part = self.models / f"{name}.part"
        part.write_bytes(data)
        part.replace(self.models / name)

    async def until_degraded(self, reason: str) -> None:
        await until(lambda: reason in self.client.state.degraded)
        state = self.client.state
        assert state.ready
        assert list(state.models) == ["smart"]
        assert reason in state.unusable["default"]
        assert "nas_assistant_degraded 1.0" in self.desk.metrics()
        assert 'nas_assistant_model_ready{model="default"} 0.0' in self.desk.metrics()
        assert await self.ask("smart") == ""
        with pytest.raises(EngineUnavailable, match=reason.replace("(", r"\(")):
            await self.ask("default")

    async def until_whole(self) -> None:
        await until(lambda: not self.client.state.degraded)
        assert self.client.state.ready
        assert StandIn.running == ["default"]
        assert self.client.state.kinds["default"] is Kind.CHAT
        assert not self.client.state.unusable
        assert await self.ask("default") == "/default.sock"
        assert "nas_assistant_degraded 0.0" in self.desk.metrics()
        assert 'nas_assistant_model_ready{model="default"} 1.0' in self.desk.metrics()

    async def ask(self, model: str) -> str:
        async with self.client.slot(call_of(model)) as grant:
            return grant.backend.socket


@pytest.fixture
def write(write_config: Callable[[str], Path]) -> Callable[..., Settings]:
    def write(
        extra: str = "", context: str = "2048", sizes: str = FIXED, **server: object
    ) -> Settings:
        options = {"mode": "hybrid", "fallback_after": 1} | server
        text = minimal_config(**options).replace("0" * 64, hashlib.sha256(WHOLE).hexdigest())
        text += f"context = {context}\nfallback = smart\n{extra}{HYBRID}{sizes}"
        return Settings.load(write_config(text), {})

    return write


@pytest.fixture
def models(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    return folder


@pytest.fixture
def room_for_one(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the chosen model and ``large``, which is there."""
    (models / "large.gguf").write_bytes(OTHER)
    monkeypatch.setattr(checks, "available_memory", lambda: (600 << 20, "the container's limit"))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins, and no waiting for what takes long."""
    monkeypatch.setattr(module, "EngineProcess", StandIn)
    for name in ("_LOOK_AT_FILE", "_LOOK_AGAIN", "_LOOK_AT_LOADING"):
        monkeypatch.setattr(module, name, 0.02)
    monkeypatch.setattr(module, "_CHECK_AGAIN", 0.2)
    monkeypatch.setattr(pool, "_MIN_STAY", 0.1)
    StandIn.running.clear()
    StandIn.broken.clear()
    StandIn.most = 0


@asynccontextmanager
async def running(settings: Settings, models: Path) -> AsyncIterator[Running]:
    """As the supervisor has it."""
    checked = check_start(settings, models, "source", lenient=True)
    settings = checked.settings
    desk = Desk(Admission(1, 8), KeyRing([api_key()]), Ledger(models.parent), Metrics())
    control = ControlServer(desk, {})
    await control.start(models.parent / "control.sock")
    engines = Engines(settings, checked, "source", models.parent, desk, control)
    keys = {"example": UpstreamKey("sk-there", "")}
    upstreams = Upstreams(settings, keys, desk, control)
    await engines.start()
    upstreams.start()
    task = asyncio.create_task(engines.run())
    client = ControlClient(models.parent / "control.sock", KeyRing(), lambda: None)
    await client.connect()
    try:
        yield Running(client, engines, upstreams, desk, models)
    finally:
        await client.close()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await engines.stop()
        await control.close()
    assert StandIn.running == []


Check = Callable[[Running], Awaitable[None]]
Run = Callable[[Settings, Check], None]


@pytest.fixture
def run(models: Path) -> Run:
    def run(settings: Settings, check: Check) -> None:
        async def all_of_it() -> None:
            async with asyncio.timeout(20), running(settings, models) as service:
                await check(service)

        asyncio.run(all_of_it())

    return run


@pytest.mark.parametrize(
    ("before", "reason"),
    [
        (b"", MODEL_IS_GONE),
        (WHOLE[:-1], "it is truncated"),
        (b"<html>404</html>", "it does not begin with GGUF"),
        (DAMAGED, "has SHA-256"),
        # One that makes vectors, put there by mistake.
        (gguf_file(pooling=1, causal=False), "has SHA-256"),
    ],
)
def test_a_model_that_comes_back(
    write: Callable[..., Settings], models: Path, run: Run, before: bytes, reason: str
) -> None:
    if before:
        (models / FILE).write_bytes(before)

    async def check(service: Running) -> None:
        await service.until_degraded(reason)
        assert not service.client.state.loading
        service.put(WHOLE)
        await service.until_whole()

    run(write(), check)


@pytest.mark.parametrize("before", [b"", OTHER])
def test_what_suits_one_that_comes_is_worked_out_then(
    write: Callable[..., Settings], models: Path, run: Run, before: bytes
) -> None:
    """But for slots and cache, which all others have already; also where another file was taken for
    it at the start.
    """
    settings = write(context="auto", sizes="")
    if before:
        (models / FILE).write_bytes(before)

    async def check(service: Running) -> None:
        await service.until_degraded("has SHA-256" if before else MODEL_IS_GONE)
        service.put(OTHER)
        await service.until_degraded("has SHA-256")
        service.put(WHOLE)
        await service.until_whole()
        found = service.engines.models["default"]
        assert found.settings.context == 4096
        assert found.sizing.startswith("4 slots of 4096 tokens, 128 MiB of prompt cache")

    run(settings, check)


def test_one_that_comes_and_has_no_room_beside_what_was_worked_out(
    write: Callable[..., Settings], models: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without it, as much cache was given as there may be; a start with it would give less."""
    settings = write(context="auto", sizes="", queue=8)
    (models / FILE).write_bytes(WHOLE)
    limits = (limit << 20 for limit in range(330, 900, 4))
    tight = next(limit for limit in limits if fits(settings, models, limit, monkeypatch))
    (models / FILE).unlink()

    async def check(service: Running) -> None:
        await service.until_degraded(MODEL_IS_GONE)
        service.put(WHOLE)
        await service.until_degraded("Start the service again")

    assert tight > 330 << 20
    run(settings, check)


def fits(settings: Settings, models: Path, limit: int, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(checks, "available_memory", lambda: (limit, "the container's limit"))
    return "default" in check_start(settings, models, "source", lenient=True).models


def test_one_thing_after_the_other_is_wrong(
    write: Callable[..., Settings], run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    async def check(service: Running) -> None:
        await service.until_degraded(MODEL_IS_GONE)
        service.put(b"GGUF")
        await service.until_degraded("is not a usable GGUF file")
        service.put(DAMAGED)
        await service.until_degraded("has SHA-256")
        service.put(WHOLE)
        await service.until_whole()

    caplog.set_level(logging.INFO)
    run(write(), check)
    events = [vars(record)["event"] for record in caplog.records if hasattr(record, "event")]
    # Said when it begins and when it is over, whatever came in between.
    assert events.count("degraded") == events.count("degraded_no_more") == 1
    (said,) = [each for each in caplog.records if vars(each).get("event") == "degraded"]
    assert said.levelno == logging.ERROR
    assert "'smart' answers, save for keys that stay at home" in said.getMessage()


def test_a_model_that_is_too_large_until_it_has_more_memory(
    write: Callable[..., Settings], models: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    (models / FILE).write_bytes(WHOLE)
    limit = 330 << 20
    monkeypatch.setattr(checks, "available_memory", lambda: (limit, "the container's limit"))

    async def check(service: Running) -> None:
        nonlocal limit
        await service.until_degraded("limit is 330 MiB")
        # What kind it is of is known all the same.
        assert service.client.state.kinds["default"] is Kind.CHAT
        limit = 2 << 30
        await service.until_whole()

    run(write(queue=8), check)


def test_an_engine_that_does_not_start(
    write: Callable[..., Settings], models: Path, run: Run
) -> None:
    (models / FILE).write_bytes(WHOLE)
    StandIn.broken.add("default")

    async def check(service: Running) -> None:
        await service.until_degraded("exit code 1, it is being started again")
        StandIn.broken.clear()
        await service.until_whole()
        # One that ends later is no other matter.
        StandIn.running.clear()
        StandIn.ends["default"].set()
        await service.until_degraded("SIGKILL, it is being started again")
        await service.until_whole()

    run(write(), check)


@pytest.mark.parametrize("fallback_after", [0, 1, 5])
def test_while_it_is_read_a_restart_waits_so_long(
    write: Callable[..., Settings],
    models: Path,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    fallback_after: int,
) -> None:
    (models / FILE).write_bytes(WHOLE)
    may_end = threading.Event()
    late = threading.Timer(1.5, may_end.set)
    monkeypatch.setattr(CheckedModel, "verify", lambda _: may_end.wait(10))

    async def check(service: Running) -> None:
        if fallback_after == 5:
            # It was there before anybody could ask.
            assert may_end.is_set()
        else:
            assert not may_end.is_set()
            await service.until_degraded(LOADING)
            assert service.client.state.loading
            may_end.set()
        await service.until_whole()

    late.start()
    try:
        run(write(fallback_after=fallback_after), check)
    finally:
        late.cancel()
        may_end.set()


def test_neither_can(
    write: Callable[..., Settings], run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    async def check(service: Running) -> None:
        await service.until_degraded(MODEL_IS_GONE)
        for _ in range(3):
            async with service.client.slot(call_of("smart")) as grant:
                grant.outcome = Outcome(503)
        await until(lambda: not service.client.state.ready)
        assert MODEL_IS_GONE in service.client.state.reason
        assert not service.client.state.degraded
        service.upstreams.replace_keys({"example": UpstreamKey("sk-other", "")})
        await service.until_degraded(MODEL_IS_GONE)

    caplog.set_level(logging.INFO)
    run(write(), check)
    events = [vars(record).get("event") for record in caplog.records]
    assert (events.count("degraded"), events.count("degraded_no_more")) == (2, 0)


@pytest.mark.usefixtures("room_for_one")
def test_others_make_room(write: Callable[..., Settings], run: Run) -> None:
    """For one that is to be there from the start, as they would for one that is asked for."""

    async def check(service: Running) -> None:
        await until(lambda: MODEL_IS_GONE in service.client.state.degraded)
        assert await service.ask("large") == "/large.sock"
        service.put(WHOLE)
        await until(lambda: not service.client.state.degraded)
        assert StandIn.running == ["default"]
        assert await service.ask("default") == "/default.sock"
        assert await service.ask("large") == "/large.sock"

    run(write(LARGE, queue=8), check)


@pytest.mark.usefixtures("room_for_one")
def test_room_is_kept_for_one_that_is_being_read(
    write: Callable[..., Settings], models: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until another one is asked for, as if it were there."""
    (models / FILE).write_bytes(WHOLE)
    may_end = threading.Event()

    def verify(model: CheckedModel) -> None:
        if model.settings.name == "default":
            may_end.wait(10)

    monkeypatch.setattr(CheckedModel, "verify", verify)

    async def check(service: Running) -> None:
        await until(lambda: LOADING in service.client.state.degraded)
        assert await service.ask("large") == "/large.sock"
        may_end.set()
        assert await service.ask("default") == "/default.sock"
        assert not service.client.state.degraded
        assert not service.client.state.loading
        assert StandIn.most == 1

    run(write(LARGE, queue=8), check)


def test_one_that_is_pinned_comes_later_too(
    write: Callable[..., Settings], models: Path, run: Run
) -> None:
    (models / FILE).write_bytes(WHOLE)

    async def check(service: Running) -> None:
        state = service.client.state
        assert (state.ready, state.degraded) == (True, "")
        assert "large.gguf does not exist" in state.unusable["large"]
        service.put(OTHER, "large.gguf")
        await until(lambda: "large" in service.client.state.models)
        assert sorted(StandIn.running) == ["default", "large"]

    run(write(f"{LARGE}pinned = yes\n"), check)


@pytest.mark.usefixtures("room_for_one")
def test_who_waits_for_one_that_has_no_room_any_more_is_told(
    write: Callable[..., Settings], run: Run
) -> None:
    """Beside one that is pinned, and came later."""

    async def check(service: Running) -> None:
        await until(lambda: MODEL_IS_GONE in service.client.state.degraded)
        assert await service.ask("large") == "/large.sock"
        service.put(WHOLE)
        await until(lambda: "default" in service.client.state.models)
        assert list(service.client.state.models) == ["default", "smart"]
        with pytest.raises(EngineUnavailable, match="that are pinned"):
            await service.ask("large")

    run(write(f"pinned = yes\n{LARGE}", queue=8), check)


def test_one_that_is_pinned_and_too_large_takes_no_room(
    write: Callable[..., Settings], models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What suits the others is worked out without it."""
    (models / FILE).write_bytes(WHOLE)
    (models / "large.gguf").write_bytes(OTHER)
    wide = LARGE.replace("context = 2048", "context = 8192\nkv_cache = f16\npinned = yes")
    sizes = "\n[engine]\nslots = 64\n"
    monkeypatch.setattr(checks, "available_memory", lambda: (1200 << 20, "the container's limit"))
    found = check_start(write(wide, sizes=sizes, queue=8), models, "source", lenient=True)
    assert list(found.models) == ["default"]
    assert "large" in found.unusable
    assert found.settings.cache_mib == 128


@pytest.mark.usefixtures("room_for_one")
def test_pinned_ones_go_before_the_chosen_one_where_they_do_not_fit_together(
    write: Callable[..., Settings], models: Path
) -> None:
    (models / FILE).write_bytes(WHOLE)
    settings = write(f"{LARGE}pinned = yes\n", queue=8)
    checked = check_start(settings, models, "source", lenient=True)
    assert list(checked.models) == ["default"]
    assert "need default " in checked.unusable["large"]
    with pytest.raises(StartRefused, match="Pin fewer"):
        check_start(settings, models, "source")


def test_an_old_cpu(
    write: Callable[..., Settings], models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (models / FILE).write_bytes(WHOLE)
    monkeypatch.setattr(checks, "missing_for_wheel", lambda: ("avx2",))
    checked = check_start(write(), models, "wheel", lenient=True)
    assert not checked.models
    assert "lacks avx2" in checked.unusable["default"]


@pytest.mark.parametrize(
    ("mode", "fallback"), [("local", "smart"), ("hybrid", ""), ("hybrid", "smart")]
)
@pytest.mark.parametrize("data", [b"", DAMAGED])
def test_who_is_not_lenient(
    write_config: Callable[[str], Path], models: Path, mode: str, fallback: str, data: bytes
) -> None:
    """Mode local, a model without a fallback, and whoever checks a new configuration."""
    if data:
        (models / FILE).write_bytes(data)
    text = minimal_config(mode=mode) + f"fallback = {fallback}\n" + HYBRID
    settings = Settings.load(write_config(text), {})
    nobody = mode == "local" or not fallback
    with pytest.raises(StartRefused):
        check_start(settings, models, "source", lenient=nobody)
    assert bool(settings.stand_in) is not nobody


def test_a_file_that_is_still_written_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "file"

    async def check() -> None:
        waiting = asyncio.create_task(module._until_other(path, 20, ()))
        for size in range(1, 8):
            path.write_bytes(b"x" * size)
            os.utime(path, (size, size))
            await asyncio.sleep(0.015)
            assert not waiting.done()
        await asyncio.wait_for(waiting, 5)

    asyncio.run(check())
