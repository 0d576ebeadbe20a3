"""A small Hugging Face hub on loopback: repositories, uploads, the check of model cards.

Speaks as much of the HTTP API as an upload needs, so that the real client is tested against it.
Cards are checked as the hub documents it (hub-docs, modelcard.md): licence, base model, tags and
the structure of the model-index.
"""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jsonschema
import yaml

COMMIT = "a" * 40
LICENCES = ["apache-2.0", "mit", "llama2", "gemma", "other", "bigscience-bloom-rail-1.0"]
NAMED = {"type": "object", "required": ["type"], "properties": {"type": {"type": "string"}}}
CARD_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "license": {"enum": LICENCES},
        "base_model": {"type": "string", "pattern": r"^[\w.-]+(/[\w.-]+)?$"},
        "base_model_relation": {"enum": ["adapter", "merge", "quantized", "finetune"]},
        "library_name": {"type": "string"},
        "pipeline_tag": {"type": "string"},
        "tags": {"type": "array", "items": {"type": "string"}},
        "model-index": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["name", "results"],
                "properties": {
                    "name": {"type": "string"},
                    "results": {
                        "type": "array",
                        "items": {
                            "type": "object",
                            "required": ["task", "dataset", "metrics"],
                            "properties": {
                                "task": NAMED,
                                "dataset": {**NAMED, "required": ["type", "name"]},
                                "metrics": {
                                    "type": "array",
                                    "minItems": 1,
                                    "items": {**NAMED, "required": ["type", "value"]},
                                },
                            },
                        },
                    },
                },
            },
        },
    },
}


def find_card_errors(content: str) -> list[str]:
    """What is wrong with a card's metadata, nothing if it is fine."""
    found = re.match(r"---\n(.*?)\n---\n", content, flags=re.DOTALL)
    if found is None:
        return ["empty or missing yaml metadata"]
    validator = jsonschema.Draft202012Validator(CARD_SCHEMA)
    return [error.message for error in validator.iter_errors(yaml.safe_load(found[1]))]


@dataclass
class FakeHub:
    """A hub's state.

    Attributes:
        url: Where it listens.
        repositories: Name -> path -> content.
        tags: Name -> what the hub would have read from the card.
        private: Name -> whether it was made private.
        tokens: Authorization headers seen.
        fails_at: Requests whose path holds this are answered with `status`.
        status: See `fails_at`.
    """

    url: str = ""
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    tags: dict[str, list[str]] = field(default_factory=dict)
    private: dict[str, bool] = field(default_factory=dict)
    tokens: set[str] = field(default_factory=set)
    objects: dict[str, bytes] = field(default_factory=dict)
    fails_at: str | None = None
    status: int = 403

    def commit(self, name: str, lines: list[dict[str, Any]]) -> None:
        """Apply a commit as the client sends it."""
        files = self.repositories[name]
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        card = files.get("README.md", b"").decode()
        found = re.match(r"---\n(.*?)\n---\n", card, flags=re.DOTALL)
        self.tags[name] = (yaml.safe_load(found[1]) if found else {}).get("tags", [])


@contextmanager
def run_fake_hub() -> Iterator[FakeHub]:
    """Serve until the end of the block."""
    hub = FakeHub()

    class Handler(_Handler):
        pass

    Handler.hub = hub
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Stay silent."""

    def do_GET(self) -> None:
        self._answer("GET", b"")

    def do_POST(self) -> None:
        self._answer("POST", self._read())

    def do_PUT(self) -> None:
        self._answer("PUT", self._read())

    def _read(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _answer(self, method: str, body: bytes) -> None:
        path = self.path.partition("?")[0]
        self.hub.tokens.add(self.headers.get("Authorization", ""))
        if self.hub.fails_at is not None and self.hub.fails_at in path:
            self._send(self.hub.status, {"error": "refused on purpose"})
            return
        status, document = self._route(method, path, body)
        self._send(status, document)

    def _route(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        hub = self.hub
        if method == "PUT":
            hub.objects[path.rpartition("/")[2]] = body
            return 200, {}
        if path == "/api/validate-yaml":
            errors = find_card_errors(json.loads(body)["content"])
            return (400 if errors else 200), {
                "errors": [{"message": error} for error in errors],
                "warnings": [],
            }
        if path == "/api/repos/create":
            document = json.loads(body)
            name = f"{document['organization']}/{document['name']}"
            is_new = name not in hub.repositories
            hub.repositories.setdefault(name, {".gitattributes": b""})
            hub.private.setdefault(
                name, document.get("private") is True or document.get("visibility") == "private"
            )
            return (200 if is_new else 409), {"url": f"{hub.url}/{name}", "name": name}
        if found := re.fullmatch(r"/(.+)\.git/info/lfs/objects/batch", path):
            items = json.loads(body)["objects"]
            return 200, {"transfer": "basic", "objects": [self._plan(item) for item in items]}
        found = re.fullmatch(r"/api/models/([^/]+/[^/]+)(/.*)?", path)
        if found is None or found[1] not in hub.repositories:
            return 404, {"error": "Repository not found"}
        return self._route_repository(found[1], found[2] or "", body)

    def _plan(self, item: dict[str, Any]) -> dict[str, Any]:
        upload = {"href": f"{self.hub.url}/objects/{item['oid']}", "header": {}}
        return {**item, "actions": {"upload": upload}}

    def _route_repository(self, name: str, action: str, body: bytes) -> tuple[int, Any]:
        files = self.hub.repositories[name]
        if action.startswith("/preupload/"):
            return 200, {"files": [_choose_mode(item) for item in json.loads(body)["files"]]}
        if action.startswith("/commit/"):
            self.hub.commit(name, [json.loads(line) for line in body.splitlines()])
            url = f"{self.hub.url}/{name}/commit/{COMMIT}"
            return 200, {"commitUrl": url, "commitOid": COMMIT}
        if action.startswith("/tree/"):
            entries = [
                {"type": "file", "path": path, "size": len(content), "oid": "b" * 40}
                for path, content in files.items()
            ]
            return 200, entries
        return 200, {
            "id": name,
            "sha": COMMIT,
            "tags": self.hub.tags.get(name, []),
            "siblings": [{"rfilename": path} for path in files],
        }

    def _send(self, status: int, document: Any) -> None:
        content = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def _choose_mode(item: dict[str, Any]) -> dict[str, Any]:
    is_large = item["path"].endswith(".safetensors")
    mode = "lfs" if is_large else "regular"
    return {"path": item["path"], "uploadMode": mode, "shouldIgnore": False}
