# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""What a scanner of TLS has to say of the site."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

from conftest import LONG

from lab import apt

pytestmark = LONG
# What any certificate draws that no public CA made, as testssl.sh calls it and docs/security.md has
# it. Whether the name is right is no matter of the CA's.
PRIVATE = {"cert_chain_of_trust", "cert_revocation"}
# Sentences about the result as a whole, which count the same again.
GRADES = {"overall_grade", "final_score"}
SEVERE = ("MEDIUM", "HIGH", "CRITICAL", "FATAL")


def test_a_scanner_finds_nothing_above_low(address: str, tmp_path: Path) -> None:
    if not shutil.which("testssl"):
        apt.install(["testssl.sh"], why="the test scans the site's TLS")
    report = tmp_path / "report.json"
    command = ["testssl", "--quiet", "--color", "0", "--warnings", "off", "--ip", address]
    command += ["--jsonfile", str(report), f"{address}:443"]
    subprocess.run(command, capture_output=True, check=False, timeout=900)
    findings = json.loads(report.read_text("utf-8"))
    assert len(findings) > 80  # it came to its end
    # What it was asked for is among the certificate's names.
    assert {each["id"]: each["severity"] for each in findings}["cert_trust"] == "OK"
    severe = {each["id"]: each["finding"] for each in findings if each["severity"] in SEVERE}
    assert {key: severe[key] for key in severe.keys() - PRIVATE - GRADES} == {}
