# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Sizes as an inventory has them."""

from __future__ import annotations

import re

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SIZE = re.compile(r"(\d+)([KMGT]?)(?:iB)?")


def bytes_of(size: str) -> int:
    """Return the bytes of a size such as ``20G``; 0 for ``none``.

    :raises ValueError: it is no size above nothing.
    """
    if size == "none":
        return 0
    matched = _SIZE.fullmatch(size)
    if not matched or int(matched[1]) == 0:
        raise ValueError(f"{size!r} is no size such as 20G (with K, M, G or T), and not none")
    return int(matched[1]) * _UNITS[matched[2]]
