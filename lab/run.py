# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Runs commands: an argument list, C locale, exit code checked, the error readable."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from lab.errors import LabError

_SHOWN_LINES = 15


def run(
    argv: Sequence[str | Path],
    *,
    check: bool = True,
    stdin: str | bytes | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float | None = None,
    remedy: str = "",
) -> subprocess.CompletedProcess[str]:
    """Run a command and return it with its text output; raise LabError when it fails.

    :param remedy: what the reader can do when it fails, added to the error.
    :param timeout: seconds after which the command is killed.
    """
    command = [str(word) for word in argv]
    try:
        done = subprocess.run(
            command,
            input=stdin.encode() if isinstance(stdin, str) else stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            env={**os.environ, "LC_ALL": "C.UTF-8", **(env or {})},
            timeout=timeout,
            check=False,
        )
    except FileNotFoundError:
        raise LabError(
            f"{command[0]!r} is not installed. {remedy or 'Install it and run the command again.'}"
        ) from None
    except subprocess.TimeoutExpired:
        raise LabError(
            f"no end after {timeout:.0f} s: {_shown(command)}. {remedy}".rstrip()
        ) from None
    text = subprocess.CompletedProcess(
        command,
        done.returncode,
        done.stdout.decode(errors="replace"),
        done.stderr.decode(errors="replace"),
    )
    if check and text.returncode != 0:
        raise LabError(failure(text, remedy))
    return text


def failure(done: subprocess.CompletedProcess[str], remedy: str = "") -> str:
    """What to tell about a command that failed: the command, its last lines, the remedy."""
    said = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()
    tail = "\n  ".join(said[-_SHOWN_LINES:])
    text = f"exit code {done.returncode} from: {_shown(done.args)}\n  {tail}"
    return f"{text}\n{remedy}" if remedy else text


def _shown(command: Sequence[str]) -> str:
    line = " ".join(command)
    return line if len(line) <= 300 else f"{line[:300]} …"
