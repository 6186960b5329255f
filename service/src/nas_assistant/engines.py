# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""The engines of all models: started when they are wanted, kept alive, and ended for others."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from nas_assistant.checks import Checked, CheckedModel, StartRefused, check_start
from nas_assistant.control import ControlServer
from nas_assistant.desk import Desk
from nas_assistant.engine_process import EngineFailed, EngineProcess
from nas_assistant.logs import log
from nas_assistant.pool import Demand, Pool, Step
from nas_assistant.settings import Settings

_LONGEST_BACK_OFF = 30.0
# An engine that ran this long did not fail because of its start.
_STABLE_SECONDS = 60
# While somebody waits for a model that another one has to make room for.
_LOOK_AGAIN = 1.0
# After a model could not be loaded, those who ask for it are told so, and nobody tries.
_NOT_AGAIN = 60.0
# A damaged file is looked at so often, and read again once it is another one, or after an hour:
# what a disk could not read it may read then.
_LOOK_AT_FILE = 2.0
_READ_AGAIN = 3600.0
# A model that is missing, or does not fit, is looked for so often at least: limits change too.
_CHECK_AGAIN = 60.0
_LOOK_AT_LOADING = 0.1


class Engines:
    """Owns the engine processes. ``folder`` is private; ``build`` is what the image has."""

    def __init__(
        self,
        settings: Settings,
        checked: Checked,
        build: str,
        folder: Path,
        desk: Desk,
        control: ControlServer,
    ) -> None:
        self._settings = settings
        self._checked = checked
        self._build = build
        self._folder = folder
        self._desk = desk
        self._control = control
        self._models = dict(checked.models)
        self._demands = {name: _demand(found) for name, found in checked.models.items()}
        control.kinds |= checked.kinds
        control.stand_in = settings.stand_in
        self._pool = Pool(checked.room, self._demands, desk.last_grant)
        self._processes: dict[str, EngineProcess] = {}
        self._keepers: dict[str, asyncio.Task[None]] = {}
        self._starts = 0
        self._unusable = dict(checked.unusable)
        # Why a model cannot be asked just now.
        self._lost: dict[str, str] = {}
        # Those that are read, or whose engine starts, after they were lost.
        self._loading: set[str] = set()
        # Models that are to be there from the start, and wait until others made room.
        self._room_for: dict[str, asyncio.Event] = {}
        read = checked.at_start if checked.watched is None else []
        self._verified = {found.path for found in read}

    @property
    def models(self) -> Mapping[str, CheckedModel]:
        """All that can be used, if not always."""
        return self._models

    @property
    def unusable(self) -> Mapping[str, str]:
        """Why others cannot, or cannot just now."""
        return {**self._unusable, **self._lost}

    def in_memory(self, name: str) -> bool:
        """Whether a model is there now."""
        return name in self._processes

    async def start(self) -> None:
        """Load what is to be there from the start. Raises EngineFailed.

        Where an upstream answers meanwhile, return when they are there, or it is clear that
        something is wrong with them; after ``fallback_after`` seconds at the latest.
        """
        first = self._settings.at_start
        if self._checked.watched is None:
            await asyncio.gather(*(self._load(name) for name in first))
            self._publish()
            return
        for name in first:
            self._desk.note_end(name)
            if name in self._models:
                self._pool.loaded(name)
                self._load_later(name)
            self._keepers[name] = asyncio.create_task(self._bring_up(name))
        self._publish()
        # A restart is short as a rule: nothing need go out for it, and those who must stay at home
        # wait at the proxy.
        until = time.monotonic() + self._settings.fallback_after
        while self._loading.intersection(first) and time.monotonic() < until:  # noqa: ASYNC110
            await asyncio.sleep(_LOOK_AT_LOADING)

    async def run(self) -> None:
        """Load and unload as models are asked for."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_AGAIN if self._wanted() else None):
                    await self._control.changed.wait()
            self._control.changed.clear()
            while step := self._pool.next(self._wanted(), self._busy):
                await self._carry_out(*step)

    async def stop(self) -> None:
        """End all of them."""
        keepers = list(self._keepers.values())
        for task in keepers:
            task.cancel()
        await asyncio.gather(*keepers, return_exceptions=True)
        await asyncio.gather(*(process.stop() for process in self._processes.values()))

    def _busy(self, name: str) -> bool:
        return self._desk.active(name) > 0

    def _wanted(self) -> list[str]:
        return [*self._room_for, *self._desk.wanted()]

    def _publish(self) -> None:
        usable = [found.model for name, found in self.models.items() if name not in self.unusable]
        variant = self._settings.variant
        self._control.loading = variant in self._loading
        self._control.publish("engines", usable, self.unusable, self.unusable.get(variant, ""))

    async def _carry_out(self, step: Step, name: str) -> None:
        if step is Step.CLOSE:
            self._control.close_model(name)
        elif step is Step.REOPEN:
            self._control.open(self._processes[name].backend)
        elif step is Step.UNLOAD:
            await self._unload(name)
        elif name in self._room_for:
            self._pool.loaded(name)
            self._room_for.pop(name).set()
        else:
            try:
                await self._load(name)
            except (EngineFailed, StartRefused, OSError) as error:
                log(logging.ERROR, "model_not_loaded", str(error), model=name)
                await self._unload(name)
                self._lost[name] = f"the model {name!r} cannot be loaded: {_short(error)}"
                self._publish()
                asyncio.get_running_loop().call_later(_NOT_AGAIN, self._forgive, name)

    def _forgive(self, name: str) -> None:
        self._lost.pop(name, None)
        self._publish()

    async def _load(self, name: str) -> None:
        """Start an engine and let requests go to it. Raises EngineFailed, StartRefused, OSError."""
        await self._verify(name)
        self._pool.loaded(name)
        await self._start(name)
        self._keepers[name] = asyncio.create_task(self._keep(name))

    async def _bring_up(self, name: str) -> None:
        """Have an engine for a model that is to be there from the start, once it can be."""
        assert self._checked.watched is not None
        path = self._checked.watched / self._settings.models[name].file
        while True:
            if name not in self._models:
                await self._until_usable(name, path, self._checked.watched)
                self._room_for[name] = room = asyncio.Event()
                self._control.changed.set()
                await room.wait()
            looked_like = _identity(path)
            try:
                await self._verify(name)
                break
            except StartRefused as error:
                log(logging.ERROR, "model_damaged", str(error), model=name)
                self._give_up(name, str(error))
            # What comes in its place may be of another size and kind: the file may be another's.
            await _until_other(path, _READ_AGAIN, looked_like)
        await self._keep(name, await self._start_again(name))

    async def _until_usable(self, name: str, path: Path, folder: Path) -> None:
        """Check a model again when its file is another, and now and then, until it can be used."""
        while name not in self._models:
            looked_like = _identity(path)
            try:
                found, reason = await asyncio.to_thread(self._check_again, name, folder)
            except (StartRefused, OSError) as error:
                reason = str(error)
            if not reason:
                self._take(name, found)
                return
            if reason != self._unusable[name]:
                self._unusable[name] = reason
                log(logging.ERROR, "model_unusable", reason, model=name)
                self._publish()
            await _until_other(path, _CHECK_AGAIN, looked_like)

    def _check_again(self, name: str, folder: Path) -> tuple[Checked, str]:
        """Look at all files; return what was found, and why ``name`` cannot be used."""
        # What was worked out for models that are not there was so of another file, or of none.
        asked = self._checked.asked or self._settings
        known = {
            each: (self._settings if each in self._models else asked).models[each]
            for each in asked.models
        }
        settings = replace(self._settings, models=known)
        found = check_start(settings, folder, self._build, lenient=True)
        reason = found.unusable.get(name, "")
        if reason and name in check_start(asked, folder, self._build, lenient=True).models:
            reason = (
                f"model {name!r} has no room beside what was worked out without it. Start the "
                "service again, as by `docker restart`, which works that out anew"
            )
        return found, reason

    def _take(self, name: str, found: Checked) -> None:
        """Have a model that could not be used before."""
        self._pool.room = found.room
        # Beside one that is pinned others may have no room any more.
        for other in [each for each in self._models if each not in self._settings.at_start]:
            self._unusable.pop(other, None)
            if other in found.unusable:
                self._unusable[other] = found.unusable[other]
        self._models[name] = found.models[name]
        self._demands[name] = _demand(found.models[name])
        self._control.kinds[name] = found.models[name].model.kind
        del self._unusable[name]
        self._load_later(name)
        self._publish()

    def _give_up(self, name: str, reason: str) -> None:
        """Have a model no more that is not what it was taken for."""
        self._pool.unloaded(name)
        del self._models[name], self._lost[name]
        self._loading.discard(name)
        self._unusable[name] = reason
        self._publish()

    def _load_later(self, name: str) -> None:
        self._lost[name] = f"the model {name!r} is being loaded"
        self._loading.add(name)

    async def _verify(self, name: str) -> None:
        """Read a model's file, unless that was done. Raises StartRefused."""
        found = self.models[name]
        if found.path not in self._verified:
            await asyncio.to_thread(found.verify)
            self._verified.add(found.path)

    async def _unload(self, name: str) -> None:
        self._control.close_model(name)
        keeper = self._keepers.pop(name, None)
        if keeper is not None:
            keeper.cancel()
            await asyncio.gather(keeper, return_exceptions=True)
        process = self._processes.pop(name, None)
        # Until it is loaded again a disk has time to damage it.
        self._verified.discard(self.models[name].path)
        if process is not None:
            await process.stop()
            log(logging.INFO, "model_unloaded", model=name)
        self._desk.note_end(name)
        self._pool.unloaded(name)
        self._loading.discard(name)
        if self._lost.pop(name, None):
            self._publish()

    async def _start(self, name: str) -> None:
        self._starts += 1
        process = EngineProcess(
            self._settings, self.models[name], self._build, self._folder, self._starts
        )
        self._processes[name] = process
        started = time.monotonic()
        try:
            await process.start()
        except TimeoutError as error:
            raise EngineFailed("the engine did not get ready in time") from error
        self._desk.note_start(name, time.monotonic() - started)
        self._control.open(process.backend)

    async def _keep(self, name: str, reason: str = "") -> None:
        """Have an engine for a model that is in memory, again and again. ``reason``: why there is
        none yet.
        """
        back_off = 1.0
        since = time.monotonic()
        while True:
            while reason:
                log(
                    logging.ERROR,
                    "engine_ended",
                    f"{reason}; starting it again in {back_off:g} s",
                    model=name,
                )
                self._lose(name, f"{_short(reason)}, it is being started again")
                await self._processes[name].stop()
                await asyncio.sleep(back_off)
                back_off = min(back_off * 2, _LONGEST_BACK_OFF)
                await self._until_whole(name)
                since = time.monotonic()
                reason = await self._start_again(name)
            if self._lost.pop(name, ""):
                self._loading.discard(name)
                self._publish()
            reason = await self._processes[name].end()
            if time.monotonic() - since > _STABLE_SECONDS:
                back_off = 1.0
            self._desk.note_end(name)
            # It may have ended because of what the disk made of its file.
            self._verified.discard(self.models[name].path)

    def _lose(self, name: str, why: str) -> None:
        self._lost[name] = why
        self._loading.discard(name)
        self._publish()

    async def _until_whole(self, name: str) -> None:
        """Read the model's file; while it is not what it should be, wait until it is another."""
        path = self.models[name].path
        while True:
            looked_like = _identity(path)
            self._loading.add(name)
            self._publish()
            try:
                await self._verify(name)
            except StartRefused as error:
                log(logging.ERROR, "model_damaged", str(error), model=name)
                self._lose(name, str(error))
            else:
                return
            await _until_other(path, _READ_AGAIN, looked_like)

    async def _start_again(self, name: str) -> str:
        """Return why it did not work, or nothing."""
        try:
            await self._start(name)
        except (EngineFailed, OSError) as error:
            # OSError: no process, memory or disk to be had just now. It may pass.
            return str(error)
        return ""


def _demand(model: CheckedModel) -> Demand:
    return Demand(model.need.own, model.settings.pinned)


async def _until_other(path: Path, seconds: float, before: tuple[int, ...]) -> None:
    """Wait until a file is not what it was ``before``, and is not being written any more; so many
    seconds at most.
    """
    until = time.monotonic() + seconds
    last = before
    # Nothing tells of a change.
    while (found := _identity(path)) in (before, ()) or found != last:
        if time.monotonic() >= until:
            return
        last = found
        await asyncio.sleep(_LOOK_AT_FILE)


def _identity(path: Path) -> tuple[int, ...]:
    """What changes when a file is written or replaced; nothing where there is none."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _short(reason: object) -> str:
    """Without the engine's last lines, which the log has."""
    return str(reason).partition(" | ")[0]
