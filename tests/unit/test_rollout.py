# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""A model that takes another one's name could not be taken back."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.nas.assistant.plugins.filter.rollout import rollout_replaced

CONFIG = """
[server]
queue = 32
[model:default]
file = a.gguf
sha256 = aa
[model:remote]
upstream = cloud
"""


@pytest.mark.parametrize(
    ("models", "replaced"),
    [
        ({"default": {"file": "a.gguf", "sha256": "AA"}}, []),
        ({"default": {"file": "a.gguf", "sha256": "bb"}}, ["a.gguf"]),
        ({"other": {"file": "a.gguf", "sha256": "bb"}}, ["a.gguf"]),
        ({"default": {"file": "b.gguf", "sha256": "bb"}}, []),
        ({"remote": {"upstream": "cloud"}}, []),
        ({}, []),
    ],
)
def test_what_would_be_replaced(models: dict[str, Any], replaced: list[str]) -> None:
    assert rollout_replaced(CONFIG, models) == replaced


@pytest.mark.parametrize("config", ["", "no configuration"])
def test_where_there_is_none(config: str) -> None:
    assert rollout_replaced(config, {"default": {"file": "a.gguf", "sha256": "bb"}}) == []
