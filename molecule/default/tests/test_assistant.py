# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""The container: what it may do, asked from inside, and what it keeps."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from conftest import LONG
from testinfra.host import Host

Playbook = Callable[..., subprocess.CompletedProcess[str]]
CONTAINER = "nas-assistant"
ALLOWED = "sed -n 's/^Cpus_allowed_list:\\t//p' /proc/%s/status"
# CPUs of one core have the same line.
CORES = "cat /sys/devices/system/cpu/cpu[0-9]*/topology/thread_siblings_list | sort -u"
# Those that runc sets; Docker passes no weight on under cgroups v1 where the first is not there.
WEIGHTS = "/sys/fs/cgroup/blkio/blkio.weight /sys/fs/cgroup/io.bfq.weight /sys/fs/cgroup/io.weight"


def numbers(text: str) -> set[int]:
    """The CPUs of a list such as ``0-2,5``."""
    ends = (part.partition("-") for part in text.split(","))
    return {each for first, _, last in ends for each in range(int(first), int(last or first) + 1)}


def seen_inside(host: Host) -> dict[str, Any]:
    """What the container reads of its own limits."""
    said = host.check_output(f"docker exec {CONTAINER} /app/start.sh limits")
    return dict(json.loads(said))


def engine_of(host: Host) -> str:
    """The engine's process, which is started by another one than the first."""
    return host.check_output("pgrep -f 'wheel_server|llama-server'").split()[0]


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


def test_its_limits_are_seen_inside(host: Host) -> None:
    limits = seen_inside(host)
    assert limits["memory"] == 1 << 30
    assert limits["swap"] in (0, 4096)
    own, there = numbers(limits["cpuset"]), numbers(host.check_output(ALLOWED % "self"))
    assert own
    assert own <= there
    # Of four cores and more, the NAS has one to itself.
    if len(host.check_output(CORES).split()) >= 4:
        assert own < there
    assert limits["oom_score_adj"] == 300
    assert limits["io_priority"] == 2
    assert limits["pids"] == 256
    for kind in ("ulimits", "hard_ulimits"):
        assert (limits[kind]["nofile"], limits[kind]["core"]) == (4096, 0)
    assert host.check_output(f"ionice -p {engine_of(host)}") == "best-effort: prio 2"


def test_what_takes_all_memory_inside_ends_inside(
    host: Host, client: httpx.Client, wait_ready: Callable[[], float]
) -> None:
    """The largest program in the container goes, and the NAS's own go on."""
    services = "systemctl show ssh nginx docker --property=MainPID --value | xargs"
    before = host.check_output(services)
    hog = "python3 -c 'taken = [bytearray(b\"x\" * (1 << 24)) for _ in iter(int, 1)]'"
    assert host.run(f"docker exec {CONTAINER} {hog}").rc == 137
    assert host.check_output(services) == before
    wait_ready()
    answer = client.post("/v1/completions", json={"prompt": "Hello", "max_tokens": 4})
    assert answer.status_code == 200


def test_all_its_limits_can_be_set(
    host: Host, playbook: Playbook, wait_ready: Callable[[], float]
) -> None:
    """Read from inside, from the engine's process, and from Docker where only it knows."""
    last = max(numbers(host.check_output(ALLOWED % "self")))
    has_weight = host.run(f"docker exec {CONTAINER} ls {WEIGHTS}").stdout.strip()
    resources: dict[str, Any] = {
        "memory": "auto",
        "memory_reservation": "256m",
        "swap": "64m",
        "cpuset_cpus": str(last),
        "cpus": 0.9,
        "cpu_shares": 512,
        "pids": 200,
        "oom_score_adj": 400,
        "io_priority": 3,
        "blkio_weight": 750 if has_weight else 0,
        "ulimits": {"nofile": 2048, "stack": 16 << 20, "core": 0},
        "restart_policy": "on-failure",
    }
    try:
        run = playbook("assistant", assistant_resources=resources)
        assert run.returncode == 0, run.stdout
        limits = seen_inside(host)
        # Three fifths of the machine, in steps.
        total = 1024 * int(host.check_output("grep MemTotal: /proc/meminfo").split()[1])
        assert 0 <= total * 0.6 - limits["memory"] < 64 << 20
        assert (limits["memory_reservation"], limits["swap"]) == (256 << 20, 64 << 20)
        assert (limits["cpuset"], limits["cpus"]) == (str(last), 0.9)
        assert limits["cpu_weight"] in ((512,) if limits["version"] == 1 else (20, 59))
        assert (limits["pids"], limits["oom_score_adj"]) == (200, 400)
        assert limits["io_priority"] == 3
        if has_weight:
            weight = 7475 if limits["io_weight_file"] == "io.weight" else 750
            assert limits["io_weight"] == weight
        for kind in ("ulimits", "hard_ulimits"):
            asked = {name: limits[kind][name] for name in resources["ulimits"]}
            assert asked == resources["ulimits"]
        engine = engine_of(host)
        assert host.check_output(ALLOWED % engine) == str(last)
        # A thread for each CPU that it may run on.
        assert "--threads 1 " in host.check_output(f"tr '\\0' ' ' </proc/{engine}/cmdline")
        look = f"docker inspect {CONTAINER} --format '{{{{.HostConfig.RestartPolicy.Name}}}}'"
        assert host.check_output(look) == "on-failure"
        assert "changed=0" in playbook("assistant", assistant_resources=resources).stdout
    finally:
        run = playbook("assistant")
    assert run.returncode == 0, run.stdout
    wait_ready()
    assert seen_inside(host)["memory"] == 1 << 30


def test_limits_that_are_not_in_force_are_said(host: Host, playbook: Playbook) -> None:
    """As of a kernel that takes them and does not heed them."""
    host.check_output(f"docker update --pids-limit 300 {CONTAINER}")
    assert "changed=0" not in playbook("assistant").stdout
    engine = host.check_output(f"docker exec {CONTAINER} cat /proc/1/oom_score_adj")
    assert engine == "300"
    pid = host.check_output(f"docker inspect {CONTAINER} --format '{{{{.State.Pid}}}}'")
    host.check_output(f"echo 400 >/proc/{pid}/oom_score_adj")
    run = playbook("assistant")
    assert run.returncode != 0
    said = " ".join(run.stdout.split())
    assert "oom_score_adj: asked for was 300, in force is 400" in said
    host.check_output(f"echo 300 >/proc/{pid}/oom_score_adj")
    assert "changed=0" in playbook("assistant").stdout


def test_a_graphics_processor_is_handed_over_and_taken_back(
    host: Host, playbook: Playbook, wait_ready: Callable[[], float]
) -> None:
    """A device that the lab has plays it: what counts is that the container may open it."""
    resources = {"memory": "1g", "gpu": True}
    run = playbook("assistant", assistant_resources=resources)
    assert "has no /dev/dri/renderD*" in " ".join(run.stdout.split())
    host.check_output(
        "mkdir /dev/dri && mknod -m 0660 /dev/dri/renderD128 c 10 237 && chgrp 44 /dev/dri/*"
    )
    try:
        assert playbook("assistant", assistant_resources=resources).returncode == 0
        script = "import os; os.close(os.open('/dev/dri/renderD128', os.O_RDWR))"
        host.check_output(f'docker exec {CONTAINER} python3 -c "{script}"')
        assert "changed=0" in playbook("assistant", assistant_resources=resources).stdout
        assert playbook("assistant").returncode == 0
        assert host.run(f"docker exec {CONTAINER} ls /dev/dri").rc != 0
    finally:
        host.check_output("rm -r /dev/dri")
    wait_ready()


NOT_BY_ITSELF = ("unless-stopped", "")


def comes_back(host: Host) -> tuple[str, str]:
    """What starts the container after a restart of the NAS, and what does so after some time."""
    policy = "docker inspect --format '{{.HostConfig.RestartPolicy.Name}}'"
    timers = "systemctl show --property Id,ActiveState --value 'nas-assistant-tune-back-*.timer'"
    return host.run(f"{policy} {CONTAINER}").stdout.strip(), host.run(timers).stdout.strip()


@LONG
def test_what_suits_the_machine_is_tried_once(
    host: Host, playbook: Playbook, wait_ready: Callable[[], float]
) -> None:
    tuned = "/etc/nas-assistant/tuned.json"
    host.check_output(f"rm -f {tuned}")
    with ThreadPoolExecutor() as pool:
        running = pool.submit(playbook, "assistant", assistant_autotune=True)
        # Meanwhile the NAS is ready to go on by itself, should nobody come back.
        while not (seen := comes_back(host))[1] and not running.done():
            time.sleep(0.5)
        run = running.result()
    assert run.returncode == 0, run.stdout
    assert (seen[0], seen[1].split()[-1:]) == ("always", ["active"])
    assert comes_back(host) == NOT_BY_ITSELF
    assert "suit default best" in " ".join(run.stdout.split())
    found = json.loads(host.file(tuned).content_string)
    config = host.file("/etc/nas-assistant/config.ini").content_string
    assert f"threads = {found['threads']}\nbatch = {found['batch']}\n" in config
    assert not host.file("/etc/nas-assistant/tune.ini").exists
    assert "changed=0" in playbook("assistant", assistant_autotune=True).stdout
    # One that cannot be tried leaves what ran.
    host.check_output(f"rm {tuned}")
    small = {"memory": "450m"}
    run = playbook("assistant", assistant_autotune=True, assistant_resources=small)
    assert run.returncode != 0
    assert "assistant_autotune: " in run.stdout
    assert not host.file("/etc/nas-assistant/tune.ini").exists
    assert comes_back(host) == NOT_BY_ITSELF
    wait_ready()
    assert not host.file(tuned).exists
    assert playbook("assistant").returncode == 0
    wait_ready()


def test_walls_are_loosened_on_purpose_only(
    host: Host, playbook: Playbook, wait_ready: Callable[[], float]
) -> None:
    odd = playbook("assistant", assistant_extra_capabilities=["ALL"])
    assert "not ALL, and without CAP_" in " ".join(odd.stdout.split())
    run = playbook(
        "assistant", assistant_extra_capabilities=["SYS_NICE"], assistant_allow_new_privileges=True
    )
    assert run.returncode == 0, run.stdout
    said = " ".join(run.stdout.split())
    assert "has the capabilities SYS_NICE and leave to gain privileges" in said
    look = f"docker exec {CONTAINER} grep -E 'CapBnd|NoNewPrivs' /proc/1/status"
    assert host.check_output(look).split() == ["CapBnd:", f"{1 << 23:016x}", "NoNewPrivs:", "0"]
    assert playbook("assistant").returncode == 0
    assert host.check_output(look).split() == ["CapBnd:", "0" * 16, "NoNewPrivs:", "1"]
    wait_ready()


def test_a_shell_opens_and_shows_its_environment(host: Host) -> None:
    environ = host.check_output(f"docker exec {CONTAINER} /bin/sh -c env")
    assert "PATH=/opt/venv/bin:" in environ
    assert "PYTHONPATH=/app" in environ


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
