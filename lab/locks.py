# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""`lab lock`.

Compile requirements*.in to lock files with hashes, for every Python that is supported.
"""

from __future__ import annotations

from lab.paths import REPOSITORY
from lab.progress import step
from lab.run import run
from lab.venv import BOOTSTRAP, LOCK, OLDEST


def compile_all() -> None:
    """Write the lock files.

    Versions that are locked already stay, unless the .in file asks for others.
    """
    python = f"{OLDEST[0]}.{OLDEST[1]}"
    for lock in (BOOTSTRAP, LOCK):
        with step(f"compile {lock.name}"):
            run(
                [
                    REPOSITORY / ".venv/bin/uv",
                    *("pip", "compile", "--quiet", "--directory", str(REPOSITORY)),
                    *("--universal", "--python-version", python, "--generate-hashes"),
                    *("--no-emit-index-url", "--no-emit-find-links"),
                    *("--output-file", lock.name, lock.with_suffix(".in").name),
                ],
                env={"UV_CUSTOM_COMPILE_COMMAND": "make lock"},
                remedy="The lines above name what cannot be met: change requirements.in.",
            )
