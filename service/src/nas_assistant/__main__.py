# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""The commands of the container: serve, check, healthcheck, limits, version."""

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
    try:
        settings = Settings.load(options.config, os.environ)
        if options.command == "healthcheck":
            return _healthcheck(settings)
        configure(settings.log_level if options.command == "serve" else "error")
        return _start(options, settings)
    except SettingsError as error:
        return _refuse(str(error))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="nas_assistant")
    parser.add_argument(
        "command",
        nargs="?",
        choices=("serve", "check", "healthcheck", "limits", "version"),
        default="serve",
    )
    parser.add_argument("--config", type=Path, default=Path("/app/config.ini"))
    parser.add_argument("--models-dir", type=Path, default=Path("/models"))
    parser.add_argument(
        "--engine", choices=("wheel", "source"), help=f"default: what {BUILD_FILE} names"
    )
    return parser.parse_args()


def _refuse(message: str) -> int:
    configure("error")
    log(logging.ERROR, "start_refused", " ".join(message.split()))
    return REFUSED


def _healthcheck(settings: Settings) -> int:
    from nas_assistant.local_http import LocalHttpError, request

    try:
        status, body = request(settings.bind[0], "GET", "/readyz")
    except LocalHttpError as error:
        print(error)
        return 1
    print(body.decode("utf-8", "replace"))
    return 0 if status == 200 else 1


def _start(options: argparse.Namespace, settings: Settings) -> int:
    # Imported here, so that the health check, which runs for ever, stays quick.
    import asyncio

    from nas_assistant.checks import StartRefused, check_start
    from nas_assistant.listeners import bind_all
    from nas_assistant.supervisor import Supervisor

    try:
        build = options.engine or BUILD_FILE.read_text(encoding="ascii").strip()
        model = check_start(settings, options.models_dir, build)
        if options.command == "check":
            configure("info")
            log(
                logging.INFO,
                "check_passed",
                f"model {model.settings.name!r} fits: {model.need}",
                engine=build,
            )
            return 0
        log(
            logging.INFO,
            "check_passed",
            f"model {model.settings.name!r} fits: {model.need}",
            engine=build,
        )
        listeners = bind_all(settings.bind)
        return asyncio.run(
            Supervisor(
                settings, options.config, {model.settings.name: model}, build, listeners
            ).run()
        )
    except StartRefused as error:
        return _refuse(str(error))


def _leave(_: int, __: FrameType | None) -> None:
    sys.exit(0)


if __name__ == "__main__":
    sys.exit(main())
