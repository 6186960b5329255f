# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""What is said of the finished NAS, and of one that does not answer."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from testinfra.host import Host

Playbook = Callable[..., subprocess.CompletedProcess[str]]
ROOT = Path(os.environ["MOLECULE_PROJECT_DIRECTORY"])
REPORTS = ROOT / ".lab/molecule/status"
UNIT = "will-fail"
# Another site, which is the default one and wants another name.
OTHER_SITE = "/etc/nginx/conf.d/a-first.conf"
OTHER = "server { listen 443 ssl default_server; ssl_reject_handshake on; server_name other; }"


def report(folder: Path, nas: str) -> dict[str, Any]:
    return dict(json.loads((folder / f"{nas}.json").read_text()))


def test_the_report_is_of_this_nas(playbook: Playbook, host: Host, nas_name: str) -> None:
    done = playbook("status")
    assert done.returncode == 0, done.stdout
    assert "changed=0" in done.stdout
    told = report(REPORTS, nas_name)
    assert f"{nas_name}: {told['verdict']}" in done.stdout
    found = told["found"]
    assert found["assistant"]["ready"]
    assert "default" in found["assistant"]["models"]
    assert found["assistant"]["state"] == "running"
    image = host.check_output("docker inspect nas-assistant --format '{{.Config.Image}}'")
    assert found["assistant"]["image"] == image
    assert found["front"]["status"] == 200
    assert not found["blind"]
    (certificate,) = found["certificates"]
    assert 300 * 86400 < certificate["expires"] - time.time() < 366 * 86400
    assert abs(found["now"] - time.time()) < 600
    assert found["packages"]["fetched"] > time.time() - 86400
    assert found["versions"]["Debian"] == host.file("/etc/debian_version").content_string.strip()
    assert found["versions"]["Docker"][0].isdigit()
    assert found["versions"]["Nginx"][0].isdigit()
    page = (REPORTS / "index.html").read_text()
    assert f'<a href="#{nas_name}">' in page
    assert f"<td>{told['summary']['versions']}</td>" in page
    for each in told["findings"]:
        assert f"<td>{each['value']}</td>" in page.replace("&#39;", "'")


def test_the_front_is_asked_by_its_name(playbook: Playbook, host: Host, nas_name: str) -> None:
    host.check_output(f"echo '{OTHER}' > {OTHER_SITE} && systemctl reload nginx && sleep 1")
    try:
        done = playbook("status")
    finally:
        host.check_output(f"rm {OTHER_SITE} && systemctl reload nginx")
    assert done.returncode == 0, done.stdout
    assert report(REPORTS, nas_name)["found"]["front"]["status"] == 200


def test_what_is_wrong_is_said_and_may_fail_the_run(
    playbook_in: Callable[..., subprocess.CompletedProcess[str]],
    host: Host,
    nas_name: str,
    tmp_path: Path,
    wait_ready: Callable[[], float],
) -> None:
    """Beside a NAS that does not answer at all."""
    lab = yaml.safe_load(
        Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"], "inventory/lab.yml").read_text()
    )["nas"]
    away = {"ansible_host": "192.0.2.1", "ansible_ssh_common_args": "-o ConnectTimeout=1"}
    lab["hosts"] = {nas_name: lab["hosts"][nas_name], "away": away}
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump({"nas": lab}))
    (tmp_path / "group_vars").symlink_to(ROOT / "inventories/lab/group_vars")
    (tmp_path / "told").mkdir()
    (tmp_path / "told/away.json").write_text("{}")
    host.check_output("docker stop nas-assistant; systemctl stop nginx")
    host.run(f"systemd-run --unit {UNIT} --wait false")
    try:
        wish = json.dumps({"status_fail": True, "status_report_dir": str(tmp_path / "told")})
        done = playbook_in(tmp_path / "hosts.yml", {}, "status", "-e", wish, limit="nas")
    finally:
        host.check_output(f"systemctl reset-failed {UNIT}; docker start nas-assistant")
        host.check_output("systemctl start nginx")
    said = " ".join(done.stdout.split())
    assert done.returncode != 0
    assert f"{nas_name}: needs help" in said
    assert "bad assistant exited, " in said
    assert "bad front Connection refused" in " ".join(said.replace("[Errno 111] ", "").split())
    assert not (tmp_path / "told/away.json").exists()
    assert f"{UNIT}.service failed" in said
    assert f"{nas_name} needs help; what and why is said above" in said
    page = (tmp_path / "told/index.html").read_text()
    assert '<tr><td>away</td><td class="bad">no answer</td>' in page
    assert "0 of 2 well" in page
    wait_ready()
    again = playbook_in(tmp_path / "hosts.yml", {}, "status", "-e", wish)
    assert again.returncode == 0, again.stdout
    # Where nobody answers, that is said too; of who was not asked, what was found before stays.
    nobody = playbook_in(tmp_path / "hosts.yml", {}, "status", "-e", wish, limit="away")
    assert nobody.returncode != 0
    page = (tmp_path / "told/index.html").read_text()
    assert '<tr><td>away</td><td class="bad">no answer</td>' in page
    assert f'<a href="#{nas_name}">' in page
    assert "what was found then" in page
    assert report(tmp_path / "told", nas_name)["found"]["assistant"]["ready"]
