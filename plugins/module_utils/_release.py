# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Keeps what a container is made of, with its files, and makes the same container again.

Docker's own answer to ``inspect`` is what it takes to create a container (Engine API,
``ContainerInspect`` and ``ContainerCreate``): nothing of a role's variables is needed, which are
those of the new release by then.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible_collections.nas.assistant.plugins.module_utils._docker_cli import (
    DockerError,
    inspect,
    run as docker,
)
from ansible_collections.nas.assistant.plugins.module_utils._gateway import SocketConnection
from ansible_collections.nas.assistant.plugins.module_utils._systemd import (
    carry_out,
    loaded_at,
    newer_than,
    plan,
    show,
    systemctl,
)

SOCKET = "/var/run/docker.sock"
SYSTEMD = "/etc/systemd/system/"
PATIENCE = 300  # seconds for one question to a busy engine
KEPT = "release.json"
LATER = "-refused"  # what the container is called whose place the kept one takes
# Networks that every engine has.
OWN = ("none", "host", "bridge", "default")

Release = dict[str, Any]


class ReleaseError(Exception):
    """What was kept cannot be read, or not be made again; one sentence with the remedy."""


def read(folder: Path) -> Release | None:
    """Return what is kept in a folder, None where nothing is.

    :raises ReleaseError: it is damaged.
    """
    path = folder / KEPT
    try:
        kept = json.loads(path.read_bytes())
        parts = ("container", "files", "networks", "notes", "since")
        # One that an earlier version kept has no units.
        return {**{part: kept[part] for part in parts}, "units": kept.get("units", [])}
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise ReleaseError(
            f"{path} is damaged ({error}). Delete it, and what runs now is what will be kept"
        ) from error


def take(
    container: str,
    files: Sequence[str],
    label: str = "",
    mounts: Sequence[str] = (),
    units: Sequence[Mapping[str, Any]] = (),
) -> Release:
    """Return what there is now; ``container`` is None in it where there is none by that name.

    :param label: what a container that it could be has.
    :param mounts: folders of the NAS that it must have; with others, its data is elsewhere.
    :param units: of systemd, each with ``name`` and the files that it ``reads``.
    :raises ReleaseError: one has the label and another name, or lacks a folder.
    """
    found = inspect(container)
    if found is None and label:
        names = docker(
            ["docker", "ps", "-a", "--filter", f"label={label}", "--format", "{{.Names}}"]
        )
        if names.strip():
            raise ReleaseError(
                f"the container is called {names.split()[0]} until now, and is to be {container}: "
                "give it another name by nas.assistant.assistant, on its own"
            )
    mounted = [each.get("Source") for each in (found or {}).get("Mounts") or ()]
    missing = [folder for folder in mounts if folder not in mounted] if found else []
    if missing:
        raise ReleaseError(
            f"{container} has no {', '.join(missing)}, so its data is to be elsewhere than until "
            "now: move it by nas.assistant.assistant, on its own"
        )
    networks = [
        inspected
        for name in ((found or {}).get("NetworkSettings", {}).get("Networks") or {})
        if name not in OWN and (inspected := inspect(name, "network"))
    ]
    paths = [*files, *(path for unit in units for path in unit["reads"] if path not in files)]
    kept = [_file(path) for path in dict.fromkeys(paths)]
    return {"container": found, "files": kept, "networks": networks, "units": list(units)}


def write(folder: Path, release: Release) -> None:
    """Keep a release, for root alone: it has keys in it. Whole or not at all."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    part = folder / f"{KEPT}.part"
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(descriptor, "w", encoding="utf-8") as handle:
        json.dump(release, handle)
        handle.flush()
        os.fsync(handle.fileno())
    part.replace(folder / KEPT)


def forget(folder: Path) -> None:
    """Delete what is kept."""
    if folder.exists():
        shutil.rmtree(folder)


def put_back(name: str, release: Release) -> list[str]:
    """Make files, units, networks and the container as they were; return what that took, in words.

    :raises DockerError: Docker refuses.
    :raises ReleaseError: the image is no more.
    :raises SystemdError: a unit does not start.
    """
    kept, there = release["container"], inspect(name)
    if kept and (there is None or there["Id"] != kept["Id"]):
        _see_image(name, kept)
    new = _new_to_units(release)
    files = [each for each in release["files"] if each["path"] not in new]
    done = [f"wrote {each['path']}" for each in files if _put_file_back(each)]
    if kept is not None:
        # Before the container, which takes a socket of theirs.
        units = [unit for unit in release["units"] if not new & set(unit["reads"])]
        done += _put_units_back(units, any(f"wrote {SYSTEMD}" in step for step in done))
    if kept is None:
        # None ran before: what was refused is not left serving.
        if there and there["State"]["Running"]:
            docker(["docker", "stop", name])
            done.append(f"stopped {name}, which is new here")
        return done
    for network in release["networks"]:
        if inspect(network["Name"], "network") is None:
            docker(["docker", "network", "create", *network_options(network), network["Name"]])
            done.append(f"made the network {network['Name']}")
    if there and there["Id"] == kept["Id"]:
        if _was_touched(there, kept):
            docker(["docker", "restart", name])
            done.append(f"started {name} again")
        return done
    _make(name, kept, there)
    done.append(f"made {name} as it was, of {kept['Config']['Image']}")
    return done


def _new_to_units(release: Release) -> set[str]:
    """The files of units that were not there before. They stay: systemd could not stop a unit that
    has none any more, and nothing else reads them.
    """
    reads = {path for unit in release["units"] for path in unit["reads"]}
    return {each["path"] for each in release["files"] if "content" not in each} & reads


def _put_units_back(units: Sequence[Mapping[str, Any]], stale: bool) -> list[str]:
    """Have units that run with other files read those that are there; return what that took.

    :param stale: whether systemd itself has to read some again.
    """
    found = show([unit["name"] for unit in units])
    wanted = {}
    for unit in units:
        properties = found[unit["name"]]
        newer = newer_than(list(unit["reads"]), loaded_at(properties, ""))
        wanted[unit["name"]] = plan(properties, newer, "restart")
    if stale or any(wanted.values()):
        systemctl("daemon-reload")
    for name, verbs in wanted.items():
        carry_out(name, verbs, "")
    return [f"{verb} {name}" for name, verbs in wanted.items() for verb in verbs]


def _was_touched(there: Mapping[str, Any], kept: Mapping[str, Any]) -> bool:
    """Whether the container ran on with other files, does not run, or began anew."""
    state = there["State"]
    same = state["StartedAt"] == kept["State"]["StartedAt"]
    return not (state["Running"] and not state.get("Paused") and same)


def _see_image(name: str, kept: Mapping[str, Any]) -> None:
    """Before anything is put back: half of a release is none."""
    if inspect(kept["Image"], "image") is None:
        raise ReleaseError(
            f"the image of {name} before, {kept['Config']['Image']} ({kept['Image'][:19]}), is no "
            "more on this NAS. Bring it back (docker load, docker pull), and run this again"
        )


def _make(name: str, kept: Mapping[str, Any], there: Mapping[str, Any] | None) -> None:
    image = kept["Image"]
    reference = kept["Config"]["Image"]
    named = inspect(reference, "image")
    body = create_body(kept, reference if named and named["Id"] == image else image)
    refused = name + LATER
    if there:
        if inspect(refused):
            docker(["docker", "rm", "--force", refused])
        docker(["docker", "stop", name])
        docker(["docker", "rename", name, refused])
    _post(f"/containers/create?name={name}", body)
    docker(["docker", "start", name])
    if inspect(refused):
        docker(["docker", "rm", "--force", refused])


def create_body(found: Mapping[str, Any], image: str) -> dict[str, Any]:
    """Return what creates a container that Docker described so, of an image."""
    config = {**found["Config"], "Image": image}
    # It was the short form of the container's own id; another one gets its own.
    if str(found["Id"]).startswith(config.get("Hostname") or "-"):
        del config["Hostname"]
    return {**config, "HostConfig": found["HostConfig"]}


def network_options(found: Mapping[str, Any]) -> list[str]:
    """Return the options of ``docker network create`` for one that Docker described so."""
    options = ["--driver", str(found["Driver"])]
    for flag, there in (("--internal", found.get("Internal")), ("--ipv6", found.get("EnableIPv6"))):
        options += [flag] if there else []
    for key, value in sorted((found.get("Options") or {}).items()):
        options += ["--opt", f"{key}={value}"]
    for key, value in sorted((found.get("Labels") or {}).items()):
        options += ["--label", f"{key}={value}"]
    return options


def _post(path: str, body: Mapping[str, Any]) -> None:
    connection = SocketConnection(SOCKET, timeout=PATIENCE)
    try:
        connection.request(
            "POST", path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        answer = connection.getresponse()
        text = answer.read().decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        raise DockerError(f"{SOCKET}: {error}") from error
    finally:
        connection.close()
    if answer.status >= 300:
        raise DockerError(f"{path}: {answer.status}: {text.strip()}")


def _file(path: str) -> dict[str, Any]:
    with contextlib.suppress(FileNotFoundError):
        found = os.stat(path)
        content = base64.b64encode(Path(path).read_bytes()).decode()
        owner = {"uid": found.st_uid, "gid": found.st_gid}
        return {"path": path, "content": content, "mode": found.st_mode & 0o7777, **owner}
    return {"path": path}


def _put_file_back(kept: Mapping[str, Any]) -> bool:
    """Make a file as it was; return whether it was not."""
    path = str(kept["path"])
    if _file(path) == kept:
        return False
    if "content" not in kept:
        os.unlink(path)
        return True
    part = f"{path}.part"
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(descriptor, "wb") as handle:
        os.fchmod(descriptor, kept["mode"])
        os.fchown(descriptor, kept["uid"], kept["gid"])
        handle.write(base64.b64decode(kept["content"]))
        handle.flush()
        os.fsync(descriptor)
    os.replace(part, path)
    return True
