# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""An image that the NAS builds itself: without the base image, cut off, and to the end."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from conftest import CONTAINER, INVENTORY, LONG, ROOT
from site_lab import kill
from testinfra.host import Host

from lab import docker

Playbook = Callable[..., subprocess.CompletedProcess[str]]
pytestmark = LONG
# What a build leaves there while it goes on.
LEFT = "ls -d /run/nas-assistant-build /var/lib/nas-assistant/image.tar 2>/dev/null || true"
RUNNING = f"docker inspect {CONTAINER} --format '{{{{.Config.Image}}}}'"
# The memory that each process may have which reads disks only while nobody else does; of cgroups
# v1, and of v2.
IDLE = """
for each in /proc/[0-9]*; do
    case "$(ionice -p "${each#/proc/}" 2>/dev/null)" in idle*) ;; *) continue ;; esac
    cat /sys/fs/cgroup/memory$(sed -n 's/^[0-9]*:memory://p' $each/cgroup)/memory.limit_in_bytes \
        /sys/fs/cgroup$(sed -n 's/^0:://p' $each/cgroup)/memory.max 2>/dev/null
done
true
"""
PATIENCE = 900
# Of this machine, and so of each lab NAS on it.
MEMORY = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def numbers(text: str) -> list[int]:
    return [int(word) for word in text.split() if word.isdigit()]


@pytest.fixture(scope="module")
def base() -> str:
    """The image that it is built on, which no registry has."""
    lab = yaml.safe_load((INVENTORY / "lab.yml").read_text(encoding="utf-8"))["nas"]
    return str(lab["vars"]["lab_base_image"])


@pytest.fixture(scope="module")
def wish(base: str) -> dict[str, Any]:
    """As the lab's inventory has it, by a name that no image has yet."""
    image = {"source": "build_on_nas", "name": "nas-built", "engine": "wheel", "base_image": base}
    image |= {"network": "host", "ca_bundle": os.environ.get("PIP_CERT", "")}
    return {"assistant_image": image}


@pytest.fixture(scope="module", autouse=True)
def as_before(playbook: Playbook, log_in: Callable[[], Host], base: str) -> Iterator[None]:
    """In the end the NAS has the image of the others again, and nothing of the builds."""
    yield
    back = playbook("assistant")
    assert back.returncode == 0, back.stdout
    host = log_in()
    # Should a test have failed, not all of them are there.
    host.run(f"docker rmi --force {base} $(docker images --quiet nas-built | sort -u)")
    host.check_output("docker builder prune --force --all")
    assert "changed=0" in playbook("assistant").stdout


def test_a_base_image_that_cannot_be_had_is_said(
    host: Host, playbook: Playbook, wish: dict[str, Any], base: str, client: httpx.Client
) -> None:
    before = host.check_output(RUNNING)
    assert host.run(f"docker image inspect {base}").rc != 0
    done = playbook("assistant", **wish)
    assert done.returncode != 0
    said = " ".join(done.stdout.split())
    assert base in said
    assert "The machine that builds must reach the base image, or have it" in said
    assert host.check_output(LEFT) == ""
    assert host.check_output(RUNNING) == before
    assert client.get("/readyz").status_code == 200


def test_a_run_that_is_killed_leaves_a_build_that_the_next_one_ends(
    host: Host,
    playbook: Playbook,
    wish: dict[str, Any],
    base: str,
    lab_container: str,
    nas_name: str,
    tmp_path: Path,
    client: httpx.Client,
    wait_ready: Callable[[], float],
) -> None:
    """Meanwhile it lets all others go first, and the assistant answers."""
    docker.docker("save", "--output", str(tmp_path / "base.tar"), base)
    docker.docker("cp", str(tmp_path / "base.tar"), f"{lab_container}:/var/lib/base.tar")
    host.check_output("docker load --input /var/lib/base.tar && rm /var/lib/base.tar")
    planned = playbook("assistant", "--check", **wish)
    assert planned.returncode == 0, planned.stdout
    assert host.check_output(LEFT) == ""
    command = ["ansible-playbook", "-i", str(INVENTORY), "nas.assistant.assistant"]
    command += ["--limit", nas_name, "--extra-vars", json.dumps(wish)]
    with (tmp_path / "log").open("wb") as log:
        run = subprocess.Popen(command, cwd=ROOT, stdout=log, start_new_session=True)
    try:
        deadline = time.monotonic() + PATIENCE
        # Before a step has a group of its own, it is in the engine's, which has no limit.
        while not any(each < MEMORY for each in numbers(host.check_output(IDLE))):
            assert run.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.5)
        assert client.get("/readyz").status_code == 200
    finally:
        kill(run)
    done = playbook("assistant", **wish)
    assert done.returncode == 0, done.stdout
    assert host.check_output(RUNNING).startswith("nas-built:")
    assert host.check_output(LEFT) == ""
    wait_ready()


def test_it_is_built_and_sent_once(
    host: Host, playbook: Playbook, wish: dict[str, Any], client: httpx.Client
) -> None:
    again = playbook("assistant", **wish)
    assert again.returncode == 0, again.stdout
    assert "changed=0" in again.stdout
    assert "Send what it is built of" not in again.stdout
    body = {"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 8}
    assert client.post("/v1/chat/completions", json=body).status_code == 200
