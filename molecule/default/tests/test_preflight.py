# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""What is said of the lab NAS, and that a look changes nothing."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from testinfra.host import Host

Playbook = Callable[..., subprocess.CompletedProcess[str]]
ROOT = Path(os.environ["MOLECULE_PROJECT_DIRECTORY"])
INVENTORY = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"], "inventory")
REPORTS = ROOT / ".lab/molecule/preflight"


def report(nas: str) -> dict[str, Any]:
    return dict(json.loads((REPORTS / f"{nas}.json").read_text()))


def test_the_report_is_of_this_machine(playbook: Playbook, host: Host, nas_name: str) -> None:
    for arguments in ((), ("--check",)):
        (REPORTS / f"{nas_name}.json").unlink(missing_ok=True)
        done = playbook("preflight", *arguments)
        assert done.returncode == 0, done.stdout
        assert "changed=0" in done.stdout
        found = report(nas_name)
        assert f"{nas_name}: {found['verdict']}" in done.stdout
    machine = found["machine"]
    assert machine["cpu"]["count"] == int(host.check_output("nproc --all"))
    meminfo = host.check_output("sed -n 's/^MemTotal: *//p' /proc/meminfo")
    assert machine["memory"]["total"] == int(meminfo.split()[0]) * 1024
    assert "memory" in machine["cgroup"]["controllers"]
    assert 1e8 < machine["bandwidth"] < 1e13
    assert [nic["name"] for nic in machine["nics"] if nic["way_out"]] == ["eth0"]
    assert {443, 2222} <= {each["port"] for each in machine["listeners"]}
    free = {room["mount"]: room["free"] for room in machine["rooms"]}
    shown = int(host.check_output("df --output=avail -B1 / | tail -n 1"))
    assert abs(free["/"] - shown) < 1 << 30
    page = (REPORTS / "index.html").read_text()
    assert f'<a href="#{nas_name}">' in page
    # The page says what the report does.
    for finding in found["findings"]:
        assert f"<td>{finding['value']}</td>" in page.replace("&#39;", "'")


def test_the_page_has_all_that_were_asked(
    playbook_in: Playbook, nas_name: str, tmp_path: Path
) -> None:
    """Two that are the same machine, one that is away, and two of before that nobody asks, of which
    the report of one was cut off."""
    (tmp_path / "group_vars").symlink_to(ROOT / "inventories/lab/group_vars")
    lab = yaml.safe_load((INVENTORY / "lab.yml").read_text())["nas"]
    one = lab["hosts"][nas_name]
    away = {**one, "ansible_host": "127.0.0.9", "ansible_port": 9}
    hosts = {"first": one, "second": one, "away": away, "before": one, "cut": one}
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump({"nas": {**lab, "hosts": hosts}}))
    reports = tmp_path / "reports"
    into = ("--extra-vars", f"preflight_report_dir={reports}")
    assert playbook_in(tmp_path, {}, "preflight", *into, limit="before").returncode == 0
    (reports / "cut.json").write_text((reports / "before.json").read_text()[:-99])
    done = playbook_in(tmp_path, {}, "preflight", *into, limit="all:!before:!cut")
    assert re.search(r"^away .* unreachable=1", done.stdout, re.M)
    page = (reports / "index.html").read_text()
    assert "3 asked, nothing changed. Of the others, what was found before." in page
    assert '<td>away</td><td class="unfit">did not answer</td>' in page
    assert '<td>cut</td><td class="warning">its report cannot be read' in page
    assert '<h2 id="away">' not in page
    assert '<h2 id="cut">' not in page
    for each in ("first", "second", "before"):
        assert f'<h2 id="{each}">{each}: <span class=' in page
        verdict = json.loads((reports / f"{each}.json").read_text())["verdict"]
        assert f"{verdict}</td>" in page.split(f'<a href="#{each}">')[1].split("</tr>")[0]


def test_an_unfit_machine_is_refused_with_the_remedy(
    playbook: Playbook, host: Host, nas_name: str
) -> None:
    host.check_output("systemd-run --unit rival python3 -m http.server 8099")
    try:
        limits = {"memory_min": 4096, "memory_good": 8192}
        done = playbook("preflight", preflight_limits=limits, preflight_ports=[80, 443, 8099])
    finally:
        host.check_output("systemctl stop rival")
    said = " ".join(done.stdout.split())
    assert done.returncode != 0
    assert f"{nas_name} is unfit, and nothing was changed: memory: " in said
    assert "wanted 4096 GB; a model and the NAS together do not fit: add memory" in said
    assert "port 8099: python3, wanted free, or Nginx" in said
    assert "changed=0" in said
    assert report(nas_name)["verdict"] == "unfit"


def test_what_the_assistant_took_itself_is_no_reason_to_refuse_it(playbook: Playbook) -> None:
    done = playbook("preflight", preflight_limits={"free_min": 100000, "free_good": 200000})
    assert done.returncode == 0, done.stdout
    assert "an update may find no room" in " ".join(done.stdout.split())


def test_wrong_limits_are_refused(playbook: Playbook) -> None:
    done = playbook("preflight", preflight_limits={"memory": 4})
    assert done.returncode != 0
    assert "preflight_limits: memory is unknown; there are memory_min" in " ".join(
        done.stdout.split()
    )


def test_wrong_models_are_refused(playbook: Playbook) -> None:
    done = playbook("preflight", preflight_models=[{"name": "own", "bytes": 0, "tokens": 4096}])
    said = " ".join(done.stdout.split())
    assert done.returncode != 0
    assert "preflight_models: own: bytes=0: give 1 or more, the size of its file; own: " in said
    assert "bytes_per_token=missing: give a whole number" in said
    assert "changed=0" in said
