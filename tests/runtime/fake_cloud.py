"""Google's metadata server and TPU API on loopback, as a machine of its cloud sees them."""

import contextlib
import json
import os
import threading
from http import server

import googleapiclient

NODE = "/v1/projects/project/locations/zone-a/nodes/"
METADATA = {
    "project/project-id": "project",
    "instance/zone": "projects/17/zones/zone-a",
    "instance/service-accounts/default/?recursive=True": '{"email": "me@project", "scopes": []}',
    "instance/service-accounts/me@project/token": '{"access_token": "secret", "expires_in": 3600}',
}


class Cloud:
    """nodes: name -> what the API says of a TPU. asked: paths of the API, with the token that came along."""

    def __init__(self):
        self.nodes, self.asked, self.address = {}, [], ""

    def discovery(self):
        """The API's own description, with this server's address in Google's place."""
        folder = os.path.join(os.path.dirname(googleapiclient.__file__), "discovery_cache", "documents")
        with open(os.path.join(folder, "tpu.v1.json"), encoding="utf-8") as handle:
            return json.dumps({**json.load(handle), "rootUrl": f"http://{self.address}/"})

    def answer(self, path, token):
        """The body for a path; None where there is nothing."""
        if path.startswith("/computeMetadata/v1/"):
            return METADATA.get(path[len("/computeMetadata/v1/") :])
        if path.startswith("/discovery"):
            return self.discovery()
        self.asked.append((path, token))
        node = self.nodes.get(path.partition("?")[0].removeprefix(NODE))
        return "" if path == "/" else None if node is None else json.dumps(node)


@contextlib.contextmanager
def cloud(monkeypatch):
    """The cloud, with the variables and constants that lead a TPU client to it."""
    made = Cloud()

    class Handler(server.BaseHTTPRequestHandler):
        def do_GET(self):
            body = made.answer(self.path, self.headers.get("Authorization"))
            self.send_response(404 if body is None else 200)
            self.send_header("Metadata-Flavor", "Google")
            self.send_header("Content-Type", "application/json" if (body or "").startswith("{") else "text/plain")
            self.end_headers()
            self.wfile.write((body or "").encode())

        def log_message(self, *words):
            pass

    with server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        made.address = f"127.0.0.1:{running.server_port}"
        monkeypatch.setenv("GCE_METADATA_HOST", made.address)
        monkeypatch.setenv("TPU_API_DISCOVERY_URL", f"http://{made.address}/discovery")
        monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
        monkeypatch.setattr("oauth2client.client._GCE_METADATA_URI", f"http://{made.address}")
        # read from the environment when the module is imported, and a default of its function
        root = f"http://{made.address}/computeMetadata/v1/"
        monkeypatch.setattr("oauth2client.contrib._metadata.get.__defaults__", (root, None))
        monkeypatch.setattr("oauth2client.client.SETTINGS.env_name", None)
        monkeypatch.setenv("CLOUDSDK_CONFIG", "/nonexistent")
        try:
            yield made
        finally:
            running.shutdown()


def attach_chips(folder, number, device="0x0027"):
    """Files of the system's list of PCI devices, as a TPU VM has them: chips, and a network card of Google."""
    for place in range(number + 1):
        chip = folder / f"0000:00:{place:02x}.0"
        chip.mkdir(parents=True)
        (chip / "vendor").write_text("0x1ae0\n")
        (chip / "device").write_text(f"{device}\n" if place < number else "0x0042\n")
    return str(folder)
