# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from nas_assistant import checks
from nas_assistant.checks import StartRefused, check_start
from nas_assistant.engine import Kind
from nas_assistant.settings import AUTO, Settings

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
    (checked,) = check_start(load(data), models_dir, "source").models.values()
    assert checked.model.kind is Kind.CHAT
    assert checked.path == models_dir / "tiny.gguf"
    assert checked.threads >= 1


@pytest.mark.parametrize(("extra", "chat"), [("", False), ("chat_template = chatml\n", True)])
def test_chat_needs_a_template(
    models_dir: Path, load: Callable[..., Settings], extra: str, chat: bool
) -> None:
    data = gguf_file()
    (models_dir / "tiny.gguf").write_bytes(data)
    checked = check_start(load(data, extra), models_dir, "source")
    assert (checked.models["default"].model.kind is Kind.CHAT) is chat


@pytest.mark.parametrize(
    ("template", "extra", "tools"),
    [
        ("{% for tool in tools %}{% endfor %}", "", True),
        ("{{ messages }}", "", False),
        ("{% for tool in tools %}{% endfor %}", "chat_template = chatml\n", False),
    ],
)
def test_tools_need_a_template_that_knows_them(
    models_dir: Path, load: Callable[..., Settings], template: str, extra: str, tools: bool
) -> None:
    data = gguf_file(template=template)
    (models_dir / "tiny.gguf").write_bytes(data)
    checked = check_start(load(data, extra), models_dir, "source")
    assert checked.models["default"].model.tools is tools


@pytest.mark.parametrize(
    ("pooling", "causal", "kind", "kept"),
    [
        (1, False, Kind.EMBEDDING, False),
        (3, True, Kind.EMBEDDING, True),
        (4, False, Kind.RERANK, False),
        (4, True, Kind.RERANK, True),
    ],
)
def test_what_becomes_of_its_vectors_says_what_a_model_is_for(
    models_dir: Path,
    load: Callable[..., Settings],
    pooling: int,
    causal: bool,
    kind: Kind,
    kept: bool,
) -> None:
    data = gguf_file(template="{{ x }}", pooling=pooling, causal=causal)
    (models_dir / "tiny.gguf").write_bytes(data)
    (checked,) = check_start(load(data), models_dir, "source").models.values()
    assert checked.model.kind is kind
    assert (checked.need.kv_cache > 0) is kept
    assert checked.need.prompt_cache == 0


@pytest.mark.parametrize(
    ("data", "extra", "message"),
    [
        (b"<html>404</html>", "", "not a usable GGUF file: it does not begin with GGUF. Fetch it"),
        (gguf_file()[:-1], "", "it is truncated: "),
        (gguf_file()[:200], "", "truncated"),
        (gguf_file(context=255), "", "was trained for 255 tokens; at least 256 are of use"),
        (gguf_file(context=512), "context = 2048\n", "was trained for 512"),
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
    with pytest.raises(StartRefused, match=r"\+ gateway 208 = \d+ MiB, but .* limit is 100 MiB"):
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


def other(name: str, data: bytes, extra: str = "") -> str:
    digest = hashlib.sha256(data).hexdigest()
    return f"[model:{name}]\nfile = {name}.gguf\nsha256 = {digest}\n{extra}\n"


def test_others_are_checked_and_may_be_unusable(
    models_dir: Path, load: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is fine, one that is missing, one that is too large; digests are for later."""
    data, huge = gguf_file(), gguf_file(context=1 << 20)
    (models_dir / "tiny.gguf").write_bytes(data)
    (models_dir / "fine.gguf").write_bytes(gguf_file(context=8192))
    (models_dir / "huge.gguf").write_bytes(huge)
    monkeypatch.setattr(checks, "available_memory", lambda: (748 << 20, "the container's limit"))
    extra = other("fine", data) + other("gone", data) + other("huge", huge, "context = 900000")
    checked = check_start(load(data, extra), models_dir, "source")
    assert list(checked.models) == ["default", "fine"]
    assert list(checked.kinds) == ["default", "fine", "huge"]
    assert "does not exist" in checked.unusable["gone"]
    assert "limit is 748 MiB" in checked.unusable["huge"]
    assert checked.room == (748 << 20) - checked.models["default"].need.gateway
    with pytest.raises(StartRefused, match="has SHA-256"):
        checked.models["fine"].verify()
    # What is pinned must be there, and fit beside the chosen one.
    with pytest.raises(StartRefused, match=r"gone\.gguf does not exist"):
        check_start(load(data, other("gone", data, "pinned = yes")), models_dir, "source")
    more = other("fine", gguf_file(context=8192), "pinned = yes")
    assert len(check_start(load(data, more), models_dir, "source").at_start) == 2
    monkeypatch.setattr(checks, "available_memory", lambda: (648 << 20, "the container's limit"))
    settings = load(data, more + "[engine]\nslots = 4\ncache_mib = 128\n")
    refusal = (
        r"need default 256 \+ fine 256 = 511 MiB beside the gateway, but the container's limit is "
        r"648 MiB\. Pin fewer\. With cache_mib = 0 it would fit; or raise the limit to 719 MiB$"
    )
    with pytest.raises(StartRefused, match=refusal):
        check_start(settings, models_dir, "source")
    # Left to be worked out, they fit: the prompt cache of each is smaller.
    found = check_start(load(data, more), models_dir, "source")
    assert sum(each.need.own for each in found.at_start) <= found.room
    assert found.settings.slots == 4
    assert 16 <= found.settings.cache_mib < 128


def test_one_that_would_fit_is_named(
    models_dir: Path, load: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    huge, small = gguf_file(layers=2048), gguf_file()
    (models_dir / "tiny.gguf").write_bytes(huge)
    (models_dir / "small.gguf").write_bytes(small)
    monkeypatch.setattr(checks, "available_memory", lambda: (548 << 20, "the container's limit"))
    settings = load(huge, other("small", small))
    refusal = (
        r"^model 'default' needs weights 1 \+ KV cache 512 \+ requests 8 \+ engine 96 "
        r"\+ gateway 208 = 824 MiB, but the container's limit is 548 MiB\. Choose a smaller model "
        r"\('small' fits\); or raise the limit to 824 MiB$"
    )
    with pytest.raises(StartRefused, match=refusal):
        check_start(settings, models_dir, "source")


def test_what_was_worked_out_is_in_all_that_is_checked(
    models_dir: Path, load: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    data, fine = gguf_file(layers=512), gguf_file(context=512)
    (models_dir / "tiny.gguf").write_bytes(data)
    (models_dir / "fine.gguf").write_bytes(fine)
    monkeypatch.setattr(checks, "available_memory", lambda: (975 << 20, "the container's limit"))
    settings = load(data, other("fine", fine) + other("gone", fine))
    checked = check_start(settings, models_dir, "source")
    assert (checked.settings.slots, checked.settings.cache_mib) == (4, 128)
    contexts = {name: each.context for name, each in checked.settings.models.items()}
    assert contexts == {"default": 2048, "fine": 512, "gone": AUTO}
    for name, each in checked.models.items():
        assert each.settings is checked.settings.models[name]
    default = checked.models["default"]
    assert default.need.kv_cache == 4 * 128 << 20
    assert default.sizing.startswith("4 slots of 2048 tokens")
    assert checked.limit == "the container's limit is 975 MiB"
    assert checked.models["fine"].sizing.endswith("; it was trained for 512")
    # Nothing that was asked for is another one afterwards.
    assert (settings.slots, settings.models["default"].context) == (AUTO, AUTO)
