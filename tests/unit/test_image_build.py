# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""What counts as an input of the image, and which docker command can build it."""

from __future__ import annotations

from pathlib import Path

import pytest
from ansible_collections.nas.assistant.plugins.module_utils._build_context import (
    context_files,
    inputs_digest,
)
from ansible_collections.nas.assistant.plugins.module_utils._docker_cli import (
    DockerError,
    buildkit_client,
)


@pytest.fixture
def context(tmp_path: Path) -> Path:
    for name in ("Dockerfile", "start.sh", "src/app.py", "tests/test_app.py", "src/app.pyc"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(name)
    (tmp_path / ".dockerignore").write_text("# not in the image\ntests/\n**/*.pyc\n")
    return tmp_path


def test_ignored_files_are_no_input(context: Path) -> None:
    assert context_files(str(context)) == [".dockerignore", "Dockerfile", "src/app.py", "start.sh"]


@pytest.mark.parametrize(
    ("change", "same"),
    [
        (lambda context: None, True),
        (lambda context: (context / "tests/test_app.py").write_text("other"), True),
        (lambda context: (context / "src/app.py").write_text("other"), False),
        (lambda context: (context / "start.sh").chmod(0o755), False),
        (lambda context: (context / "src/app.py").rename(context / "src/main.py"), False),
    ],
)
def test_digest_follows_the_inputs(context: Path, change: object, same: bool) -> None:
    before = inputs_digest(str(context), {"ENGINE": "wheel"})
    assert callable(change)
    change(context)
    assert (inputs_digest(str(context), {"ENGINE": "wheel"}) == before) is same


@pytest.mark.parametrize(
    ("patterns", "kept"),
    [
        ("*\n!src/\n!start.sh\n**/*.pyc\n", ["src/app.py", "start.sh"]),
        ("*\n", []),
        ("", ["src/app.py", "src/app.pyc", "start.sh", "tests/test_app.py"]),
        ("src\n!src/app.py\n", ["src/app.py", "start.sh", "tests/test_app.py"]),
    ],
)
def test_the_last_pattern_decides(context: Path, patterns: str, kept: list[str]) -> None:
    (context / ".dockerignore").write_text(patterns)
    assert context_files(str(context)) == sorted([".dockerignore", "Dockerfile", *kept])


def test_the_services_own_files_are_inputs() -> None:
    files = context_files(str(Path(__file__).parents[2] / "service"))
    assert {"Dockerfile", "start.sh", "requirements.txt", "src/nas_assistant/gateway.py"} <= {
        *files
    }
    assert not [path for path in files if path.startswith("tests/") or path.endswith(".pyc")]


def test_digest_follows_the_arguments(context: Path) -> None:
    digests = {inputs_digest(str(context), {"ENGINE": engine}) for engine in ("wheel", "source")}
    assert len(digests) == 2


def client(folder: Path, version: str, buildx: bool, engine: bool = True) -> str:
    """Write a docker command that answers like a client of this version."""
    folder.mkdir()
    path = folder / "docker"
    path.write_text(
        f"""#!/bin/sh
case "$1" in
version) {f"echo {version} 20.10.24" if engine else "echo no engine >&2; exit 1"} ;;
buildx) exit {0 if buildx else 1} ;;
esac
"""
    )
    path.chmod(0o755)
    return str(folder)


def test_takes_the_first_client_that_can_build(tmp_path: Path) -> None:
    new = client(tmp_path / "new", "28.2.2", buildx=False)
    old = client(tmp_path / "old", "20.10.24", buildx=False)
    complete = client(tmp_path / "complete", "28.2.2", buildx=True)
    assert buildkit_client(f"{new}:{old}:{complete}") == [f"{old}/docker", "build"]
    assert buildkit_client(f"{new}:{complete}")[:2] == [f"{complete}/docker", "buildx"]


def test_says_why_no_client_can(tmp_path: Path) -> None:
    new = client(tmp_path / "new", "28.2.2", buildx=False)
    mute = client(tmp_path / "mute", "28.2.2", buildx=True, engine=False)
    with pytest.raises(DockerError, match=r"no buildx plugin.*no engine.*assistant_image"):
        buildkit_client(f"{new}:{mute}")
    with pytest.raises(DockerError, match="none on the PATH"):
        buildkit_client(str(tmp_path))
