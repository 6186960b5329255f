# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""A NAS that runs Ansible on itself, as docs/fleet.md tells its owner to set it up."""

from __future__ import annotations

import os
import re
import shlex
import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from site_lab import ROOT, Lab, build_image, check_answer

from lab import docker, ssh

SECTION = (ROOT / "docs/fleet.md").read_text().split("## NAS that fetch what they should be")[1]
# By their first line; the commands have none.
FILES = dict(re.findall(r"```\w+\n# (\S+)\n(.*?)```", SECTION, re.DOTALL))
(COMMANDS,) = re.findall(r"```sh\n(.*?)```", SECTION, re.DOTALL)
YOURS = "ssh-ed25519 AAAA... you@laptop"
CREDENTIALS = "/var/lib/nas-pull/credentials"


def put(lab: Lab, host: dict[str, Any], path: str, text: str) -> None:
    """Write a file on the NAS."""
    folder = os.path.dirname(path)
    lab.on(host, f"mkdir -p {folder} && printf %s {shlex.quote(text)} > {path}")


@pytest.fixture
def nas(make_lab: Callable[..., Lab], tmp_path: Path) -> tuple[Lab, dict[str, Any]]:
    """A NAS with Ansible and this collection, and a repository of its owner."""
    lab = make_lab()
    (host,) = lab.hosts
    build = ["ansible-galaxy", "collection", "build", "--output-path", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True)
    (archive,) = tmp_path.glob("nas-assistant-*.tar.gz")
    lab.on(host, "mkdir /srv/given")
    docker.docker("cp", str(archive), f"{host['container']}:/srv/given/collection.tar.gz")
    bundle = os.environ.get("PIP_CERT")
    if bundle:
        docker.docker("cp", bundle, f"{host['container']}:/srv/given/ca.pem")
        put(lab, host, "/etc/pip.conf", "[global]\ncert = /srv/given/ca.pem\n")
    lab.on(host, re.sub(r"git\+https://\S+", "/srv/given/collection.tar.gz", COMMANDS))
    made = build_image()
    docker.docker("cp", made["archive"], f"{host['container']}:/srv/given/image.tar")
    own = yaml.safe_load((ROOT / "inventories/lab/group_vars/nas/assistant.yml").read_text())
    wish = {name: own[name] for name in ("assistant_models", "assistant_resources")}
    wish["assistant_image"] = {
        "source": "archive",
        "archive": "/srv/given/image.tar",
        "name": made["image"],
    }
    mine = (lab.folder / f"{ssh.KEY}.pub").read_text().strip()
    for name, text in {**FILES, "group_vars/nas/assistant.yml": yaml.safe_dump(wish)}.items():
        fitted = text.replace("192.0.2.11", host["ssh_host"]).replace(YOURS, mine)
        if not name.startswith("/"):
            put(lab, host, f"/srv/fleet/{name}", fitted)
        else:
            put(lab, host, name, re.sub(r"https://git\S+", "file:///srv/fleet", text))
    commit(lab, host, "init --quiet --initial-branch main")
    return lab, host


def commit(lab: Lab, host: dict[str, Any], *before: str) -> None:
    """Commit what is in the repository."""
    git = "git -C /srv/fleet -c user.name=Owner -c user.email=owner@example.com"
    steps = [*before, "add --all", "commit --quiet --message Change"]
    lab.on(host, " && ".join(f"{git} {step}" for step in steps))


def fetch(lab: Lab, host: dict[str, Any]) -> str:
    """Have the NAS fetch what it should be; return what it said."""
    began = lab.on(host, "date +%s")
    lab.on(host, "systemctl daemon-reload; systemctl start nas-pull.service || true")
    return lab.on(host, f"journalctl --unit nas-pull --output cat --since @{began}")


def test_a_nas_makes_itself_what_its_repository_says(nas: tuple[Lab, dict[str, Any]]) -> None:
    lab, host = nas
    said = fetch(lab, host)
    assert "failed=0" in said, said[-3000:]
    key, certificate = (
        lab.on(host, f"cat {CREDENTIALS}/{name}") for name in ("api_key.owner", "nas1.crt")
    )
    with httpx.Client(
        base_url=f"https://{host['ssh_host']}",
        verify=ssl.create_default_context(cadata=certificate),
        headers={"Authorization": f"Bearer {key}"},
        trust_env=False,
        timeout=120,
    ) as client:
        check_answer(client)
    said = fetch(lab, host)
    assert "changed=0" in said, said[-3000:]

    put(lab, host, "/srv/fleet/group_vars/nas/more.yml", 'hardening_login: {banner: "Ours.\n"}\n')
    commit(lab, host)
    assert "failed=0" in fetch(lab, host)
    assert lab.on(host, "cat /etc/issue.net") == "Ours."

    # Where sshd cannot have its new port, the old one stays.
    lab.on(host, "systemd-run --quiet --unit=taken python3 -m http.server 2300")
    put(lab, host, "/srv/fleet/group_vars/nas/more.yml", "hardening_ssh: {port: 2300}\n")
    commit(lab, host)
    said = " ".join(fetch(lab, host).split())
    assert "failed=1" in said
    assert "the old state was put back" in said or "The old state is in place again" in said, said
    assert lab.on(host, "sshd -T | grep ^port") == "port 2222"

    # Without hardening, SSH is where it was, and the firewall knows that on the next day too.
    put(lab, host, "/srv/fleet/group_vars/nas/more.yml", "hardening_state: absent\n")
    commit(lab, host)
    for _ in range(2):
        said = fetch(lab, host)
        assert "failed=0" in said, said[-3000:]
    assert ssh.door(lab.folder, host["ssh_host"]) == ssh.DOORS[1]
    lab.on(host, "true")

    pool = "proxy_pool: [nas1, nas2]\n"
    put(lab, host, "/srv/fleet/group_vars/nas/more.yml", pool)
    commit(lab, host)
    assert "would make a CA that no other member knows" in " ".join(fetch(lab, host).split())
