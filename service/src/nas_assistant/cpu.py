# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""What the CPU must be able to do for the prebuilt engine."""

from __future__ import annotations

import platform
from pathlib import Path

# The x86 wheel is compiled for this level (Haswell, 2013) and dies with SIGILL at the first call
# without it.
_WHEEL_X86_FLAGS = ("avx", "avx2", "bmi2", "f16c", "fma", "sse4_2")


def missing_for_wheel(
    cpuinfo: Path = Path("/proc/cpuinfo"), machine: str = platform.machine()
) -> tuple[str, ...]:
    """The instruction sets that the wheel needs and this CPU lacks; none on ARM."""
    if machine not in ("x86_64", "AMD64"):
        return ()
    for line in cpuinfo.read_text(encoding="ascii", errors="replace").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "flags":
            present = frozenset(value.split())
            return tuple(flag for flag in _WHEEL_X86_FLAGS if flag not in present)
    # No flags at all: a sandbox hides them. Trying is better than refusing a machine that may well
    # do.
    return ()
