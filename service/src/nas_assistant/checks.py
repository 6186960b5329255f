# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""What must hold before anything is started; each failure is one clear sentence with its remedy."""

from __future__ import annotations

import hashlib
import logging
import os
from dataclasses import dataclass
from pathlib import Path

from nas_assistant.cgroup import available_memory, usable_threads
from nas_assistant.cpu import missing_for_wheel
from nas_assistant.gguf import GgufError, read_head
from nas_assistant.logs import log
from nas_assistant.memory import MIB, MemoryNeed, in_mib, memory_need
from nas_assistant.settings import ModelSettings, Settings


class StartRefused(Exception):
    """The service must not start; the text says what was found, why, and the remedy."""


@dataclass(frozen=True)
class CheckedModel:
    """A model that passed every check. ``chat``: it has a chat template. ``created``: Unix time."""

    settings: ModelSettings
    path: Path
    chat: bool
    created: int
    need: MemoryNeed
    threads: int


def check_start(settings: Settings, models_dir: Path, engine_build: str) -> CheckedModel:
    """Check CPU, model file, memory and digest for the chosen variant. Raises StartRefused."""
    if engine_build == "wheel":
        _check_cpu()
    model = settings.model
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
    _check_memory(model, need)
    _check_digest(model, path)
    return CheckedModel(
        settings=model,
        path=path,
        chat=bool(model.chat_template or head.chat_template),
        created=int(path.stat().st_mtime),
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


def _check_memory(model: ModelSettings, need: MemoryNeed) -> None:
    available, source = available_memory()
    if need.total > available:
        raise StartRefused(
            f"model {model.name!r} needs {need}, but {source} is {in_mib(available - MIB + 1)} "
            f"MiB. Lower context, "
            "slots or cache_mib, choose a smaller model, or raise the limit"
        )


def _check_digest(model: ModelSettings, path: Path) -> None:
    """Compare the whole file: a damaged model answers nonsense rather than failing."""
    log(
        logging.INFO,
        "verify_model",
        f"reading all of {path} to verify its SHA-256, as at each start",
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
