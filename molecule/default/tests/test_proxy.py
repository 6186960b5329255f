# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""The assistant from outside: HTTPS with a certificate that was checked, and nothing else."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import openai
import pytest
from cryptography import x509
from testinfra.host import Host
from trips import BUDGET, LEFT, trips

QUESTION = [{"role": "user", "content": "What is the capital of France? One sentence."}]

# As another proxy in front of this service asks, which knows nothing of a home.
FROM_OUTSIDE = """
import http.client, socket
line = http.client.HTTPConnection("nas")
line.sock = socket.socket(socket.AF_UNIX)
line.sock.connect("/run/nas-assistant-front/front.sock")
line.request("GET", "/readyz", headers={"X-Forwarded-For": "203.0.113.7"})
print(line.getresponse().read().decode())
"""


@pytest.fixture
def sdk(client: httpx.Client, key: str) -> openai.OpenAI:
    """The official client, unchanged."""
    base_url = str(client.base_url.join("/v1"))
    return openai.OpenAI(base_url=base_url, api_key=key, http_client=client, max_retries=0)


def test_a_run_without_change_makes_few_trips(
    playbook_in: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    """Here and first: this file begins on a NAS of its own, which nobody has changed yet."""
    found = trips(playbook_in, tmp_path)
    assert len(found) <= BUDGET - LEFT, f"{len(found)} of {os.linesep.join(sorted(set(found)))}"


def test_answers_a_question(sdk: openai.OpenAI) -> None:
    answer = sdk.chat.completions.create(
        model="default", messages=QUESTION, temperature=0, max_tokens=64
    )
    assert "Paris" in (answer.choices[0].message.content or "")
    assert answer.model == "default"
    assert answer.usage is not None
    assert answer.usage.completion_tokens > 0


def test_lists_the_model_by_its_variant_name(sdk: openai.OpenAI) -> None:
    assert "default" in [model.id for model in sdk.models.list()]


def test_streams_token_by_token(sdk: openai.OpenAI) -> None:
    began = time.monotonic()
    stream = sdk.chat.completions.create(
        model="default",
        messages=[{"role": "user", "content": "Count from 1 to 30."}],
        temperature=0,
        max_tokens=60,
        stream=True,
    )
    arrivals = [time.monotonic() for chunk in stream if chunk.choices]
    assert len(arrivals) > 10
    # A proxy that buffers hands everything over at once, at the end. Single gaps say little: a busy
    # client finds several tokens waiting.
    assert arrivals[-1] - arrivals[0] > (arrivals[-1] - began) / 4


def test_a_metric_says_when_the_certificate_ends(host: Host, certificate: Path) -> None:
    program = "/usr/local/lib/nas-assistant/nas-assistant-certificate"
    seen = "/etc/nas-assistant/tls/server.crt"
    host.check_output(f"{program} {seen} /srv/nobody-reads && test ! -e /srv/nobody-reads")
    folder = host.check_output("mktemp -d")
    file = host.file(f"{folder}/nas_assistant_certificate.prom")
    host.check_output(f"{program} {seen} {folder}")
    shown, mode = file.content_string.splitlines()[-1].split(), file.mode
    host.check_output(f"rm -r {folder}")
    assert mode == 0o644
    ends = x509.load_pem_x509_certificate(certificate.read_bytes()).not_valid_after_utc
    assert shown == ["nas_assistant_certificate_end_time_seconds", f"{ends.timestamp():.0f}"]
    assert host.service("nas-assistant-certificate.timer").is_enabled
    host.check_output("systemctl start nas-assistant-certificate.service")
    # By the hour, and not each time that a package asks systemd to read its units anew.
    runs = "systemctl show -P ExecMainStartTimestampMonotonic nas-assistant-certificate.service"
    before = host.check_output(runs)
    host.check_output("systemctl daemon-reload && sleep 1")
    assert host.check_output(runs) == before != "0"


def test_a_certificate_that_nginx_could_not_take_is_taken_later(host: Host) -> None:
    """And is seen until then. As one that is renewed while another site is broken."""
    other, certificate = "/etc/nginx/conf.d/a-broken.conf", "/etc/nas-assistant/tls/server.crt"
    run = "systemctl start nas-assistant-certificate.service"
    loaded = "/run/nas-assistant/loaded/nginx.service"
    newer = f"find {certificate} -newer {loaded}"
    # None is there after a restart.
    host.check_output(f"mkdir -p {loaded.rpartition('/')[0]} && touch {loaded} && sleep 0.1")
    host.check_output(f"touch {certificate} && echo broken > {other}")
    try:
        assert host.check_output(newer)
        assert host.run(run).rc != 0
        assert host.check_output(newer)
    finally:
        host.check_output(f"rm {other}")
    before = host.check_output("pgrep --parent $(cat /run/nginx.pid) | sort")
    host.check_output(f"{run} && sleep 1")
    assert not host.check_output(newer)
    assert host.check_output("pgrep --parent $(cat /run/nginx.pid) | sort") != before


def test_those_at_home_may_see_the_admin_page(client: httpx.Client) -> None:
    for page in ("/admin", "/admin/"):
        assert client.get(page).headers["content-type"] == "text/html; charset=utf-8"
    assert "nas_assistant_requests" in client.get("/metrics").text
    assert client.get("/admins").status_code == 404


def test_no_answer_is_taken_for_what_it_is_not(client: httpx.Client, address: str) -> None:
    """Of the service, of Nginx itself, of a page of both; once, by whomever it is."""
    for path in ("/", "/v1/models", "/nowhere", "/trust/", "/admin"):
        assert client.get(path).headers.get_list("x-content-type-options") == ["nosniff"], path
    plain = httpx.get(f"http://{address}/trust/", trust_env=False)
    assert plain.headers.get_list("x-content-type-options") == ["nosniff"]
    # Not unless it is asked for, since it concerns all ports of a name.
    assert "strict-transport-security" not in client.get("/trust/").headers


def test_asks_for_a_key(client: httpx.Client) -> None:
    for header in ("", "Bearer wrong", "Basic b3duZXI6"):
        answer = client.get("/v1/models", headers={"Authorization": header})
        assert answer.status_code == 401
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_redirects_http_and_keeps_the_method(address: str) -> None:
    answer = httpx.post(f"http://{address}/v1/models?x=1", trust_env=False)
    assert answer.status_code == 308
    assert answer.headers["location"] == f"https://{address}/v1/models?x=1"


@pytest.mark.parametrize("port", [8000, 2375, 2376])
def test_nothing_else_answers(address: str, port: int) -> None:
    with pytest.raises(TimeoutError):
        socket.create_connection((address, port), timeout=3)


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"TRACE /v1/models HTTP/1.1\r\nHost: x\r\n\r\n", 405),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 9000 + b"\r\n\r\n", 431),
    ],
    ids=["method", "headers"],
)
def test_errors_of_nginx_have_the_one_shape(
    address: str, certificate: Path, request_: bytes, status: int
) -> None:
    context = ssl.create_default_context(cafile=str(certificate))
    with (
        socket.create_connection((address, 443), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname=address) as secured,
    ):
        secured.sendall(request_)
        answer = b"".join(iter(lambda: secured.recv(65536), b""))
    assert answer.startswith(f"HTTP/1.1 {status} ".encode())
    body = json.loads(answer.partition(b"\r\n\r\n")[2])
    assert set(body["error"]) == {"message", "type", "param", "code"}


def handshake(address: str, context: ssl.SSLContext) -> str | None:
    with (
        socket.create_connection((address, 443), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname=address) as secured,
    ):
        return secured.version()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_speaks_modern_tls(address: str, certificate: Path, version: ssl.TLSVersion) -> None:
    context = ssl.create_default_context(cafile=str(certificate))
    context.minimum_version = context.maximum_version = version
    assert handshake(address, context) == version.name.replace("_", ".")


def test_refuses_old_tls(address: str, host: Host) -> None:
    # Python's own library may not offer it at all, so the strongest offer of openssl is used.
    for version in ("-tls1", "-tls1_1"):
        result = host.run(
            f"openssl s_client {version} -cipher ALL:@SECLEVEL=0 -connect {address}:443 </dev/null"
        )
        assert result.rc != 0
        assert "Cipher is (NONE)" in result.stdout


def test_certificate_is_not_trusted_by_chance(address: str) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(address, ssl.create_default_context())


def test_private_key_stays_private(host: Host, certificate: Path) -> None:
    key = host.file("/etc/nas-assistant/tls/server.ecc.key")
    assert (key.user, key.group, key.mode) == ("root", "root", 0o600)
    assert "PRIVATE" not in certificate.read_text()


@pytest.fixture
def descriptors() -> Iterator[int]:
    """As many as this process may have; return how many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_who_connects_and_says_nothing_keeps_nobody_out(
    host: Host, address: str, client: httpx.Client, descriptors: int
) -> None:
    """As long as that may last, which is not for long."""
    most = host.check_output("nginx -T 2>/dev/null | grep -c '^\\s*worker_connections 8192;'")
    assert most == "1"
    # More than Debian's settings have for all processes, as far as there are so many ports.
    processes = int(host.check_output("pgrep --count --parent $(cat /run/nginx.pid)"))
    silent = min(2 * 768 * processes, 6000, descriptors - 500)
    began = time.monotonic()
    with ExitStack() as held:
        for _ in range(silent):
            held.enter_context(socket.create_connection((address, 443), timeout=10))
        last = held.enter_context(socket.create_connection((address, 443), timeout=10))
        opened = time.monotonic()
        assert client.get("/healthz").status_code == 200
        assert time.monotonic() - opened < 5
        assert opened - began < 20, "the first ones are gone before the last ones came"
        last.settimeout(40)
        assert last.recv(1) == b""
        assert 15 < time.monotonic() - opened < 35
    log = "grep -c 'worker_connections are not enough' /var/log/nginx/error.log || true"
    assert host.check_output(log) == "0"


def test_those_at_home_hear_what_it_has(host: Host, client: httpx.Client) -> None:
    assert client.get("/readyz").json() == {"status": "ready", "models": ["default", "large"]}
    # Nobody tells that of himself.
    outside = json.loads(host.check_output(f"python3 -c '{FROM_OUTSIDE}'"))
    assert outside == {"status": "ready"}
    site = host.file("/etc/nginx/conf.d/nas-assistant.conf").content_string
    assert "proxy_set_header X-Nas-At-Home $nas_assistant_at_home;" in site


def test_refuses_a_body_that_is_too_large(client: httpx.Client) -> None:
    answer = client.post("/v1/chat/completions", content=b"x" * (4 << 20 | 1))
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "request_too_large"


def test_socket_belongs_to_nginx_alone(host: Host) -> None:
    folder = host.file("/var/lib/nas-assistant/run")
    assert (folder.uid, folder.group, folder.mode) == (10001, "www-data", 0o2750)
    gateway = host.file("/var/lib/nas-assistant/run/gateway.sock")
    assert (gateway.uid, gateway.group, gateway.mode & 0o007) == (10001, "www-data", 0)
    # Whom the folder lets through may use the one that is kept.

    def may(user: str, group: str, *lines: str) -> bool:
        """Whether a program of a user ends well that has connected to a socket, as ``s``."""
        script = "; ".join(("import socket", "s = socket.socket(socket.AF_UNIX)", *lines))
        run = f'setpriv --reuid {user} --regid {group} --clear-groups python3 -c "{script}"'
        return bool(host.run(run).succeeded)

    front = "s.connect('/run/nas-assistant-front/front.sock')"
    assert not may("nobody", "nogroup", front)
    assert may("www-data", "www-data", front)
    # To have the socket itself, and so what others ask, is for the container alone.
    fetch = ("s.connect('/run/nas-assistant-front/fetch.sock')", "assert s.recv(1)")
    assert not may("www-data", "www-data", *fetch)
    assert may("10001", "10001", *fetch)


def test_one_address_cannot_ask_without_end(address: str, certificate: Path) -> None:
    context = ssl.create_default_context(cafile=str(certificate))

    def ask(count: int) -> list[httpx.Response]:
        with httpx.Client(base_url=f"https://{address}", verify=context, trust_env=False) as client:
            return [client.get("/healthz") for _ in range(count)]

    with ThreadPoolExecutor() as pool:
        answers = [answer for part in pool.map(ask, [150] * 4) for answer in part]
    refused = [answer for answer in answers if answer.status_code != 200]
    assert {answer.status_code for answer in refused} == {429}
    assert refused[0].headers["retry-after"] == "1"
    assert refused[0].json()["error"]["code"] == "rate_limit_exceeded"
    # Where a header of its own is said, those of all answers are too.
    assert refused[0].headers["x-content-type-options"] == "nosniff"
    assert len(answers) - len(refused) > 200  # those of the burst
    time.sleep(5)  # the next test asks from here too


def test_a_page_says_how_to_trust_it(address: str, client: httpx.Client, certificate: Path) -> None:
    """Also to a device that does not yet."""
    assert client.get("/trust/").status_code == 200
    with httpx.Client(base_url=f"http://{address}", trust_env=False) as plain:
        page = plain.get("/trust/")
        assert plain.get("/trust/nas.crt").text == certificate.read_text()
    assert page.headers["content-type"] == "text/html"
    der = ssl.PEM_cert_to_DER_cert(certificate.read_text())
    digest = hashlib.sha256(der).hexdigest().upper()
    assert ":".join(digest[at : at + 2] for at in range(0, 64, 2)) in page.text
    # By what leads to it: nobody announces its name here.
    assert f'<a href="https://{address}/">' in page.text
    # Who takes a CA's certificate alone is told that this is none.
    assert "issuer: ca" in page.text
    for each in ("Firefox", "iPhone", "Android"):
        assert f"<th>{each}" not in page.text
