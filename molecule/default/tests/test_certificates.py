# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Certificates that the NAS renews by itself, and those that come from elsewhere: a real ACME
server (pebble), and files of the owner.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import LONG, ROOT
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from testinfra.host import Host

from lab import apt, docker, label, network

Playbook = Callable[..., subprocess.CompletedProcess[str]]
Refused = Callable[[str, Sequence[dict[str, Any]]], list[str]]
NAME, OTHER = "assistant.example.com", "chat.example.com"
NOT_OURS = "elsewhere.example.com"  # the ACME server finds another machine by it
TLS = "/etc/nas-assistant/tls"
PEM = f"{TLS}/acme.pem"
TIMER = "nas-assistant-certificate"
REPORTS = ROOT / ".lab/molecule/status"


class Names(threading.Thread):
    """A name server for which every name has one address, apart from one."""

    def __init__(self, address: str) -> None:
        super().__init__(daemon=True)
        self.address = socket.inet_aton(address)
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]

    def run(self) -> None:
        while True:
            query, client = self.socket.recvfrom(512)
            end = query.index(b"\0", 12) + 5  # of the question: name, type, class
            ours = NOT_OURS.split(".")[0].encode() not in query
            address = self.address if ours else socket.inet_aton("127.0.0.1")
            asked = query[end - 4 : end - 2] == b"\0\1"  # A; there is no AAAA, no CAA
            head = query[:2] + b"\x81\x80\0\1" + (b"\0\1" if asked else b"\0\0") + b"\0\0\0\0"
            answer = b"\xc0\x0c\0\1\0\1\0\0\0\1\0\4" + address if asked else b""
            self.socket.sendto(head + query[12:end] + answer, client)


def make_certificate(folder: Path, name: str, *, days: int = 2) -> tuple[Path, Path]:
    """Make a certificate that signs itself, for a name or an address; return it and its key."""
    private = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    address = ipaddress.ip_address(name) if name[0].isdigit() else None
    alternative = x509.IPAddress(address) if address else x509.DNSName(name)
    end = datetime.now(UTC) + timedelta(days=days)
    made = (
        x509.CertificateBuilder(subject, subject, private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(end - timedelta(days=9))
        .not_valid_after(end)
        .add_extension(x509.SubjectAlternativeName([alternative]), critical=False)
        .sign(private, hashes.SHA256())
    )
    key, certificate = folder / f"{name}.key", folder / f"{name}.crt"
    plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    key.write_bytes(private.private_bytes(serialization.Encoding.PEM, *plain))
    certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    return certificate, key


@dataclass(frozen=True)
class Acme:
    """An ACME server: what the role is told of it, and the CA that its certificates are of."""

    wish: dict[str, Any]
    roots: Path


@pytest.fixture(scope="module")
def acme(address: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Acme]:
    """Pebble, at this machine's end of the lab's network."""
    if not shutil.which("pebble"):
        apt.install(["pebble"], why="the tests fetch certificates of a real ACME server")
    folder = tmp_path_factory.mktemp("acme")
    (found,) = docker.inspect("network", [label.prefix("molecule")])
    us = network.gateway(found["IPAM"]["Config"][0]["Subnet"])
    certificate, key = make_certificate(folder, us)
    with contextlib.ExitStack() as stack:
        ports = []
        for _ in range(2):
            probe = stack.enter_context(contextlib.closing(socket.create_server((us, 0))))
            ports.append(probe.getsockname()[1])
    settings = {
        "listenAddress": f"{us}:{ports[0]}",
        "managementListenAddress": f"{us}:{ports[1]}",
        "certificate": str(certificate),
        "privateKey": str(key),
        "httpPort": 80,
        "tlsPort": 443,
        "externalAccountBindingRequired": False,
    }
    (folder / "pebble.json").write_text(json.dumps({"pebble": settings}))
    names = Names(address)
    names.start()
    command = ["pebble", "-config", str(folder / "pebble.json")]
    command += ["-dnsserver", f"127.0.0.1:{names.port}"]
    environ = {**os.environ, "PEBBLE_VA_NOSLEEP": "1", "PEBBLE_WFE_NONCEREJECT": "0"}
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen(command, env=environ, stdout=log, stderr=log) as server,
    ):
        context = ssl.create_default_context(cafile=str(certificate))
        with httpx.Client(verify=context, trust_env=False) as client:
            deadline = time.monotonic() + 20
            while True:
                with contextlib.suppress(httpx.TransportError):
                    answer = client.get(f"https://{us}:{ports[1]}/roots/0")
                    break
                assert time.monotonic() < deadline, (folder / "log").read_text()
                time.sleep(0.2)
        roots = folder / "roots.pem"
        roots.write_text(answer.raise_for_status().text)
        directory = f"https://{us}:{ports[0]}/dir"
        given = {"directory": directory, "ca_file": str(certificate), "terms_agreed": True}
        yield Acme(given, roots)
        server.terminate()


@pytest.fixture(scope="module", autouse=True)
def as_before(playbook: Playbook) -> Iterator[None]:
    """In the end the NAS has its own certificate again."""
    yield
    back = playbook("proxy")
    assert back.returncode == 0, back.stdout
    assert "changed=0" in playbook("proxy").stdout


@contextlib.contextmanager
def under_load(address: str, context: ssl.SSLContext, name: str) -> Iterator[None]:
    """Two clients ask all the time meanwhile, and are always answered."""
    statuses: list[int | str] = []
    over = threading.Event()

    def ask() -> None:
        with httpx.Client(verify=context, trust_env=False, base_url=f"https://{address}") as client:
            while not over.is_set():
                try:
                    more = {"sni_hostname": name}
                    answer = client.get("/healthz", headers={"Host": name}, extensions=more)
                    statuses.append(answer.status_code)
                except httpx.HTTPError as error:
                    statuses.append(repr(error))
                time.sleep(0.05)  # within the limit of one address

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield
        time.sleep(3)
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert set(statuses) == {200}
    assert len(statuses) > 50


def served(address: str, roots: Path, name: str) -> dict[str, Any]:
    """The certificate that a client is shown, which trusts this CA alone."""
    context = ssl.create_default_context(cafile=str(roots))
    with (
        socket.create_connection((address, 443), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname=name) as secured,
    ):
        return dict(secured.getpeercert() or {})


def shown(address: str) -> x509.Certificate:
    """The certificate that a client is shown, whoever it is of."""
    return x509.load_pem_x509_certificate(ssl.get_server_certificate((address, 443)).encode())


def certificate_of(report: Path) -> dict[str, Any]:
    """What status said of the certificate."""
    findings = json.loads(report.read_text())["findings"]
    return next(dict(each) for each in findings if each["check"] == "certificate")


def test_one_of_its_own_is_renewed_without_a_controller(
    host: Host, address: str, playbook: Playbook, credentials: Path, nas_name: str
) -> None:
    """As its timer does it; not while another site is broken, and no client is dropped."""
    handed, report = credentials / f"{nas_name}.crt", REPORTS / f"{nas_name}.json"
    assert host.service(f"{TIMER}.timer").is_running
    old = shown(address)
    host.check_output(
        f"cd {TLS} && openssl x509 -in server.crt -signkey server.ecc.key -days 3 -set_serial 7 "
        "-out /run/near.crt && cp /run/near.crt issued.crt && cp /run/near.crt server.crt && "
        "rm /run/near.crt && systemctl reload nginx && sleep 1"
    )
    near = shown(address)
    assert near.serial_number == 7
    assert playbook("status").returncode == 0
    said = certificate_of(report)
    assert (said["verdict"], said["value"]) == ("warning", "3 days left")
    assert "run nas.assistant.proxy --tags proxy_certificate" in said["remedy"]
    broken = "/etc/nginx/conf.d/a-broken.conf"
    host.check_output(f"echo broken > {broken}")
    try:
        assert host.run(f"systemctl start {TIMER}.service").rc != 0
    finally:
        host.check_output(f"rm {broken}")
    assert shown(address) == near
    assert host.check_output(f"openssl x509 -in {TLS}/server.crt -noout -serial") == "serial=07"
    anyone = ssl.create_default_context()
    anyone.check_hostname, anyone.verify_mode = False, ssl.CERT_NONE
    with under_load(address, anyone, address):
        host.check_output(f"systemctl start {TIMER}.service")
    new = shown(address)
    assert new.not_valid_after_utc - datetime.now(UTC) > timedelta(days=364)
    assert new.serial_number not in (old.serial_number, 7)
    assert new.public_key() == old.public_key()
    assert list(new.extensions) == list(old.extensions)
    # The page from which devices get it has it.
    page = httpx.get(f"http://{address}/trust/", trust_env=False).text
    assert new.fingerprint(hashes.SHA256()).hex(":").upper() in page
    assert httpx.get(f"http://{address}/trust/nas.crt", trust_env=False).text == (
        host.file(f"{TLS}/server.crt").content_string
    )
    # Its owner does not have it, is told so, and gets it with the next run: its only change.
    assert x509.load_pem_x509_certificate(handed.read_bytes()) == old
    assert playbook("status").returncode == 0
    assert certificate_of(report)["value"] == "another one than was handed out"
    done = playbook("proxy", "--tags", "proxy_certificate")
    assert f"{nas_name} " in done.stdout
    assert " changed=1 " in done.stdout, done.stdout
    assert x509.load_pem_x509_certificate(handed.read_bytes()) == new == shown(address)
    assert playbook("status").returncode == 0
    assert certificate_of(report)["verdict"] == "good"
    assert "changed=0" in playbook("proxy").stdout
    # Nor does the timer make another one.
    host.check_output(f"systemctl start {TIMER}.service")
    assert shown(address) == new


def wish_of(acme: Acme, *names: str) -> dict[str, Any]:
    certificate = {"issuer": "acme"}
    return {"proxy_certificate": certificate, "proxy_acme": {**acme.wish, "names": list(names)}}


@LONG
def test_a_certificate_is_fetched_and_kept(
    host: Host, address: str, acme: Acme, playbook: Playbook, credentials: Path, nas_name: str
) -> None:
    handed = (credentials / f"{nas_name}.crt").read_text()
    planned = playbook("proxy", "--check", "--diff", **wish_of(acme, NAME))
    assert planned.returncode == 0, planned.stdout
    done = playbook("proxy", **wish_of(acme, NAME))
    assert done.returncode == 0, done.stdout
    found = served(address, acme.roots, NAME)
    assert found["subjectAltName"] == (("DNS", NAME),)
    file = host.file(PEM)
    assert (file.user, file.mode) == ("root", 0o600)
    assert not host.file("/etc/nas-assistant/tls/server.crt").exists
    # What clients of before trust stays where it is: another one would say nothing to them.
    assert (credentials / f"{nas_name}.crt").read_text() == handed
    again = playbook("proxy", **wish_of(acme, NAME))
    assert "changed=0" in again.stdout, again.stdout
    # Another name is another certificate.
    both = playbook("proxy", **wish_of(acme, NAME, OTHER))
    assert both.returncode == 0, both.stdout
    assert served(address, acme.roots, OTHER)["serialNumber"] != found["serialNumber"]
    context = ssl.create_default_context(cafile=str(acme.roots))
    with httpx.Client(verify=context, trust_env=False) as client:
        more = {"sni_hostname": NAME}
        answer = client.get(f"https://{address}/", headers={"Host": NAME}, extensions=more)
    assert answer.headers["strict-transport-security"] == "max-age=31536000"
    assert host.service("certbot.timer").is_running
    assert host.service("certbot.timer").is_enabled


@LONG
def test_renewal_under_load_drops_nothing(host: Host, address: str, acme: Acme) -> None:
    before = served(address, acme.roots, NAME)["serialNumber"]
    context = ssl.create_default_context(cafile=str(acme.roots))
    with under_load(address, context, NAME):
        # As its timer does it, before it has to.
        options = "--force-renewal --no-random-sleep-on-renew"
        ca = f"REQUESTS_CA_BUNDLE={TLS}/acme-server-ca.crt"
        host.check_output(f"{ca} certbot -q renew {options}")
    assert served(address, acme.roots, NAME)["serialNumber"] != before
    # The timer's own service knows the server's CA too, and finds nothing to do.
    assert host.run("systemctl start certbot.service").rc == 0


@LONG
def test_what_the_server_does_not_find_here_is_said(
    address: str, acme: Acme, playbook: Playbook
) -> None:
    before = served(address, acme.roots, NAME)["serialNumber"]
    done = playbook("proxy", **wish_of(acme, NAME, NOT_OURS))
    assert done.returncode != 0
    said = " ".join(done.stdout.split())
    assert f"Domain: {NOT_OURS}" in said
    assert "The site goes on with the certificate that it had" in said
    assert served(address, acme.roots, NAME)["serialNumber"] == before


def test_all_that_clients_may_call_it_is_in_the_certificate(
    address: str, credentials: Path, nas_name: str, playbook: Playbook
) -> None:
    """The name that is announced, and the addresses that the inventory gives."""
    interface = {"name": "eth0", "ipv4": {"addresses": ["192.0.2.77/24"]}}
    interface["ipv6"] = {"addresses": ["2001:db8::77/64"]}
    wish = {"network_mdns": {"enabled": True, "name": "tank"}, "network_interfaces": [interface]}
    done = playbook("proxy", **wish)
    assert done.returncode == 0, done.stdout
    handed = credentials / f"{nas_name}.crt"
    found = dict(served(address, handed, "tank.local"))["subjectAltName"]
    assert ("DNS", "tank.local") in found
    addresses = {name for kind, name in found if kind == "IP Address"}
    assert addresses == {address, "192.0.2.77", "2001:DB8:0:0:0:0:0:77"}
    page = httpx.get(f"http://{address}/trust/", trust_env=False).text
    assert '<a href="https://tank.local/">' in page


def test_the_owners_own_certificate(
    host: Host, address: str, playbook: Playbook, tmp_path: Path
) -> None:
    certificate, key = make_certificate(tmp_path, NAME)
    given = {"issuer": "files", "certificate": str(certificate), "key": str(key)}
    wish = {"proxy_certificate": given, "proxy_server_names": [NAME]}
    done = playbook("proxy", "--diff", **wish)
    assert done.returncode == 0, done.stdout
    assert "PRIVATE KEY" not in done.stdout
    # It is good for two days.
    assert f"proxy_certificate.certificate={certificate} is good until" in " ".join(
        done.stdout.split()
    )
    # Nor does a module write there what it was given, as Ansible has them do.
    assert host.run("journalctl --output cat | grep 'config_set[ ]Invoked'").stdout == ""
    assert served(address, certificate, NAME)["subjectAltName"] == (("DNS", NAME),)
    file = host.file("/etc/nas-assistant/tls/own.pem")
    assert (file.user, file.mode) == ("root", 0o600)
    assert not host.file(PEM).exists
    assert "changed=0" in playbook("proxy", **wish).stdout


def test_what_clients_would_refuse_is_refused(
    address: str, refused: Refused, tmp_path: Path
) -> None:
    certificate, key = make_certificate(tmp_path, NAME)
    other, _ = make_certificate(tmp_path, OTHER)
    (tmp_path / "old").mkdir()
    old, old_key = make_certificate(tmp_path / "old", NAME, days=-1)
    before = ssl.get_server_certificate((address, 443))

    def files(certificate: Path | str, key: Path | str) -> dict[str, Any]:
        return {"issuer": "files", "certificate": str(certificate), "key": str(key)}

    names = {"proxy_server_names": [NAME]}
    acme = {"proxy_certificate": {"issuer": "acme"}}
    ready = {"names": [NAME], "directory": "https://192.0.2.1/dir", "terms_agreed": True}
    rows: list[tuple[dict[str, Any], str]] = [
        ({"proxy_certificate": files(other, key), **names}, "is for another key than"),
        ({"proxy_certificate": files(old, old_key), **names}, "is good from"),
        ({"proxy_certificate": files(certificate, key)}, f"names DNS:{NAME}, and this NAS answers"),
        ({"proxy_certificate": files("/nowhere", key)}, "whole paths of files on the controller"),
        (acme, "names are one or more host names"),
        ({**acme, "proxy_acme": {**ready, "names": ["*.example.com"]}}, "names are one or more"),
        ({**acme, "proxy_acme": {**ready, "terms_agreed": False}}, "terms_agreed=False"),
        ({**acme, "proxy_acme": {**ready, "ca_file": "/nowhere"}}, "no such file"),
        ({**acme, "proxy_acme": ready, "proxy_http_port": 0}, "proxy_http_port=0 is not 0"),
        ({"proxy_limits": {"requests": -1}}, "whole numbers from 0 on"),
        ({"proxy_hsts": -1}, "proxy_hsts=-1"),
    ]
    told = refused("proxy", [variables for variables, _ in rows])
    for (_, words), said in zip(rows, told, strict=True):
        assert words in said
    assert ssl.get_server_certificate((address, 443)) == before
