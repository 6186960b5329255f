# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""The images: nas-lab-debian:12, Debian as in debian:12-slim, and on it nas-lab:12, a blank NAS.

nas-lab-vm:12 is the same NAS with a kernel: what a virtual machine's disk is filled with.
"""

from __future__ import annotations

import hashlib
import os
import selectors
import shutil
import subprocess
import tempfile
from pathlib import Path

from lab import apt, label, paths
from lab.docker import docker, inspect
from lab.lock import held
from lab.progress import say, step
from lab.run import run

SUITES = {"12": "bookworm", "13": "trixie"}

# The same folders that debian:*-slim leaves out; licences stay.
_LEFT_OUT = ("doc", "man", "info", "locale", "groff", "linda", "lintian")
_KEPT = ("/usr/share/doc/*/copyright",)

_REGISTRY_PATIENCE = 15  # seconds until a registry must have begun to answer
_SOURCE = "nas-lab.source"  # what a lab image was built from


def base_name(debian: str) -> str:
    """The base image of a Debian release."""
    return f"nas-lab-debian:{debian}"


def nas_name(debian: str, target: str = "container") -> str:
    """The image of a blank NAS of a Debian release; ``target`` is a stage of the Dockerfile."""
    return f"nas-lab:{debian}" if target == "container" else f"nas-lab-{target}:{debian}"


def ensure_base(debian: str) -> str:
    """Make the base image if it is missing, and return its name."""
    name = base_name(debian)
    with held(f"image-{debian}"):
        if inspect("image", [name]):
            return name
        slim = f"debian:{debian}-slim"
        with step(f"base image {name}"):
            if _pull(slim):
                _label(slim, name)
            else:
                say(f"no registry answers for {slim}: building the same from Debian packages")
                _bootstrap(debian, name)
    return name


def ensure_nas(debian: str, target: str = "container") -> str:
    """Make the image of a blank NAS if it is missing or out of date, and return its name."""
    base, name = ensure_base(debian), nas_name(debian, target)
    with held(f"image-{debian}"):
        source = _fingerprint(inspect("image", [base])[0]["Id"])
        found = inspect("image", [name])
        if found and (found[0]["Config"]["Labels"] or {}).get(_SOURCE) == source:
            return name
        with step(f"lab image {name}"):
            _build(base, target, name, source)
    return name


def _pull(image: str) -> bool:
    """Pull an image if a registry begins to answer soon.

    The first line comes with the registry's answer.
    """
    with subprocess.Popen(
        ["docker", "pull", image],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as pull:
        assert pull.stdout is not None  # noqa: S101  # a pipe was asked for
        with selectors.DefaultSelector() as selector:
            selector.register(pull.stdout, selectors.EVENT_READ)
            if not selector.select(_REGISTRY_PATIENCE):
                pull.kill()
        pull.stdout.read()
    return pull.returncode == 0


def _label(image: str, name: str) -> None:
    # A tag alone would carry no label, and `down` would not find it.
    dockerfile = f"FROM {image}\nLABEL {label.LAB}={label.IMAGE}\n"
    docker("build", "--quiet", "--tag", name, "-", stdin=dockerfile)


def _bootstrap(debian: str, name: str) -> None:
    if not shutil.which("mmdebstrap"):
        apt.install(
            ["mmdebstrap", "debian-archive-keyring"],
            why="no registry answers, so the base image is made with mmdebstrap",
            why_not=f"Make debian:{debian}-slim available to docker pull, then run it again.",
        )
    options = [f"--dpkgopt=path-exclude=/usr/share/{folder}/*" for folder in _LEFT_OUT]
    options += [f"--dpkgopt=path-include={kept}" for kept in _KEPT]
    mirror = os.environ.get("NAS_LAB_MIRROR")
    paths.home().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=paths.home(), prefix="base-") as folder:
        tar = Path(folder) / "base.tar"
        run(
            [
                "mmdebstrap",
                "--variant=minbase",
                *options,
                SUITES[debian],
                tar,
                *([mirror] if mirror else []),
            ],
            remedy="If this machine has a Debian mirror of its own, name it in NAS_LAB_MIRROR and "
            "run it again.",
        )
        changes = ['CMD ["bash"]', f"LABEL {label.LAB}={label.IMAGE}"]
        docker("import", *[f"--change={change}" for change in changes], str(tar), name)


def _build(base: str, target: str, name: str, source: str) -> None:
    # The host's network, because a company's resolver is often out of a bridge's reach.
    options = ["--network", "host", "--target", target, "--build-arg", f"BASE={base}"]
    for proxy in ("http_proxy", "https_proxy", "no_proxy"):
        if os.environ.get(proxy):
            options += ["--build-arg", proxy]
    labels = ["--label", f"{label.LAB}={label.IMAGE}", "--label", f"{_SOURCE}={source}"]
    docker(
        *["build", "--quiet", *options, *labels, "--tag", name, str(_context())],
        timeout=1200,
        remedy="Check that the Debian mirrors can be reached, then run it again.",
    )


def _fingerprint(base_id: str) -> str:
    digest = hashlib.sha256(base_id.encode())
    for path in sorted([_context() / "Dockerfile", *(_context() / "rootfs").rglob("*")]):
        if path.is_file():
            digest.update(str(path.relative_to(_context())).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def _context() -> Path:
    return Path(__file__).resolve().parent
