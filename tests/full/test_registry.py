# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""The assistant's image from a registry: Debian's own, with TLS, on a lab NAS beside."""

from __future__ import annotations

import io
import json
import socket
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from site_lab import Lab, build_image, check_answer, play, said, worked

from lab import docker, ssh

CONFIG = """\
version: 0.1
storage: {filesystem: {rootdirectory: /var/lib/docker-registry}}
http: {addr: ":5000", tls: {certificate: /etc/docker/registry/crt, key: /etc/docker/registry/key}}
"""
OTHER = {"x86_64": "arm64", "aarch64": "amd64"}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.fixture
def pair(make_lab: Callable[..., Lab]) -> tuple[Lab, dict[str, Any], dict[str, Any]]:
    """A lab, a blank NAS, and one that is a registry which the blank one trusts."""
    lab = make_lab(nas=2)
    nas, registry = lab.hosts
    address = registry["ssh_host"]
    lab.on(registry, "apt-get update && apt-get install --yes docker-registry openssl")
    lab.on(
        registry,
        "cd /etc/docker/registry && openssl req -x509 -newkey rsa:2048 -nodes -days 2 -keyout key "
        f"-out crt -subj /CN=registry -addext subjectAltName=IP:{address} && chmod 644 key && "
        f"printf %s '{CONFIG}' > config.yml && systemctl restart docker-registry",
    )
    certificate = lab.on(registry, "cat /etc/docker/registry/crt")
    folder = f"/etc/docker/certs.d/{address}:5000"
    lab.on(nas, f"mkdir -p {folder} && printf '%s\n' '{certificate}' > {folder}/ca.crt")
    return lab, nas, registry


@pytest.fixture
def push(pair: tuple[Lab, dict[str, Any], dict[str, Any]]) -> Iterator[str]:
    """The registry as this machine's engine reaches it: by its loopback address, over SSH."""
    lab, _, registry = pair
    port = free_port()
    tunnel = subprocess.Popen([
        *("ssh", "-F", "/dev/null", *ssh.options(lab.folder), "-o", "BatchMode=yes", "-N"),
        *("-i", str(lab.folder / ssh.KEY), "-L", f"127.0.0.1:{port}:127.0.0.1:5000"),
        f"root@{registry['ssh_host']}",
    ])  # fmt: skip
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            break
        except OSError:
            time.sleep(0.2)
    yield f"127.0.0.1:{port}/nas-assistant"
    tunnel.terminate()
    tunnel.wait()


@pytest.fixture
def images(push: str, tmp_path: Path) -> Iterator[str]:
    """The image for this machine, one for another, and a list of both; the digest of the first."""
    made = build_image()
    docker.docker("load", "--input", made["archive"])
    (machine,) = docker.inspect("image", [made["image"]])
    other = next(name for name in OTHER.values() if name != machine["Architecture"])
    empty = tmp_path / "empty.tar"
    with tarfile.open(empty, "w") as archive:
        archive.addfile(tarfile.TarInfo("nothing"), io.BytesIO())
    docker.docker("tag", made["image"], f"{push}:this")
    docker.docker("import", "--platform", f"linux/{other}", str(empty), f"{push}:other")
    try:
        for tag in ("this", "other"):
            docker.docker("push", "--quiet", f"{push}:{tag}")
        manifest = (
            "manifest",
            "create",
            "--insecure",
            f"{push}:both",
            f"{push}:this",
            f"{push}:other",
        )
        docker.docker(*manifest)
        docker.docker("manifest", "push", "--insecure", "--purge", f"{push}:both")
        (pushed,) = docker.inspect("image", [f"{push}:this"])
        yield next(
            name.partition("@")[2] for name in pushed["RepoDigests"] if name.startswith(push)
        )
    finally:
        docker.docker("rmi", f"{push}:this", f"{push}:other", check=False)


def test_each_pulls_what_it_can_run(
    pair: tuple[Lab, dict[str, Any], dict[str, Any]], images: str
) -> None:
    lab, nas, registry = pair
    repository = f"{registry['ssh_host']}:5000/nas-assistant"

    def site(name: str, playbook: str = "assistant") -> subprocess.CompletedProcess[str]:
        wish = {"assistant_image": {"source": "registry", "name": name}}
        return play(lab, playbook, "--limit", nas["name"], **wish)

    worked(site(f"{repository}:both", "site"))
    with lab.client(nas) as client:
        check_answer(client)
    assert "changed=0" in worked(site(f"{repository}:both"))

    # By digest, which no list of the engine names.
    worked(site(f"{repository}@{images}"))
    assert "changed=0" in worked(site(f"{repository}@{images}"))
    running = "docker inspect nas-assistant --format '{{json .Config.Image}}'"
    assert json.loads(lab.on(nas, running)) == f"{repository}@{images}"

    for _ in range(2):
        message = said(site(f"{repository}:other"))
        assert f"{repository}:other is for " in message
        assert "What ran before goes on." in message
    lab.on(registry, "systemctl stop docker-registry")
    assert f"{registry['ssh_host']}:5000" in said(site(f"{repository}:gone"))
    assert "changed=0" in worked(site(f"{repository}@{images}"))
    with lab.client(nas) as client:
        check_answer(client)
