# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""What must hold before anything is started; each failure is one clear sentence with its remedy."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from nas_assistant.cgroup import available_memory, usable_threads
from nas_assistant.cpu import missing_for_wheel
from nas_assistant.engine import Kind, Model
from nas_assistant.gguf import RANK, GgufError, read_head
from nas_assistant.logs import log
from nas_assistant.memory import MIB, MemoryNeed, gateway_need, in_mib, memory_need
from nas_assistant.settings import ModelSettings, Settings


class StartRefused(Exception):
    """The service must not start; the text says what was found, why, and the remedy."""


@dataclass(frozen=True)
class CheckedModel:
    """A model that passed every check save its digest's."""

    settings: ModelSettings
    path: Path
    model: Model
    need: MemoryNeed
    threads: int

    def verify(self) -> None:
        """Compare the whole file with its digest: a damaged model answers nonsense rather than
        failing. Raises StartRefused.
        """
        _check_digest(self.settings, self.path)


@dataclass(frozen=True)
class Checked:
    """The models that can be used by name, why others cannot, and the bytes that there are for
    those in memory together. ``kinds``: of all whose file could be read. ``watched``: the folder of
    the models, where the service can do without those that are to be in memory from the start, and
    waits for them; else none.
    """

    models: Mapping[str, CheckedModel]
    unusable: Mapping[str, str]
    room: int
    kinds: Mapping[str, Kind] = field(default_factory=dict)
    watched: Path | None = None

    def at_start(self, settings: Settings) -> list[CheckedModel]:
        """Those that are loaded at start and can be: the chosen variant, and what is pinned."""
        return [self.models[name] for name in settings.at_start if name in self.models]


def check_start(
    settings: Settings, models_dir: Path, engine_build: str, *, lenient: bool = False
) -> Checked:
    """Check CPU, model files and memory. What is wrong with the chosen variant, or with one that is
    pinned, raises StartRefused; what is wrong with another one is noted.

    ``lenient``: where a cloud model answers in the place of the chosen one, what is wrong with that
    is noted too, and so is what is wrong with those that are pinned. Digests are left for later.
    """
    lenient = lenient and bool(settings.stand_in)
    models: dict[str, CheckedModel] = {}
    unusable: dict[str, str] = {}
    if engine_build == "wheel" and settings.models:
        try:
            _check_cpu()
        except StartRefused as error:
            if not lenient:
                raise
            unusable = dict.fromkeys(settings.models, str(error))
    for name, model in settings.models.items():
        try:
            if name not in unusable:
                models[name] = check_model(settings, model, models_dir)
        except StartRefused as error:
            if name in settings.at_start and not lenient:
                raise
            unusable[name] = str(error)
    available, source = available_memory()
    limit = f"{source} is {in_mib(available - MIB + 1)} MiB"
    kinds = {name: found.model.kind for name, found in models.items()}
    if settings.variant in models:
        try:
            _check_variant(models, settings, available, limit)
        except StartRefused as error:
            if not lenient:
                raise
            del models[settings.variant]
            unusable[settings.variant] = str(error)
    room = available - gateway_need(settings)
    if room < 0:
        raise StartRefused(
            f"the gateway needs {in_mib(gateway_need(settings))} MiB, but {limit}. Raise the "
            "limit, or have fewer workers, or with upstreams a shorter queue or less in parallel"
        )
    checked = Checked(models, unusable, room, kinds, models_dir if lenient else None)
    while True:
        at_start = checked.at_start(settings)
        try:
            _check_together(at_start, room, limit)
            break
        except StartRefused as error:
            if not lenient:
                raise
            # The last one that is pinned; the chosen one comes first, and fits alone.
            name = at_start[-1].settings.name
            del models[name]
            unusable[name] = str(error)
    pinned = sum(found.need.own for found in at_start if found.settings.pinned)
    for name in [name for name, found in models.items() if found not in at_start]:
        if models[name].need.own + pinned > room:
            beside = f" beside {in_mib(pinned)} MiB that are pinned" if pinned else ""
            unusable[name] = f"model {name!r} needs {models.pop(name).need}{beside}, but {limit}"
    if not lenient:
        for found in at_start:
            found.verify()
    return checked


def check_model(settings: Settings, model: ModelSettings, models_dir: Path) -> CheckedModel:
    """Check a model's file and its context. Raises StartRefused."""
    path = _model_path(model, models_dir)
    try:
        head = read_head(path)
        size = path.stat().st_size
        if size < head.needed_size:
            raise GgufError(
                f"it is truncated: {size} of at least {head.needed_size} bytes are there"
            )
        need = memory_need(head, size, model, settings)
        trained = head.number("context_length")
    except GgufError as error:
        raise StartRefused(
            f"model {model.name!r}: {path} is not a usable GGUF file: {error}. Fetch it again"
        ) from error
    _check_context(model, trained)
    kind = Kind.CHAT if model.chat_template or head.chat_template else Kind.TEXT
    if head.pooling:
        kind = Kind.RERANK if head.pooling == RANK else Kind.EMBEDDING
    return CheckedModel(
        settings=model,
        path=path,
        model=Model(model.name, kind, int(path.stat().st_mtime)),
        need=need,
        threads=settings.threads or usable_threads(),
    )


def _check_cpu() -> None:
    missing = missing_for_wheel()
    if missing:
        raise StartRefused(
            f"this CPU lacks {', '.join(missing)}, without which the prebuilt engine of this "
            f"image crashes. "
            'Use the image built with the engine "source", which picks what the CPU can do'
        )


def _model_path(model: ModelSettings, models_dir: Path) -> Path:
    path = models_dir / model.file
    try:
        # A link may point elsewhere in the folder, as download caches do, but never out of it.
        inside = path.resolve().is_relative_to(models_dir.resolve())
        if not path.exists():
            present = sorted(
                str(item.relative_to(models_dir)) for item in models_dir.rglob("*.gguf")
            )[:10]
            raise StartRefused(
                f"model {model.name!r}: {path} does not exist; GGUF files found in {models_dir}: "
                f"{', '.join(present) or 'none'}. Fetch the model or correct [model:{model.name}] "
                f"file"
            )
    except OSError as error:
        raise StartRefused(
            f"model {model.name!r}: {path} cannot be looked up: {error.strerror}"
        ) from error
    if not inside:
        raise StartRefused(
            f"model {model.name!r}: {path} is a link that leads out of {models_dir}. Put the file "
            f"there"
        )
    if not path.is_file():
        raise StartRefused(f"model {model.name!r}: {path} is not a regular file")
    if not os.access(path, os.R_OK):
        status = path.stat()
        raise StartRefused(
            f"model {model.name!r}: {path} (owner {status.st_uid}:{status.st_gid}, mode "
            f"{status.st_mode & 0o777:04o}) "
            f"cannot be read by uid {os.getuid()} gid {os.getgid()}. Make it readable for all, "
            f"mode 0644"
        )
    return path


def _check_context(model: ModelSettings, trained: int) -> None:
    if model.context > trained:
        raise StartRefused(
            f"model {model.name!r}: context = {model.context} tokens, but the model was trained "
            f"for {trained} and "
            f"answers nonsense beyond. Set [model:{model.name}] context to {trained} or less"
        )


def _check_variant(
    models: Mapping[str, CheckedModel], settings: Settings, available: int, limit: str
) -> None:
    """See that the chosen variant fits, alone."""
    need = models[settings.variant].need
    if need.total > available:
        sizes = {name: found.need.total for name, found in models.items()}
        fitting = [name for name, size in sizes.items() if size <= available]
        nearest = f" ({max(fitting, key=sizes.__getitem__)!r} fits)" if fitting else ""
        raise StartRefused(
            f"model {settings.variant!r} needs {need}, but {limit}. Lower context, slots or "
            f"cache_mib, choose a smaller model{nearest}, or raise the limit"
        )


def _check_together(at_start: Iterable[CheckedModel], room: int, limit: str) -> None:
    """See that all that is in memory from the start fits."""
    parts = {found.settings.name: found.need.own for found in at_start}
    if sum(parts.values()) > room:
        named = " + ".join(f"{name} {in_mib(size)}" for name, size in parts.items())
        raise StartRefused(
            f"models that are in memory from the start need {named} = "
            f"{in_mib(sum(parts.values()))} MiB beside the gateway, but {limit}. Pin fewer, or "
            "raise the limit"
        )


def _check_digest(model: ModelSettings, path: Path) -> None:
    log(
        logging.INFO,
        "verify_model",
        f"reading all of {path} to verify its SHA-256",
    )
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise StartRefused(
            f"model {model.name!r}: reading {path} failed: {error.strerror}. Check the disk"
        ) from error
    if found != model.sha256:
        raise StartRefused(
            f"model {model.name!r}: {path} has SHA-256 {found}, but config.ini expects "
            f"{model.sha256}: the file is "
            "damaged or another one. Delete it and fetch it again, or correct the digest"
        )
