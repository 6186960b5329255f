# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""model_file on a real file system and with a real HTTP server on loopback."""

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
from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible_collections.nas.assistant.plugins.action import model_file as sender
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


def wish(folder: Path, name: str, **more: Any) -> dict[str, Any]:
    """One of several models."""
    return {"path": str(folder / name), "sha256": DIGEST, **more}


def test_several_are_looked_at_and_none_is_brought(
    fetch: Call, call: Call, source: Source, tmp_path: Path
) -> None:
    fetch()
    url = f"http://127.0.0.1:{source.server_port}/model.gguf"
    wishes = [wish(tmp_path, "model.gguf"), wish(tmp_path, "other.gguf", url=url)]
    wishes.append(wish(tmp_path / "nowhere", "model.gguf"))
    answer = call(main, models=wishes)
    assert answer["changed"]
    there, missing, nowhere = answer["models"]
    assert (there["changed"], there["size"]) == (False, len(MODEL))
    assert (missing["changed"], missing["partial"], missing["sha256"]) == (True, 0, "")
    assert "its folder does not exist" in nowhere["msg"]
    assert left(tmp_path) == ["model.gguf", "model.gguf.sha256"]
    assert len(source.ranges) == 1


def test_one_or_several(call: Call, tmp_path: Path) -> None:
    one = wish(tmp_path, "model.gguf")
    assert "mutually exclusive" in call(main, path=one["path"], models=[one])["msg"]
    assert "one of the following is required" in call(main, sha256=DIGEST)["msg"]
    assert "sha256 is missing" in call(main, path=one["path"])["msg"]


class Controller(sender.ActionModule):  # type: ignore[misc]
    """Whose NAS is this machine; ``trips`` are what it was asked."""

    def __init__(self, call: Call, check: bool = False) -> None:
        self._call, self.check = call, check
        self.trips: list[dict[str, Any]] = []

    def _module(self, arguments: dict[str, Any], task_vars: Any) -> dict[str, Any]:
        self.trips.append(arguments)
        return self._call(main, check=self.check, **arguments)

    def _send(self, file: str, look: dict[str, Any], answer: Any, _: Any) -> dict[str, Any]:
        assert answer["changed"]
        whole = Path(file).stat().st_size
        return self._module({**look, "part": file, "whole": whole}, None)

    def bring(self, models: Any, **more: Any) -> dict[str, Any]:
        """What the task says."""

        class Task:
            args, check_mode = {"models": models, **more}, self.check

        self._task = Task()
        said: dict[str, Any] = self.run(None, {})
        return said


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Two models, of which the controller has the file."""
    monkeypatch.setattr(ActionBase, "run", lambda *_: {})
    kept = tmp_path / "kept.gguf"
    kept.write_bytes(MODEL)
    return [wish(tmp_path, name, src=str(kept)) for name in ("one.gguf", "two.gguf")]


def test_several_take_one_trip(call: Call, here: list[dict[str, Any]], tmp_path: Path) -> None:
    blank = Controller(call, check=True)
    answer = blank.bring(here)
    assert (answer["changed"], len(answer["diff"]), len(blank.trips)) == (True, 2, 1)
    first = Controller(call)
    assert first.bring(here, cache=str(tmp_path))["changed"]
    assert (tmp_path / "two.gguf").read_bytes() == MODEL
    # As the role gives them: what is none is there, and nothing.
    here = [{"url": None, "package": None, **each} for each in here]
    second = Controller(call)
    answer = second.bring(here)
    assert (answer["changed"], len(second.trips)) == (False, 1)
    assert [each["sha256"] for each in answer["models"]] == [DIGEST, DIGEST]
    none = Controller(call)
    assert (none.bring([])["changed"], none.trips) == (False, [])


def test_one_that_cannot_be_had_keeps_none_back(
    call: Call, source: Source, here: list[dict[str, Any]], tmp_path: Path
) -> None:
    source.status = 404
    url = f"http://127.0.0.1:{source.server_port}/model.gguf"
    lost = [wish(tmp_path, "a.gguf", src="/nowhere.gguf")]
    lost.append(wish(tmp_path, "b.gguf", url=url, src=None, package=None))
    answer = Controller(call).bring([*lost, *here])
    assert (answer["failed"], answer["changed"]) == (True, True)
    assert "src=/nowhere.gguf: there is no such file" in answer["msg"]
    assert "404" in answer["msg"]
    assert (tmp_path / "two.gguf").read_bytes() == MODEL


@pytest.mark.parametrize(
    ("models", "more", "said"),
    [
        ([{"path": "/x", "sha256": DIGEST}], {}, r"exactly one of url, src and package"),
        ([{"path": "/x", "sha256": "1", "url": "https://x"}], {}, r"sha256='1' is not 64"),
        ("all", {}, "give a list of models"),
        (["/x"], {}, "give a list of models"),
        ([], {"state": "absent"}, "give a list of models"),
    ],
)
def test_what_is_no_list_of_models(
    call: Call, here: Any, models: Any, more: dict[str, Any], said: str
) -> None:
    controller = Controller(call)
    with pytest.raises(AnsibleActionFail, match=said):
        controller.bring(models, **more)
    assert not controller.trips
