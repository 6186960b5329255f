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
  - Meant for the controller (C(delegate_to=localhost)); the archive is what the NAS gets.
author:
  - The nas.assistant contributors
options:
  context:
    description: Folder with the C(Dockerfile). What C(.dockerignore) lists does not count as input.
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
  description: Path of the archive, empty without I(archive_dir).
  type: str
  returned: always
size:
  description: Size of the image in bytes, 0 when it was not built.
  type: int
  returned: always
"""

import fnmatch
import hashlib
import json
import os
import tempfile

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.nas.assistant.plugins.module_utils._docker_cli import (
    DockerError,
    buildkit_client,
    run as docker,
)


def read_patterns(context: str) -> list[str]:
    """Return the patterns of the context's .dockerignore, none without such a file."""
    try:
        with open(os.path.join(context, ".dockerignore"), encoding="utf-8") as stream:
            lines = [line.strip() for line in stream]
    except FileNotFoundError:
        return []
    return [line for line in lines if line and not line.startswith("#")]


def is_input(path: str, patterns: list[str]) -> bool:
    """Return whether Docker sends this file (relative) to the build: the last pattern decides.

    Understood are names, folders, globs, a leading ``**/`` and ``!``; ``*`` also crosses a slash,
    which can only count a file too few under a glob inside a folder, and this project uses none.
    """
    parts = path.split("/")
    # A pattern that fits a folder fits all that is in it.
    prefixes = ["/".join(parts[:length]) for length in range(1, len(parts) + 1)]
    kept = True
    for pattern in patterns:
        bare = pattern.removeprefix("!").rstrip("/")
        anywhere = bare.startswith("**/")
        names = parts if anywhere else prefixes
        if any(fnmatch.fnmatchcase(name, bare.removeprefix("**/")) for name in names):
            kept = pattern.startswith("!")
    return kept


def context_files(context: str) -> list[str]:
    """Return the files that can change the image, relative and sorted."""
    patterns = read_patterns(context)
    found = []
    for folder, _, files in os.walk(context):
        for name in files:
            path = os.path.relpath(os.path.join(folder, name), context)
            # Docker always reads these two, whatever is ignored.
            if path in ("Dockerfile", ".dockerignore") or is_input(path, patterns):
                found.append(path)
    return sorted(found)


def inputs_digest(context: str, args: dict[str, object]) -> str:
    """Return a hex digest over the names, modes and bytes of the files and over the arguments."""
    digest = hashlib.sha256(json.dumps(args, sort_keys=True).encode())
    for relative in context_files(context):
        path = os.path.join(context, relative)
        executable = os.access(path, os.X_OK)
        with open(path, "rb") as stream:
            content = hashlib.sha256(stream.read()).hexdigest()
        digest.update(f"{relative}\0{executable:d}\0{content}\n".encode())
    return digest.hexdigest()


def inspect(image: str) -> dict[str, object] | None:
    """Return what the engine knows of the image, None when it has no such image."""
    try:
        (found,) = json.loads(docker(["docker", "image", "inspect", image]))
    except DockerError as error:
        if "No such image" in str(error):
            return None
        raise
    return dict(found)


def build(module: AnsibleModule, image: str) -> None:
    """Build the image under its final name: BuildKit tags only what was built to the end."""
    params = module.params
    command = [*buildkit_client(os.environ.get("PATH", "")), "--tag", image, "--quiet"]
    command += ["--network", params["network"]]
    for key, value in sorted(params["args"].items()):
        command += ["--build-arg", f"{key}={value}"]
    for key, path in sorted(params["secrets"].items()):
        if not os.path.isfile(path):
            raise DockerError(f"secrets.{key}={path}: there is no such file on the controller")
        command += ["--secret", f"id={key},src={path}"]
    docker([*command, params["context"]], {"DOCKER_BUILDKIT": "1"}, params["timeout"])


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


def run(module: AnsibleModule) -> dict[str, object]:
    """Build and save what is missing; return the module's result."""
    params = module.params
    if not os.path.isfile(os.path.join(params["context"], "Dockerfile")):
        raise DockerError(f"context={params['context']}: there is no Dockerfile in it")
    tag = inputs_digest(params["context"], params["args"])[:12]
    image = f"{params['name']}:{tag}"
    found = inspect(image)
    changed = missing = found is None
    if missing and not module.check_mode:
        build(module, image)
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
            "network": {"type": "str", "default": "default"},
            "archive_dir": {"type": "path", "default": ""},
            "timeout": {"type": "int", "default": 7200},
        },
        supports_check_mode=True,
    )
    try:
        module.exit_json(**run(module))
    except (DockerError, OSError) as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
