# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""The container: what it may do, asked from inside, and what it keeps."""

from __future__ import annotations

from typing import Any

import pytest
from testinfra.host import Host

CONTAINER = "nas-assistant"


@pytest.fixture
def status(host: Host) -> dict[str, str]:
    """/proc/self/status of a process in the container."""
    lines = host.check_output(f"docker exec {CONTAINER} cat /proc/self/status").splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def test_runs_as_nobody_in_particular(status: dict[str, str]) -> None:
    assert status["Uid"].split() == ["10001"] * 4
    assert status["Gid"].split() == ["10001"] * 4


def test_has_no_capability_and_can_gain_none(status: dict[str, str]) -> None:
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[name], 16) == 0, name
    assert status["NoNewPrivs"] == "1"


def test_root_filesystem_is_read_only(host: Host) -> None:
    for path in ("/app/x", "/models/x", "/usr/x"):
        result = host.run(f"docker exec {CONTAINER} touch {path}")
        assert result.rc != 0
        assert "Read-only file system" in result.stderr


def test_has_no_network(host: Host) -> None:
    interfaces = host.check_output(f"docker exec {CONTAINER} ls /sys/class/net").split()
    assert interfaces == ["lo"]


def test_memory_limit_is_seen_inside(host: Host) -> None:
    limit = host.check_output(
        f"docker exec {CONTAINER} sh -c "
        "'cat /sys/fs/cgroup/memory.max || cat /sys/fs/cgroup/memory/memory.limit_in_bytes'"
    )
    assert int(limit) == 1 << 30


def test_gunicorn_serves_port_8000_inside_only(host: Host) -> None:
    command = f"docker exec {CONTAINER} /app/start.sh healthcheck"
    assert host.run(command).rc == 0
    assert not host.socket("tcp://0.0.0.0:8000").is_listening
    assert not host.socket("tcp://127.0.0.1:8000").is_listening


def test_one_engine_for_all_workers(host: Host) -> None:
    processes = host.check_output(f"docker top {CONTAINER}").splitlines()
    engines = [line for line in processes if "wheel_server" in line or "llama-server" in line]
    workers = [line for line in processes if "gunicorn" in line]
    assert len(engines) == 1
    assert len(workers) == 3  # the arbiter and two workers


def test_no_secret_where_others_look(host: Host, key: str, inspected: dict[str, Any]) -> None:
    assert key not in str(inspected)
    assert key not in host.check_output("ps -eo args")
    assert key not in host.check_output(f"docker logs {CONTAINER} 2>&1")
    assert key not in host.check_output("docker history --no-trunc " + inspected["Image"])
    config = host.file("/etc/nas-assistant/config.ini")
    assert (config.user, config.gid, config.mode) == ("root", 10001, 0o640)
    assert key not in config.content_string


def test_models_are_a_named_volume(host: Host, inspected: dict[str, Any]) -> None:
    mounts = {mount["Destination"]: mount for mount in inspected["Mounts"]}
    assert mounts["/models"]["Name"] == "nas-assistant-models"
    assert mounts["/models"]["RW"] is False
    models = host.file("/var/lib/nas-assistant/models").listdir()
    assert {"smollm2-135m-instruct-q4_1.gguf", "gemma-3-270m-q4_k_m.gguf"} <= set(models)


def test_image_is_small(host: Host, inspected: dict[str, Any]) -> None:
    size = int(
        host.check_output(f"docker image inspect {inspected['Image']} --format '{{{{.Size}}}}'")
    )
    assert size < 250_000_000


def test_image_has_no_compiler(host: Host) -> None:
    for tool in ("cc", "gcc", "make", "cmake", "pip"):
        assert host.run(f"docker exec {CONTAINER} sh -c 'command -v {tool}'").rc != 0, tool
