# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Settings of the service: one frozen object, read once from config.ini and the environment."""

from __future__ import annotations

import configparser
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeVar

from nas_assistant.keys import NAME

T = TypeVar("T")

DEFAULT_BIND = "0.0.0.0:8000"
# Templates that llama.cpp has built in, by its names. Anything else it would take for the text of a
# template and send that to the model.
CHAT_TEMPLATES = (
    *("chatml", "deepseek3", "falcon3", "gemma", "granite", "llama2", "llama3"),
    *("mistral-v1", "mistral-v3", "mistral-v7", "phi3", "phi4", "vicuna", "zephyr"),
)
KV_CACHES = ("f16", "q8_0")
LOG_LEVELS = ("debug", "info", "warning", "error")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MODEL_PREFIX = "model:"


class SettingsError(Exception):
    """The configuration is wrong; the text names the key, the value and what is allowed."""


@dataclass(frozen=True)
class TcpAddress:
    """An address to listen on. ``host`` has no brackets, also for IPv6."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class UnixAddress:
    """A Unix socket to listen on."""

    path: str

    def __str__(self) -> str:
        return f"unix:{self.path}"


Address = TcpAddress | UnixAddress


@dataclass(frozen=True)
class ModelSettings:
    """One variant. ``file`` is relative to the models folder, ``context`` is in tokens per slot.
    ``pinned``: it is in memory from the start, and stays there.
    """

    name: str
    file: str
    sha256: str
    context: int
    chat_template: str
    kv_cache: str
    pinned: bool

    @property
    def longest_body(self) -> int:
        """Bytes that a request may have: more text than any language puts into the context.

        Written words have 3 to 6 bytes in a token; tools and schemas take some more.
        """
        return self.context * 16 + (64 << 10)


@dataclass(frozen=True)
class Settings:
    """What the service is told. ``timeout``: seconds. ``threads`` 0: as many as pay off."""

    bind: tuple[Address, ...]
    workers: int
    timeout: int
    access_log: bool
    queue: int
    log_level: str
    variant: str
    threads: int
    slots: int
    cache_mib: int
    models: Mapping[str, ModelSettings]

    @property
    def model(self) -> ModelSettings:
        """The variant that is loaded at start and answers when a request names none."""
        return self.models[self.variant]

    @classmethod
    def load(cls, path: Path, environ: Mapping[str, str]) -> Settings:
        """Read ``path``; of ``environ`` only ``MODEL_VARIANT`` counts. Raises SettingsError."""
        return _Reader(path).settings(environ.get("MODEL_VARIANT", "").strip())


class _Reader:
    """Takes values out of the file one by one; what is left over at the end is a mistake."""

    def __init__(self, path: Path) -> None:
        self.path = path
        # No interpolation (a value may hold a %), and no section whose keys leak into the others.
        self.parser = configparser.ConfigParser(
            interpolation=None, default_section="", inline_comment_prefixes=(";",)
        )
        self.parser.optionxform = str  # type: ignore[assignment,method-assign]
        try:
            self.parser.read_string(path.read_text(encoding="utf-8"), source=str(path))
        except FileNotFoundError as error:
            raise SettingsError(f"{path} does not exist: mount the configuration there") from error
        except OSError as error:
            raise SettingsError(
                f"{path} cannot be read ({error.strerror}): check its owner and mode"
            ) from error
        except UnicodeDecodeError as error:
            raise SettingsError(f"{path} is not UTF-8 text (byte {error.start})") from error
        except configparser.Error as error:
            raise SettingsError(" ".join(str(error).split())) from error

    def settings(self, variant_override: str) -> Settings:
        server, engine = "server", "engine"
        models = {
            section.removeprefix(_MODEL_PREFIX): self._model(section)
            for section in self.parser.sections()
            if section.startswith(_MODEL_PREFIX)
        }
        if not models:
            raise SettingsError(
                f"{self.path} has no [model:NAME] section: at least one is required"
            )
        variant = self._take(
            server, "variant", "default", str, "the name of a [model:NAME] section"
        )
        settings = Settings(
            bind=self._take(
                server, "bind", DEFAULT_BIND, _addresses, "HOST:PORT or unix:/PATH, comma separated"
            ),
            workers=self._integer(server, "workers", 2, 1, 16),
            timeout=self._integer(server, "timeout", 120, 1, 86400),
            access_log=self._take(server, "access_log", "yes", _boolean, "yes or no"),
            queue=self._integer(server, "queue", 32, 0, 10000),
            log_level=self._take(
                server, "log_level", "info", _one_of(LOG_LEVELS), " or ".join(LOG_LEVELS)
            ),
            variant=variant_override or variant,
            threads=self._integer(engine, "threads", 0, 0, 256),
            slots=self._integer(engine, "slots", 4, 1, 64),
            cache_mib=self._integer(engine, "cache_mib", 128, 0, 65536),
            models=models,
        )
        self._refuse_leftovers()
        if settings.variant not in models:
            where = (
                "the environment variable MODEL_VARIANT"
                if variant_override
                else f"{self.path} [server] variant"
            )
            raise SettingsError(
                f"{where} = {settings.variant!r}: there is no such model; the configured ones are "
                f"{', '.join(sorted(models))}"
            )
        return settings

    def _model(self, section: str) -> ModelSettings:
        name = section.removeprefix(_MODEL_PREFIX)
        if not NAME.fullmatch(name):
            raise SettingsError(
                f"{self.path} [{section}]: allowed names are up to 64 letters, digits, dots, "
                f"dashes and underscores"
            )
        return ModelSettings(
            name=name,
            file=self._take(
                section, "file", None, _inner_path, "a path inside the models folder, without .."
            ),
            sha256=self._take(section, "sha256", None, _sha256, "64 hexadecimal digits"),
            context=self._integer(section, "context", 2048, 256, 1 << 20),
            chat_template=self._take(
                section,
                "chat_template",
                "",
                _one_of(("", *CHAT_TEMPLATES)),
                f"empty, or {', '.join(CHAT_TEMPLATES)}",
            ),
            kv_cache=self._take(
                section, "kv_cache", "f16", _one_of(KV_CACHES), " or ".join(KV_CACHES)
            ),
            pinned=self._take(section, "pinned", "no", _boolean, "yes or no"),
        )

    def _integer(self, section: str, key: str, default: int, low: int, high: int) -> int:
        def parse(text: str) -> int:
            # int() alone would take "1_0" and " ٣".
            if not re.fullmatch(r"[0-9]{1,10}", text) or not low <= int(text) <= high:
                raise ValueError
            return int(text)

        return self._take(section, key, str(default), parse, f"a whole number from {low} to {high}")

    def _take(
        self,
        section: str,
        key: str,
        default: str | None,
        parse: Callable[[str], T],
        allowed: str,
    ) -> T:
        text = default
        if self.parser.has_option(section, key):
            text = self.parser.get(section, key).strip()
            self.parser.remove_option(section, key)
        if text is None:
            raise SettingsError(f"{self.path} [{section}] {key} is missing; required: {allowed}")
        try:
            return parse(text)
        except ValueError as error:
            raise SettingsError(
                f"{self.path} [{section}] {key} = {text!r}: allowed: {allowed}"
            ) from error

    def _refuse_leftovers(self) -> None:
        known = {"server": _SERVER_KEYS, "engine": _ENGINE_KEYS}
        for section in self.parser.sections():
            allowed = _MODEL_KEYS if section.startswith(_MODEL_PREFIX) else known.get(section)
            if allowed is None:
                raise SettingsError(
                    f"{self.path} [{section}]: unknown section; allowed: server, engine, model:NAME"
                )
            for key in self.parser.options(section):
                raise SettingsError(
                    f"{self.path} [{section}] {key} = {self.parser.get(section, key)!r}: unknown "
                    f"key; "
                    f"allowed: {', '.join(allowed)}"
                )


_SERVER_KEYS = ("bind", "workers", "timeout", "access_log", "queue", "log_level", "variant")
_ENGINE_KEYS = ("threads", "slots", "cache_mib")
_MODEL_KEYS = ("file", "sha256", "context", "chat_template", "kv_cache", "pinned")


def _addresses(text: str) -> tuple[Address, ...]:
    addresses = tuple(_address(part.strip()) for part in text.split(","))
    if len(set(addresses)) != len(addresses):
        raise ValueError("an address appears twice")
    return addresses


def _address(text: str) -> Address:
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        # The kernel's sun_path holds 108 bytes with the terminating zero.
        if not path.startswith("/") or len(path.encode()) > 107:
            raise ValueError(text)
        return UnixAddress(path)
    host, _, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError("an IPv6 address needs brackets")
    if not host or not re.fullmatch(r"[0-9]{1,5}", port) or not 1 <= int(port) <= 65535:
        raise ValueError(text)
    return TcpAddress(host, int(port))


def _boolean(text: str) -> bool:
    return _one_of(("yes", "no"))(text.lower()) == "yes"


def _one_of(choices: tuple[str, ...]) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError(text)
        return text

    return parse


def _inner_path(text: str) -> str:
    path = PurePosixPath(text)
    if (
        not text
        or "\0" in text
        or path.is_absolute()
        or ".." in path.parts
        or path == PurePosixPath(".")
    ):
        raise ValueError(text)
    return str(path)


def _sha256(text: str) -> str:
    if not _SHA256.fullmatch(text.lower()):
        raise ValueError(text)
    return text.lower()
