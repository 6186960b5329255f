# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""The whole site: a run that is killed, a fleet, the other Debian, the engine from source."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable
from typing import Any

import pytest
import yaml
from site_lab import ROOT, Lab, check_answer, kill

from lab import docker

MODELS = "/var/lib/nas-assistant/models"
MODELS_OF_THE_LAB = ROOT / "inventories/lab/group_vars/nas/assistant.yml"


def test_a_run_killed_anywhere_is_finished_by_the_next(make_lab: Callable[..., Lab]) -> None:
    """Kill the controller at growing times, run to the end, and look at what was done twice."""
    lab = make_lab()
    (host,) = lab.hosts
    seen: dict[str, str] = {}  # model file -> identity when first seen complete
    for seconds in (6, 15, 22, 30, 40):
        run = subprocess.Popen(lab.command(), cwd=ROOT, stdout=subprocess.DEVNULL)
        time.sleep(seconds)
        kill(run)
        for line in lab.on(host, f"stat -c '%n %i %Y' {MODELS}/*.gguf || true").split("\n"):
            name, _, identity = line.partition(" ")
            assert seen.setdefault(name, identity) == identity, f"{name} was fetched again"
    lab.site()
    with lab.client(host) as client:
        check_answer(client)
    assert lab.on(host, f"find {MODELS} -name '*.part'") == ""
    assert lab.on(host, "ls /var/lib/nas-assistant | grep tar || true") == ""
    assert "changed=0" in lab.site()


@pytest.mark.parametrize("debian", ["13"])
def test_other_debian(make_lab: Callable[..., Lab], debian: str) -> None:
    """With a pool, and copies of it on another disk."""
    lab = make_lab(debian=debian)
    (host,) = lab.hosts
    pool = {"name": "tank", "devices": host["disks"][:1], "format": True}
    pool["volumes"] = [{"name": "documents", "path": "/srv/documents"}]
    copy = {"name": "usb", "device": {"path": host["disks"][1], "format": True}}
    sources = [{"volume": "tank/documents"}, {"folder": "/etc/nas-assistant"}]
    wish = {"storage_pools": [pool], "backup_sources": sources, "backup_copies": [copy]}
    extra = ("--extra-vars", json.dumps(wish))
    lab.site("--check", *extra)
    assert not list(lab.folder.glob("credentials/*"))
    lab.site(*extra)
    with lab.client(host) as client:
        check_answer(client)
    assert "changed=0" in lab.site(*extra)

    lab.on(host, "echo one > /srv/documents/letter")
    for unit in ("nas-backup@usb", "nas-drill@usb"):
        lab.on(host, f"systemctl start {unit}.service")
    lab.on(host, "echo two > /srv/documents/letter")
    back = json.dumps({"backup_restore": {"copy": "usb", "sources": ["tank/documents"]}})
    lab.site(*extra, "--extra-vars", back, playbook="restore")
    assert lab.on(host, "cat /srv/documents/letter") == "one"


def test_fleet_of_three_answers_to_one_key(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(nas=3)
    lab.site()
    for host in lab.hosts:
        with lab.client(host) as client:
            check_answer(client)
            other: dict[str, Any] = {"Authorization": "Bearer " + "x" * 43}
            assert client.get("/v1/models", headers=other).status_code == 401
    assert lab.site().count("changed=0") == 3

    # One that is off is not taken for another, whose address it is to have and whose key is known.
    off, other, _ = lab.hosts
    docker.docker("stop", off["container"])
    interfaces = [{"name": "eth0", "ipv4": {"addresses": [f"{other['ssh_host']}/24"]}}]
    wish = ["--limit", off["name"], "-e", json.dumps({"network_interfaces": interfaces})]
    done = subprocess.run(lab.command(*wish), cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert f"{off['ssh_host']} lets nobody in" in " ".join(done.stdout.split())
    assert other["ssh_host"] in done.stdout  # it was tried


def test_engine_from_source_serves_a_cpu_without_avx(make_lab: Callable[..., Lab]) -> None:
    """The release image on a virtual machine whose CPU the prebuilt engine refuses."""
    lab = make_lab(cpu="Nehalem")
    image = {
        "engine": "source",
        "base_image": "nas-lab-debian:12",
        "network": "host",
        "ca_bundle": os.environ.get("PIP_CERT", ""),
    }
    models = yaml.safe_load(MODELS_OF_THE_LAB.read_text())["assistant_models"]
    # What llama-server is told by flags of its own.
    models["default"]["speculation"] = True
    lab.site("--extra-vars", json.dumps({"assistant_image": image, "assistant_models": models}))
    (host,) = lab.hosts
    with lab.client(host) as client:
        check_answer(client)
    assert "avx" not in lab.on(host, "cat /proc/cpuinfo")
    assert lab.on(host, "docker exec nas-assistant cat /app/engine") == "source"
    image_id = lab.on(host, "docker inspect -f '{{.Image}}' nas-assistant")
    size = lab.on(host, f"docker image inspect -f '{{{{.Size}}}}' {image_id}")
    assert int(size) < 250_000_000
    compilers = "for tool in cc gcc g++ make cmake ld; do command -v $tool; done; true"
    assert lab.on(host, f"docker exec nas-assistant sh -c '{compilers}'") == ""
