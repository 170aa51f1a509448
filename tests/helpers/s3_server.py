"""An S3 server on this machine (moto's), for tests of URLs, and the requests it got."""

import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest

BUCKET = "s3://tests"


@dataclass
class Server:
    """A running server, to which s3fs has been directed."""

    url: str  # of an empty prefix
    requests: list[tuple[str, str]] = field(default_factory=list)  # kind (GET, PUT, ...), key

    def count(self, kind: str = "") -> int:
        """Count the requests of a kind; by default all."""
        return sum(kind in ("", found) for found, _ in self.requests)


@contextmanager
def serve_s3() -> Iterator[Server]:
    """Start a server with one bucket, on a free port of 127.0.0.1.

    s3fs finds it by the environment variables that users set for stores other than Amazon's.
    """
    s3fs = pytest.importorskip("s3fs")
    moto = pytest.importorskip("moto.server")
    thread = moto.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    thread.start()
    host, port = thread.get_host_and_port()
    patch = pytest.MonkeyPatch()
    patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        patch.setenv(name, "test")
    patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    found = Server(BUCKET)

    def record(handler, *arguments):
        found.requests.append((handler.command, handler.path))

    patch.setattr(thread._server.RequestHandlerClass, "log_request", record)
    try:
        # What moto stores belongs to the process, not to the server.
        reset = urllib.request.Request(f"http://{host}:{port}/moto-api/reset", method="POST")
        urllib.request.urlopen(reset).close()
        s3fs.S3FileSystem.clear_instance_cache()
        s3fs.S3FileSystem().mkdir(BUCKET)
        yield found
    finally:
        patch.undo()
        thread.stop()
