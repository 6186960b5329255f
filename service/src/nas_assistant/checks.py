# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""What must hold before anything is started; each failure is one clear sentence with its remedy."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from nas_assistant.cgroup import available_memory, usable_threads
from nas_assistant.cpu import missing_for_wheel
from nas_assistant.engine import Kind, Model
from nas_assistant.gguf import RANK, GgufError, read_head
from nas_assistant.logs import log
from nas_assistant.memory import MIB, MemoryNeed, gateway_need, in_mib
from nas_assistant.settings import AUTO, LEAST_CONTEXT, ModelSettings, Settings
from nas_assistant.sizing import Candidate, Sizing


class StartRefused(Exception):
    """The service must not start; the text says what was found, why, and the remedy."""


@dataclass(frozen=True)
class CheckedModel:
    """A model that passed every check save its digest's. ``sizing``: what was chosen for it, and
    why not more.
    """

    settings: ModelSettings
    path: Path
    model: Model
    need: MemoryNeed
    threads: int
    sizing: str = ""

    def verify(self) -> None:
        """Compare the whole file with its digest: a damaged model answers nonsense rather than
        failing. Raises StartRefused.
        """
        _check_digest(self.settings, self.path)


@dataclass(frozen=True)
class Checked:
    """The models that can be used by name, why others cannot, and the bytes that there are for
    those in memory together. ``settings``: with what was worked out in them; ``limit``: a few words
    on the memory that there is; ``kinds``: of all whose file could be read. ``watched``: the folder
    of the models, where the service can do without those that are to be in memory from the start,
    and waits for them; else none. ``asked``: the settings before anything was worked out.
    """

    settings: Settings
    models: Mapping[str, CheckedModel]
    unusable: Mapping[str, str]
    room: int
    limit: str = ""
    kinds: Mapping[str, Kind] = field(default_factory=dict)
    watched: Path | None = None
    asked: Settings | None = None

    @property
    def at_start(self) -> list[CheckedModel]:
        """Those that are loaded at start and can be: the chosen variant, and what is pinned."""
        return [self.models[name] for name in self.settings.at_start if name in self.models]


@dataclass(frozen=True)
class _Found:
    """A model whose file is whole."""

    path: Path
    kind: Kind
    candidate: Candidate
    tools: bool


def check_start(
    settings: Settings, models_dir: Path, engine_build: str, *, lenient: bool = False
) -> Checked:
    """Check CPU, model files and memory, and work out what suits that. What is wrong with the
    chosen variant, or with one that is pinned, raises StartRefused; what is wrong with another one
    is noted.

    ``lenient``: where a cloud model answers in the place of the chosen one, what is wrong with that
    is noted too, and so is what is wrong with those that are pinned. Digests are left for later.
    """
    lenient = lenient and bool(settings.stand_in)
    found: dict[str, _Found] = {}
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
                found[name] = _look(model, models_dir, settings)
        except StartRefused as error:
            if name in settings.at_start and not lenient:
                raise
            unusable[name] = str(error)
    available, source = available_memory()
    limit = f"{source} is {in_mib(available - MIB + 1)} MiB"
    room = available - gateway_need(settings)
    kinds = {name: each.kind for name, each in found.items()}
    watched = models_dir if lenient else None
    while True:
        candidates = {name: each.candidate for name, each in found.items()}
        sizing = Sizing(settings, candidates, available)
        models = {name: _checked(name, each, sizing) for name, each in found.items()}
        checked = Checked(sizing.settings, models, unusable, room, limit, kinds, watched, settings)
        name = settings.variant
        try:
            if name in models:
                _check_variant(checked, sizing)
            if room >= 0 and checked.at_start:
                # The last one that is pinned; the chosen one comes first.
                name = checked.at_start[-1].settings.name
                _check_together(checked, sizing)
            break
        except StartRefused as error:
            if not lenient:
                raise
            # What suits the others is worked out without it.
            unusable[name] = str(error)
            del found[name]
    if room < 0:
        raise StartRefused(
            f"the gateway needs {in_mib(gateway_need(settings))} MiB, but {limit}. Raise the "
            "limit, or have fewer workers, or with upstreams a shorter queue or less in parallel"
        )
    for name in [name for name, each in models.items() if each not in checked.at_start]:
        pinned = sizing.pinned_beside(name)
        if models[name].need.own + pinned > room:
            beside = f" beside {in_mib(pinned)} MiB that are pinned" if pinned else ""
            unusable[name] = (
                f"model {name!r} needs {models.pop(name).need}{beside}, but {limit}. "
                f"{sizing.remedy(name)}"
            )
    if not lenient:
        for each in checked.at_start:
            each.verify()
    return checked


def _look(model: ModelSettings, models_dir: Path, settings: Settings) -> _Found:
    """Check a model's file and its context. Raises StartRefused."""
    path = _model_path(model, models_dir)
    try:
        head = read_head(path)
        size = path.stat().st_size
        if size < head.needed_size:
            raise GgufError(
                f"it is truncated: {size} of at least {head.needed_size} bytes are there"
            )
        candidate = Candidate(model, head, size, head.number("context_length"))
        # Raises where the head lacks what is counted with.
        Sizing(settings, {model.name: candidate}, 0)
    except GgufError as error:
        raise StartRefused(
            f"model {model.name!r}: {path} is not a usable GGUF file: {error}. Fetch it again"
        ) from error
    _check_context(model, candidate.trained)
    kind = Kind.CHAT if model.chat_template or head.chat_template else Kind.TEXT
    if head.pooling:
        kind = Kind.RERANK if head.pooling == RANK else Kind.EMBEDDING
    # Those that llama.cpp has built in know none.
    tools = not model.chat_template and "tools" in head.chat_template
    return _Found(path, kind, candidate, tools)


def _checked(name: str, found: _Found, sizing: Sizing) -> CheckedModel:
    return CheckedModel(
        settings=sizing.settings.models[name],
        path=found.path,
        model=Model(name, found.kind, int(found.path.stat().st_mtime), tools=found.tools),
        need=sizing.need(name),
        threads=sizing.settings.threads or usable_threads(),
        sizing=sizing.reason(name),
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
    if trained < LEAST_CONTEXT:
        raise StartRefused(
            f"model {model.name!r} was trained for {trained} tokens; at least {LEAST_CONTEXT} are "
            "of use. Take another model"
        )
    if model.context != AUTO and model.context > trained:
        raise StartRefused(
            f"model {model.name!r}: context = {model.context} tokens, but the model was trained "
            f"for {trained} and "
            f"answers nonsense beyond. Set [model:{model.name}] context to {trained} or less"
        )


def _check_variant(checked: Checked, sizing: Sizing) -> None:
    """See that the chosen variant fits, alone."""
    variant = checked.settings.variant
    need = checked.models[variant].need
    if need.own > checked.room:
        raise StartRefused(
            f"model {variant!r} needs {need}, but {checked.limit}. {sizing.remedy(variant)}"
        )


def _check_together(checked: Checked, sizing: Sizing) -> None:
    """See that all that is in memory from the start fits."""
    parts = {each.settings.name: each.need.own for each in checked.at_start}
    if sum(parts.values()) > checked.room:
        named = " + ".join(f"{name} {in_mib(size)}" for name, size in parts.items())
        raise StartRefused(
            f"models that are in memory from the start need {named} = "
            f"{in_mib(sum(parts.values()))} MiB beside the gateway, but {checked.limit}. Pin "
            f"fewer. {sizing.remedy(next(iter(parts)))}"
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
