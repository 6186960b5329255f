# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""What the supervisor knows of upstreams: their keys, and when they are left alone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from nas_assistant.admission import Admission
from nas_assistant.breaker import Breaker
from nas_assistant.control import ControlClient, ControlServer
from nas_assistant.desk import Desk
from nas_assistant.engine import EngineBusy, EngineUnavailable, Outcome
from nas_assistant.keys import KeyRing, KeysError
from nas_assistant.metrics import Metrics
from nas_assistant.settings import Settings
from nas_assistant.state import Ledger
from nas_assistant.upstream_keys import UpstreamKey, load
from nas_assistant.upstreams import Upstreams

from .conftest import HYBRID, api_key, call_of, minimal_config, settled


def test_a_breaker_waits_longer_each_time() -> None:
    breaker = Breaker()
    assert [breaker.failed() for _ in range(7)] == [0, 0, 30, 60, 120, 240, 300]
    breaker.succeeded()
    assert [breaker.failed() for _ in range(3)] == [0, 0, 30]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "must be an object with an object"),
        ("[]", "must be an object with an object"),
        ('{"upstreams": []}', "must be an object with an object"),
        ("{", "is not JSON"),
        ('{"upstreams": {}}', "example: an object with key is wanted"),
        ('{"upstreams": {"example": {"key": "a", "x": 1}}}', "an object with key is wanted"),
        ('{"upstreams": {"example": {"key": ""}}}', "key must be one word"),
        ('{"upstreams": {"example": {"key": "sk-secret two"}}}', "key must be one word"),
        ('{"upstreams": {"example": {"key": "a", "certificates": 1}}}', "must be text"),
        ('{"upstreams": {"example": {"key": "a", "certificates": "x"}}}', "are not PEM"),
        ('{"upstreams": {"example": {"key": "a", "certificates": "é"}}}', "are not PEM"),
    ],
)
def test_what_is_no_key_of_an_upstream(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "upstreams.json"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(KeysError) as caught:
        load(path, ["example"])
    assert message in str(caught.value)
    assert "sk-secret" not in str(caught.value)


def test_no_upstream_needs_no_file(tmp_path: Path) -> None:
    assert load(tmp_path / "none.json", []) == {}


def test_a_key_is_in_no_text_of_it() -> None:
    assert "sk-secret" not in repr(UpstreamKey("sk-secret"))


async def check(settings: Settings, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nas_assistant.breaker._FIRST_PAUSE", 0.3)
    desk = Desk(Admission(4, 4), KeyRing([api_key()]), Ledger(folder), Metrics())
    server = ControlServer(desk, {"metrics": desk.metrics})
    upstreams = Upstreams(settings, {"example": UpstreamKey("one")}, desk, server)
    await server.start(folder / "control.sock")
    upstreams.start()
    client = ControlClient(folder / "control.sock", KeyRing(), lambda: None)
    await client.connect()
    assert client.state.models["smart"].served_by == "cloud:example"

    async with client.slot(call_of("smart")) as grant:
        assert (grant.backend.api_key, grant.backend.socket) == ("one", "")
        # As many at once as the upstream is to have; who will not wait longer is told.
        with pytest.raises(EngineBusy):
            async with client.slot(call_of("smart", patience=0.05, fallback="busy")):
                pass
        grant.outcome = Outcome(200)
    upstreams.replace_keys({"example": UpstreamKey("two")})
    for status in (503, 503, 499, 429, 503, 502):
        async with client.slot(call_of("smart")) as grant:
            assert grant.backend.api_key == "two"
            grant.outcome = Outcome(status)
    await client.report("metrics")  # what comes before it on the line is done then
    # A client that left says nothing; an upstream that is busy is there.
    assert upstreams.report()[0]["failures"] == 2
    async with client.slot(call_of("smart")) as grant:
        grant.outcome = Outcome(500)
    with pytest.raises(EngineUnavailable, match="'example' failed 3 times in a row"):
        async with client.slot(call_of("smart")):
            pass
    assert "failed 3 times" in client.state.unusable["smart"]
    assert "failed 3 times" in upstreams.report()[0]["paused"]
    await asyncio.sleep(0.4)
    async with client.slot(call_of("smart")) as grant:
        grant.outcome = Outcome(200)
    figures = await client.report("metrics")
    assert upstreams.report()[0]["failures"] == 0
    assert 'nas_assistant_fallbacks_total{model="smart",reason="busy"} 1.0' in figures
    assert 'nas_assistant_model_ready{model="smart"} 1.0' in figures
    await client.close()
    await server.close()


def test_an_upstream_that_fails_is_left_alone(
    write_config: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settled(Settings.load(write_config(minimal_config(mode="hybrid") + HYBRID), {}))
    asyncio.run(check(settings, tmp_path, monkeypatch))
