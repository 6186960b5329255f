# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""What a build takes of a machine, and what to do where it does not have it."""

from __future__ import annotations

import re
import shutil

from ansible_collections.nas.assistant.plugins.module_utils._docker_cli import DockerError, run
from ansible_collections.nas.assistant.plugins.module_utils._memory import parse_meminfo

MIB = 1 << 20
#: Left to others by a build that holds itself back.
LEAST = 256 * MIB
ELSEWHERE = "have the image built elsewhere (assistant_image.source build, archive or registry)"
_ROOM, _MEMORY, _NETWORK = (
    r"[Nn]o space left on device",
    r"exit code: 137|signal: killed|Killed signal|[Cc]annot allocate memory",
    # Of Docker, apk, apt and pip.
    r"no such host|i/o timeout|connection refused|[Nn]etwork is unreachable|server misbehaving"
    r"|handshake timeout|x509:|failed to do request|access denied|denied: "
    r"|[Tt]emporary (failure|error)|Could not (connect|resolve)|unable to select packages"
    r"|Connection broken|Max retries|No matching distribution|unexpected status|failed to resolve"
    r"|deadline exceeded|Client\.Timeout|proxyconnect|Service Unavailable|: EOF",
)
#: What a failed build says, and what is to be done about it.
REMEDIES = {
    _ROOM: "There is no room left where Docker keeps its images. Make some (docker builder prune, "
    f"docker image prune), or {ELSEWHERE}",
    _MEMORY: "The memory did not suffice. Take the prebuilt engine (assistant_image.engine wheel), "
    f"or {ELSEWHERE}",
    _NETWORK: "The machine that builds must reach the base image, or have it, and the packages of "
    "the distribution and of Python (behind a proxy of your own: assistant_image.ca_bundle, "
    f"pip_index_file). Let it, or {ELSEWHERE}",
}


def remedy(said: str) -> str:
    """Return what to do about a failed build, empty where nobody knows."""
    for pattern, words in REMEDIES.items():
        if re.search(pattern, said):
            return f". {words}"
    return ""


def check(room: int, memory: int) -> None:
    """Refuse a machine on which a build would fail after a long time.

    :param room: MiB that must be free where Docker keeps its images; 0 does not ask.
    :param memory: MiB that must be available.
    :raises DockerError: there is less of one of them.
    """
    if room:
        root = run(["docker", "info", "--format", "{{.DockerRootDir}}"]).strip()
        free = shutil.disk_usage(root).free // MIB
        if free < room:
            raise DockerError(
                f"{root} has {free} MiB left, and a build takes up to {room} MiB. Make room "
                f"(docker builder prune, docker image prune), or {ELSEWHERE}"
            )
    available = memory_now()[1] // MIB
    if available < memory:
        raise DockerError(
            f"{available} MiB of memory are available, and a build takes {memory} MiB at least. "
            f"Stop what takes it, or {ELSEWHERE}"
        )


def memory_now() -> tuple[int, int]:
    """Return bytes of memory in all, and those that are available."""
    with open("/proc/meminfo", encoding="ascii") as stream:
        total, available = parse_meminfo(stream.read())
    return total, available


def spare() -> int:
    """Return how many bytes of memory a build may take that is to leave others theirs."""
    total, available = memory_now()
    return max(available - max(total // 10, LEAST), LEAST)
