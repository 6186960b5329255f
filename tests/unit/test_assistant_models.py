# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""The models of the inventory, and the APIs that may answer in their place."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.nas.assistant.plugins.filter.assistant_models import (
    assistant_local_models,
    assistant_model_faults,
    assistant_model_list,
    assistant_unnamed_files,
    assistant_upstream_faults,
    assistant_upstream_keys,
)

HERE = {"file": "a.gguf", "sha256": "0" * 64, "url": "https://example.com/a.gguf"}
THERE = {"upstream": "example"}
MODELS = {"default": {**HERE, "fallback": "smart"}, "smart": {**THERE, "model": "gpt-example"}}
UPSTREAM = {"url": "https://api.example.com/v1", "key": "sk-secret"}
UPSTREAMS = {"example": UPSTREAM}


@pytest.mark.parametrize(
    ("mode", "variant"), [("local", "default"), ("hybrid", "default"), ("cloud", "smart")]
)
def test_models_that_are_fine(mode: str, variant: str) -> None:
    assert assistant_model_faults(MODELS, UPSTREAMS, mode, variant) == []


def without(key: str) -> dict[str, Any]:
    return {name: value for name, value in HERE.items() if name != key}


@pytest.mark.parametrize(
    ("models", "fault"),
    [
        ({}, "assistant_models={}: give at least one model as NAME: {file, sha256, url}"),
        ([HERE], "give at least one model"),
        ({"a b": HERE}, "assistant_models: a b: a name has letters"),
        ({"default": "a.gguf"}, "assistant_models: default is no mapping"),
        ({"default": {**HERE, "size": 1}}, "default.size means nothing here; there are file"),
        ({"default": {**HERE, "file": "../a.gguf"}}, "default.file=../a.gguf: it is a plain name"),
        ({"default": {**HERE, "file": "a.bin"}}, "default.file=a.bin: it is a plain name"),
        ({"default": {**HERE, "file": "a.gguf\n"}}, "it is a plain name that ends in .gguf"),
        ({"default": without("file")}, "default.file=None"),
        ({"default": without("sha256")}, "default.sha256=None: it is 64 hexadecimal digits"),
        ({"default": without("url")}, "default needs one of url, src, package"),
        ({"default": {**HERE, "src": "b"}}, "default needs one of url, src, package"),
        ({"default": HERE, "other": HERE}, "default and other have the same file a.gguf"),
        ({"default": {**HERE, "fallback": "default"}}, "default.fallback=default: it is a model"),
        ({"default": {**HERE, "fallback": "none"}}, "default.fallback=none: it is a model with"),
        ({"smart": {"upstream": "other"}}, "smart.upstream=other: assistant_upstreams has example"),
        ({"smart": {**THERE, "file": "a.gguf"}}, "smart.file means nothing here; there are up"),
        ({"smart": {**THERE, "model": "a b"}}, "smart.model=a b: it is the upstream's name"),
        ({"smart": {**THERE, "kind": "image"}}, "smart.kind=image: it is chat or text or"),
        ({"large": HERE}, "assistant_model_variant=default: assistant_models has large. Name one"),
    ],
)
def test_what_is_wrong_with_models(models: Any, fault: str) -> None:
    (found,) = assistant_model_faults(models, UPSTREAMS, "hybrid", "default")
    assert fault in found


def test_the_chosen_one_is_where_the_mode_allows() -> None:
    (found,) = assistant_model_faults(MODELS, UPSTREAMS, "local", "smart")
    assert found == (
        "assistant_model_variant=smart: it is in the cloud, and assistant_mode=local sends nothing "
        "out"
    )
    (found,) = assistant_model_faults(MODELS, UPSTREAMS, "cloud", "default")
    assert "assistant_mode=cloud loads nothing there" in found


@pytest.mark.parametrize("mode", ["local", "hybrid", "cloud"])
def test_upstreams_that_are_fine(mode: str) -> None:
    more = {"timeout": 5, "certificates": "-----BEGIN CERTIFICATE-----\n…"}
    assert assistant_upstream_faults({"example": {**UPSTREAM, **more}}, mode) == []
    assert assistant_upstream_faults({}, "local") == []


@pytest.mark.parametrize(
    ("upstreams", "fault"),
    [
        ([], "it is a mapping of NAME: {url, key}"),
        ({}, "assistant_mode=hybrid needs one, as NAME: {url, key}"),
        ({"a b": UPSTREAM}, "a b: a name has letters"),
        ({"example": "sk-secret"}, "example is no mapping: write example: {url, key}"),
        ({"example": {**UPSTREAM, "ca": "x"}}, "example.ca means nothing here; there are url"),
        ({"example": {**UPSTREAM, "url": "api.example.com"}}, "example.url=api.example.com: it is"),
        ({"example": {"url": UPSTREAM["url"]}}, "example.key is one word, from Ansible Vault"),
        ({"example": {**UPSTREAM, "key": "sk-secret x"}}, "example.key is one word"),
        ({"example": {**UPSTREAM, "certificates": "/etc/ca.pem"}}, "example.certificates is text"),
        ({"example": {**UPSTREAM, "retries": -1}}, "example.retries=-1: it is a whole number"),
        ({"example": {**UPSTREAM, "timeout": "5"}}, "example.timeout=5: it is a whole number"),
    ],
)
def test_what_is_wrong_with_upstreams(upstreams: Any, fault: str) -> None:
    (found,) = assistant_upstream_faults(upstreams, "hybrid")
    assert fault in found
    assert "sk-secret" not in found


FILES = [
    {"path": "/models/a.gguf", "size": 94 << 20},
    {"path": "/models/b.gguf.part", "size": 5 << 20},
    {"path": "/models/old.gguf", "size": 2 << 30},
    {"path": "/models/gone.gguf.part", "size": 0},
]


def test_models_are_listed_and_what_is_none_of_them() -> None:
    models = {**MODELS, "other": {**HERE, "file": "b.gguf"}}
    rest = "belongs to no variant: -e assistant_models_prune=true takes it away"
    assert assistant_model_list(models, FILES) == [
        "default: a.gguf, 94 MiB, as its SHA-256 says",
        "smart: gpt-example of example",
        "other: b.gguf is not there",
        f"gone.gguf.part, 0 MiB, {rest}",
        f"old.gguf, 2048 MiB, {rest}",
    ]
    assert assistant_unnamed_files(models, FILES) == ["/models/gone.gguf", "/models/old.gguf"]


def test_which_files_the_nas_needs() -> None:
    assert list(assistant_local_models(MODELS, "hybrid")) == ["default"]
    assert assistant_local_models(MODELS, "cloud") == {}


def test_what_the_service_is_told_of_upstreams() -> None:
    told = assistant_upstream_keys({"example": {**UPSTREAM, "certificates": "PEM", "retries": 1}})
    assert told == {"upstreams": {"example": {"key": "sk-secret", "certificates": "PEM"}}}
