# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Not one request fails while NAS of the pool fail, except answers that had begun."""

from __future__ import annotations

import contextlib
import json
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from conftest import ROOT, Load
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from site_lab import Lab, worked

from lab import docker

Loading = Callable[[], contextlib.AbstractContextManager[Load]]
Play = Callable[..., subprocess.CompletedProcess[str]]
DRAINED = "/run/nas-assistant-drained"
TLS = "/etc/nas-assistant/tls"
MEMBER = "member.nas-assistant.internal"
SOCKET = "/var/lib/nas-assistant/run/gateway.sock"
READY = (
    "docker",
    "exec",
    "nas-assistant",
    "python3",
    "-c",
    "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/readyz')",
)
# Fills the slots and the queue of one NAS, past its proxy.
FILL = """
import http.client, json, socket, sys, threading, time
class Unix(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(sys.argv[1])
def ask():
    body = json.dumps({"prompt": "Once upon a time", "max_tokens": 900})
    one = Unix("localhost")
    one.request("POST", "/v1/completions", body, {"Authorization": "Bearer " + sys.argv[2]})
    answer = one.getresponse()
    answer.read()
    return answer.status
def fill():
    while True:
        if ask() == 429:
            print(429, flush=True)
            time.sleep(0.2)
for _ in range(60):
    threading.Thread(target=fill, daemon=True).start()
time.sleep(60)
"""


@pytest.fixture(autouse=True)
def all_ready(lab: Lab) -> Iterator[None]:
    """Each of them, and some seconds longer, in which one that failed is left alone."""
    yield
    for host in lab.hosts:
        if docker.inspect("container", [host["container"]])[0]["State"]["Status"] == "exited":
            docker.docker("start", host["container"])
    deadline = time.monotonic() + 120
    for host in lab.hosts:
        while docker.execute(host["container"], *READY, check=False).returncode:
            assert time.monotonic() < deadline, f"{host['name']} did not come back"
            time.sleep(1)
    time.sleep(6)


def test_requests_are_spread_by_weight(
    under_load: Loading, connect: Callable[[], httpx.Client]
) -> None:
    with under_load() as load:
        time.sleep(6)
    assert not load.failed
    assert set(load.by) == {"nas1", "nas2"}  # the third is a backup
    assert load.by["nas1"] > load.by["nas2"]
    # While nobody has anything to do, weight alone decides: three are the first one's, and then one
    # is the other's. Of those that came at once how many each answers also hangs on its speed.
    with connect() as client:
        by = Counter(client.get("/v1/models").headers["x-nas"] for _ in range(40))
    assert 2.5 <= by["nas1"] / by["nas2"] <= 3.5, by


def test_new_certificates(lab: Lab, under_load: Loading, play: Play) -> None:
    """One NAS has them before the other: both are of the same CA."""
    look = f"openssl x509 -in {TLS}/member.crt -noout -serial"
    before = [lab.on(host, look) for host in lab.hosts]
    # All have less than that left, those of members too.
    wish = {"issuer": "ca", "days": 2000, "renew_days": 1999}
    with under_load() as load:
        for host in lab.hosts:
            arguments = ("--tags", "proxy_certificate", "--limit", host["name"])
            worked(play("proxy", *arguments, proxy_certificate=wish))
    assert not load.failed
    assert {"nas1", "nas2"} <= set(load.by) <= {"nas1", "nas2", "nas3"}
    after = [lab.on(host, look) for host in lab.hosts]
    assert all(old != new for old, new in zip(before, after, strict=True))


def test_a_service_that_is_killed(lab: Lab, under_load: Loading) -> None:
    with under_load() as load:
        # Not by docker kill, after which Docker would leave it alone.
        lab.on(lab.hosts[1], "kill -9 $(docker inspect -f '{{.State.Pid}}' nas-assistant)")
        time.sleep(20)
    assert not load.failed
    with under_load() as load:
        time.sleep(6)
    assert load.by["nas2"]  # it is asked again


def test_containers_that_are_made_anew_at_once(under_load: Loading, play: Play) -> None:
    """As by a run over the whole fleet that changes a setting: who asks waits at the front."""
    for patience in (31, 30):
        with under_load() as load:
            done = play("assistant", assistant_server={"timeout": 20, "patience": patience})
        assert done.returncode == 0, done.stdout
        assert not load.failed


def test_a_nas_that_is_switched_off(lab: Lab, under_load: Loading) -> None:
    with under_load() as load:
        docker.docker("kill", lab.hosts[1]["container"])
        time.sleep(8)
    assert not load.failed
    assert load.slowest < 60


def test_a_nas_whose_network_is_cut(lab: Lab, under_load: Loading) -> None:
    """As one without power: packets vanish, and nobody says that a connection is no more."""
    cut = "add table inet cut; add chain inet cut {way} {{ type filter hook {way} priority -300; }}"
    rules = "; ".join(cut.format(way=way) for way in ("input", "output"))
    rules += "; add rule inet cut input iifname eth0 drop"
    rules += "; add rule inet cut output oifname eth0 drop"
    container = lab.hosts[1]["container"]
    try:
        with under_load() as load:
            docker.execute(container, "nft", rules)
            time.sleep(70)
    finally:
        docker.execute(container, "nft", "delete table inet cut")
    assert not load.failed
    assert load.by["nas1"]
    # What it had begun to work on is noticed to be lost, and asked elsewhere.
    assert load.slowest < 90


def test_a_queue_that_is_full(lab: Lab, under_load: Loading) -> None:
    key = (lab.folder / "credentials/api_key.owner").read_text().strip()
    container = lab.hosts[1]["container"]
    fill = ["docker", "exec", container, "python3", "-c", FILL, SOCKET, key]
    with subprocess.Popen(fill, stdout=subprocess.PIPE, text=True) as filling:
        assert filling.stdout is not None
        assert filling.stdout.readline() == "429\n"  # as it says to its own clients
        with under_load() as load:
            time.sleep(6)
        filling.terminate()
    docker.execute(container, "pkill", "-f", SOCKET, check=False)
    assert not load.failed
    assert not load.by["nas2"]


def test_a_nas_that_is_drained(lab: Lab, under_load: Loading) -> None:
    lab.on(lab.hosts[1], f"touch {DRAINED}")
    try:
        with under_load() as load:
            time.sleep(4)
    finally:
        lab.on(lab.hosts[1], f"rm {DRAINED}")
    assert not load.failed
    assert not load.by["nas2"]


def test_the_backup_answers_when_nobody_else_can(lab: Lab, under_load: Loading) -> None:
    for host in lab.hosts[:2]:
        lab.on(host, f"touch {DRAINED}")
    try:
        with under_load() as load:
            time.sleep(4)
    finally:
        for host in lab.hosts[:2]:
            lab.on(host, f"rm {DRAINED}")
    assert not load.failed
    # Also what two others had refused first.
    assert set(load.by) == {"nas3"}


def test_connections_that_nobody_takes(lab: Lab, under_load: Loading) -> None:
    """Whom the front asks says nothing at all, its own NAS neither; its assistant is there."""
    rules = "add table inet cut; add chain inet cut out { type filter hook output priority 0; }"
    rules += "; add rule inet cut out tcp dport 8443 drop"
    container = lab.hosts[0]["container"]
    docker.execute(container, "nft", rules)
    try:
        with under_load() as load:
            time.sleep(10)
    finally:
        docker.execute(container, "nft", "delete table inet cut")
    assert not load.failed
    assert set(load.by) == {"last resort"}
    assert load.slowest < 30


def member(credentials: Path, wrong: str) -> dict[str, bytes]:
    """Key and certificate of a member as the role makes them, but for one thing that is wrong."""
    ca = x509.load_pem_x509_certificate((credentials / "ca.crt").read_bytes())
    signer = serialization.load_pem_private_key((credentials / "ca.key").read_bytes(), None)
    signer = ec.generate_private_key(ec.SECP256R1()) if wrong == "CA" else signer
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "nas2")])
    name = x509.DNSName("other.nas-assistant.internal" if wrong == "name" else MEMBER)
    end = datetime.now(UTC) + timedelta(days=-1 if wrong == "time" else 9)
    usage = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    made = (
        x509.CertificateBuilder(ca.subject, subject, key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(end - timedelta(days=20))
        .not_valid_after(end)
        .add_extension(x509.SubjectAlternativeName([name]), critical=False)
        .add_extension(x509.ExtendedKeyUsage(usage), critical=False)
        .sign(signer, hashes.SHA256())
    )
    plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return {
        "member.key": key.private_bytes(serialization.Encoding.PEM, *plain),
        "member.crt": made.public_bytes(serialization.Encoding.PEM),
    }


def served(lab: Lab, address: str) -> str:
    """The certificate that a NAS shows to the front."""
    ask = f"import ssl; print(ssl.get_server_certificate(('{address}', 8443)))"
    return lab.on(lab.hosts[0], f'python3 -c "{ask}"')


@pytest.mark.parametrize("wrong", ["", "time", "name", "CA"])
def test_who_is_no_member_is_asked_nothing(lab: Lab, under_load: Loading, wrong: str) -> None:
    """An expired certificate, one for another name, one of another CA; and one that is well."""
    nas = lab.hosts[1]
    lab.on(nas, f"cp -a {TLS}/member.key {TLS}/member.crt /root/")
    try:
        made = member(lab.folder / "credentials", wrong)
        for file, pem in made.items():
            lab.on(nas, f"echo '{pem.decode()}' > {TLS}/{file}")
        lab.on(nas, "systemctl reload nginx")
        # The workers of before go on for a moment.
        deadline = time.monotonic() + 60
        while served(lab, nas["ssh_host"]) != made["member.crt"].decode().strip():
            assert time.monotonic() < deadline
        time.sleep(2)
        with under_load() as load:
            time.sleep(4)
    finally:
        lab.on(nas, f"mv /root/member.key /root/member.crt {TLS}/; systemctl reload nginx")
    assert not load.failed
    assert bool(load.by["nas2"]) is not bool(wrong)


def test_all_are_away_for_a_moment(lab: Lab, under_load: Loading) -> None:
    with under_load() as load:
        threads = [
            threading.Thread(target=lab.on, args=(host, "docker restart nas-assistant"))
            for host in lab.hosts
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        time.sleep(10)
    assert not load.failed


def test_answers_that_had_begun_are_lost_with_their_nas(
    lab: Lab, long_answer: Callable[[], tuple[str, str]]
) -> None:
    """Those alone, and their clients are told; how many they were is in .lab/lost_streams.json."""
    with ThreadPoolExecutor(8) as threads:
        answers = [threads.submit(long_answer) for _ in range(8)]
        time.sleep(3)
        docker.docker("kill", lab.hosts[1]["container"])
        ended = [answer.result() for answer in answers]
    lost = [by for by, how in ended if how != "whole"]
    counted = {"streams": len(ended), "lost": len(lost)}
    counted["of the NAS that was killed"] = sum(by == "nas2" for by, _ in ended)
    (ROOT / ".lab/lost_streams.json").write_text(json.dumps(counted, indent=1))
    assert set(lost) == {"nas2"}
    assert {how for _, how in ended} == {"whole", "told"}
