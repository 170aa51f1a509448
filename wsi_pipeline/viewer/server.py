"""The HTTP server of the viewer: this machine only, one token, no path of the machine.

A page of another site must not reach the slides through the reader's browser: the address holds a
random token, the ``Host`` must be this machine's (DNS rebinding), and what changes something must
be JSON sent by our own page. Requests name slides and models by their names in the run, never
files.
"""

import json
import logging
import secrets
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tiling.errors import TilingError
from wsi_pipeline.config.extras import explain_missing
from wsi_pipeline.errors import PipelineError, ViewError
from wsi_pipeline.viewer.answers import Answer, Answers

log = logging.getLogger(__name__)

HOST = "127.0.0.1"
_LARGEST_POST = 1 << 20  # bytes
_LAST_ANSWERS_S = 3.0
_PAGES = {
    "": ("viewer.html", "text/html; charset=utf-8"),
    "viewer.css": ("viewer.css", "text/css; charset=utf-8"),
    "viewer.js": ("viewer.js", "text/javascript; charset=utf-8"),
}
# Nothing from elsewhere is loaded, sent, or may show this page in a frame.
_SAFE_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


@dataclass(frozen=True)
class Address:
    """Where the viewer is."""

    port: int
    token: str

    @property
    def url(self) -> str:
        """The address to open."""
        return f"http://{HOST}:{self.port}/{self.token}/"


class Viewer(ThreadingHTTPServer):
    """Serves one run until `shutdown`.

    Parameters
    ----------
    answers : Answers
    port : int
        0: any that is free.

    Raises
    ------
    ViewError
        If the port is taken.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, answers: Answers, *, port: int = 0) -> None:
        self.answers = answers
        self._n_answering = 0
        self._is_idle = threading.Condition()
        self.token = secrets.token_urlsafe(16)
        self.pages = {
            name: (files("wsi_pipeline.viewer").joinpath(file).read_bytes(), kind)
            for name, (file, kind) in _PAGES.items()
        }
        try:
            super().__init__((HOST, port), _Handler)
        except (OSError, OverflowError) as error:
            raise ViewError(
                f"port {port} of this machine cannot be used ({error}); give another by --port, or "
                "none, for any that is free"
            ) from error

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Keep the files open meanwhile."""
        with self._is_idle:
            self._n_answering += 1
        try:
            yield
        finally:
            with self._is_idle:
                self._n_answering -= 1
                self._is_idle.notify_all()

    def server_close(self) -> None:
        """Release the port, and the files once the last answers are sent."""
        super().server_close()
        with self._is_idle:
            self._is_idle.wait_for(lambda: self._n_answering == 0, timeout=_LAST_ANSWERS_S)
        self.answers.close()

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of a browser that leaves: pages are closed, requests cancelled."""
        if not isinstance(sys.exception(), ConnectionError):
            log.exception("the viewer failed at a request")

    @property
    def address(self) -> Address:
        """Where it is."""
        return Address(self.server_address[1], self.token)


class _Handler(BaseHTTPRequestHandler):
    server: Viewer
    protocol_version = "HTTP/1.1"  # connections are kept
    disable_nagle_algorithm = True
    timeout = 120  # seconds that a connection may be idle
    server_version = "wsi-pipeline"
    sys_version = ""

    def do_GET(self) -> None:
        self._handle(self._get)

    def do_HEAD(self) -> None:
        self._handle(self._get)

    def do_POST(self) -> None:
        self._handle(self._post)

    def log_message(self, format: str, *args: object) -> None:
        log.debug("%s", format % args)

    def _handle(self, answer: Callable[[list[str], Mapping[str, str]], Answer]) -> None:
        with self.server.answering():
            self._send(self._find(answer))

    def _find(self, answer: Callable[[list[str], Mapping[str, str]], Answer]) -> Answer:
        try:
            return answer(*self._locate())
        except _Refused as refused:
            if self.command == "POST":  # its body may not have been read
                self.close_connection = True
            return Answer.sentence(str(refused), refused.status)
        except (PipelineError, TilingError) as error:
            return Answer.sentence(self.server.answers.describe(error), HTTPStatus.NOT_FOUND)
        except Exception as error:
            if missing := explain_missing(error, "explain"):
                return Answer.sentence(missing, HTTPStatus.NOT_FOUND)
            log.exception("the viewer failed at a request")
            return Answer.sentence(
                f"the viewer failed ({type(error).__name__}); its terminal has the details",
                HTTPStatus.INTERNAL_SERVER_ERROR,
            )

    def _locate(self) -> tuple[list[str], Mapping[str, str]]:
        """Check who asks, and split the path after the token."""
        port = self.server.address.port
        if self.headers.get("Host") not in (f"{HOST}:{port}", f"localhost:{port}"):
            raise _Refused(HTTPStatus.FORBIDDEN, "only this machine is served")
        parts = urlsplit(self.path)
        _, token, *rest = parts.path.split("/") if parts.path.count("/") >= 2 else ("", "", "")
        if not secrets.compare_digest(token.encode(), self.server.token.encode()):
            raise _Refused(
                HTTPStatus.FORBIDDEN,
                "this address is not complete, or of an earlier viewer; open the one that "
                "wsi-pipeline view printed",
            )
        query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        return [unquote(part) for part in rest], query

    def _get(self, path: list[str], query: Mapping[str, str]) -> Answer:
        page = self.server.pages.get(path[0]) if len(path) == 1 else None
        if page is not None:
            return Answer(page[0], page[1], max_age=0)
        return self.server.answers.get(path, query)

    def _post(self, path: list[str], query: Mapping[str, str]) -> Answer:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > _LARGEST_POST:
            self.close_connection = True
            raise _Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too long, or of unknown length")
        body = self.rfile.read(int(length))
        self._check_origin()
        try:
            value: Any = json.loads(body)
        except ValueError as error:
            raise _Refused(HTTPStatus.BAD_REQUEST, f"not JSON ({error})") from error
        return self.server.answers.post(path, value)

    def _check_origin(self) -> None:
        origin, kind = self.headers.get("Origin"), self.headers.get("Content-Type", "")
        port = self.server.address.port
        ours = (None, f"http://{HOST}:{port}", f"http://localhost:{port}")
        if origin not in ours or not kind.startswith("application/json"):
            raise _Refused(HTTPStatus.FORBIDDEN, "only the viewer's own page may send changes")

    def _send(self, answer: Answer) -> None:
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.kind)
        self.send_header("Content-Length", str(len(answer.body)))
        kept = f"private, max-age={answer.max_age}" if answer.max_age else "no-store"
        self.send_header("Cache-Control", kept)
        if self.close_connection:
            self.send_header("Connection", "close")
        for name, value in (_SAFE_HEADERS | answer.headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)


class _Refused(Exception):  # noqa: N818  an answer, not a fault
    def __init__(self, status: HTTPStatus, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status
