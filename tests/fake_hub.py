"""A model hub on loopback: the few endpoints that a download and an upload ask for."""

import base64
import contextlib
import hashlib
import http.server
import json
import os
import threading
import urllib.parse

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextlib.contextmanager
def fake_hub(models, new="", refused=None, silent=()):
    """Serve folders as models.

    Args:
      models: ORG/NAME -> folder.
      new: folder for those that are made.
      silent: ORG/NAME of those that it is asked about and never answers.
      refused: ORG/NAME -> status and headers of the answer, whatever is asked of it.

    Yields:
      (URL, list of paths that were asked for)
    """
    asked, closed = [], threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *args):
            """Quiet."""

        def answer(self, status, body=b"", headers=()):
            self.send_response(status)
            for name, value in (("Content-Length", str(len(body))), *headers):
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def missing(self):
            self.answer(404, b"{}", [("X-Error-Code", "RepoNotFound"), ("X-Error-Message", "Repository not found")])

        def do_GET(self):
            path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
            asked.append(path)
            parts = path.strip("/").split("/")
            if parts[0] == "api":
                return self.about("/".join(parts[2:4]), parts[4:])
            folder = models.get("/".join(parts[:2]))
            if folder is None:
                return self.missing()
            file = os.path.join(folder, *parts[4:])
            if parts[2] != "resolve" or not os.path.isfile(file):
                return self.answer(404, b"", [("X-Error-Code", "EntryNotFound")])
            with open(file, "rb") as handle:
                body = handle.read()
            tag = hashlib.sha1(body).hexdigest()
            self.answer(200, body, [("ETag", f'"{tag}"'), ("X-Repo-Commit", COMMIT), ("Accept-Ranges", "none")])

        do_HEAD = do_GET

        def do_POST(self):
            path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
            asked.append(path)
            data = self.rfile.read(int(self.headers["Content-Length"]))
            parts = path.strip("/").split("/")
            if path == "/api/repos/create":
                wanted = json.loads(data)
                name = "/".join(filter(None, [wanted.get("organization"), wanted["name"]]))
                os.makedirs(models.setdefault(name, os.path.join(new, name.replace("/", "--"))), exist_ok=True)
                return self.json({"url": f"http://{self.headers['Host']}/{name}", "name": name, "id": name})
            if path == "/api/validate-yaml":
                return self.json({"errors": [], "warnings": []})
            name = "/".join(parts[2:4])
            if parts[4] == "preupload":
                files = [file["path"] for file in json.loads(data)["files"]]
                return self.json(
                    {"files": [{"path": f, "uploadMode": "regular", "shouldIgnore": False} for f in files]}
                )
            for line in map(json.loads, data.splitlines()):
                if line["key"] == "file":
                    with open(os.path.join(models[name], line["value"]["path"]), "wb") as handle:
                        handle.write(base64.b64decode(line["value"]["content"]))
            url = f"http://{self.headers['Host']}/{name}/commit/{COMMIT}"
            self.json({"success": True, "commitOid": COMMIT, "commitUrl": url})

        def about(self, name, rest):
            if name in silent:
                return closed.wait(60)
            if name in (refused or {}):
                status, headers = refused[name]
                return self.answer(status, b"{}", headers.items())
            folder = models.get(name)
            if folder is None:
                return self.missing()
            files = sorted(os.listdir(folder))
            if rest[:1] == ["tree"]:
                sizes = {file: os.path.getsize(os.path.join(folder, file)) for file in files}
                listed = [{"type": "file", "path": f, "size": sizes[f], "oid": "0" * 40} for f in files]
                return self.json(listed)
            self.json({"id": name, "modelId": name, "sha": COMMIT, "siblings": [{"rfilename": f} for f in files]})

        def json(self, value):
            self.answer(200, json.dumps(value).encode(), [("Content-Type", "application/json")])

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        closed.set()
        server.shutdown()
        server.server_close()
