# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""A certificate that signs itself is renewed by the NAS alone, and Ansible takes it for its own."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.community.crypto.plugins.modules import (
    openssl_csr_pipe,
    x509_certificate,
)
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

ROLE = Path(__file__).parents[2] / "roles/proxy"
RENEW, TELL = ROLE / "files/nas-assistant-renew", ROLE / "files/nas-assistant-certificate"
METRIC = "nas_assistant_certificate_end_time_seconds"
LEFT, DAYS = 7, 365

Call = Callable[..., dict[str, Any]]

pytestmark = [
    pytest.mark.skipif(not shutil.which("openssl"), reason="there is no openssl here"),
    # community.crypto asks of each key whether it is one of a kind that is going out of use.
    pytest.mark.filterwarnings("ignore:Diffie-Hellman"),
]


class Nas:
    """Files of a NAS whose certificate was made by the modules that the role has it made by."""

    def __init__(self, folder: Path, call: Call, kind: str) -> None:
        self.folder, self._call = folder, call
        for name in ("tls", "trust", "bin", "metrics"):
            (folder / name).mkdir()
        self.key, self.issued = folder / "tls/server.key", folder / "tls/issued.crt"
        self.served, self.page = folder / "tls/server.crt", folder / "trust/index.html"
        self.handed = folder / "trust/nas.crt"
        made = ec.generate_private_key(ec.SECP256R1()) if kind == "ECC" else None
        self.key.write_bytes(
            (made or rsa.generate_private_key(65537, 2048)).private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        self.nginx("exit 0")

    def nginx(self, *lines: str) -> None:
        """What Nginx does when it is asked to test itself."""
        path = self.folder / "bin/nginx"
        path.write_text("\n".join(["#!/bin/sh", '[ "$*" = "-t -q" ] || exit 9', *lines, ""]))
        path.chmod(0o755)

    def run_of_ansible(self, days: int) -> bool:
        """Make certificate, copy and page as the role does; return whether the first was made."""
        request = self._call(
            openssl_csr_pipe.main,
            privatekey_path=str(self.key),
            common_name="nas1",
            subject_alt_name=["DNS:nas1", "DNS:nas1.local", "IP:192.0.2.1"],
            basic_constraints=["CA:FALSE"],
            basic_constraints_critical=True,
            key_usage=["digitalSignature"],
            key_usage_critical=True,
            extended_key_usage=["serverAuth"],
        )
        made = self._call(
            x509_certificate.main,
            path=str(self.issued),
            csr_content=request["csr"],
            privatekey_path=str(self.key),
            provider="selfsigned",
            selfsigned_not_after=f"+{days}d",
            return_content=True,
        )
        for path in (self.served, self.handed):
            path.write_text(made["certificate"])
        self.page.write_text(f"<p>\nIt is <code>{self.fingerprint()}</code>, it says.</p>\n")
        return bool(made["changed"])

    def renew(self) -> subprocess.CompletedProcess[str]:
        """What the timer runs first."""
        paths = [self.served, self.issued, self.key, LEFT, DAYS, self.handed.parent]
        return self._run(RENEW, *map(str, paths))

    def tell(self, *others: Path) -> list[str]:
        """What the timer runs after it; return what those who read metrics see."""
        done = self._run(TELL, str(self.served), str(self.folder / "metrics"), *map(str, others))
        assert done.returncode == 0, done.stderr
        (file,) = (self.folder / "metrics").iterdir()
        return [line for line in file.read_text().splitlines() if not line.startswith("#")]

    def _run(self, program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        environ = {"PATH": f"{self.folder}/bin:{os.environ['PATH']}"}
        command = ["sh", str(program), *arguments]
        return subprocess.run(command, env=environ, capture_output=True, text=True, check=False)

    def certificate(self, path: Path | None = None) -> x509.Certificate:
        return x509.load_pem_x509_certificate((path or self.served).read_bytes())

    def fingerprint(self) -> str:
        return self.certificate().fingerprint(hashes.SHA256()).hex(":").upper()

    def names(self) -> list[str]:
        return sorted(path.name for path in (self.folder / "tls").iterdir())


@pytest.fixture(params=["ECC", "RSA"])
def nas(tmp_path: Path, call: Call, request: pytest.FixtureRequest) -> Nas:
    return Nas(tmp_path, call, request.param)


def test_one_near_its_end_is_made_anew_and_is_what_ansible_would_have_made(nas: Nas) -> None:
    assert nas.run_of_ansible(LEFT - 1)
    before, names = nas.certificate(), nas.names()
    done = nas.renew()
    assert done.returncode == 0, done.stderr
    assert "clients must be told" in done.stdout
    after = nas.certificate()
    assert after.not_valid_after_utc - datetime.now(UTC) > timedelta(days=DAYS - 1)
    assert after.not_valid_before_utc <= datetime.now(UTC)
    assert after.serial_number != before.serial_number
    assert after.issuer == after.subject == before.subject
    assert after.public_key() == before.public_key()
    assert list(after.extensions) == list(before.extensions)
    after.verify_directly_issued_by(after)
    assert nas.names() == names
    # The page from which devices get it has it too.
    assert nas.handed.read_text() == nas.served.read_text()
    assert nas.page.read_text() == f"<p>\nIt is <code>{nas.fingerprint()}</code>, it says.</p>\n"
    # What follows hands it out, and makes no other one.
    text, page = nas.served.read_text(), nas.page.read_text()
    assert not nas.run_of_ansible(DAYS)
    assert (nas.served.read_text(), nas.page.read_text()) == (text, page)


def test_one_that_lasts_is_left_alone(nas: Nas) -> None:
    nas.run_of_ansible(LEFT + 1)
    before = {path: path.stat().st_mtime_ns for path in nas.folder.glob("*/*.*")}
    done = nas.renew()
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert {path: path.stat().st_mtime_ns for path in nas.folder.glob("*/*.*")} == before


def test_the_old_one_stays_where_nginx_refuses_the_new_one(nas: Nas) -> None:
    nas.run_of_ansible(1)
    text, time, names = nas.served.read_text(), nas.served.stat().st_mtime_ns, nas.names()
    nas.nginx("echo 'broken site' >&2", "exit 1")
    done = nas.renew()
    assert done.returncode != 0
    assert "broken site" in done.stderr
    assert "the old one stays" in done.stderr
    # With its time too: nobody is to take it for a new one that Nginx has not read.
    assert (nas.served.read_text(), nas.served.stat().st_mtime_ns) == (text, time)
    assert nas.handed.read_text() == text
    assert nas.names() == names
    nas.nginx("exit 0")
    assert nas.renew().returncode == 0
    assert nas.served.read_text() != text


@pytest.mark.parametrize("broken", ["key", "served"])
def test_the_old_one_stays_where_none_can_be_made(nas: Nas, broken: str) -> None:
    nas.run_of_ansible(1)
    text = nas.issued.read_text()
    getattr(nas, broken).write_text("damaged\n")
    before = {path: path.read_text() for path in nas.folder.glob("*/*.*")}
    done = nas.renew()
    assert done.returncode != 0
    assert done.stderr
    assert {path: path.read_text() for path in nas.folder.glob("*/*.*")} == before
    assert nas.issued.read_text() == text


def test_a_run_that_was_cut_off_is_ended_by_the_next(nas: Nas) -> None:
    """The certificate is in place, and the page does not know."""
    nas.run_of_ansible(1)
    page = nas.page.read_text()
    nas.nginx('kill -9 "$PPID"')
    assert nas.renew().returncode < 0
    assert nas.page.read_text() == page
    nas.nginx("exit 0")
    assert nas.renew().returncode == 0
    assert nas.handed.read_text() == nas.served.read_text()
    assert nas.fingerprint() in nas.page.read_text()


def test_the_metric_names_each_certificate(nas: Nas) -> None:
    nas.run_of_ansible(30)
    member = nas.folder / "tls/member.crt"
    shutil.copy(nas.served, member)
    seconds = f"{nas.certificate().not_valid_after_utc.timestamp():.0f}"
    assert nas.tell() == [f"{METRIC} {seconds}"]
    other = f'{METRIC}{{certificate="member"}} {seconds}'
    assert nas.tell(member) == [f"{METRIC} {seconds}", other]


def test_what_is_renewed_is_also_served() -> None:
    """By the tag that the documentation names for certificates alone."""
    tasks = yaml.safe_load((ROLE / "tasks/main.yml").read_text(encoding="utf-8"))
    tags = {task["ansible.builtin.import_tasks"]: task["tags"]
            for task in tasks if "ansible.builtin.import_tasks" in task}  # fmt: skip
    assert "proxy_certificate" in tags["certificate.yml"]
    assert "proxy_certificate" in tags["site.yml"]
