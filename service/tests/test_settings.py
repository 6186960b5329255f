# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from nas_assistant.addresses import TcpAddress, UnixAddress, parse_api_url
from nas_assistant.settings import AUTO, MOST_CONTEXT, Settings, SettingsError, write_worked_out

from .conftest import HYBRID, minimal_config

Write = Callable[[str], Path]


def test_defaults(write_config: Write) -> None:
    settings = Settings.load(write_config(minimal_config()), {})
    assert settings.bind == (TcpAddress("0.0.0.0", 8000),)
    assert (settings.workers, settings.timeout, settings.queue) == (2, 120, 32)
    assert (settings.threads, settings.slots, settings.cache_mib) == (0, AUTO, AUTO)
    assert settings.access_log
    assert settings.models["default"].context == AUTO
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.workers = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("context", "slots", "cache", "read"),
    [
        ("auto", "auto", "auto", (AUTO, AUTO, AUTO)),
        ("4096", "auto", "auto", (4096, AUTO, AUTO)),
        ("auto", "1", "auto", (AUTO, 1, AUTO)),
        ("auto", "auto", "0", (AUTO, AUTO, 0)),
        ("256", "64", "65536", (256, 64, 65536)),
    ],
)
def test_sizes_are_figures_or_auto_each_by_itself(
    write_config: Write, context: str, slots: str, cache: str, read: tuple[int, int, int]
) -> None:
    engine = f"[engine]\nslots = {slots}\ncache_mib = {cache}\n"
    settings = Settings.load(write_config(minimal_config() + f"context = {context}\n{engine}"), {})
    assert (settings.models["default"].context, settings.slots, settings.cache_mib) == read


@pytest.mark.parametrize("engine", ["", "[engine]\nslots = auto\nbatch = 64\n"])
def test_workers_read_what_was_worked_out(tmp_path: Path, write_config: Write, engine: str) -> None:
    """All else is as it was; a model that could not be read yet has the most that there may be."""
    gone = f"[model:gone]\nfile = gone.gguf\nsha256 = {'1' * 64}\n"
    text = minimal_config(mode="hybrid", bind="[::]:80,\n unix:/run/a.sock  ; two")
    config = write_config(text + f"fallback = smart ; 100%\n{gone}{HYBRID}{engine}")
    asked = Settings.load(config, {})
    default = dataclasses.replace(asked.models["default"], context=512)
    found = dataclasses.replace(
        asked, slots=2, cache_mib=0, models={**asked.models, "default": default}
    )
    write_worked_out(found, config, tmp_path / "copy.ini")
    gone_model = dataclasses.replace(asked.models["gone"], context=MOST_CONTEXT)
    there = {**found.models, "gone": gone_model}
    assert Settings.load(tmp_path / "copy.ini", {}) == dataclasses.replace(found, models=there)
    assert Settings.load(config, {}) == asked


def test_addresses_and_inline_comment(write_config: Write) -> None:
    text = minimal_config(bind="[::]:80, unix:/run/assistant/gateway.sock   ; two of them")
    settings = Settings.load(write_config(text), {})
    assert settings.bind == (TcpAddress("::", 80), UnixAddress("/run/assistant/gateway.sock"))
    assert [str(address) for address in settings.bind] == [
        "[::]:80",
        "unix:/run/assistant/gateway.sock",
    ]


def test_the_mode_says_who_may_answer(write_config: Write) -> None:
    def load(mode: str, **server: str) -> Settings:
        text = minimal_config(mode=mode, **server) + "fallback = smart\n" + HYBRID
        return Settings.load(write_config(text), {})

    hybrid, local, cloud = load("hybrid"), load("local"), load("cloud", variant="smart")
    assert hybrid.models.keys() == local.models.keys() == {"default"}
    assert hybrid.models["default"].fallback == "smart"
    assert hybrid.cloud_models["smart"].model == "gpt-example"
    assert hybrid.upstreams["example"].url == "http://127.0.0.1:9/v1"
    assert not hybrid.off
    assert not local.upstreams
    assert not local.cloud_models
    assert local.off.keys() == {"smart"}
    assert (cloud.model, cloud.models, list(cloud.off)) == (None, {}, ["default"])


@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        ("https://api.example.com/v1/", True),
        ("https://[2001:db8::1]:8443/v1", True),
        ("http://192.168.1.5:11434/v1", True),
        ("http://[fd00::5]/v1", True),
        ("http://desk.local:8080/v1", True),
        ("http://localhost/v1", True),
        ("http://api.example.com/v1", False),
        ("http://93.184.216.34/v1", False),
        ("http://local.example.com/v1", False),
        ("ftp://192.168.1.5/v1", False),
        ("https://user:secret@example.com/v1", False),
        ("https://example.com/v1?key=x", False),
        ("https:///v1", False),
        ("https://example.com:0/v1", False),
        ("https://example.com:99999/v1", False),
        ("https://exa mple.com/v1", False),
        ("example.com", False),
        ("", False),
    ],
)
def test_what_may_be_an_upstream(url: str, allowed: bool) -> None:
    if allowed:
        assert parse_api_url(url) == url.rstrip("/")
    else:
        with pytest.raises(ValueError, match=r"no address|Port out of range"):
            parse_api_url(url)


def test_environment_chooses_the_variant(write_config: Write) -> None:
    text = minimal_config() + f"[model:large]\nfile = large.gguf\nsha256 = {'1' * 64}\n"
    assert Settings.load(write_config(text), {"MODEL_VARIANT": "large"}).variant == "large"
    assert Settings.load(write_config(text), {"MODEL_VARIANT": " "}).variant == "default"
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
        (minimal_config(port=1), "[server] port = '1': unknown key; allowed: bind, front"),
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
        (minimal_config() + "context = Auto\n", "from 256 to 1048576, or auto"),
        (minimal_config() + "context = -1\n", "context = '-1'"),
        (minimal_config() + "[engine]\nslots = 0\n", "slots = '0': allowed: a whole number from 1"),
        (minimal_config() + "[engine]\ncache_mib = all\n", "from 0 to 65536, or auto"),
        (minimal_config() + "[engine]\nthreads = auto\n", "threads = 'auto'"),
        (minimal_config().replace("[model:default]", "[model:a b]"), "[model:a b]: allowed"),
        (minimal_config(mode="both"), "mode = 'both': allowed: local or cloud or hybrid"),
        (
            minimal_config(variant="smart") + HYBRID,
            "variant = 'smart': it is in the cloud, and mode = local sends nothing out",
        ),
        (
            minimal_config(mode="cloud") + HYBRID,
            "variant = 'default': it is on this machine, and mode = cloud loads nothing here; the "
            "configured ones are smart",
        ),
        (
            minimal_config() + HYBRID.replace("upstream = example", "upstream = none"),
            "[model:smart] upstream = 'none': there is no [upstream:none]; there are example",
        ),
        (
            minimal_config() + "fallback = default\n" + HYBRID,
            "[model:default] fallback = 'default': it must be a model with an upstream; there are "
            "smart",
        ),
        (
            minimal_config() + HYBRID.replace("http://127.0.0.1:9/v1", "http://example.com/v1"),
            "url = 'http://example.com/v1': allowed: https://HOST/PATH, or http:// for an address",
        ),
        (minimal_config() + HYBRID + "context = 4096\n", "context = '4096': unknown key; allowed"),
        (
            minimal_config() + HYBRID.replace("model = gpt-example", "kind = image"),
            "kind = 'image'",
        ),
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
