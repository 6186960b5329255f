# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""The commands of the container: serve, check, healthcheck, keys, limits, tune, version."""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import os
import signal
import sys
from pathlib import Path
from types import FrameType

from nas_assistant import __version__
from nas_assistant.logs import configure, log
from nas_assistant.settings import Settings, SettingsError

# EX_CONFIG of sysexits.h: starting again will not help.
REFUSED = 78
# Written by the Dockerfile: which of the two engines the image has.
BUILD_FILE = Path("/app/engine")


def main() -> int:
    """Run the command of ``sys.argv``; return the exit code."""
    # The first process of a container ignores signals that it does not handle.
    signal.signal(signal.SIGTERM, _leave)
    options = _options()
    configure("info")
    if options.command == "version":
        print(f"nas.assistant {__version__}")
        return 0
    if options.command == "limits":
        from nas_assistant.limits import read

        print(json.dumps(dataclasses.asdict(read())))
        return 0
    if options.command == "keys":
        return _keys(options)
    try:
        settings = Settings.load(options.config, os.environ)
        if options.command == "healthcheck":
            return _healthcheck(settings)
        configure(settings.log_level if options.command == "serve" else "error")
        if options.command == "tune":
            return _tune(options, settings)
        return _start(options, settings)
    except SettingsError as error:
        return _refuse(str(error))


def _options() -> argparse.Namespace:
    from nas_assistant.key_commands import add_parser

    places = argparse.ArgumentParser(add_help=False)
    places.add_argument("--config", type=Path, default=Path("/app/config.ini"))
    places.add_argument("--models-dir", type=Path, default=Path("/models"))
    places.add_argument("--keys-dir", type=Path, default=Path("/app/keys"))
    places.add_argument("--state-dir", type=Path, default=Path("/state"))
    places.add_argument(
        "--engine", choices=("wheel", "source"), help=f"default: what {BUILD_FILE} names"
    )
    parser = argparse.ArgumentParser(prog="nas_assistant")
    commands = parser.add_subparsers(dest="command")
    for name in ("serve", "check", "healthcheck", "limits", "tune", "version"):
        commands.add_parser(name, parents=[places])
    add_parser(commands, places)
    return parser.parse_args(sys.argv[1:] or ["serve"])


def _refuse(message: str) -> int:
    configure("error")
    log(logging.ERROR, "start_refused", " ".join(message.split()))
    return REFUSED


def _keys(options: argparse.Namespace) -> int:
    from nas_assistant.key_commands import run
    from nas_assistant.key_files import KeyFiles
    from nas_assistant.keys import KeysError
    from nas_assistant.state import StateError

    try:
        print(run(options, KeyFiles(options.keys_dir, options.state_dir)))
    except (KeysError, StateError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _healthcheck(settings: Settings) -> int:
    from nas_assistant.local_http import LocalHttpError, request

    try:
        status, body = request(settings.bind[0], "GET", "/readyz")
    except LocalHttpError as error:
        print(error)
        return 1
    print(body.decode("utf-8", "replace"))
    return 0 if status == 200 else 1


def _tune(options: argparse.Namespace, settings: Settings) -> int:
    import asyncio

    from nas_assistant.checks import StartRefused, check_start
    from nas_assistant.tune import tune

    build = _build(options)
    try:
        if not settings.model:
            raise StartRefused("in mode cloud no model of this machine answers")
        checked = check_start(settings, options.models_dir, build)
        model = checked.models[settings.variant]
        print(asyncio.run(tune(checked.settings, model, build)))
    except StartRefused as error:
        return _refuse(str(error))
    return 0


def _build(options: argparse.Namespace) -> str:
    """Which of the two engines is to be used."""
    return str(options.engine or BUILD_FILE.read_text(encoding="ascii").strip())


def _start(options: argparse.Namespace, settings: Settings) -> int:
    # Imported here, so that the health check, which runs for ever, stays quick.
    import asyncio

    from nas_assistant import state
    from nas_assistant.checks import StartRefused, check_start
    from nas_assistant.front import Front
    from nas_assistant.key_files import KeyFiles
    from nas_assistant.keys import KeysError
    from nas_assistant.listeners import bind_all
    from nas_assistant.supervisor import Supervisor

    key_files = KeyFiles(options.keys_dir, options.state_dir)
    try:
        keys = key_files.load()
        key_files.load_upstreams(settings.upstreams)
        build = _build(options)
        # A new configuration must be good; one that was may serve what it can, such as after a
        # disk damaged a model.
        lenient = options.command == "serve"
        checked = check_start(settings, options.models_dir, build, lenient=lenient)
        for name, reason in checked.unusable.items():
            log(logging.WARNING, "model_unusable", reason, model=name)
        if options.command == "check":
            configure("info")
        for name, model in checked.models.items():
            said = f"model {name!r} fits: {model.need}, and {checked.limit}. {model.sizing}"
            log(logging.INFO, "check_passed", said, engine=build)
        if options.command == "check":
            return 0
        if not keys:
            log(logging.WARNING, "no_keys", "nobody has a key yet: `keys create NAME` makes one")
        state.mend(options.state_dir)
        front = Front(settings.front.path) if settings.front else None
        listeners = bind_all(settings.bind)
        ledger = state.Ledger(options.state_dir)
        supervisor = Supervisor(options.config, checked, build, listeners, front, key_files, ledger)
        return asyncio.run(supervisor.run())
    except (StartRefused, KeysError) as error:
        return _refuse(str(error))


def _leave(_: int, __: FrameType | None) -> None:
    sys.exit(0)


if __name__ == "__main__":
    sys.exit(main())
