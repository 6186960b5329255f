# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""What is wrong with the models of the assistant, and with the APIs that may answer for it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import PurePath
from typing import Any

LOCAL, CLOUD = "local", "cloud"
MIB = 1 << 20
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*[.]gguf")
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")
_WORD = re.compile(r"[!-~]+")
_URL = re.compile(r"https?://[!-~]+")
_SOURCES = ("url", "src", "package")
_MODEL = (
    *("file", "sha256", "context", "chat_template", "kv_cache", "pinned", "speculation"),
    "fallback",
    *_SOURCES,
)
_CLOUD_MODEL = ("upstream", "model", "kind")
_KINDS = ("chat", "text", "embedding", "rerank")
_NUMBERS = ("timeout", "retries", "parallel")
_UPSTREAM = ("url", "key", "certificates", *_NUMBERS)


def assistant_model_faults(
    models: Any, upstreams: Mapping[str, Any], mode: str, variant: str
) -> list[str]:
    """Return a sentence for each thing that is wrong with ``assistant_models``, or with the choice
    among them.

    :param upstreams: ``assistant_upstreams``, without faults of its own.
    :param mode: ``assistant_mode``.
    :param variant: ``assistant_model_variant``.
    """
    if not isinstance(models, Mapping) or not models:
        return [
            f"assistant_models={models}: give at least one model as NAME: {{file, sha256, url}}; "
            "docs/models.md has some, and inventories/one_nas shows where they go"
        ]
    faults = []
    for name, model in models.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            faults.append(f"assistant_models: {name}: a name has letters, digits, - and _")
        elif not isinstance(model, Mapping):
            faults.append(
                f"assistant_models: {name} is no mapping: write NAME: {{file, sha256, url}}"
            )
        else:
            found = _cloud_faults(model, upstreams) if "upstream" in model else _faults(model)
            faults += [f"assistant_models: {name}{fault}" for fault in found]
    return faults or [*_together(models), *_choice(models, mode, variant)]


def _faults(model: Mapping[str, Any]) -> Iterator[str]:
    yield from _unknown(model, (*_MODEL, *_CLOUD_MODEL))
    if not _FILE.fullmatch(str(model.get("file", ""))):
        yield f".file={model.get('file')}: it is a plain name that ends in .gguf"
    if not _SHA256.fullmatch(str(model.get("sha256", ""))):
        yield f".sha256={model.get('sha256')}: it is 64 hexadecimal digits"
    if sum(source in model for source in _SOURCES) != 1:
        yield f" needs one of {', '.join(_SOURCES)}"


def _cloud_faults(model: Mapping[str, Any], upstreams: Mapping[str, Any]) -> Iterator[str]:
    yield from _unknown(model, _CLOUD_MODEL)
    if model["upstream"] not in upstreams:
        there = ", ".join(map(str, upstreams)) or "none"
        yield f".upstream={model['upstream']}: assistant_upstreams has {there}"
    if not _WORD.fullmatch(str(model.get("model", "x"))):
        yield f".model={model['model']}: it is the upstream's name of the model, one word"
    if model.get("kind", "chat") not in _KINDS:
        yield f".kind={model['kind']}: it is {' or '.join(_KINDS)}"


def _unknown(entry: Mapping[str, Any], allowed: tuple[str, ...]) -> Iterator[str]:
    for field in entry:
        if field not in allowed:
            yield f".{field} means nothing here; there are {', '.join(allowed)}"


def _together(models: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong between models each of which is fine."""
    files: dict[str, str] = {}
    for name, model in models.items():
        file = model.get("file")
        if file in files:
            yield f"assistant_models: {files[file]} and {name} have the same file {file}"
        elif file:
            files[file] = name
        fallback = model.get("fallback")
        if fallback and "upstream" not in models.get(fallback, {}):
            yield f"assistant_models: {name}.fallback={fallback}: it is a model with an upstream"


def _choice(models: Mapping[str, Any], mode: str, variant: str) -> Iterator[str]:
    asked = f"assistant_model_variant={variant}"
    if variant not in models:
        yield f"{asked}: assistant_models has {', '.join(models)}. Name one of these or add it"
    elif mode == LOCAL and "upstream" in models[variant]:
        yield f"{asked}: it is in the cloud, and assistant_mode=local sends nothing out"
    elif mode == CLOUD and "upstream" not in models[variant]:
        yield f"{asked}: it is on the NAS, and assistant_mode=cloud loads nothing there"


def assistant_upstream_faults(upstreams: Any, mode: str) -> list[str]:
    """Return a sentence for each thing that is wrong with ``assistant_upstreams``; keys are not in
    them.
    """
    if not isinstance(upstreams, Mapping):
        return ["it is a mapping of NAME: {url, key}"]
    faults = []
    if mode != LOCAL and not upstreams:
        faults.append(f"assistant_mode={mode} needs one, as NAME: {{url, key}}")
    for name, upstream in upstreams.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            faults.append(f"{name}: a name has letters, digits, - and _")
        elif not isinstance(upstream, Mapping):
            faults.append(f"{name} is no mapping: write {name}: {{url, key}}")
        else:
            faults += [f"{name}{fault}" for fault in _upstream_faults(upstream)]
    return faults


def _upstream_faults(upstream: Mapping[str, Any]) -> Iterator[str]:
    yield from _unknown(upstream, _UPSTREAM)
    if not _URL.fullmatch(str(upstream.get("url", ""))):
        yield f".url={upstream.get('url')}: it is an address such as https://api.example.com/v1"
    key = upstream.get("key")
    if not isinstance(key, str) or not _WORD.fullmatch(key):
        yield ".key is one word, from Ansible Vault; where it wants none, any will do"
    certificates = upstream.get("certificates", "-----BEGIN")
    if not isinstance(certificates, str) or "-----BEGIN" not in certificates:
        yield ".certificates is text (PEM), such as lookup('ansible.builtin.file', …) gives"
    for field in _NUMBERS:
        value = upstream.get(field, 1)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            yield f".{field}={value}: it is a whole number"


def assistant_local_models(models: Mapping[str, Any], mode: str) -> dict[str, Any]:
    """Return the models whose files the NAS needs."""
    if mode == CLOUD:
        return {}
    return {name: model for name, model in models.items() if "upstream" not in model}


def assistant_model_list(
    models: Mapping[str, Any], files: Iterable[Mapping[str, Any]]
) -> list[str]:
    """Return a line for each model, and for each file that is none's.

    :param files: of the models folder, with ``path`` and ``size`` in bytes.
    """
    sizes = {PurePath(file["path"]).name: file["size"] for file in files}
    lines = [_line(name, model, sizes) for name, model in models.items()]
    named = _files(models)
    others = [name for name in sizes if name not in named]
    return lines + [
        f"{name}, {_mib(sizes[name])} MiB, belongs to no variant: -e assistant_models_prune=true "
        "takes it away"
        for name in sorted(others)
    ]


def _line(name: str, model: Mapping[str, Any], sizes: Mapping[str, int]) -> str:
    if "upstream" in model:
        return f"{name}: {model.get('model', name)} of {model['upstream']}"
    if model["file"] not in sizes:
        return f"{name}: {model['file']} is not there"
    return f"{name}: {model['file']}, {_mib(sizes[model['file']])} MiB, as its SHA-256 says"


def _mib(size: int) -> int:
    # Rounded up, as the service counts.
    return -(-size // MIB)


def assistant_unnamed_files(
    models: Mapping[str, Any], files: Iterable[Mapping[str, Any]]
) -> list[str]:
    """Return the paths of files that no model has, without what an interrupted transfer left: that
    goes with the file itself.
    """
    named = _files(models)
    found = {str(file["path"]).removesuffix(".part") for file in files}
    return sorted(path for path in found if PurePath(path).name not in named)


def _files(models: Mapping[str, Any]) -> set[str]:
    files = {str(model["file"]) for model in models.values() if "file" in model}
    return files | {f"{file}.part" for file in files}


def assistant_upstream_keys(upstreams: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the service's file ``upstreams.json`` holds."""
    kept = ("key", "certificates")
    return {
        "upstreams": {
            name: {field: upstream[field] for field in kept if field in upstream}
            for name, upstream in upstreams.items()
        }
    }


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {
            "assistant_local_models": assistant_local_models,
            "assistant_model_faults": assistant_model_faults,
            "assistant_model_list": assistant_model_list,
            "assistant_unnamed_files": assistant_unnamed_files,
            "assistant_upstream_faults": assistant_upstream_faults,
            "assistant_upstream_keys": assistant_upstream_keys,
        }
