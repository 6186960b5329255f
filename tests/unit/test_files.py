# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Files of a set: what differs, how they change, and how they come back."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.nas.assistant.plugins.module_utils._files import (
    FilesError,
    Wanted,
    apply,
    diff,
    differs,
    edited,
    look,
    put_back,
)


def wanted(path: Path, **more: Any) -> Wanted:
    owner = {"owner": str(os.getuid()), "group": str(os.getgid())}
    return Wanted.of({"dest": str(path), **owner, **more})


def settle(wish: Wanted) -> bool:
    """Bring a file to where it should be; return whether that took anything."""
    found = look(wish)
    wish = edited(wish, found)
    if not differs(wish, found):
        return False
    apply(wish)
    return True


def test_a_file_is_written_once(tmp_path: Path) -> None:
    path = tmp_path / "new/folder/x.conf"
    wish = wanted(path, content="a\n", mode="0640")
    assert settle(wish)
    assert path.read_text() == "a\n"
    assert path.stat().st_mode & 0o7777 == 0o640
    assert not settle(wish)
    assert sorted(item.name for item in path.parent.iterdir()) == ["x.conf"]


@pytest.mark.parametrize("alter", ["content", "mode", "link", "gone"])
def test_what_was_altered_is_mended(tmp_path: Path, alter: str) -> None:
    path, other = tmp_path / "x.conf", tmp_path / "other"
    wish = wanted(path, content="a\n")
    settle(wish)
    other.write_text("kept\n")
    if alter == "content":
        path.write_text("b\n")
    elif alter == "mode":
        path.chmod(0o600)
    else:
        path.unlink()
    if alter == "link":
        path.symlink_to(other)
    assert settle(wish)
    assert not settle(wish)
    assert path.read_text() == "a\n"
    assert not path.is_symlink()
    # A link is replaced, never followed.
    assert other.read_text() == "kept\n"


def test_attributes_leave_content_and_missing_files_alone(tmp_path: Path) -> None:
    path = tmp_path / "shadow"
    wish = wanted(path, state="attributes", mode="0640")
    assert not settle(wish)
    path.write_text("x")
    path.chmod(0o666)
    assert settle(wish)
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("x", 0o640)
    folder = tmp_path / "cron.d"
    folder.mkdir(mode=0o755)
    assert settle(wanted(folder, state="attributes", mode="0700"))
    assert folder.stat().st_mode & 0o777 == 0o700


def test_edits_change_whole_lines_and_can_be_undone(tmp_path: Path) -> None:
    path = tmp_path / "sshd_config"
    before = b"Include x\n Port 22\n#Port 1\nPortal 3\n\xff\n"
    path.write_bytes(before)
    out = [{"line": r"[ \t]*(Port[ \t].*)", "becomes": r"# ours: \1"}]
    back = [{"line": "# ours: (.*)", "becomes": r"\1"}]
    assert settle(wanted(path, state="attributes", edits=out))
    assert path.read_bytes() == b"Include x\n# ours: Port 22\n#Port 1\nPortal 3\n\xff\n"
    assert not settle(wanted(path, state="attributes", edits=out))
    assert settle(wanted(path, state="attributes", edits=back))
    assert path.read_bytes() == before.replace(b" Port", b"Port")


def test_absent_and_put_back(tmp_path: Path) -> None:
    path = tmp_path / "x.conf"
    path.write_text("old\n")
    path.chmod(0o604)
    wish = wanted(path, state="absent")
    found = look(wish)
    assert "old" not in diff(wish, found)["before"]  # it may be a key
    assert settle(wish)
    assert not path.exists()
    assert not settle(wish)
    put_back(wish, found)
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("old\n", 0o604)
    put_back(wish, look(wanted(tmp_path / "never", content="")))


def test_a_secret_is_in_no_diff(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("old secret")
    wish = wanted(path, content="new secret", secret=True)
    shown = diff(wish, look(wish))
    assert "secret" not in shown["before"] + shown["after"]
    assert "mode" in shown["before"]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"dest": "x", "content": ""}, "whole path"),
        ({"dest": "/x/", "content": ""}, "whole path"),
        ({"dest": "/x", "content": "", "mode": "rw"}, "octal mode"),
        ({"dest": "/x", "content": "", "mode": "999"}, "octal mode"),
        ({"dest": "/x", "content": "", "owner": "nobody-there"}, "owner='nobody-there'"),
        ({"dest": "/x", "content": "", "group": "nobody-there"}, "group='nobody-there'"),
        ({"dest": "/x"}, "content is missing"),
    ],
    ids=str,
)
def test_what_cannot_be_meant_is_refused(value: dict[str, Any], said: str) -> None:
    with pytest.raises(FilesError, match=said):
        Wanted.of(value)


def test_a_folder_is_never_replaced(tmp_path: Path) -> None:
    with pytest.raises(FilesError, match="is a folder"):
        look(wanted(tmp_path, content="x"))


def test_a_folder_is_made_once_and_keeps_what_is_in_it(tmp_path: Path) -> None:
    path = tmp_path / "new/folder"
    wish = wanted(path, state="directory", mode="2750")
    before = look(wish)
    assert settle(wish)
    assert path.stat().st_mode & 0o7777 == 0o2750
    assert path.parent.stat().st_mode & 0o777 == 0o755
    assert not settle(wish)
    put_back(wish, before)
    assert not path.exists()
    settle(wish)
    (path / "kept").touch()
    put_back(wish, before)
    path.chmod(0o700)
    assert settle(wish)
    assert (path / "kept").exists()


def test_a_folder_may_be_a_link_to_one(tmp_path: Path) -> None:
    path, elsewhere = tmp_path / "models", tmp_path / "disk"
    path.symlink_to(elsewhere)
    wish = wanted(path, state="directory", mode="0750")
    with pytest.raises(FilesError, match="models is a link to what is not there"):
        look(wish)
    elsewhere.mkdir()
    assert settle(wish)
    assert not settle(wish)
    assert path.is_symlink()
    assert elsewhere.stat().st_mode & 0o777 == 0o750
    elsewhere.rmdir()
    elsewhere.touch()
    with pytest.raises(FilesError, match="models is a file, where a folder should be"):
        look(wish)


def test_what_is_too_large_to_come_back_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "image.tar"
    path.touch()
    os.truncate(path, (16 << 20) + 1)
    wish = wanted(path, state="absent")
    found = look(wish)
    assert found.content is None
    assert settle(wish)
    assert not path.exists()
    with pytest.raises(OSError, match=r"image\.tar"):
        put_back(wish, found)
