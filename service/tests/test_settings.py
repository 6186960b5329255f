# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from nas_assistant.settings import Settings, SettingsError, TcpAddress, UnixAddress

from .conftest import minimal_config

Write = Callable[[str], Path]


def test_defaults(write_config: Write) -> None:
    settings = Settings.load(write_config(minimal_config()), {})
    assert settings.bind == (TcpAddress("0.0.0.0", 8000),)
    assert (settings.workers, settings.timeout, settings.queue) == (2, 120, 32)
    assert (settings.threads, settings.slots, settings.cache_mib) == (0, 4, 128)
    assert settings.access_log
    assert settings.model.context == 2048
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.workers = 3  # type: ignore[misc]


def test_addresses_and_inline_comment(write_config: Write) -> None:
    text = minimal_config(bind="[::]:80, unix:/run/assistant/gateway.sock   ; two of them")
    settings = Settings.load(write_config(text), {})
    assert settings.bind == (TcpAddress("::", 80), UnixAddress("/run/assistant/gateway.sock"))
    assert [str(address) for address in settings.bind] == [
        "[::]:80",
        "unix:/run/assistant/gateway.sock",
    ]


def test_environment_chooses_the_variant(write_config: Write) -> None:
    text = minimal_config() + f"[model:large]\nfile = large.gguf\nsha256 = {'1' * 64}\n"
    assert Settings.load(write_config(text), {"MODEL_VARIANT": "large"}).model.name == "large"
    assert Settings.load(write_config(text), {"MODEL_VARIANT": " "}).model.name == "default"
    with pytest.raises(SettingsError, match=r"MODEL_VARIANT = 'huge'.*default, large"):
        Settings.load(write_config(text), {"MODEL_VARIANT": "huge"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no [model:NAME] section"),
        ("junk", "no section headers"),
        (minimal_config(workers=0), "[server] workers = '0': allowed: a whole number from 1 to 16"),
        (minimal_config(workers="two"), "workers = 'two'"),
        (minimal_config(timeout="1_0"), "timeout = '1_0'"),
        (minimal_config(access_log="maybe"), "access_log = 'maybe': allowed: yes or no"),
        (minimal_config(log_level="loud"), "debug or info or warning or error"),
        (minimal_config(bind="8000"), "bind = '8000': allowed: HOST:PORT or unix:/PATH"),
        (minimal_config(bind="0.0.0.0:99999"), "bind"),
        (minimal_config(bind="::1:80"), "bind"),
        (minimal_config(bind="unix:relative.sock"), "bind"),
        (minimal_config(bind="unix:/" + "x" * 107), "bind"),
        (minimal_config(bind="a:1, a:1"), "bind"),
        (minimal_config(port=1), "[server] port = '1': unknown key; allowed: bind, workers"),
        (minimal_config() + "[extra]\na = 1\n", "[extra]: unknown section; allowed: server"),
        (minimal_config(workers="1\nworkers = 2"), "already exists"),
        (minimal_config(variant="none"), "[server] variant = 'none'"),
        (minimal_config() + "[keys]\nowner = x", "[keys]: unknown section"),
        (minimal_config().replace("tiny.gguf", "../tiny.gguf"), "file = '../tiny.gguf'"),
        (minimal_config().replace("tiny.gguf", "/etc/passwd"), "file = '/etc/passwd'"),
        (minimal_config().replace("0" * 64, "0" * 63), "sha256 ="),
        (minimal_config().replace("file = tiny.gguf", ""), "file is missing"),
        (
            minimal_config() + "chat_template = ../x\n",
            "chat_template = '../x': allowed: empty, or chatml",
        ),
        (minimal_config() + "context = 1\n", "context = '1': allowed: a whole number from 256"),
        (minimal_config().replace("[model:default]", "[model:a b]"), "[model:a b]: allowed"),
    ],
)
def test_errors_name_key_value_and_allowed(write_config: Write, text: str, message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.load(write_config(text), {})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_and_binary_file(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="does not exist"):
        Settings.load(tmp_path / "none.ini", {})
    with pytest.raises(SettingsError, match="cannot be read"):
        Settings.load(tmp_path, {})
    (tmp_path / "binary.ini").write_bytes(b"\xff\xfe")
    with pytest.raises(SettingsError, match="not UTF-8"):
        Settings.load(tmp_path / "binary.ini", {})
