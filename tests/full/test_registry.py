# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""The assistant's image from a registry: Debian's own, with TLS, on a lab NAS beside."""

from __future__ import annotations

import hashlib
import json
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from site_lab import Lab, build_image, check_answer, play, said, worked

from lab import docker, ssh

CONFIG = """\
version: 0.1
storage: {filesystem: {rootdirectory: /var/lib/docker-registry}}
http: {addr: ":5000", tls: {certificate: /etc/docker/registry/crt, key: /etc/docker/registry/key}}
"""
KIND = "application/vnd.docker.distribution.manifest"

Pair = tuple[Lab, dict[str, Any], dict[str, Any]]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.fixture
def pair(make_lab: Callable[..., Lab]) -> Pair:
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
def push(pair: Pair) -> Iterator[str]:
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


def put_other(at: httpx.Client, architecture: str) -> None:
    """Give the image that is there to another machine, as `other`; and put a list of both."""
    found = at.get("manifests/this", headers={"Accept": f"{KIND}.v2+json"})
    this, other = found.json(), found.json()
    config = at.get(f"blobs/{this['config']['digest']}").json()
    content = json.dumps({**config, "architecture": architecture}).encode()
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    where = httpx.URL(at.post("blobs/uploads/").headers["Location"])
    assert at.put(where.copy_merge_params({"digest": digest}), content=content).is_success
    other["config"] |= {"digest": digest, "size": len(content)}
    listed = []
    for tag, manifest in (("this", this), ("other", other)):
        said = at.put(
            f"manifests/{tag}",
            content=json.dumps(manifest),
            headers={"Content-Type": f"{KIND}.v2+json"},
        )
        assert said.is_success, said.text
        listed.append({
            "mediaType": f"{KIND}.v2+json",
            "size": len(json.dumps(manifest)),
            "digest": said.headers["Docker-Content-Digest"],
            "platform": {
                "os": "linux",
                "architecture": config["architecture"] if tag == "this" else architecture,
            },
        })  # fmt: skip
    body = {"schemaVersion": 2, "mediaType": f"{KIND}.list.v2+json", "manifests": listed}
    headers = {"Content-Type": f"{KIND}.list.v2+json"}
    said = at.put("manifests/both", content=json.dumps(body), headers=headers)
    assert said.is_success, said.text


@pytest.fixture
def digest(pair: Pair, push: str) -> Iterator[str]:
    """The image for this machine, one for another, and a list of both; the digest of the first."""
    lab, _, registry = pair
    made = build_image()
    docker.docker("load", "--input", made["archive"])
    (machine,) = docker.inspect("image", [made["image"]])
    docker.docker("tag", made["image"], f"{push}:this")
    certificate = lab.on(registry, "cat /etc/docker/registry/crt")
    try:
        docker.docker("push", "--quiet", f"{push}:this")
        with httpx.Client(
            base_url=f"https://{registry['ssh_host']}:5000/v2/nas-assistant/",
            verify=ssl.create_default_context(cadata=certificate),
            trust_env=False,
        ) as at:
            put_other(at, "arm64" if machine["Architecture"] == "amd64" else "amd64")
            found = at.get("manifests/this", headers={"Accept": f"{KIND}.v2+json"})
        yield str(found.headers["Docker-Content-Digest"])
    finally:
        docker.docker("rmi", f"{push}:this", check=False)


def test_each_pulls_what_it_can_run(pair: Pair, digest: str) -> None:
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
    worked(site(f"{repository}@{digest}"))
    assert "changed=0" in worked(site(f"{repository}@{digest}"))
    running = "docker inspect nas-assistant --format '{{json .Config.Image}}'"
    assert json.loads(lab.on(nas, running)) == f"{repository}@{digest}"

    for _ in range(2):
        message = said(site(f"{repository}:other"))
        assert f"{repository}:other is for " in message, message[-3000:]
        assert "What ran before goes on." in message
    lab.on(registry, "systemctl stop docker-registry")
    assert f"{registry['ssh_host']}:5000" in said(site(f"{repository}:gone"))
    assert "changed=0" in worked(site(f"{repository}@{digest}"))
    with lab.client(nas) as client:
        check_answer(client)
