# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""/etc/network/interfaces, as interfaces(5) has it: what it says of some interfaces is put aside in
comments, and put back from them."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Collection, Iterator

MAIN = "/etc/network/interfaces"
FOLDER = "/etc/network/interfaces.d"
OURS = "nas-assistant-"
MARK = "#nas.assistant: "
# Stands where the main file does not read the folder of its own accord.
SOURCE = f"source {FOLDER}/{OURS}*"
# Words that begin a stanza.
_STANZAS = re.compile(
    r"iface|mapping|auto|rename|source|source-directory|no-auto-down|no-scripts|template|allow-.+"
)
# The names that source-directory reads.
_PLAIN = re.compile(r"[A-Za-z0-9_-]+")


def put_aside(text: str, names: Collection[str]) -> str:
    """Return the text with the stanzas of these interfaces as comments, and no others.

    ``auto`` and ``allow-hotplug`` stay, since they only say when an interface is brought up.
    """
    lines = []
    aside = continued = False
    for line in put_back(text).split("\n"):
        words = line.split()
        comment = not continued and line.lstrip().startswith("#")
        if words and not continued and _STANZAS.fullmatch(words[0]):
            aside = words[0] in ("iface", "mapping") and bool(set(words[1:2]) & set(names))
        lines.append(MARK + line if aside and words and not comment else line)
        continued = line.endswith("\\")
    return "\n".join(lines)


def put_back(text: str) -> str:
    """Return the text as it was before anything was put aside."""
    lines = [line for line in text.split("\n") if line != SOURCE]
    return "\n".join(line.removeprefix(MARK) for line in lines)


def names_in(text: str) -> set[str]:
    """Return the interfaces that a text has stanzas of."""
    return set(re.findall(r"^[ \t]*iface[ \t]+(\S+)", text, re.MULTILINE))


def sourced(main: str) -> list[str]:
    """Return the files that the main file's text reads, ours included, in its order."""
    found: list[str] = []
    for word, path in _sources(main):
        # Relative ones count from the main file's folder; see interfaces(5).
        pattern = os.path.join(os.path.dirname(MAIN), path)
        if word == "source-directory":
            pattern = os.path.join(pattern, "*")
        for entry in sorted(glob.glob(pattern)):
            plain = _PLAIN.fullmatch(os.path.basename(entry))
            if os.path.isfile(entry) and (word == "source" or plain):
                found.append(entry)
    return list(dict.fromkeys(found))


def reads_ours(main: str, names: Collection[str] = ()) -> bool:
    """Whether the main file reads our files of these interfaces by itself."""
    for word, path in _sources(put_back(main)):
        pattern = os.path.join(os.path.dirname(MAIN), path)
        if word == "source" and pattern == f"{FOLDER}/*":
            return True
        if word == "source-directory" and pattern.rstrip("/") == FOLDER:
            return all(_PLAIN.fullmatch(name) for name in names)
    return False


def _sources(main: str) -> Iterator[tuple[str, str]]:
    for line in main.replace("\\\n", " ").splitlines():
        words = line.split()
        if len(words) > 1 and words[0] in ("source", "source-directory"):
            yield words[0], words[1]
