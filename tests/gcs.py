"""A Google Cloud Storage server on loopback that can be told to fail."""

import contextlib
import io
import itertools
import socketserver
import threading
import time
from functools import partial
from http import server

from gcp_storage_emulator.handlers import buckets
from gcp_storage_emulator.server import RequestHandler
from gcp_storage_emulator.storage import Storage

BUCKET = "bucket"


class FaultyHandler(RequestHandler):
    """The emulator's handler, with faults before or after it has done what was asked.

    Reads of an object with `denied` in its name are answered with 403. The server's `faults` are taken in order, one a
    request: None, `503` (an answer, and
    nothing done), `drop` (no answer, nothing done), `late drop` (done, but the answer is lost), `cut` (done, but the
    connection breaks in the middle of the answer), `empty` (an answer of 200 with nothing in it), or seconds to wait.
    """

    def answer(self, method):
        fault = self.server.next_fault(method, self.path)
        if fault in ("403", "503"):
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_error(int(fault))
        elif fault == "empty":
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif fault == "cut":
            client, self.wfile = self.wfile, io.BytesIO()
            getattr(super(), f"do_{method}")()
            client.write(self.wfile.getvalue()[: -(len(self.wfile.getvalue()) // 2)])
            self.close_connection = True
            self.connection.close()
        elif fault == "drop":
            self.close_connection = True
            self.connection.close()
        else:
            if isinstance(fault, float):
                time.sleep(fault)
            if fault == "late drop":
                self.wfile = open("/dev/null", "wb")  # noqa: SIM115
            getattr(super(), f"do_{method}")()

    def do_GET(self):
        self.answer("GET")

    def do_POST(self):
        self.answer("POST")

    def do_PUT(self):
        self.answer("PUT")

    def do_DELETE(self):
        self.answer("DELETE")

    def do_PATCH(self):
        self.answer("PATCH")


class FaultyServer(socketserver.ThreadingMixIn, server.HTTPServer):
    """The emulator, threaded so that a slow answer holds up no other; one request at a time touches its storage."""

    daemon_threads = True

    def __init__(self):
        storage = Storage(use_memory_fs=True)
        buckets.create_bucket(BUCKET, storage)
        self.lock = threading.Lock()
        self.requests = []
        self.faults, self.denied = iter(()), ""
        super().__init__(("127.0.0.1", 0), partial(FaultyHandler, storage))

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"

    def next_fault(self, method, path):
        with self.lock:
            self.requests.append((method, path))
            if self.denied and self.denied in path and "alt=media" in path:
                return "403"
            return next(self.faults, None)

    def fail(self, *faults, every=0):
        """Set the faults of the next requests; with `every`, over and over, one in so many requests."""
        if every:
            rounds = ([*[None] * (every - 1), fault] for fault in itertools.cycle(faults))
            self.faults = itertools.chain.from_iterable(rounds)
        else:
            self.faults = iter(faults)

    def handle_error(self, request, client_address):
        """Dropped connections are meant."""


def quick_retries(path):
    """The client's retries with short pauses."""
    from google.cloud.storage.retry import DEFAULT_RETRY

    return DEFAULT_RETRY.with_delay(initial=0.01, multiplier=1.5, maximum=0.1).with_timeout(10)


@contextlib.contextmanager
def emulator():
    """Run a server."""
    with FaultyServer() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield running
        finally:
            running.shutdown()
            thread.join(5)
