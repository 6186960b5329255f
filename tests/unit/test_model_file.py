# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""model_file on the NAS's side: a real file system and a real HTTP server on loopback."""

from __future__ import annotations

import fcntl
import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from ansible_collections.nas.assistant.plugins.module_utils._model_file import (
    RESERVE,
    partial_file,
)
from ansible_collections.nas.assistant.plugins.modules import model_file
from ansible_collections.nas.assistant.plugins.modules.model_file import main

MODEL = b"GGUF" + bytes(range(256)) * 4096
DIGEST = hashlib.sha256(MODEL).hexdigest()
Call = Callable[..., dict[str, Any]]


class Source(ThreadingHTTPServer):
    """Serves MODEL; can break off, refuse to resume, or serve something else."""

    content = MODEL
    resumes = True
    breaks_after = 0  # bytes, once; 0 never
    breaks_every = 0  # bytes, each time; 0 never
    sent = 0
    status = 200

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.ranges: list[str | None] = []

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: clients that hang up are what some tests are about."""


class Handler(BaseHTTPRequestHandler):
    server: Source

    def do_GET(self) -> None:
        source = self.server
        asked = self.headers.get("Range")
        source.ranges.append(asked)
        if source.status != 200:
            self.send_error(source.status)
            return
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and source.resumes else 0
        if start >= len(source.content):
            self.send_error(416)
            return
        body = source.content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if source.breaks_after:
            body, source.breaks_after = body[: source.breaks_after], 0
        if source.breaks_every:
            body = body[: source.breaks_every]
        for offset in range(0, len(body), 1 << 20):
            source.sent += self.wfile.write(body[offset : offset + (1 << 20)])

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""


@pytest.fixture
def source() -> Iterator[Source]:
    with Source() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def fetch(call: Call, source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    monkeypatch.setattr(model_file, "PAUSE", 0.0)

    def run(**arguments: Any) -> dict[str, Any]:
        given = {
            "path": str(tmp_path / "model.gguf"),
            "url": f"http://127.0.0.1:{source.server_port}/model.gguf",
            "sha256": DIGEST,
            **arguments,
        }
        return call(main, **given)

    return run


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_fetches_once(fetch: Call, source: Source, tmp_path: Path) -> None:
    first = fetch()
    assert first["changed"]
    assert (first["sha256"], first["size"]) == (DIGEST, len(MODEL))
    assert (tmp_path / "model.gguf").read_bytes() == MODEL
    assert oct((tmp_path / "model.gguf").stat().st_mode & 0o777) == "0o644"
    assert left(tmp_path) == ["model.gguf", "model.gguf.sha256"]
    assert not fetch()["changed"]
    assert len(source.ranges) == 1


def test_check_mode_fetches_nothing(fetch: Call, source: Source, tmp_path: Path) -> None:
    answer = fetch(check=True)
    assert answer["changed"]
    assert DIGEST in answer["diff"]["after"]
    assert left(tmp_path) == []
    assert source.ranges == []


def test_takes_a_broken_transfer_up_again(fetch: Call, source: Source, tmp_path: Path) -> None:
    source.breaks_after = 1000
    assert fetch()["changed"]
    assert source.ranges == [None, "bytes=1000-"]
    assert (tmp_path / "model.gguf").read_bytes() == MODEL


def test_goes_on_in_the_next_run(fetch: Call, source: Source, tmp_path: Path) -> None:
    source.breaks_after = 1000
    answer = fetch(retries=0)
    assert "1000 bytes are kept" in answer["msg"]
    assert left(tmp_path) == ["model.gguf.part"]
    assert fetch()["changed"]
    assert source.ranges[-1] == "bytes=1000-"


def test_starts_over_where_the_server_cannot_resume(
    fetch: Call, source: Source, tmp_path: Path
) -> None:
    (tmp_path / "model.gguf.part").write_bytes(MODEL[:1000])
    source.resumes = False
    assert fetch()["changed"]
    assert (tmp_path / "model.gguf").read_bytes() == MODEL


@pytest.mark.parametrize("leftover", [b"another file", b"x" * (len(MODEL) + 5)])
def test_drops_the_start_of_another_file(fetch: Call, tmp_path: Path, leftover: bytes) -> None:
    (tmp_path / "model.gguf.part").write_bytes(leftover)
    assert fetch()["changed"]
    assert (tmp_path / "model.gguf").read_bytes() == MODEL


def test_refuses_a_wrong_digest_and_keeps_what_is_there(
    fetch: Call, source: Source, tmp_path: Path
) -> None:
    fetch()
    source.content = b"GGUF and something else"
    wanted = "0" * 64
    answer = fetch(sha256=wanted)
    found = hashlib.sha256(source.content).hexdigest()
    assert answer["failed"]
    assert found in answer["msg"]
    assert wanted in answer["msg"]
    assert (tmp_path / "model.gguf").read_bytes() == MODEL
    assert left(tmp_path) == ["model.gguf", "model.gguf.sha256"]


def test_refuses_what_is_not_gguf(fetch: Call, source: Source, tmp_path: Path) -> None:
    source.content = b"<!doctype html><title>Log in</title>"
    answer = fetch(sha256=hashlib.sha256(source.content).hexdigest())
    assert "not a GGUF file" in answer["msg"]
    assert left(tmp_path) == []


@pytest.mark.parametrize(
    ("status", "hint"), [(404, "check the address"), (401, "login"), (500, "500")]
)
def test_quotes_the_servers_refusal(fetch: Call, source: Source, status: int, hint: str) -> None:
    source.status = status
    assert hint in fetch(retries=0)["msg"]


def test_names_an_address_that_nobody_answers(fetch: Call) -> None:
    answer = fetch(url="http://127.0.0.1:9/model.gguf", retries=0)
    assert "127.0.0.1:9" in answer["msg"]


def test_refuses_other_schemes(fetch: Call) -> None:
    assert "https://" in fetch(url="file:///etc/passwd")["msg"]


@pytest.mark.parametrize("touch", ["content", "times"])
def test_mends_a_file_that_was_altered(fetch: Call, tmp_path: Path, touch: str) -> None:
    path = tmp_path / "model.gguf"
    fetch()
    if touch == "content":
        stat = path.stat()
        with path.open("r+b") as stream:
            stream.seek(1000)
            stream.write(b"\xff\xfe")
        # The best forgery there is: size and modification time are as before.
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        assert fetch()["changed"]
        assert path.read_bytes() == MODEL
    else:
        os.utime(path)
        assert not fetch()["changed"]


def test_adopts_a_model_that_is_there(fetch: Call, source: Source, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(MODEL)
    assert not fetch()["changed"]
    assert source.ranges == []


def test_survives_a_damaged_note(fetch: Call, tmp_path: Path) -> None:
    fetch()
    (tmp_path / "model.gguf.sha256").write_text("{")
    assert not fetch()["changed"]


def test_absent_takes_everything_away(fetch: Call, call: Call, tmp_path: Path) -> None:
    fetch()
    (tmp_path / "model.gguf.part").write_bytes(b"x")
    arguments = {"path": str(tmp_path / "model.gguf"), "state": "absent"}
    assert call(main, check=True, **arguments)["changed"]
    assert len(left(tmp_path)) == 3
    assert call(main, **arguments)["changed"]
    assert left(tmp_path) == []
    assert not call(main, **arguments)["changed"]


def test_refuses_a_missing_folder(fetch: Call, tmp_path: Path) -> None:
    assert "folder does not exist" in fetch(path=str(tmp_path / "no" / "model.gguf"))["msg"]


def test_tries_again_while_bytes_arrive(fetch: Call, source: Source) -> None:
    source.breaks_every = len(MODEL) // 4
    assert fetch(retries=1)["changed"]
    assert len(source.ranges) == 4


def test_stops_at_the_first_bytes_that_are_not_gguf(fetch: Call, source: Source) -> None:
    source.content = b"<!doctype html>" + bytes(64 << 20)
    assert "not a GGUF file" in fetch()["msg"]
    assert source.sent < len(source.content)


@pytest.mark.parametrize("status", [404, 500])
def test_a_refusal_leaves_nothing(fetch: Call, source: Source, tmp_path: Path, status: int) -> None:
    source.status = status
    assert fetch(retries=0)["failed"]
    assert left(tmp_path) == []


def test_leaves_room_for_everything_else(
    fetch: Call, source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.statvfs(tmp_path)
    free = (RESERVE + len(MODEL) // 2) // real.f_frsize
    fields = [*real[:4], free, *real[5:]]
    monkeypatch.setattr(os, "statvfs", lambda path: os.statvfs_result(fields))
    answer = fetch()
    assert "256 MiB are kept free" in answer["msg"]
    assert left(tmp_path) == []


def test_one_writer_at_a_time(fetch: Call, source: Source, tmp_path: Path) -> None:
    with partial_file(str(tmp_path / "model.gguf")):
        assert "another run is writing" in fetch()["msg"]
    assert source.ranges == []
    assert fetch()["changed"]


def test_a_late_writer_finds_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other run renames the partial file between this one's open and lock."""
    path = tmp_path / "model.gguf"
    (tmp_path / "model.gguf.part").write_bytes(MODEL)
    flock = fcntl.flock

    def renamed_meanwhile(stream: BinaryIO, operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        (tmp_path / "model.gguf.part").rename(path)
        flock(stream, operation)

    monkeypatch.setattr(fcntl, "flock", renamed_meanwhile)
    with partial_file(str(path)) as stream:
        stream.write(b"x")
    assert path.read_bytes() == MODEL


def test_pieces_must_fit(call: Call, tmp_path: Path) -> None:
    piece = tmp_path / "piece"
    piece.write_bytes(MODEL)
    arguments = {"path": str(tmp_path / "model.gguf"), "sha256": DIGEST, "part": str(piece)}
    assert "another run" in call(main, offset=10, **arguments)["msg"]
    answer = call(main, whole=len(MODEL), **arguments)
    assert answer["changed"]
    assert answer["sha256"] == DIGEST
