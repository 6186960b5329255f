# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""A model that calls tools, made of one that knows none: its weights, another chat template."""

from __future__ import annotations

import struct
from pathlib import Path

from nas_assistant.gguf import read_head

from .conftest import gguf_string

# As many open models have it: what a tool is called with is JSON between two marks.
TEMPLATE = """
{%- if tools %}
    {{- '<|im_start|>system\\nCall a function as <tool_call>{"name": ..., "arguments": {...}}' }}
    {{- '</tool_call>. These are the functions:\\n<tools>' }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- endif %}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.content %}
        {{- message.content }}
    {%- endif %}
    {%- for call in message.tool_calls or [] %}
        {{- '\\n<tool_call>\\n{"name": "' }}
        {{- call.function.name }}
        {{- '", "arguments": ' }}
        {{- call.function.arguments | tojson }}
        {{- '}\\n</tool_call>' }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
_ALIGNMENT = 32


def with_template(model: Path, target: Path, template: str = TEMPLATE) -> None:
    """Write ``target``, which is ``model`` with another chat template."""
    head, data = read_head(model), model.read_bytes()
    assert head.metadata.get("general.alignment", _ALIGNMENT) == _ALIGNMENT
    old = _entry(head.chat_template)
    assert data.count(old) == 1
    # So long that what comes after the head is as well aligned as before.
    padding = " " * ((len(old) - len(_entry("{##}" + template))) % _ALIGNMENT)
    target.write_bytes(data.replace(old, _entry("{#" + padding + "#}" + template)))
    assert read_head(target).needed_size <= target.stat().st_size


def _entry(template: str) -> bytes:
    key = gguf_string("tokenizer.chat_template")
    return key + struct.pack("<I", 8) + gguf_string(template)
