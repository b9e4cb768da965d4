"""A real S3 server on loopback, which can be told to fail for a while."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any

BUCKET = "bucket"
KEY, SECRET = "AKIDTESTTESTTEST", "very-secret-test-value"


class S3Server:
    """Moto behind a door that answers 500 to the next ``failing`` requests that ``fails_on`` is true of."""

    def __init__(self) -> None:
        from moto.server import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import make_server

        self._app = DomainDispatcherApplication(create_backend_app)
        self.failing = 0
        self.failed = 0
        self.fails_on: Callable[[str, str], bool] = lambda method, path: True
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.filesystem().mkdir(BUCKET)

    def _answer(self, environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        if self.failing and self.fails_on(environ["REQUEST_METHOD"], environ["PATH_INFO"]):
            self.failing -= 1
            self.failed += 1
            start("500 Internal Server Error", [("Content-Type", "text/plain")])
            return [b"broken for a while"]
        return self._app(environ, start)

    @property
    def lake_options(self) -> dict[str, str]:
        """Storage options as LanceDB takes them."""
        return {
            "aws_access_key_id": KEY,
            "aws_secret_access_key": SECRET,
            "aws_endpoint": self.endpoint,
            "aws_region": "us-east-1",
            "allow_http": "true",
        }

    @property
    def file_options(self) -> dict[str, Any]:
        """Storage options as fsspec takes them."""
        return {"key": KEY, "secret": SECRET, "endpoint_url": self.endpoint}

    def filesystem(self) -> Any:
        """The bucket through fsspec."""
        import fsspec

        return fsspec.filesystem("s3", **self.file_options, skip_instance_cache=True)

    def stop(self) -> None:
        """End the server."""
        self._server.shutdown()
        self._thread.join()
