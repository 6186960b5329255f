# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from nas_assistant import checks
from nas_assistant.checks import StartRefused, check_start
from nas_assistant.settings import Settings

from .conftest import gguf_file, minimal_config


@pytest.fixture
def models_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    return folder


@pytest.fixture
def load(write_config: Callable[[str], Path]) -> Callable[..., Settings]:
    def load(data: bytes, extra: str = "") -> Settings:
        digest = hashlib.sha256(data).hexdigest()
        text = minimal_config().replace("0" * 64, digest) + extra
        return Settings.load(write_config(text), {})

    return load


def test_a_whole_model_passes(models_dir: Path, load: Callable[..., Settings]) -> None:
    data = gguf_file(template="{{ x }}")
    (models_dir / "tiny.gguf").write_bytes(data)
    checked = check_start(load(data), models_dir, "source")
    assert checked.chat
    assert checked.path == models_dir / "tiny.gguf"
    assert checked.threads >= 1


@pytest.mark.parametrize(("extra", "chat"), [("", False), ("chat_template = chatml\n", True)])
def test_chat_needs_a_template(
    models_dir: Path, load: Callable[..., Settings], extra: str, chat: bool
) -> None:
    data = gguf_file()
    (models_dir / "tiny.gguf").write_bytes(data)
    assert check_start(load(data, extra), models_dir, "source").chat is chat


@pytest.mark.parametrize(
    ("data", "extra", "message"),
    [
        (b"<html>404</html>", "", "not a usable GGUF file: it does not begin with GGUF. Fetch it"),
        (gguf_file()[:-1], "", "it is truncated: "),
        (gguf_file()[:200], "", "truncated"),
        (gguf_file(context=512), "", "was trained for 512"),
        (gguf_file(context=1 << 20), "context = 1000000\n[engine]\nslots = 64\n", "KV cache "),
    ],
)
def test_refusals(
    models_dir: Path, load: Callable[..., Settings], data: bytes, extra: str, message: str
) -> None:
    (models_dir / "tiny.gguf").write_bytes(data)
    settings = load(data, extra)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checks, "available_memory", lambda: (4 << 30, "the machine's memory"))
        with pytest.raises(StartRefused) as caught:
            check_start(settings, models_dir, "source")
    assert message in str(caught.value)
    assert "model 'default'" in str(caught.value)


def test_memory_message_has_the_arithmetic(
    models_dir: Path, load: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = gguf_file()
    (models_dir / "tiny.gguf").write_bytes(data)
    monkeypatch.setattr(checks, "available_memory", lambda: (100 << 20, "the container's limit"))
    with pytest.raises(StartRefused, match=r"\+ gateway 160 = \d+ MiB, but .* limit is 100 MiB"):
        check_start(load(data), models_dir, "source")


def test_wrong_digest(models_dir: Path, load: Callable[..., Settings]) -> None:
    (models_dir / "tiny.gguf").write_bytes(gguf_file())
    with pytest.raises(StartRefused, match=r"has SHA-256 [0-9a-f]{64}, but config.ini expects"):
        check_start(load(gguf_file(context=8192)), models_dir, "source")


def test_missing_file_lists_what_is_there(models_dir: Path, load: Callable[..., Settings]) -> None:
    (models_dir / "other.gguf").write_bytes(b"")
    with pytest.raises(StartRefused, match=r"does not exist; GGUF files found in .*: other\.gguf"):
        check_start(load(b""), models_dir, "source")


def test_link_out_of_the_folder(
    tmp_path: Path, models_dir: Path, load: Callable[..., Settings]
) -> None:
    (tmp_path / "secret.gguf").write_bytes(gguf_file())
    (models_dir / "tiny.gguf").symlink_to(tmp_path / "secret.gguf")
    with pytest.raises(StartRefused, match="leads out of"):
        check_start(load(gguf_file()), models_dir, "source")


def test_old_cpu_with_the_wheel(
    models_dir: Path, load: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = gguf_file()
    (models_dir / "tiny.gguf").write_bytes(data)
    monkeypatch.setattr(checks, "missing_for_wheel", lambda: ("avx2",))
    with pytest.raises(StartRefused, match=r'lacks avx2, .* engine "source"'):
        check_start(load(data), models_dir, "wheel")
    assert check_start(load(data), models_dir, "source")
