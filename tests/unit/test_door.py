# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Which doors of a NAS are tried, and what a knock tells."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.nas.assistant.plugins.action.find_door import (
    candidates,
    remembered,
)
from ansible_collections.nas.assistant.plugins.plugin_utils._door import Door, knock

BLANK = Door("192.0.2.10", None, "root")


def test_as_it_should_be_then_as_it_was() -> None:
    should = Door("192.0.2.10", 2222, "nasadmin")
    assert candidates([{"port": 2222, "user": "nasadmin"}], BLANK) == [should, BLANK]


@pytest.mark.parametrize(
    ("text", "doors"),
    [
        ('{"host": "192.0.2.10", "port": 2022, "user": "me"}', 1),
        ('{"host": "192.0.2.10"}', 0),
        ("[]", 0),
        ("", 0),
        (None, 0),
    ],
)
def test_the_door_that_was_open_last(tmp_path: Path, text: str | None, doors: int) -> None:
    path = tmp_path / "nas.door.json"
    if text is not None:
        path.write_text(text)
    found = candidates([{"port": 2222}, *remembered(str(path))], BLANK)
    assert len(found) == 2 + doors
    assert not doors or found[1] == Door("192.0.2.10", 2022, "me")


def test_an_inventory_that_names_the_door_tries_it_once() -> None:
    there = Door("192.0.2.10", 2222, "nasadmin")
    assert candidates([{"port": "2222", "user": "nasadmin"}], there) == [there]


def test_an_address_that_moved() -> None:
    doors = candidates([{"host": "192.0.2.20"}], BLANK)
    assert [door.host for door in doors] == ["192.0.2.20", "192.0.2.10"]


def test_where_it_may_have_moved_comes_last() -> None:
    doors = candidates([{"port": 2222}], BLANK, [{"host": "192.0.2.20", "port": 2222}])
    assert [(door.host, door.port) for door in doors] == [
        ("192.0.2.10", 2222),
        ("192.0.2.10", None),
        ("192.0.2.20", 2222),
    ]


def test_the_name_of_the_host_key_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "nas.door.json"
    path.write_text('{"host": "192.0.2.20", "port": 2022, "user": "me", "alias": "192.0.2.10"}')
    (door,) = remembered(str(path))
    assert door["alias"] == "192.0.2.10"
    assert candidates([door], BLANK)[0] == Door("192.0.2.20", 2022, "me")


@pytest.fixture
def speaker(request: pytest.FixtureRequest) -> Iterator[int]:
    """A port that greets whoever comes with the given bytes."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def greet() -> None:
            client, _ = server.accept()
            with client:
                client.sendall(request.param)

        thread = threading.Thread(target=greet)
        thread.start()
        yield server.getsockname()[1]
        thread.join()


@pytest.mark.parametrize("speaker", [b"SSH-2.0-OpenSSH_9.2\r\n"], indirect=True)
def test_knock_hears_an_ssh_daemon(speaker: int) -> None:
    assert knock("127.0.0.1", speaker, 2) == ""


@pytest.mark.parametrize("speaker", [b"220 mail\r\n", b""], indirect=True)
def test_knock_hears_something_else(speaker: int) -> None:
    assert "something else" in knock("127.0.0.1", speaker, 2)


def test_knock_on_a_closed_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert "refused" in knock("127.0.0.1", port, 2)
