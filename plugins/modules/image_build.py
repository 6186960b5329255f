#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors

from __future__ import annotations

DOCUMENTATION = r"""
module: image_build
short_description: Builds a container image once, with build secrets, and saves it as an archive
version_added: 0.1.0
description:
  - Builds an image with BuildKit through the plain C(docker) command, also where there is no buildx
    (Debian 12), which C(community.docker.docker_image_build) needs.
  - The tag is made from a digest over everything that goes into the image (the files of the context
    and the build arguments), so the same inputs are never built twice and a changed input never
    hides behind an old tag.
  - Meant for the controller (C(delegate_to=localhost)), whose archive is what the NAS gets. Where
    the NAS is to build, the controller only names the image and packs what it is built of
    (I(build=false)); that archive is the context on the NAS.
author:
  - The nas.assistant contributors
options:
  context:
    description:
      - Folder with the C(Dockerfile). What C(.dockerignore) lists does not count as input.
      - Or the archive of one that I(build=false) made.
    type: path
    required: true
  name:
    description: Repository part of the image's name.
    type: str
    required: true
  args:
    description: Build arguments. Never a secret, they stay readable in the image.
    type: dict
    default: {}
  secrets:
    description: Build secrets, id to file. They leave no trace in the tag or the image.
    type: dict
    default: {}
  secret_values:
    description: Build secrets, id to content. They are in C(/run) alone while the image is built.
    type: dict
    default: {}
  build:
    description: V(false) asks no engine, names the image and packs its context into I(archive_dir).
    type: bool
    default: true
  room:
    description: MiB that must be free where Docker keeps its images, before anything is built.
    type: int
    default: 0
  memory:
    description: MiB of memory that must be available before anything is built.
    type: int
    default: 0
  gentle:
    description:
      - Lets what is built run when nobody else wants to, and leaves a tenth of the machine's memory
        to others, at least 256 MiB.
    type: bool
    default: false
  network:
    description: Network of the build steps.
    type: str
    default: default
  archive_dir:
    description: Folder for the archive, named after the tag. Empty saves none.
    type: path
    default: ""
  timeout:
    description: Seconds that the build may take.
    type: int
    default: 7200
attributes:
  check_mode:
    description: Says whether the image would be built.
    support: full
  diff_mode:
    description: Shows whether the image was there.
    support: full
"""

EXAMPLES = r"""
- name: Build the image on the controller
  nas.assistant.image_build:
    context: service
    name: nas-assistant
    args:
      BASE_IMAGE: debian:12-slim
      ENGINE: wheel
    secrets:
      ca_bundle: /etc/ssl/certs/company.pem
    archive_dir: ~/.cache/nas-assistant/images
  delegate_to: localhost
  throttle: 1

- name: Name the image, and pack what it is built of
  nas.assistant.image_build:
    context: service
    name: nas-assistant
    build: false
    archive_dir: ~/.cache/nas-assistant/images
  delegate_to: localhost
  register: packed

- name: Build it on the NAS, where the archive was copied to
  nas.assistant.image_build:
    context: /var/lib/nas-assistant/image.tar
    name: nas-assistant
    room: 2048
    gentle: true
"""

RETURN = r"""
image:
  description: Name and tag of the image.
  type: str
  returned: always
  sample: nas-assistant:3f0c9a1b2c4d
id:
  description: Id of the image, empty when it was not built (check mode).
  type: str
  returned: always
architecture:
  description: Architecture of the image in Docker's terms.
  type: str
  returned: when the image is there
  sample: amd64
archive:
  description: Path of the archive, that of the context with I(build=false); empty without
    I(archive_dir).
  type: str
  returned: always
size:
  description: Size of the image in bytes, 0 when it was not built.
  type: int
  returned: always
"""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.nas.assistant.plugins.module_utils import _build_means as means
from ansible_collections.nas.assistant.plugins.module_utils._build_context import (
    inputs_digest,
    pack,
    unpack,
)
from ansible_collections.nas.assistant.plugins.module_utils._build_steps import held_back
from ansible_collections.nas.assistant.plugins.module_utils._docker_cli import (
    DockerError,
    buildkit_client,
    run as docker,
)
from ansible_collections.nas.assistant.plugins.module_utils._lock import held

#: Where a context is unpacked and secrets are: in memory, gone with a restart. One build at a time.
WORK = "/run/nas-assistant-build"


def inspect(image: str) -> dict[str, object] | None:
    """Return what the engine knows of the image, None when it has no such image."""
    try:
        (found,) = json.loads(docker(["docker", "image", "inspect", image]))
    except DockerError as error:
        if "No such image" in str(error):
            return None
        raise
    return dict(found)


@contextlib.contextmanager
def unpacked(context: str, secrets: dict[str, str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the context as a folder, and secrets as files, for as long as they are needed.

    What a run that was killed left is taken away before, and one that still builds is waited for.
    """
    if not (os.path.isfile(context) or secrets):
        yield context, {}
        return
    with held(f"{WORK}.lock", patience=86400):
        shutil.rmtree(WORK, ignore_errors=True)
        os.makedirs(WORK, mode=0o700)
        try:
            files = {
                key: os.path.join(WORK, f"secret-{number}") for number, key in enumerate(secrets)
            }
            for key, path in files.items():
                with open(path, "x", encoding="utf-8") as stream:
                    stream.write(secrets[key])
            if os.path.isfile(context):
                unpack(context, f"{WORK}/context")
                context = f"{WORK}/context"
            yield context, files
        finally:
            shutil.rmtree(WORK)


def build(module: AnsibleModule, image: str, context: str, secrets: dict[str, str]) -> None:
    """Build the image under its final name: BuildKit tags only what was built to the end."""
    params = module.params
    means.check(params["room"], params["memory"])
    command = [*buildkit_client(os.environ.get("PATH", "")), "--tag", image, "--quiet"]
    command += ["--network", params["network"]]
    for key, value in sorted(params["args"].items()):
        command += ["--build-arg", f"{key}={value}"]
    for key, path in sorted({**params["secrets"], **secrets}.items()):
        if not os.path.isfile(path):
            raise DockerError(f"secrets.{key}={path}: there is no such file here")
        command += ["--secret", f"id={key},src={path}"]
    restraint = held_back(means.spare()) if params["gentle"] else contextlib.nullcontext()
    try:
        with restraint:
            docker([*command, context], {"DOCKER_BUILDKIT": "1"}, params["timeout"])
    except DockerError as error:
        raise DockerError(f"{error}{means.remedy(str(error))}") from error


def save(image: str, image_id: str, folder: str, check_mode: bool) -> tuple[str, bool]:
    """Write the image to an archive named after its id; return its path and whether it was new."""
    name = image.replace("/", "_").replace(":", "_")
    path = os.path.join(folder, f"{name}_{image_id.removeprefix('sha256:')[:12]}.tar")
    if os.path.exists(path):
        return path, False
    if not check_mode:
        os.makedirs(folder, exist_ok=True)
        # Two runs may save the same image at the same time: each writes a file of its own.
        with tempfile.NamedTemporaryFile(dir=folder, suffix=".part") as part:
            docker(["docker", "save", "--output", part.name, image])
            os.link(part.name, f"{part.name}.done")
        os.replace(f"{part.name}.done", path)
    return path, True


def named(module: AnsibleModule, context: str) -> str:
    """Return the name of the image that this context gives."""
    return f"{module.params['name']}:{inputs_digest(context, module.params['args'])[:12]}"


def packed(module: AnsibleModule) -> dict[str, object]:
    """Name the image, and pack what it is built of where that is not there; return the result."""
    params = module.params
    image, archive, changed = named(module, params["context"]), "", False
    if params["archive_dir"]:
        # By what goes in, so that what is there is right.
        name = image.replace("/", "_").replace(":", "_")
        archive = os.path.join(params["archive_dir"], f"{name}_context.tar")
        changed = not os.path.exists(archive)
        if changed and not module.check_mode:
            pack(params["context"], archive)
    nothing = {"id": "", "architecture": "", "size": 0, "diff": {"before": "", "after": ""}}
    return {"changed": changed, "image": image, "archive": archive, **nothing}


def run(module: AnsibleModule) -> dict[str, object]:
    """Build and save what is missing; return the module's result."""
    params = module.params
    if not (
        os.path.isfile(params["context"])
        or os.path.isfile(os.path.join(params["context"], "Dockerfile"))
    ):
        raise DockerError(f"context={params['context']}: there is no Dockerfile in it")
    if not params["build"]:
        return packed(module)
    with unpacked(params["context"], params["secret_values"]) as (context, secrets):
        image = named(module, context)
        found = inspect(image)
        changed = missing = found is None
        if missing and not module.check_mode:
            build(module, image, context, secrets)
            found = inspect(image)
    archive = ""
    if found and params["archive_dir"]:
        archive, saved = save(image, str(found["Id"]), params["archive_dir"], module.check_mode)
        changed = changed or saved
    return {
        "changed": changed,
        "image": image,
        "id": found["Id"] if found else "",
        "architecture": found["Architecture"] if found else "",
        "size": found["Size"] if found else 0,
        "archive": archive,
        "diff": {"before": "" if missing else f"{image}\n", "after": f"{image}\n"},
    }


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "context": {"type": "path", "required": True},
            "name": {"type": "str", "required": True},
            "args": {"type": "dict", "default": {}},
            "secrets": {"type": "dict", "default": {}, "no_log": False},
            "secret_values": {"type": "dict", "default": {}, "no_log": True},
            "build": {"type": "bool", "default": True},
            "room": {"type": "int", "default": 0},
            "memory": {"type": "int", "default": 0},
            "gentle": {"type": "bool", "default": False},
            "network": {"type": "str", "default": "default"},
            "archive_dir": {"type": "path", "default": ""},
            "timeout": {"type": "int", "default": 7200},
        },
        supports_check_mode=True,
    )
    try:
        module.exit_json(**run(module))
    except (DockerError, OSError, ValueError) as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
