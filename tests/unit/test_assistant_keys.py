# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""The keys of the inventory, as the service gets them."""

from __future__ import annotations

import datetime
import hashlib
from typing import Any

import pytest
from ansible_collections.nas.assistant.plugins.filter.assistant import (
    assistant_key,
    assistant_key_faults,
)


@pytest.mark.parametrize(
    "keys",
    [
        {"owner": {}},
        {
            "owner": {"role": "admin"},
            "a-b_1": {"key": "x" * 32, "parallel": 1, "models": ["large"]},
        },
        {"guest": {"expires": "2030-12-31"}, "other": {"expires": datetime.date(2030, 12, 31)}},
    ],
)
def test_keys_that_are_fine(keys: dict[str, Any]) -> None:
    assert assistant_key_faults(keys) == []


@pytest.mark.parametrize(
    ("keys", "fault"),
    [
        ({}, "give at least one, as NAME: {role: admin}"),
        ("owner", "give at least one"),
        ({"a b": {}}, "a b: a name has letters"),
        ({7: {}}, "7: a name has letters"),
        ({"owner": "x" * 40}, "owner is no mapping: write owner: {}"),
        ({"owner": {"limit": 1}}, "owner.limit means nothing here; there are key, role"),
        ({"owner": {"key": "sk-short"}}, "owner.key is one word of at least 32 characters"),
        ({"owner": {"key": "two words " * 9}}, "owner.key is one word"),
        ({"owner": {"role": "root"}}, "owner.role=root: it is user or admin"),
        ({"owner": {"parallel": -1}}, "owner.parallel=-1: it is a whole number"),
        ({"owner": {"parallel": True}}, "owner.parallel=True"),
        ({"owner": {"models": "large"}}, "owner.models=large: it is a list of names"),
        ({"owner": {"local_only": "yes"}}, "owner.local_only=yes: it is true or false"),
        ({"owner": {"expires": "soon"}}, "owner.expires=soon: it is a day such as 2030-12-31"),
    ],
)
def test_keys_that_are_not(keys: Any, fault: str) -> None:
    (found,) = assistant_key_faults(keys)
    assert found.startswith(fault)
    assert "sk-short" not in found


def test_the_secret_stays_behind() -> None:
    secret = "s" * 40
    wish = {"key": secret, "role": "user", "expires": datetime.date(2030, 12, 31)}
    assert assistant_key(wish, "guest", secret) == {
        "name": "guest",
        "sha256": hashlib.sha256(secret.encode()).hexdigest(),
        "role": "user",
        "expires": "2030-12-31",
    }
