# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Asks a server of restic's REST protocol whether it lets anybody delete what is there."""

from __future__ import annotations

import base64
import http.client
import ssl
import urllib.error
import urllib.request
from urllib.parse import unquote, urlsplit, urlunsplit

# Of data that nobody has: all digests are equally unlikely.
_NOTHING = "0" * 64
_PATIENCE = 60  # seconds


def may_delete(location: str, user: str = "", password: str = "", ca: str = "") -> bool | None:
    """Return whether a server would delete data; None where it cannot be asked.

    Nothing is deleted: the data do not exist. A server that only takes new data refuses before it
    looks for them, others say that they are not there, or that they are gone now.

    :param location: as restic takes it, ``rest:https://USER:PASSWORD@HOST:PORT/PATH/``.
    :param user: with its ``password``, where the location has none.
    :param ca: file with the certificate that the server proves itself with.
    """
    parts = urlsplit(location.removeprefix("rest:"))
    own, _, host = parts.netloc.rpartition("@")
    if own:
        user, _, password = (unquote(each) for each in own.partition(":"))
    path = f"{parts.path.rstrip('/')}/data/{_NOTHING}"
    headers = {"Accept": "application/vnd.x.restic.rest.v2"}
    if user:
        word = base64.b64encode(f"{user}:{password}".encode()).decode()
        headers["Authorization"] = f"Basic {word}"
    try:
        address = urlunsplit((parts.scheme, host, path, "", ""))
        request = urllib.request.Request(address, headers=headers, method="DELETE")  # noqa: S310
        context = ssl.create_default_context(cafile=ca or None)
        with urllib.request.urlopen(request, None, _PATIENCE, context=context):  # noqa: S310
            return True
    except urllib.error.HTTPError as error:
        return {404: True, 403: False}.get(error.code)
    except (OSError, ValueError, http.client.HTTPException):
        return None
