# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""The execution environment is one that its builder takes, with all that runs on a controller."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
NAME = "execution-environment.yml"
LOCK = (ROOT / "requirements.txt").read_text("utf-8")
# Python packages that plugins of others want on a controller.
WANTED = {
    r"\bcommunity\.crypto\.": "cryptography",
    r"\b(ansible\.utils\.|ansible\.netcommon\.)": "netaddr",
    r"\bcommunity\.general\.json_query\b": "jmespath",
    r"\bcommunity\.general\.xml\b": "lxml",
}
# Modules that plays have run on the controller; the others run on a NAS, with what it has.
DELEGATED = {"controller_file", "image_build", "model_file"}


def definition() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / NAME).read_text("utf-8"))
    return found


def create(folder: Path, text: str | None = None) -> subprocess.CompletedProcess[str]:
    """Have the builder read a definition, beside the archive of the collection."""
    galaxy = yaml.safe_load((ROOT / "galaxy.yml").read_text("utf-8"))
    archive = f"{galaxy['namespace']}-{galaxy['name']}-{galaxy['version']}.tar.gz"
    (folder / archive).write_text("an archive")
    shutil.copy(ROOT / "requirements.yml", folder)
    (folder / NAME).write_text((ROOT / NAME).read_text("utf-8") if text is None else text)
    command = [str(Path(sys.executable).with_name("ansible-builder")), "create"]
    command += ["--file", NAME, "--context", "context", "--output-filename", "Containerfile"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_its_builder_takes_it(tmp_path: Path) -> None:
    done = create(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    context = tmp_path / "context"
    steps = (context / "Containerfile").read_text()
    dependencies = definition()["dependencies"]
    core, runner = (dependencies[f"ansible_{name}"]["package_pip"] for name in ("core", "runner"))
    assert f'ARG ANSIBLE_INSTALL_REFS="{core} {runner}"' in steps
    assert f'ARG EE_BASE_IMAGE="{definition()["images"]["base_image"]["name"]}"' in steps
    assert yaml.safe_load((context / "_build/requirements.yml").read_text()) == yaml.safe_load(
        (ROOT / "requirements.yml").read_text("utf-8")
    )
    assert (context / "_build/requirements.txt").read_text().split() == dependencies["python"]
    assert (context / "_build/bindep.txt").read_text().split() == dependencies["system"]
    # The collection itself comes after those that it needs, from where its archive was put.
    (archive,) = (context / "_build/collection").iterdir()
    assert archive.read_text() == "an archive"
    order = ["collection install $ANSIBLE", "COPY _build/collection", "--offline", "AS builder"]
    places = [steps.index(words) for words in order]
    assert places == sorted(places)


@pytest.mark.parametrize(
    ("old", "new"),
    [("version: 3", "version: 4"), ("  system:", "  sytem:"), ("append_galaxy", "append_glaxy")],
)
def test_its_builder_refuses_another_one(tmp_path: Path, old: str, new: str) -> None:
    text = (ROOT / NAME).read_text("utf-8")
    assert old in text
    assert create(tmp_path, text.replace(old, new)).returncode != 0


def test_it_has_what_is_locked() -> None:
    dependencies = definition()["dependencies"]
    pins = [dependencies["ansible_core"]["package_pip"], *dependencies["python"]]
    for pin in pins:
        assert f"\n{pin} \\\n" in LOCK, f"{pin} is not what requirements.txt has"
    # Nor does the documentation name another builder than this one.
    (named,) = re.findall(
        r"pip install (ansible-builder==\S+)", (ROOT / "docs/fleet.md").read_text()
    )
    assert f"\n{named} \\\n" in LOCK
    assert dependencies["galaxy"] == "requirements.yml"


def names(packages: list[str]) -> set[str]:
    return {re.split(r"[=<>~! ]", package)[0] for package in packages}


def test_it_has_what_roles_use_on_a_controller() -> None:
    text = "\n".join(
        path.read_text("utf-8")
        for folder in ("roles", "playbooks")
        for path in sorted((ROOT / folder).rglob("*"))
        if path.suffix in (".yml", ".j2")
    )
    needed = {package for pattern, package in WANTED.items() if re.search(pattern, text)}
    assert needed  # or this looks at nothing
    assert names(definition()["dependencies"]["python"]) == needed


def imported(path: Path) -> Iterator[str]:
    """The packages that a file imports, without those of Python and Ansible."""
    known = {*sys.stdlib_module_names, "ansible", "ansible_collections"}
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        found = []
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found = [node.module or ""]
        yield from {name.partition(".")[0] for name in found} - known


def test_our_own_plugins_need_nothing_else() -> None:
    """What runs on the controller; ansible-core brings PyYAML and Jinja2."""
    has = names(definition()["dependencies"]["python"]) | {"yaml", "jinja2"}
    folders = ("action", "filter", "plugin_utils", "module_utils")
    paths = [path for folder in folders for path in (ROOT / "plugins" / folder).glob("*.py")]
    paths += [ROOT / f"plugins/modules/{name}.py" for name in DELEGATED]
    needed = {name: path.name for path in paths for name in imported(path) if name not in has}
    assert needed == {}


def test_no_other_module_is_run_on_a_controller() -> None:
    """Else its imports are to be looked at above too."""
    delegated = set()
    for path in sorted((ROOT / "roles").glob("*/tasks/*.yml")):
        tasks = yaml.safe_load(path.read_text("utf-8"))
        for task in [*tasks, *(part for block in tasks for part in block.get("block", []))]:
            if task.get("delegate_to") == "localhost":
                parts = [task, *task.get("block", [])]
                delegated |= {key for part in parts for key in part if key.startswith("nas.")}
    assert delegated
    assert {name.rpartition(".")[2] for name in delegated} <= DELEGATED
