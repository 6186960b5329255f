# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""The docker command: a thin runner, and the search for a client that can build with BuildKit."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterable, Mapping
from typing import Any


class DockerError(Exception):
    """A docker command failed, or cannot do what is asked; one message with the remedy."""


def run(
    command: list[str], environ: Mapping[str, str] | None = None, timeout: float | None = None
) -> str:
    """Run a docker command and return its standard output.

    :param environ: variables beside those of this process.
    :raises DockerError: the command cannot be run, failed, or took longer than ``timeout`` seconds.
    """
    variables = {**os.environ, "LC_ALL": "C.UTF-8", **(environ or {})}
    try:
        done = subprocess.run(
            command,
            env=variables,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except FileNotFoundError as error:
        raise DockerError(f"{command[0]}: not found; install the Docker client") from error
    except subprocess.TimeoutExpired as error:
        raise DockerError(f"{' '.join(command[:2])}: no end after {timeout:.0f} s") from error
    if done.returncode != 0:
        said = "\n".join((done.stderr or done.stdout).strip().splitlines()[-20:])
        raise DockerError(f"{' '.join(command)}: exit code {done.returncode}: {said}")
    return done.stdout


def inspect(
    name: str, kind: str = "container", timeout: float | None = None
) -> dict[str, Any] | None:
    """Return what Docker knows of a container, an image or a network; None where it has none.

    Where there is no Docker, there is none of them either.

    :raises DockerError: nobody answers, or not in words that are known.
    """
    try:
        (found,) = json.loads(run(["docker", kind, "inspect", name], timeout=timeout))
    except DockerError as error:
        if "no such" in str(error).lower() or "not found" in str(error).lower():
            return None
        raise
    return dict(found)


def clients(path: str) -> Iterable[str]:
    """Yield each docker command on ``path`` (a PATH variable), first come first."""
    for folder in path.split(os.pathsep):
        candidate = os.path.join(folder, "docker")
        if os.access(candidate, os.X_OK):
            yield candidate


def buildkit_client(path: str) -> list[str]:
    """Return the start of a command that builds with BuildKit: build secrets need it.

    Clients before 23.0 carry BuildKit themselves; later ones need the buildx plugin. Both may be
    on one machine, so each client on ``path`` is asked.

    :raises DockerError: none of them can, or no engine answers.
    """
    seen = []
    for client in clients(path):
        try:
            version = run(
                [client, "version", "--format", "{{.Client.Version}} {{.Server.Version}}"]
            )
        except DockerError as error:
            seen.append(str(error))
            continue
        if int(version.split(".", 1)[0]) < 23:
            return [client, "build"]
        try:
            run([client, "buildx", "version"])
            return [client, "buildx", "build", "--load"]
        except DockerError:
            seen.append(f"{client} {version.split()[0]} has no buildx plugin")
    raise DockerError(
        "no Docker client here can build the image: "
        + ("; ".join(seen) or "there is none on the PATH")
        + ". Install Docker with buildx on the machine that builds, or give the role a finished "
        "image (assistant_image.source archive or registry)"
    )
