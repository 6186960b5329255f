# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""What a chat may tell the model's template: whether a model that can think before it answers is
to. Templates know other words too, which are dropped: what they make of them is not known here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nas_assistant.fields import Field

_THINKING = "enable_thinking"


def _check(value: Any) -> str | None:
    fine = isinstance(value, dict) and isinstance(value.get(_THINKING, True), bool)
    return None if fine else f"must be an object whose {_THINKING} is true or false"


# As llama.cpp and vLLM call it; OpenAI has no such field.
TEMPLATE: Mapping[str, Field] = {
    "chat_template_kwargs": Field(
        _check, {"type": "object", "properties": {_THINKING: {"type": "boolean"}}}
    )
}


def for_template(value: Any) -> Any:
    """What goes on to the engine of the field's value; one that is wrong as it is."""
    if _check(value) is not None:
        return value
    return {name: each for name, each in value.items() if name == _THINKING} or None
