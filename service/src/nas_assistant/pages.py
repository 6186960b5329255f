# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""The pages: the files of ``web/``, read once, the one about the API, and headers that let nothing
else in.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from nas_assistant.openapi import Json
from nas_assistant.reference import reference

_FOLDER = Path(__file__).with_name("web")
_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# With a slash too, for who types one: a redirect could not know the scheme that the client used.
_ADDRESSES = {"admin.html": ("/admin", "/admin/"), "chat.html": ("/",)}
_POLICY = (
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    "img-src 'self'",
    "connect-src 'self'",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
    # No page makes markup from text, and here the browser makes sure that none ever will.
    "require-trusted-types-for 'script'",
    "trusted-types 'none'",
)
_DENIED = ("camera", "geolocation", "microphone", "payment", "usb")
_HEADERS = {
    "Content-Security-Policy": "; ".join(_POLICY),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": ", ".join(f"{feature}=()" for feature in _DENIED),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    # A browser may look up the names in an answer's links, and a name can carry text out.
    "X-DNS-Prefetch-Control": "off",
    # Asked for again each time, so that an upgrade is seen at once; 304 makes that cheap.
    "Cache-Control": "no-cache",
}


def page_routes(description: Json) -> list[Route]:
    """The pages at their addresses, and each of their files at ``/assets/NAME``; at ``/api`` what
    ``description`` says of the API.

    A route for each file: no path is ever made from what a client sends.
    """
    files = sorted(file for file in _FOLDER.iterdir() if file.suffix in _TYPES)
    routes = [
        _route(address, file.read_bytes(), _TYPES[file.suffix])
        for file in files
        for address in _ADDRESSES.get(file.name, (f"/assets/{file.name}",))
    ]
    return [*routes, _route("/api", reference(description).encode(), _TYPES[".html"])]


def _route(address: str, content: bytes, kind: str) -> Route:
    etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = _HEADERS | {"ETag": etag}

    async def serve(request: Request) -> Response:
        known = request.headers.get("if-none-match", "")
        # Nginx marks the tag of what it compressed as a weak one.
        if etag in (tag.strip().removeprefix("W/") for tag in known.split(",")):
            return Response(status_code=304, headers=headers)
        return Response(content, headers=headers, media_type=kind)

    return Route(address, serve)
