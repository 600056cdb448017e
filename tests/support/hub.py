"""A Hugging Face hub on this machine: what huggingface_hub calls to create a repository and to upload a folder."""

from __future__ import annotations

import base64
import contextlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Hub:
    """What was created and uploaded: the files of each repository by name, and the repositories that are private."""

    address: str = ""
    token: str = "hf_of_the_test"
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: set[str] = field(default_factory=set)
    large: dict[str, bytes] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def create(self, asked: dict[str, Any]) -> dict[str, Any]:
        name = f"{asked['organization']}/{asked['name']}"
        self.files.setdefault(name, {})
        self.private |= {name} if asked.get("private") or asked.get("visibility") == "private" else set()
        return {"url": f"{self.address}/{name}", "id": name, "name": name}

    def commit(self, name: str, body: str) -> dict[str, Any]:
        for line in filter(None, body.splitlines()):
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                self.messages.append(value["summary"])
            elif entry["key"] == "file":
                self.files[name][value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                self.files[name][value["path"]] = self.large[value["oid"]]
        address = f"{self.address}/{name}/commit/{'0' * 40}"
        return {"success": True, "commitUrl": address, "commitOid": "0" * 40, "hookOutput": ""}


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def do_POST(self) -> None:
        body = self._body()
        if self.headers.get("authorization") != f"Bearer {self.hub.token}":
            self._answer({"error": "Invalid username or password."}, status=401)
        elif self.path == "/api/repos/create":
            self._answer(self.hub.create(json.loads(body)))
        elif self.path == "/api/validate-yaml":
            self._answer({"errors": [], "warnings": []})
        elif match := re.fullmatch(r"/api/models/(.+)/preupload/main", self.path):
            entries = json.loads(body)["files"]
            modes = [
                {"path": entry["path"], "uploadMode": "regular" if entry["path"].endswith((".json", ".md")) else "lfs"}
                for entry in entries
            ]
            self._answer({"files": [{**mode, "shouldIgnore": False} for mode in modes]})
        elif self.path.endswith(".git/info/lfs/objects/batch"):
            objects = [
                {**entry, "actions": {"upload": {"href": f"{self.hub.address}/large/{entry['oid']}"}}}
                for entry in json.loads(body)["objects"]
            ]
            self._answer({"transfer": "basic", "objects": objects})
        elif match := re.fullmatch(r"/api/models/(.+)/commit/main", self.path):
            self._answer(self.hub.commit(match[1], body.decode()))
        else:
            self._answer({"error": f"no such call: {self.path}"}, status=404)

    def do_GET(self) -> None:
        """Answers older versions of huggingface_hub, which ask how a repository stores large files."""
        self._answer({"id": self.path, "xetEnabled": False})

    def do_PUT(self) -> None:
        self.hub.large[self.path.rpartition("/")[2]] = self._body()
        self._answer({})

    def _body(self) -> bytes:
        if self.headers.get("transfer-encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("content-length", 0)))

    def _answer(self, content: dict[str, Any], status: int = 200) -> None:
        encoded = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(encoded)))
        self.end_headers()
        self.wfile.write(encoded)

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def running_hub() -> Iterator[Hub]:
    """A hub on the loopback interface, for as long as the block runs."""
    hub = Hub()
    with ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub})) as server:
        hub.address = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield hub
        server.shutdown()
        thread.join()
