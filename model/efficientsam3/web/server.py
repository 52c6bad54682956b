"""A server on this machine for the site."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from email.utils import formatdate
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from ..errors import ArgumentError

HOST = "127.0.0.1"

POLICY = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; "
    "img-src 'self' blob:; connect-src 'self'; worker-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
"""The Content-Security-Policy, which the page has as an element too: nothing of other hosts."""

HEADERS = {
    # A page of its own may share memory between threads.
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}

# Not by the module mimetypes: on Windows other programs change what it says.
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".wasm": "application/wasm",
    ".svg": "image/svg+xml",
    ".jpg": "image/jpeg",
    ".txt": "text/plain; charset=utf-8",
}


class SiteServer(ThreadingHTTPServer):
    """Serves the files of a site, and nothing else, to this machine.

    Args:
        files: The files by their paths in the site.
        port: The port; 0: any that is free.

    Attributes:
        address: The address of the page.

    Raises:
        ArgumentError: The port cannot be opened.
    """

    daemon_threads = True

    def __init__(self, files: Mapping[str, Path], port: int = 0) -> None:
        self.files = files
        try:
            super().__init__((HOST, port), _Handler)
        except (OSError, OverflowError) as error:
            raise ArgumentError(
                f"port {port} cannot be opened ({error}): choose another one, or leave it out for "
                "any that is free"
            ) from error
        self.address = f"http://{HOST}:{self.server_address[1]}/"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: SiteServer

    def do_GET(self) -> None:
        self._answer(with_content=True)

    def do_HEAD(self) -> None:
        self._answer(with_content=False)

    def _answer(self, *, with_content: bool) -> None:
        # Another site cannot read the files by a name of its own for this address.
        host = self.headers.get("Host", "").rpartition(":")[0]
        if host not in (HOST, "localhost"):
            self._refuse(HTTPStatus.FORBIDDEN)
            return
        name = unquote(urlsplit(self.path).path).removeprefix("/") or "index.html"
        path = self.server.files.get(name)
        try:
            file = None if path is None else path.open("rb")
        except OSError:
            file = None
        if path is None or file is None:
            self._refuse(HTTPStatus.NOT_FOUND)
            return
        with file:
            status = path.stat()
            changed = formatdate(status.st_mtime, usegmt=True)
            if self.headers.get("If-Modified-Since") == changed:
                self._head(HTTPStatus.NOT_MODIFIED, {})
                return
            kind = TYPES.get(PurePosixPath(name).suffix, "application/octet-stream")
            size = str(status.st_size)
            self._head(
                HTTPStatus.OK,
                {"Content-Type": kind, "Content-Length": size, "Last-Modified": changed},
            )
            if with_content:
                try:
                    shutil.copyfileobj(file, self.wfile)
                except OSError:  # the browser does not wait for the rest
                    self.close_connection = True

    def _refuse(self, status: HTTPStatus) -> None:
        self._head(status, {"Content-Length": "0"})

    def _head(self, status: HTTPStatus, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {**HEADERS, **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing of each request."""
