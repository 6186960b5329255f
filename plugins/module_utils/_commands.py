# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Runs a command of the NAS as modules need it: an argument list, in English, without questions."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Sequence


def run(argv: Sequence[str], timeout: float | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; what it printed and its exit code are in the answer.

    :param timeout: seconds; raises subprocess.TimeoutExpired beyond them.
    """
    return subprocess.run(
        argv,
        env={**os.environ, "LC_ALL": "C"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=timeout,
        check=False,
    )


def answer(argv: Sequence[str], timeout: float | None = None) -> str:
    """Return what a command prints, whatever it ends with; nothing where the NAS does not have it.

    :param timeout: seconds; raises subprocess.TimeoutExpired beyond them.
    """
    try:
        return str(run(argv, timeout).stdout)
    except FileNotFoundError:
        return ""


def demand(
    argv: Sequence[str],
    failure: type[Exception],
    accepted: Sequence[int] = (0,),
    package: str = "",
) -> str:
    """Run a command that must succeed; return what it prints.

    :param failure: what is raised where it does not; says what the command said.
    :param accepted: codes that are a success.
    :param package: where the command comes from, for the message.
    """
    try:
        done = run(argv)
    except FileNotFoundError:
        source = f" (package {package})" if package else ""
        raise failure(f"{argv[0]} is not installed{source}") from None
    if done.returncode not in accepted:
        said = " ".join((done.stderr or done.stdout).split())
        raise failure(f"{spoken(argv)}: {said or f'ended with {done.returncode}'}")
    return str(done.stdout)


def spoken(argv: Sequence[str]) -> str:
    """Return a command as a message names it: a script among its words by the first line only."""
    return shlex.join(
        f"{word.strip().splitlines()[0]} …" if "\n" in word.strip() else word for word in argv
    )
