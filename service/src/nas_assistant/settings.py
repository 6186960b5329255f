# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Settings of the service: one frozen object, read once from config.ini and the environment."""

from __future__ import annotations

import configparser
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import TypeVar

from nas_assistant.addresses import (
    Address,
    UnixAddress,
    parse_addresses,
    parse_api_url,
    parse_unix,
)
from nas_assistant.engine import Kind
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
# In place of a figure: it is worked out at the start, see sizing.py. Nothing after that meets it.
AUTO = -1
# Fewer tokens are of no use to anybody.
LEAST_CONTEXT = 256
# The most that is worked out. A NAS takes minutes to read more: that is for its owner to ask for.
MOST_CONTEXT = 8192
# Tokens that are guessed at once, with speculation. Each is weighed against the whole vocabulary:
# the 64 that are llama.cpp's default take four times the memory, and were not faster on two cores.
MOST_GUESSED = 16
# Bytes of a request to an upstream: some 250 000 tokens of English. Of those that wait, the gateway
# holds all at once.
LONGEST_TO_CLOUD = 1 << 20
# Bytes of a body, whatever it is for.
MAX_BODY = 4 << 20
# Bytes of a request to a model that writes no text: 256 texts of 4 KiB.
LONGEST_TEXTS = 1 << 20
# Bytes that a worker holds of all requests, those that are read and those that wait: 80 of the
# longest that fit into a context of 8192 tokens.
MOST_HELD = 16 << 20
# Bytes of a body beside its text: tools, schemas, and fields that mean nothing here.
BESIDE_TEXT = 64 << 10
LOG_LEVELS = ("debug", "info", "warning", "error")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_AUTO_WORD = "auto"
_WORD = re.compile(r"[!-~]{1,256}")
_MODEL_PREFIX = "model:"
_UPSTREAM_PREFIX = "upstream:"


class SettingsError(Exception):
    """The configuration is wrong; the text names the key, the value and what is allowed."""


class Mode(StrEnum):
    """Who may answer: models on this machine, models of a cloud API, or both."""

    LOCAL = "local"
    CLOUD = "cloud"
    HYBRID = "hybrid"


def longest_body(context: int) -> int:
    """Bytes that a request may have: more text than any language puts into a context.

    Written words have 3 to 6 bytes in a token; tools and schemas take some more.
    """
    return context * 16 + BESIDE_TEXT


@dataclass(frozen=True)
class Upstream:
    """A cloud API, or any other that speaks OpenAI's. ``timeout``: seconds of silence;
    ``parallel``: requests at once for each of its models.
    """

    name: str
    url: str
    timeout: int
    retries: int
    parallel: int


@dataclass(frozen=True)
class CloudModel:
    """A variant that an upstream answers, by its own name for it (``model``)."""

    name: str
    upstream: str
    model: str
    kind: Kind


@dataclass(frozen=True)
class ModelSettings:
    """One variant. ``file`` is relative to the models folder, ``context`` is in tokens per slot, or
    AUTO until it is worked out.
    ``pinned``: it is in memory from the start, and stays there. ``fallback``: a cloud model that
    answers where this one cannot.
    """

    name: str
    file: str
    sha256: str
    context: int
    chat_template: str
    kv_cache: str
    pinned: bool
    speculation: bool = False
    fallback: str = ""

    @property
    def longest_body(self) -> int:
        """Bytes that a request may have."""
        return longest_body(self.context)


@dataclass(frozen=True)
class Settings:
    """What the service is told. ``timeout``: seconds. ``threads`` 0: as many as pay off.
    ``slots`` and ``cache_mib`` may be AUTO until they are worked out.
    ``fallback_after``: seconds that a request waits for a slot before it goes to a fallback.
    ``off``: models that the mode leaves out, with a sentence that says so. ``log_text``: what is
    asked and answered goes into the log.
    """

    bind: tuple[Address, ...]
    front: UnixAddress | None
    workers: int
    timeout: int
    access_log: bool
    queue: int
    log_level: str
    variant: str
    threads: int
    batch: int
    slots: int
    cache_mib: int
    models: Mapping[str, ModelSettings]
    mode: Mode
    fallback_after: int
    upstreams: Mapping[str, Upstream]
    cloud_models: Mapping[str, CloudModel]
    off: Mapping[str, str]
    log_text: bool = False

    @property
    def model(self) -> ModelSettings | None:
        """The variant that is loaded at start and answers when a request names none; none where
        that one is in the cloud.
        """
        return self.models.get(self.variant)

    @property
    def at_start(self) -> list[str]:
        """The models that are in memory from the start: the chosen one first, then pinned ones."""
        pinned = [name for name, model in self.models.items() if model.pinned]
        return list(dict.fromkeys([self.variant, *pinned] if self.model else pinned))

    @property
    def stand_in(self) -> str:
        """The cloud model that answers where the chosen variant cannot, or is the chosen one; empty
        where there is none.
        """
        name = self.model.fallback if self.model else self.variant
        return name if name in self.cloud_models else ""

    @classmethod
    def load(cls, path: Path, environ: Mapping[str, str]) -> Settings:
        """Read ``path``; of ``environ`` only ``MODEL_VARIANT`` counts. Raises SettingsError."""
        return _Reader(path).settings(environ.get("MODEL_VARIANT", "").strip())


class _Reader:
    """Takes values out of the file one by one; what is left over at the end is a mistake."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.parser = _parser()
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
        local: dict[str, ModelSettings] = {}
        cloud: dict[str, CloudModel] = {}
        for section, name in self._named(_MODEL_PREFIX):
            if self.parser.has_option(section, "upstream"):
                cloud[name] = self._cloud_model(section, name)
            else:
                local[name] = self._model(section, name)
        upstreams = {
            name: self._upstream(section, name) for section, name in self._named(_UPSTREAM_PREFIX)
        }
        if not local and not cloud:
            raise SettingsError(
                f"{self.path} has no [model:NAME] section: at least one is required"
            )
        self._check_names(local, cloud, upstreams)
        mode = Mode(self._take(server, "mode", "local", _one_of(tuple(Mode)), " or ".join(Mode)))
        variant = self._take(
            server, "variant", "default", str, "the name of a [model:NAME] section"
        )
        settings = Settings(
            bind=self._take(
                server,
                "bind",
                DEFAULT_BIND,
                parse_addresses,
                "HOST:PORT or unix:/PATH, comma separated",
            ),
            front=self._take(server, "front", "", _unix_or_none, "unix:/PATH"),
            workers=self._integer(server, "workers", 2, 1, 16),
            timeout=self._integer(server, "timeout", 120, 1, 86400),
            access_log=self._take(server, "access_log", "yes", _boolean, "yes or no"),
            queue=self._integer(server, "queue", 32, 0, 10000),
            log_level=self._take(
                server, "log_level", "info", _one_of(LOG_LEVELS), " or ".join(LOG_LEVELS)
            ),
            variant=variant_override or variant,
            threads=self._integer(engine, "threads", 0, 0, 256),
            batch=self._integer(engine, "batch", 512, 32, 4096),
            slots=self._size(engine, "slots", 1, 64),
            cache_mib=self._size(engine, "cache_mib", 0, 65536),
            models={} if mode is Mode.CLOUD else local,
            mode=mode,
            fallback_after=self._integer(server, "fallback_after", 30, 0, 86400),
            upstreams={} if mode is Mode.LOCAL else upstreams,
            cloud_models={} if mode is Mode.LOCAL else cloud,
            off=_left_out(mode, local, cloud),
            log_text=self._take(server, "log_text", "no", _boolean, "yes or no"),
        )
        self._refuse_leftovers()
        self._check_variant(settings, bool(variant_override))
        return settings

    def _named(self, prefix: str) -> list[tuple[str, str]]:
        """The sections of a kind, with the name in each. Raises SettingsError for odd names."""
        found = [
            (section, section.removeprefix(prefix))
            for section in self.parser.sections()
            if section.startswith(prefix)
        ]
        for section, name in found:
            if not NAME.fullmatch(name):
                raise SettingsError(
                    f"{self.path} [{section}]: allowed names are up to 64 letters, digits, dots, "
                    f"dashes and underscores"
                )
        return found

    def _check_names(
        self,
        local: Mapping[str, ModelSettings],
        cloud: Mapping[str, CloudModel],
        upstreams: Mapping[str, Upstream],
    ) -> None:
        for model in cloud.values():
            if model.upstream not in upstreams:
                raise SettingsError(
                    f"{self.path} [model:{model.name}] upstream = {model.upstream!r}: there is no "
                    f"[upstream:{model.upstream}]; there are {', '.join(upstreams) or 'none'}"
                )
        for each in local.values():
            if each.fallback and each.fallback not in cloud:
                raise SettingsError(
                    f"{self.path} [model:{each.name}] fallback = {each.fallback!r}: it must be a "
                    f"model with an upstream; there are {', '.join(cloud) or 'none'}"
                )

    def _check_variant(self, settings: Settings, overridden: bool) -> None:
        usable = {**settings.models, **settings.cloud_models}
        if settings.variant in usable:
            return
        where = (
            "the environment variable MODEL_VARIANT"
            if overridden
            else f"{self.path} [server] variant"
        )
        why = settings.off.get(settings.variant, "there is no such model")
        raise SettingsError(
            f"{where} = {settings.variant!r}: {why}; the configured ones are "
            f"{', '.join(sorted(usable)) or 'none'}"
        )

    def _upstream(self, section: str, name: str) -> Upstream:
        return Upstream(
            name=name,
            url=self._take(
                section,
                "url",
                None,
                parse_api_url,
                "https://HOST/PATH, or http:// for an address or a name at home, such as "
                "http://192.0.2.7:8000/v1",
            ),
            timeout=self._integer(section, "timeout", 60, 1, 3600),
            retries=self._integer(section, "retries", 2, 0, 5),
            parallel=self._integer(section, "parallel", 8, 1, 1000),
        )

    def _cloud_model(self, section: str, name: str) -> CloudModel:
        return CloudModel(
            name=name,
            upstream=self._take(section, "upstream", None, str, "the name of an [upstream:NAME]"),
            model=self._take(section, "model", name, _word, "the upstream's name of the model"),
            kind=Kind(self._take(section, "kind", "chat", _one_of(tuple(Kind)), " or ".join(Kind))),
        )

    def _model(self, section: str, name: str) -> ModelSettings:
        return ModelSettings(
            name=name,
            file=self._take(
                section, "file", None, _inner_path, "a path inside the models folder, without .."
            ),
            sha256=self._take(section, "sha256", None, _sha256, "64 hexadecimal digits"),
            context=self._size(section, "context", LEAST_CONTEXT, 1 << 20),
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
            speculation=self._take(section, "speculation", "no", _boolean, "yes or no"),
            fallback=self._take(section, "fallback", "", str, "the name of a cloud model"),
        )

    def _integer(self, section: str, key: str, default: int, low: int, high: int) -> int:
        parse = _whole_number(low, high)
        return self._take(section, key, str(default), parse, f"a whole number from {low} to {high}")

    def _size(self, section: str, key: str, low: int, high: int) -> int:
        parse = _whole_number(low, high)
        return self._take(
            section,
            key,
            _AUTO_WORD,
            lambda text: AUTO if text == _AUTO_WORD else parse(text),
            f"a whole number from {low} to {high}, or {_AUTO_WORD}",
        )

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
        for section in self.parser.sections():
            prefix = section.partition(":")[0] + ":" if ":" in section else section
            allowed = _KEYS.get(prefix)
            if allowed is None:
                known = ", ".join(f"{each}NAME" if ":" in each else each for each in _KEYS)
                raise SettingsError(f"{self.path} [{section}]: unknown section; allowed: {known}")
            for key in self.parser.options(section):
                raise SettingsError(
                    f"{self.path} [{section}] {key} = {self.parser.get(section, key)!r}: unknown "
                    f"key; allowed: {', '.join(allowed)}"
                )


_KEYS = {
    "server": (
        *(
            "bind",
            "front",
            "workers",
            "timeout",
            "access_log",
            "queue",
            "log_level",
            "variant",
            "mode",
        ),
        *("fallback_after", "log_text"),
    ),
    "engine": ("threads", "batch", "slots", "cache_mib"),
    _MODEL_PREFIX: (
        *("file", "sha256", "context", "chat_template", "kv_cache", "pinned", "speculation"),
        "fallback",
        *("or, for one in the cloud, upstream", "model", "kind"),
    ),
    _UPSTREAM_PREFIX: ("url", "timeout", "retries", "parallel"),
}


def write_worked_out(settings: Settings, config: Path, copy: Path) -> None:
    """Copy a configuration with the figures of ``settings`` in the place of what was AUTO, for
    processes that do not work them out themselves.
    """
    parser = _parser()
    parser.read_string(config.read_text(encoding="utf-8"))
    figures = {"engine": {"slots": settings.slots, "cache_mib": settings.cache_mib}}
    for name, model in settings.models.items():
        # A model that cannot be read has none yet: its engine says what is too long.
        context = MOST_CONTEXT if model.context == AUTO else model.context
        figures[f"{_MODEL_PREFIX}{name}"] = {"context": context}
    for section, values in figures.items():
        if not parser.has_section(section):
            parser.add_section(section)
        for key, value in values.items():
            parser.set(section, key, str(value))
    with copy.open("w", encoding="utf-8") as file:
        parser.write(file)


def _parser() -> configparser.ConfigParser:
    # No interpolation (a value may hold a %), and no section whose keys leak into the others.
    parser = configparser.ConfigParser(
        interpolation=None, default_section="", inline_comment_prefixes=(";",)
    )
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    return parser


def _whole_number(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        # int() alone would take "1_0" and " ٣".
        if not re.fullmatch(r"[0-9]{1,10}", text) or not low <= int(text) <= high:
            raise ValueError
        return int(text)

    return parse


def _unix_or_none(text: str) -> UnixAddress | None:
    return parse_unix(text) if text else None


def _left_out(
    mode: Mode, local: Mapping[str, object], cloud: Mapping[str, object]
) -> dict[str, str]:
    if mode is Mode.LOCAL:
        return dict.fromkeys(cloud, "it is in the cloud, and mode = local sends nothing out")
    if mode is Mode.CLOUD:
        return dict.fromkeys(local, "it is on this machine, and mode = cloud loads nothing here")
    return {}


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


def _word(text: str) -> str:
    if not _WORD.fullmatch(text):
        raise ValueError(text)
    return text


def _sha256(text: str) -> str:
    if not _SHA256.fullmatch(text.lower()):
        raise ValueError(text)
    return text.lower()
