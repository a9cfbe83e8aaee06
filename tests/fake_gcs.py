"""The few endpoints of Google Cloud Storage that TensorFlow's own client uses, behind TLS on loopback.

TensorFlow's client knows no other address than Google's, so a process has to be told that these names are here: by a
hosts file of its own (tests/namespaces.py), with the test's certificate in CURL_CA_BUNDLE, and NO_GCE_CHECK=true in
place of credentials. It uploads in chunks although it sends a Content-Length, and reads objects at /bucket/object by
ranges.
"""

import contextlib
import itertools
import json
import os
import re
import ssl
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

ADDRESS = "127.0.77.1"
NAMES = ("www.googleapis.com", "storage.googleapis.com")
CLIENT = {  # short pauses and timeouts of TensorFlow's client
    "NO_GCE_CHECK": "true",
    "GCS_READ_REQUEST_TIMEOUT_SECS": "3",
    "GCS_WRITE_REQUEST_TIMEOUT_SECS": "3",
    "GCS_METADATA_REQUEST_TIMEOUT_SECS": "3",
    "GCS_REQUEST_IDLE_TIMEOUT_SECS": "3",
    "GCS_RETRY_CONFIG_INIT_DELAY_TIME_US": "20000",
    "GCS_RETRY_CONFIG_MAX_DELAY_TIME_US": "100000",
}


class Handler(BaseHTTPRequestHandler):
    """One request; what it is called for faults and permissions: list, get, read, create, delete."""

    protocol_version = "HTTP/1.1"

    def do(self):
        body = self.body()
        address = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(address.query).items()}
        path = address.path
        store = self.server.store
        upload = re.fullmatch(r"/upload/storage/v1/b/([^/]+)/o", path)
        entry = re.fullmatch(r"/storage/v1/b/([^/]+)/o/([^/]+)(?:/rewriteTo/b/([^/]+)/o/([^/]+))?", path)
        if upload or path.startswith("/session/"):
            kind = "create"
        elif re.fullmatch(r"/storage/v1/b/([^/]+)/o/?", path):
            kind = "list"
        elif entry:
            kind = "delete" if self.command == "DELETE" else "create" if entry[3] else "get"
        elif re.fullmatch(r"/storage/v1/b/[^/]+/?", path):
            return self.answer(200, {"name": path.rstrip("/").rpartition("/")[2], "location": "X"})
        else:
            kind = "read"
        self.server.requests.append((kind, unquote(path), query.get("name") or query.get("prefix")))
        fault = self.server.fault_for(kind)
        if fault == "timeout":
            time.sleep(4)
            fault = "503"
        if fault == "503":
            return self.answer(503, {"error": {"message": "try again"}})
        number = path.rpartition("/")[2]
        if kind == "create" and self.server.refused and self.server.refused in self.server.sessions.get(number, ""):
            return self.answer(403, {"error": {"message": "does not have access"}})
        if kind in self.server.denied or (kind == "read" and "get" in self.server.denied):
            return self.answer(403, {"error": {"message": "does not have access"}})
        with self.server.lock:
            if upload:
                name = f"{upload[1]}/{query['name']}"
                if name in store and "delete" in self.server.denied:
                    return self.answer(403, {"error": {"message": "does not have storage.objects.delete access"}})
                if query["uploadType"] != "resumable":  # a folder: an object without content
                    store[name] = self.object(body)
                    return self.answer(200, {})
                number = str(next(self.server.numbers))
                self.server.sessions[number] = name
                return self.answer(200, {}, {"Location": f"https://{NAMES[0]}/session/{number}"})
            if kind == "create" and path.startswith("/session/"):
                store[self.server.sessions[path.rpartition("/")[2]]] = self.object(body)
                return self.answer(200, {})
            if kind == "list":
                return self.answer(200, self.listing(path.split("/")[4], query))
            name = unquote(path.lstrip("/")) if kind == "read" else f"{entry[1]}/{unquote(entry[2])}"
            if name not in store:
                return self.answer(404, {"error": {"message": "no such object"}})
            data, generation, updated = store[name]
            if kind == "delete":
                del store[name]
                return self.answer(204, None)
            if kind == "create":
                store[f"{entry[3]}/{unquote(entry[4])}"] = self.object(data)
                return self.answer(200, {"done": True})
        if kind == "get":
            return self.answer(200, {"size": str(len(data)), "generation": str(generation), "updated": updated})
        return self.send_range(data, fault)

    do_GET = do_POST = do_PUT = do_DELETE = do

    def object(self, data):
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime())
        return data, next(self.server.numbers), stamp

    def body(self):
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return b"".join(parts)

    def listing(self, bucket, query):
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        names = sorted(name[len(bucket) + 1 :] for name in self.server.store if name.startswith(f"{bucket}/{prefix}"))
        if not delimiter:
            return {"items": [{"name": name} for name in names]}
        folders = {prefix + name[len(prefix) :].split("/")[0] + "/" for name in names if "/" in name[len(prefix) :]}
        return {
            "items": [{"name": name} for name in names if "/" not in name[len(prefix) :]],
            "prefixes": sorted(folders),
        }

    def send_range(self, data, fault):
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        first, last = (int(wanted[1]), int(wanted[2])) if wanted else (0, len(data) - 1)
        if wanted and first >= len(data):
            return self.answer(416, None)
        part = data[first : last + 1]
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        if fault == "truncate":
            self.wfile.write(part[: len(part) // 2])
            self.close_connection = True
            self.connection.close()
        else:
            self.wfile.write(part)

    def answer(self, status, value, headers=()):
        data = b"" if value is None else json.dumps(value, indent=2).encode()  # on several lines, as Google's
        self.send_response(status)
        for name, text in dict(headers).items():
            self.send_header(name, text)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *words):
        """Quiet."""


class FakeGcs(ThreadingHTTPServer):
    """Objects by `bucket/name`; `denied` kinds are answered with 403, and so is the content of names with
    `refused` in them; see `fail`."""

    daemon_threads = True

    def __init__(self, certificate):
        super().__init__((ADDRESS, 443), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
        self.lock, self.numbers = threading.Lock(), itertools.count(1)
        self.clear()

    def clear(self):
        self.store, self.sessions, self.requests = {}, {}, []
        self.denied, self.faults, self.refused = set(), {}, ""

    def fail(self, kind, *faults):
        """The next requests of a kind fail so, one each: 503, timeout, truncate, None."""
        self.faults[kind] = iter(faults)

    def fault_for(self, kind):
        return next(self.faults.get(kind, iter(())), None)

    def put(self, name, data):
        self.store[name] = (data, next(self.numbers), "2026-01-01T00:00:00.000Z")

    def handle_error(self, request, client_address):
        """Connections that break are meant."""


def make_certificate(folder):
    """A certificate of its own for Google's names; the key in the same file."""
    path = os.path.join(folder, "gcs.pem")
    names = ",".join(f"DNS:{name}" for name in NAMES)
    subprocess.run(
        [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-keyout",
            path + ".key",
            "-out",
            path + ".crt",
            "-days",
            "2",
            "-subj",
            "/CN=loopback",
            "-addext",
            f"subjectAltName={names}",
        ],
        check=True,
        capture_output=True,
    )
    with open(path, "w", encoding="ascii") as handle:
        handle.write(open(path + ".crt").read() + open(path + ".key").read())
    return path


@contextlib.contextmanager
def fake_gcs(folder):
    """Run a server; yields it and what a process runs first to find it."""
    certificate = make_certificate(folder)
    hosts = os.path.join(folder, "hosts")
    with open(hosts, "w", encoding="ascii") as handle:
        handle.write("127.0.0.1 localhost\n" + "".join(f"{ADDRESS} {name}\n" for name in NAMES))
    with FakeGcs(certificate) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        server.before = f"""
import os
from tests.namespaces import leave_mounts, mount
leave_mounts()
mount({hosts!r}, "/etc/hosts")
os.environ["CURL_CA_BUNDLE"] = {certificate + ".crt"!r}
"""
        try:
            yield server
        finally:
            server.shutdown()
            thread.join(5)
