# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Builds .venv from the lock files, and makes nas.assistant.* resolve from this checkout.

uv installs the lock in 11 s where pip takes 59 s (2 cores, empty caches), so pip only fetches uv,
and steps in when uv cannot do it: uv does not read pip's configuration files, so a private index
may be known to pip alone.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from pathlib import Path

from lab import apt
from lab.errors import LabError
from lab.lock import held
from lab.paths import REPOSITORY
from lab.progress import say, step, warn
from lab.run import run

BOOTSTRAP = REPOSITORY / "requirements-bootstrap.txt"
LOCK = REPOSITORY / "requirements.txt"
OLDEST, NEWEST = (3, 11), (3, 13)


def build(target: Path = REPOSITORY / ".venv") -> bool:
    """Make the environment current and return whether that took any work."""
    _check_python()
    stamp, wanted = target / "lock.sha256", fingerprint([BOOTSTRAP, LOCK])
    with held("venv"):
        if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted:
            link_collection(target)
            return False
        with step("virtual environment from requirements.txt"):
            _make(target)
            _install(target)
            link_collection(target)
        stamp.write_text(wanted, encoding="utf-8")
    return True


def fingerprint(locks: list[Path]) -> str:
    """What the environment depends on: the lock files and the interpreter."""
    digest = hashlib.sha256(sys.version.encode() + os.path.realpath(sys.executable).encode())
    for lock in locks:
        digest.update(lock.read_bytes())
    return digest.hexdigest()


def link_collection(target: Path) -> None:
    """Put this checkout on the environment's collection path, under its name in playbooks."""
    packages = target / f"lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"
    link = packages / "ansible_collections/nas/assistant"
    if link.is_symlink() and link.resolve() == REPOSITORY:
        return
    link.parent.mkdir(parents=True, exist_ok=True)
    if link.is_symlink() or link.exists():
        link.unlink()
    link.symlink_to(REPOSITORY, target_is_directory=True)


def _check_python() -> None:
    found = sys.version_info[:2]
    if not OLDEST <= found <= NEWEST:
        raise LabError(
            f"Python {found[0]}.{found[1]} found, the lock covers 3.{OLDEST[1]} to 3.{NEWEST[1]}. "
            "Name another interpreter: make setup PYTHON=python3.12"
        )


def _make(target: Path) -> None:
    try:
        import ensurepip  # noqa: F401  # Debian ships it apart, in python3-venv
    except ImportError:
        apt.install(["python3-venv"], why="the virtual environment needs ensurepip")
    if target.exists():
        # An old one may hold packages that the lock no longer names.
        shutil.rmtree(target)
    # Not sys.executable: that may be the very environment that was just removed.
    run([getattr(sys, "_base_executable", sys.executable), "-m", "venv", target])


def _install(target: Path) -> None:
    python = str(target / "bin/python")
    remedy = "Check that a Python package index can be reached (pip config list) and run it again."
    pip = [python, "-m", "pip", "install", "--quiet", "--require-hashes", "--requirement"]
    run([*pip, str(BOOTSTRAP)], remedy=remedy)
    uv = [str(target / "bin/uv"), "pip", "install", "--quiet", "--python", python]
    uv += ["--require-hashes", "--requirement", str(LOCK)]
    done = run(uv, check=False, env=_uv_environment(python))
    if done.returncode != 0:
        said = " ".join(done.stderr.split())[:200] or "it said nothing"
        warn(f"uv could not install the lock ({said}); trying pip, which takes longer")
        run([*pip, str(LOCK)], remedy=remedy)
    say(f"packages are in {target}")


def _uv_environment(python: str) -> dict[str, str]:
    """Hand uv the settings that people give to pip."""
    settings = {}
    certificates = os.environ.get("PIP_CERT")
    if certificates and "SSL_CERT_FILE" not in os.environ:
        settings["SSL_CERT_FILE"] = certificates
    if "UV_DEFAULT_INDEX" not in os.environ and "UV_INDEX_URL" not in os.environ:
        for key in (":env:.index-url", "install.index-url", "global.index-url"):
            found = run([python, "-m", "pip", "config", "get", key], check=False)
            if found.returncode == 0 and found.stdout.strip():
                settings["UV_DEFAULT_INDEX"] = found.stdout.strip()
                break
    return settings
