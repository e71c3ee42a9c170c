"""A Google Cloud Storage that runs inside the tests, with preconditions, and fails when told to.

The storage is `gcp-storage-emulator`; it ignores generation preconditions, so they are checked here
before its handlers run. Beam and google-cloud-storage talk to it over HTTP as they do to the real
one. Beside it runs a metadata server: without one Beam looks for credentials for 20 s a process.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import http.server
import io
import itertools
import json
import logging
import threading
from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import Any

from gcp_storage_emulator import server
from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import buckets
from gcp_storage_emulator.storage import Storage


@dataclasses.dataclass
class Fault:
    """What happens to some requests instead of what should.

    Attributes:
      method: HTTP method.
      part: a part of the request's path and query.
      kind: `refused`: answered with `status` and not carried out; `unheard`: carried out, but
        answered with `status`; `cut`: the connection breaks in the middle of the answer's body;
        `short`: the answer ends early and says that this is all there is.
      status: of the answer.
      times: how many requests it happens to.
      hits: how many it has happened to.
    """

    method: str
    part: str
    kind: str
    status: int = 503
    times: int = 1
    hits: int = 0


class GcsEmulator:
    """Objects of some buckets, behind a port of this machine.

    Attributes:
      url: where it listens.
      requests: method and path of every request, in order.
    """

    def __init__(self, listener: http.server.HTTPServer, storage: Storage):
        self.url = f"http://127.0.0.1:{listener.server_port}"
        self.requests: list[tuple[str, str]] = []
        self._storage = storage
        self._faults: list[Fault] = []
        self._numbers = itertools.count()

    def new_bucket(self) -> str:
        """Makes an empty bucket; returns its `gs://` path."""
        name = f"bucket-{next(self._numbers)}"
        buckets.create_bucket(name, self._storage)
        return f"gs://{name}"

    def objects(self, path: str) -> dict[str, bytes]:
        """Returns {name relative to a `gs://` path: content}."""
        bucket, _, prefix = path.removeprefix("gs://").partition("/")
        names = [name for name in self._storage.objects.get(bucket, {}) if name.startswith(prefix)]
        return {
            name[len(prefix) :].lstrip("/"): self._storage.get_file(bucket, name)
            for name in sorted(names)
        }

    def age(self, path: str, seconds: float) -> None:
        """Makes an object look as if it had been written earlier."""
        bucket, _, name = path.removeprefix("gs://").partition("/")
        resource = self._storage.get_file_obj(bucket, name)
        before = datetime.datetime.fromisoformat(resource["updated"])
        earlier = before - datetime.timedelta(seconds=seconds)
        resource["updated"] = earlier.strftime("%Y-%m-%dT%H:%M:%S.%fZ")

    def generation(self, path: str) -> int:
        """Returns the generation of an object."""
        bucket, _, name = path.removeprefix("gs://").partition("/")
        return int(self._storage.get_file_obj(bucket, name)["generation"])

    @contextlib.contextmanager
    def failing(self, *faults: Fault) -> Iterator[None]:
        """Lets faults happen while the block runs."""
        self._faults = list(faults)
        try:
            yield
        finally:
            self._faults = []

    def next_fault(self, method: str, path: str) -> Fault | None:
        """Notes a request; returns what is to happen to it."""
        self.requests.append((method, path))
        for fault in self._faults:
            if fault.hits < fault.times and fault.method == method and fault.part in path:
                fault.hits += 1
                return fault
        return None


@contextlib.contextmanager
def running_gcs() -> Iterator[tuple[GcsEmulator, dict[str, str]]]:
    """Runs the emulator and the metadata server.

    Yields:
      The emulator, and the environment variables that lead clients to it.
    """
    storage = Storage(use_memory_fs=True)
    # It writes its index to its own memory after every request, which is quadratic in objects.
    storage._write_config_to_file = lambda: None
    with _listening(_StorageHandler) as listener, _listening(_MetadataHandler) as metadata:
        emulator = GcsEmulator(listener, storage)
        listener.emulator, listener.storage = emulator, storage  # type: ignore[attr-defined]
        address = f"127.0.0.1:{metadata.server_port}"
        yield (
            emulator,
            {
                "STORAGE_EMULATOR_HOST": emulator.url,
                "GCE_METADATA_HOST": address,
                "GCE_METADATA_IP": address,
                "GOOGLE_CLOUD_PROJECT": "test",
            },
        )


class _Listener(http.server.HTTPServer):
    """Answers one request after the other, which makes every precondition atomic."""

    request_queue_size = 128
    allow_reuse_address = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing of clients that gave up waiting; what else fails, they notice."""


@contextlib.contextmanager
def _listening(
    handler: type[http.server.BaseHTTPRequestHandler],
) -> Iterator[http.server.HTTPServer]:
    listener = _Listener(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.05})
    thread.daemon = True
    thread.start()
    try:
        yield listener
    finally:
        listener.shutdown()
        listener.server_close()
        thread.join()


class _StorageHandler(http.server.BaseHTTPRequestHandler):
    """Hands requests to the emulator, and faults to who is to bear them."""

    def setup(self) -> None:
        super().setup()
        self.storage = self.server.storage  # type: ignore[attr-defined]

    def do_GET(self) -> None:
        self._answer("GET")

    def do_POST(self) -> None:
        self._answer("POST")

    def do_PUT(self) -> None:
        self._answer("PUT")

    def do_DELETE(self) -> None:
        self._answer("DELETE")

    def do_PATCH(self) -> None:
        self._answer("PATCH")

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""

    def _answer(self, method: str) -> None:
        fault = self.server.emulator.next_fault(method, self.path)  # type: ignore[attr-defined]
        if fault is None:
            server.Router(self).handle(method)
        elif fault.kind == "refused":
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self._fail(fault.status)
        else:
            answer = self._carry_out(method)
            head, _, body = answer.partition(b"\r\n\r\n")
            if fault.kind == "unheard":
                self._fail(fault.status)
            elif fault.kind == "cut":
                self.wfile.write(head + b"\r\n\r\n" + body[: len(body) // 2])
            elif fault.kind == "short":
                lines = [
                    line for line in head.split(b"\r\n") if not line.startswith(b"Content-Length")
                ]
                lines.append(b"Content-Length: %d" % (len(body) // 2))
                self.wfile.write(b"\r\n".join(lines) + b"\r\n\r\n" + body[: len(body) // 2])
            else:
                raise ValueError(f"no such fault: {fault.kind}")

    def _carry_out(self, method: str) -> bytes:
        connection, self.wfile = self.wfile, io.BytesIO()
        try:
            server.Router(self).handle(method)
            return self.wfile.getvalue()
        finally:
            self.wfile = connection

    def _fail(self, status: int) -> None:
        body = json.dumps({"error": {"code": status, "message": "injected fault"}}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class _MetadataHandler(http.server.BaseHTTPRequestHandler):
    """Gives out a token, as the metadata server of a virtual machine does."""

    _ANSWERS = (
        ("/token", {"access_token": "none", "expires_in": 3600, "token_type": "Bearer"}),
        ("/project/project-id", "test"),
        ("universe-domain", "googleapis.com"),
        ("service-accounts", {"aliases": ["default"], "email": "test@test", "scopes": ["test"]}),
    )

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        answer = next((answer for part, answer in self._ANSWERS if part in path), "ok")
        text = answer if isinstance(answer, str) else json.dumps(answer)
        kind = "text/plain" if isinstance(answer, str) else "application/json"
        self.send_response(HTTPStatus.OK)
        self.send_header("Metadata-Flavor", "Google")
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""


_Handler = Callable[..., Any]


def _with_preconditions(handler: _Handler) -> _Handler:
    """Refuses requests whose `ifGenerationMatch` and the like do not hold, as GCS does."""

    def checked(request: Any, response: Any, storage: Storage, *args: Any, **kwargs: Any) -> Any:
        wanted = {
            name: int(request.query[name][0])
            for name in ("ifGenerationMatch", "ifGenerationNotMatch", "ifMetagenerationMatch")
            if name in request.query
        }
        if wanted:
            generation, metageneration = _versions(request, storage)
            held = (
                wanted.get("ifGenerationMatch", generation) == generation
                and wanted.get("ifGenerationNotMatch", generation + 1) != generation
                and wanted.get("ifMetagenerationMatch", metageneration) == metageneration
            )
            if not held:
                response.status = HTTPStatus.PRECONDITION_FAILED
                reason = {"domain": "global", "reason": "conditionNotMet"}
                message = "a precondition does not hold"
                response.json({"error": {"code": 412, "message": message, "errors": [reason]}})
                return None
        return handler(request, response, storage, *args, **kwargs)

    return checked


def _versions(request: Any, storage: Storage) -> tuple[int, int]:
    """Returns generation and metageneration of the object a request is about; 0, 0 without one."""
    params = request.params
    name = params.get("dest_object_id") or params.get("object_id")
    if name is None and "name" in request.query:
        name = request.query["name"][0]
    if name is None:  # an upload in one request has the name in its body
        name = request.data.get("meta", request.data)["name"]
    try:
        bucket = params.get("dest_bucket_name") or params["bucket_name"]
        resource = storage.get_file_obj(bucket, name)
    except NotFound:
        return 0, 0
    return int(resource["generation"]), int(resource["metageneration"])


logging.getLogger("gcp_storage_emulator").setLevel(logging.ERROR)  # it warns of its own batches
server.HANDLERS = tuple(
    (route, {method: _with_preconditions(handler) for method, handler in handlers.items()})
    for route, handlers in server.HANDLERS
)
server.objects.insert = _with_preconditions(server.objects.insert)
