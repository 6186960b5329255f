# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""A thin runner around the docker client."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

from lab.run import run

_REMEDY = "Is the engine answering? `python3 -m lab engine` makes one answer."


def docker(
    *arguments: str,
    check: bool = True,
    stdin: str | bytes | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float | None = 300,
    remedy: str = _REMEDY,
) -> subprocess.CompletedProcess[str]:
    """Run `docker ARGUMENTS`; raise LabError when it fails."""
    return run(
        ["docker", *arguments], check=check, stdin=stdin, env=env, timeout=timeout, remedy=remedy
    )


def lines(*arguments: str) -> list[str]:
    """The lines that a docker command prints, without empty ones."""
    return [line for line in docker(*arguments).stdout.splitlines() if line.strip()]


def inspect(kind: str, names: Sequence[str]) -> list[dict[str, Any]]:
    """What the engine knows of these objects; those that do not exist are left out."""
    if not names:
        return []
    done = docker(kind, "inspect", *names, check=False)
    found: list[dict[str, Any]] = json.loads(done.stdout or "[]")
    return found


def execute(
    container: str, *argv: str, check: bool = True, timeout: float = 60
) -> subprocess.CompletedProcess[str]:
    """Run a command inside a container."""
    return docker(
        "exec", container, *argv, check=check, timeout=timeout, remedy="`make down` starts afresh."
    )
