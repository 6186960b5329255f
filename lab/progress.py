# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""One line per step with its seconds, on the screen and, for the bench, in .lab/timings.json."""

from __future__ import annotations

import fcntl
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from lab import paths

# Steps quicker than this are said but not recorded: they are look-ups, not work.
_WORTH_RECORDING = 0.05


def say(text: str) -> None:
    """Print a line at once, also into a pipe."""
    print(f"lab: {text}", flush=True)


def warn(text: str) -> None:
    """Print what went wrong without stopping for it."""
    print(f"lab: warning: {text}", file=sys.stderr, flush=True)


@contextmanager
def step(name: str) -> Iterator[None]:
    """Say a step when it begins and, with its seconds, when it is done; record the seconds."""
    say(f"{name} …")
    began = time.monotonic()
    yield
    seconds = time.monotonic() - began
    say(f"{name}: {seconds:.1f} s")
    record(name, seconds)


def record(name: str, seconds: float) -> None:
    """Append a step to .lab/timings.json, safe beside other processes that do the same."""
    if seconds < _WORTH_RECORDING:
        return
    path = paths.home() / "timings.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        stream.seek(0)
        steps = _parse(stream.read())
        at = datetime.now(UTC).isoformat(timespec="seconds")
        steps.append({"step": name, "seconds": round(seconds, 2), "at": at})
        stream.seek(0)
        stream.truncate()
        json.dump(steps, stream, indent=1)


def _parse(text: str) -> list[dict[str, object]]:
    # A file cut short by a kill costs its old entries, never the run.
    try:
        steps = json.loads(text)
    except ValueError:
        return []
    return steps if isinstance(steps, list) else []
