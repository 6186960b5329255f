# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""The demo's report, against a small HTTPS server with a certificate of its own."""

from __future__ import annotations

import json
import ssl
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from lab import cli, inventory, report, ssh
from lab.errors import LabError

KEY = "a-key-that-the-test-made"


class Assistant(BaseHTTPRequestHandler):
    """Answers as the service does; the first request finds it still loading."""

    requests = 0

    def do_POST(self) -> None:
        type(self).requests += 1
        self.rfile.read(int(self.headers["Content-Length"]))
        if self.path != "/v1/chat/completions":
            self.reply(404, {"error": {"message": "no such path"}})
        elif self.headers["Authorization"] != f"Bearer {KEY}":
            self.reply(401, {"error": {"message": "Incorrect API key"}})
        elif type(self).requests == 1:
            self.reply(503, {"error": {"message": "the model is loading"}})
        else:
            choice = {"message": {"role": "assistant", "content": " It keeps your data at home. "}}
            self.reply(200, {"choices": [choice], "usage": {"completion_tokens": 7}})

    def reply(self, status: int, document: dict[str, Any]) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Keep the test's output clean."""


@pytest.fixture
def credentials(tmp_path: Path) -> Path:
    folder = tmp_path / "credentials"
    folder.mkdir()
    (folder / "api_key.owner").write_text(f"{KEY}\n")
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-days", "2", "-subj", "/CN=nas1"),
            *("-addext", "subjectAltName=IP:127.0.0.1"),
            *("-addext", "keyUsage=critical,digitalSignature,keyCertSign"),
            *("-keyout", str(tmp_path / "key.pem"), "-out", str(folder / "nas1.crt")),
        ],
        check=True,
        capture_output=True,
    )
    return folder


@pytest.fixture
def url(credentials: Path) -> Iterator[str]:
    Assistant.requests = 0
    server = ThreadingHTTPServer(("127.0.0.1", 0), Assistant)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(credentials / "nas1.crt", credentials.parent / "key.pem")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"https://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def trust(credentials: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cadata=report.certificates(credentials, ["nas1"]))


def test_it_waits_for_the_model_and_returns_the_answer(url: str, credentials: Path) -> None:
    answer = report.ask(url, report.api_key(credentials), trust(credentials))
    assert (answer.text, answer.tokens) == ("It keeps your data at home.", 7)
    assert answer.seconds < 5


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_certificate_that_is_not_trusted_is_an_error(url: str) -> None:
    with pytest.raises(LabError, match="certificate"):
        report.ask(url, KEY, ssl.create_default_context())


def test_a_name_that_the_certificate_does_not_have_is_an_error(url: str, credentials: Path) -> None:
    with pytest.raises(LabError, match="does not name this address"):
        report.ask(url.replace("127.0.0.1", "localhost"), KEY, trust(credentials))


@pytest.mark.parametrize(("key", "text"), [("wrong", "401 Incorrect API key.*credentials folder")])
def test_an_error_says_what_the_nas_said(url: str, credentials: Path, key: str, text: str) -> None:
    with pytest.raises(LabError, match=text):
        report.ask(url, key, trust(credentials))


def test_a_model_that_never_loads_and_a_nas_that_is_off(url: str, credentials: Path) -> None:
    with pytest.raises(LabError, match="503 the model is loading"):
        report.ask(url, KEY, trust(credentials), patience=-1)
    with pytest.raises(LabError, match="gives no answer"):
        report.ask("https://127.0.0.1:1", KEY, trust(credentials), patience=-1)


def test_what_is_missing_is_named(tmp_path: Path, credentials: Path) -> None:
    with pytest.raises(LabError, match="no API key"):
        report.api_key(tmp_path)
    with pytest.raises(LabError, match=r"no certificate of nas2.*nas2\.crt"):
        report.certificates(credentials, ["nas1", "nas2"])


def test_demo_json_has_the_keys_that_scripts_read(
    tmp_path: Path,
    credentials: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("NAS_LAB_HOME", str(tmp_path / "home"))
    answer = report.Answer("It keeps your data at home.", 7, 0.5)
    monkeypatch.setattr(report, "ask", lambda url, key, trust: answer)
    monkeypatch.setattr(ssh, "door", lambda folder, address: ssh.Door(2222, "nasadmin"))
    host = inventory.Host("nas1", "c1", "id", "172.18.0.11", 22, "root", "/k", ["/dev/loop0"])
    inventory.write("demo", "12", [host])
    assert cli.main(["demo-report", "--credentials", str(credentials)]) == 0
    assert json.loads((tmp_path / "home/demo.json").read_text()) == {
        "url": "https://172.18.0.11",
        "ca_file": str(tmp_path / "home/demo/ca.pem"),
        "api_key": KEY,
        "inventory": str(Path("inventories/lab").resolve()),
        "hosts": [
            {
                "name": "nas1",
                "container": "c1",
                "ssh_host": "172.18.0.11",
                "ssh_port": 2222,
                "ssh_user": "nasadmin",
                "ssh_key": "/k",
            }
        ],
    }
    assert (tmp_path / "home/demo.json").stat().st_mode & 0o777 == 0o600
    printed = capsys.readouterr().out
    for part in ("It keeps your data at home.", "14 tokens/s", "curl --cacert", KEY, "make down"):
        assert part in printed
