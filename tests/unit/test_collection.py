# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""The collection resolves from this checkout and from the archive that is published."""

from __future__ import annotations

import json
import os
import subprocess
import tarfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]

MODULES = sorted(ROOT.glob("plugins/modules/*.py"))
INVENTORIES = ["one_nas", "fleet"]


def run(*command: str, cwd: Path, collections: Path | None = None) -> str:
    environ = {key: value for key, value in os.environ.items() if not key.startswith("ANSIBLE_")}
    if collections:
        environ["ANSIBLE_COLLECTIONS_PATH"] = str(collections)
    done = subprocess.run(
        command, cwd=cwd, env=environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with nothing but the collection as its archive installs it."""
    folder = tmp_path_factory.mktemp("built")
    run("ansible-galaxy", "collection", "build", "--output-path", str(folder), cwd=ROOT)
    (archive,) = folder.glob("nas-assistant-*.tar.gz")
    target = folder / "collections"
    # --force, since the checkout that the environment links to counts as installed already.
    install = ("ansible-galaxy", "collection", "install", "--offline", "--no-deps", "--force")
    run(*install, str(archive), "--collections-path", str(target), cwd=folder)
    return target


def test_archive_holds_what_runs_and_nothing_private(installed: Path) -> None:
    collection = installed / "ansible_collections/nas/assistant"
    present = {path.name for path in collection.iterdir()}
    assert {"roles", "plugins", "playbooks", "service", "docs", "LICENSE", "README.md"} <= present
    assert not {".git", ".venv", ".lab", ".ci", "lab", "molecule", "tests"} & present
    (archive,) = installed.parent.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        names = packed.getnames()
    assert not [
        name for name in names if ".credentials" in name or name.endswith((".gguf", ".pyc"))
    ]
    assert archive.stat().st_size < 2 << 20


@pytest.mark.parametrize("inventory", INVENTORIES)
def test_installed_collection_runs_by_name(installed: Path, tmp_path: Path, inventory: str) -> None:
    collection = installed / "ansible_collections/nas/assistant"
    command = ("ansible-playbook", "-i", str(collection / "inventories" / inventory))
    out = run(*command, "nas.assistant.site", "--syntax-check", cwd=tmp_path, collections=installed)
    assert str(collection / "playbooks/site.yml") in out
    listed = run(
        "ansible-doc", "--list", "--json", "nas.assistant", cwd=tmp_path, collections=installed
    )
    assert {name.rsplit(".")[-1] for name in json.loads(listed)} == {path.stem for path in MODULES}


@pytest.mark.parametrize("name", [path.stem for path in sorted(ROOT.glob("playbooks/*.yml"))])
def test_checkout_runs_by_name_and_by_path(name: str) -> None:
    for playbook in (f"nas.assistant.{name}", f"playbooks/{name}.yml"):
        run("ansible-playbook", "-i", "inventories/one_nas", playbook, "--syntax-check", cwd=ROOT)


@pytest.mark.parametrize(
    "path", sorted(ROOT.glob("plugins/modules/*.py")), ids=lambda path: path.stem
)
def test_module_is_documented(path: Path) -> None:
    shown = run("ansible-doc", "--json", f"nas.assistant.{path.stem}", cwd=ROOT)
    (module,) = json.loads(shown).values()
    assert {"check_mode", "diff_mode"} <= set(module["doc"]["attributes"])
    assert module["examples"].strip()
    assert module["return"]


def test_pins_of_collections_agree() -> None:
    """galaxy.yml allows what the lock file installs and requirements.yml names."""
    galaxy = yaml.safe_load((ROOT / "galaxy.yml").read_text())["dependencies"]
    named = yaml.safe_load((ROOT / "requirements.yml").read_text())["collections"]
    assert {entry["name"] for entry in named} == set(galaxy)
    listed = json.loads(run("ansible-galaxy", "collection", "list", "--format", "json", cwd=ROOT))
    versions = {name: found["version"] for path in listed.values() for name, found in path.items()}
    for entry in named:
        assert entry["version"] == versions[entry["name"]]


def test_playbooks_gather_the_same_facts() -> None:
    """Facts that are there are not gathered again, so the first of several decides for all."""
    plays = [
        play for path in ROOT.glob("playbooks/*.yml") for play in yaml.safe_load(path.read_text())
    ]
    subsets = {tuple(play["gather_subset"]) for play in plays if "gather_subset" in play}
    assert subsets == {("min", "hardware", "network")}
