# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""An S3 server that keeps versions and knows users: versitygw, compiled for the test by Go."""

from __future__ import annotations

import hashlib
import hmac
import http.client
import json
import os
import socket
import subprocess
import time
import urllib.parse
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab import paths

# Apache-2.0, and small for what it can. Go proves what it fetches.
MODULE, VERSION = "github.com/versity/versitygw/cmd/versitygw", "v1.8.0"


@dataclass(frozen=True)
class User:
    """Who asks."""

    name: str
    secret: str

    @property
    def environment(self) -> dict[str, str]:
        """As restic takes it."""
        return {"AWS_ACCESS_KEY_ID": self.name, "AWS_SECRET_ACCESS_KEY": self.secret}

    def sign(self, method: str, host: str, path: str, query: str, body: str) -> dict[str, str]:
        """Return the headers of a request (AWS Signature Version 4). The query is sorted."""
        moment = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        headers = {"host": host, "x-amz-content-sha256": _digest(body), "x-amz-date": moment}
        listed = "".join(f"{name}:{value}\n" for name, value in headers.items())
        names, place = ";".join(headers), [moment[:8], "us-east-1", "s3", "aws4_request"]
        request = "\n".join([method, path, query, listed, names, _digest(body)])
        text = "\n".join(["AWS4-HMAC-SHA256", moment, "/".join(place), _digest(request)])
        key = f"AWS4{self.secret}".encode()
        for part in (*place, text):
            key = hmac.digest(key, part.encode(), "sha256")
        who = f"Credential={self.name}/{'/'.join(place)}, SignedHeaders={names}"
        return {**headers, "Authorization": f"AWS4-HMAC-SHA256 {who}, Signature={key.hex()}"}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


OWNER = User("owner", "owner-secret-0123456789")
NAS = User("nas1", "nas1-secret-0123456789")
PRUNER = User("pruner", "pruner-secret-0123456789")


def program() -> Path:
    """Compile the server, once for this checkout: minutes."""
    folder = paths.home() / "cache" / f"versitygw-{VERSION}"
    made = folder / "versitygw"
    if not made.exists():
        environ = {**os.environ, "GOBIN": str(folder), "GOPATH": str(folder / "go")}
        # So that the folder can be removed.
        environ["GOFLAGS"] = "-modcacherw"
        subprocess.run(["go", "install", f"{MODULE}@{VERSION}"], env=environ, check=True)
        subprocess.run(["go", "clean", "-modcache"], env=environ, check=True)
    return made


class S3:
    """A server on the loopback address, with one bucket."""

    bucket = "backups"

    def __init__(self, folder: Path) -> None:
        self.program = str(program())
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{probe.getsockname()[1]}"
        for name in ("data", "versions", "users"):
            (folder / name).mkdir(parents=True)
        command = [
            *(self.program, "--port", self.address, "--quiet"),
            *("--access", OWNER.name, "--secret", OWNER.secret, "--iam-dir", f"{folder}/users"),
            *("posix", "--versioning-dir", f"{folder}/versions", f"{folder}/data"),
        ]
        self.process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def prepare(self, rights: dict[User, list[dict[str, Any]]]) -> None:
        """Wait for it, make the bucket, and give users rights, as statements of a policy without
        whom they concern."""
        deadline = time.monotonic() + 20
        while not self.ask(OWNER, "GET", "")[0]:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        assert self.ask(OWNER, "PUT", self.bucket)[0] == 200
        on = "<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>"
        assert self.ask(OWNER, "PUT", f"{self.bucket}?versioning=", on)[0] == 200
        for user in rights:
            account = [*("--access", user.name, "--secret", user.secret, "--role", "user")]
            admin = ["--access", OWNER.name, "--secret", OWNER.secret]
            command = [self.program, "admin", "--endpoint-url", f"http://{self.address}", *admin]
            subprocess.run([*command, "create-user", *account], check=True, capture_output=True)
        statements = [
            {**statement, "Principal": {"AWS": [user.name]}}
            for user, given in rights.items()
            for statement in given
        ]
        policy = json.dumps({"Version": "2012-10-17", "Statement": statements})
        status, said = self.ask(OWNER, "PUT", f"{self.bucket}?policy=", policy)
        assert status in (200, 204), said

    def ask(self, user: User, method: str, place: str, body: str = "") -> tuple[int, bytes]:
        """Send one request; return the status (0 where nobody answers) and the answer."""
        path, _, query = place.partition("?")
        connection = http.client.HTTPConnection(self.address, timeout=30)
        try:
            headers = user.sign(method, self.address, f"/{path}", query, body)
            connection.request(method, f"/{path}?{query}", body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        except OSError:
            return 0, b""
        finally:
            connection.close()

    def listed(self) -> list[str]:
        """All that is in the bucket."""
        status, answer = self.ask(OWNER, "GET", f"{self.bucket}?list-type=2&max-keys=1000")
        assert status == 200
        return [each.text or "" for each in ET.fromstring(answer).iterfind(".//{*}Key")]  # noqa: S314

    def versions(self, key: str) -> list[str]:
        """The versions of an object, the newest first."""
        prefix = urllib.parse.quote(key, safe="")
        status, answer = self.ask(OWNER, "GET", f"{self.bucket}?prefix={prefix}&versions=")
        assert status == 200
        found = ET.fromstring(answer).iterfind(".//{*}Version/{*}VersionId")  # noqa: S314
        return [each.text or "" for each in found]

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()
