"""A Hugging Face Hub on localhost, as far as downloads and commits of small files need it."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event

import pytest
from huggingface_hub import constants

from ghnqat_sdk.hypernetwork.decoder import DecoderConfig
from ghnqat_sdk.hypernetwork.encoders import TransformerConfig
from ghnqat_sdk.hypernetwork.ghn import HypernetworkConfig

TINY = HypernetworkConfig(
    encoder=TransformerConfig(width=16, layers=1, heads=2),
    decoder=DecoderConfig(hidden=16, tile=8, kernel=3),
)

REFUSALS = {
    "me/gated": (403, "GatedRepo"),
    "me/private": (401, ""),
    "me/forbidden": (403, ""),
    "me/broken": (500, ""),
}


class FakeHub(ThreadingHTTPServer):
    """`repos` maps a repo id to its commits, oldest first, each from file name to content.

    `pause` is in seconds, between the two halves of every file; `cuts` counts the files of which
    only the first half is sent before the connection closes. `tokens` are the headers that
    requests authorize themselves with.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[str, list[dict[str, bytes]]] = {}
        self.log: list[str] = []
        self.tokens: set[str] = set()
        self.created: list[dict[str, object]] = []
        self.pause = 0.0
        self.cuts = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


def commit_id(number: int) -> str:
    """The 40-digit name of a repo's commit."""
    return f"{number:040x}"


class _Handler(BaseHTTPRequestHandler):
    server: FakeHub

    def do_HEAD(self) -> None:
        """Answer /{owner}/{name}/resolve/{revision}/{file}."""
        self._note()
        owner, name, _, revision, file = self.path[1:].split("/")
        repo = f"{owner}/{name}"
        commits = self.server.repos.get(repo, [])
        known = {commit_id(i): files for i, files in enumerate(commits)} | {
            "main": (commits or [{}])[-1]
        }
        if repo in REFUSALS:
            self._answer(*REFUSALS[repo])
        elif repo not in self.server.repos:
            self._answer(404, "RepoNotFound")
        elif revision not in known:
            self._answer(404, "RevisionNotFound")
        elif file not in known[revision]:
            self._answer(404, "EntryNotFound")
        else:
            commit = commit_id(len(commits) - 1) if revision == "main" else revision
            self._answer_from(known[revision][file], {"X-Repo-Commit": commit})

    do_GET = do_HEAD  # noqa: N815

    def do_POST(self) -> None:
        """Answer the endpoints that a commit calls."""
        self._note()
        body = self.rfile.read(int(self.headers["Content-Length"]))
        parts = self.path[1:].split("/")
        if parts[1] == "validate-yaml":
            reply: dict[str, object] = {}
        elif parts[1:] == ["repos", "create"]:
            request = json.loads(body)
            self.server.created.append(request)
            repo = f"{request['organization']}/{request['name']}"
            if repo in REFUSALS:
                return self._answer(*REFUSALS[repo])
            self.server.repos.setdefault(repo, [])
            reply = {"url": f"{self.server.url}/{repo}"}
        elif parts[4] == "preupload":
            files = json.loads(body)["files"]
            reply = {
                "files": [
                    {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for f in files
                ]
            }
        else:
            repo, commits = f"{parts[2]}/{parts[3]}", self.server.repos[f"{parts[2]}/{parts[3]}"]
            values = [
                line["value"]
                for line in map(json.loads, body.splitlines())
                if line["key"] == "file"
            ]
            new = {value["path"]: base64.b64decode(value["content"]) for value in values}
            commits.append((commits[-1] if commits else {}) | new)
            oid = commit_id(len(commits) - 1)
            reply = {"commitUrl": f"{self.server.url}/{repo}/commit/{oid}", "commitOid": oid}
        return self._answer(200, "", json.dumps(reply).encode())

    def _note(self) -> None:
        self.server.log.append(f"{self.command} {self.path}")
        self.server.tokens.add(self.headers.get("Authorization", ""))

    def _answer_from(self, body: bytes, headers: dict[str, str]) -> None:
        """The file, or the rest of it for a client that has the beginning."""
        unit, _, start = self.headers.get("Range", "").rstrip("-").partition("=")
        if unit != "bytes":
            return self._answer(200, "", body, headers)
        span = f"bytes {start}-{len(body) - 1}/{len(body)}"
        return self._answer(206, "", body[int(start) :], headers | {"Content-Range": span})

    def _answer(
        self, status: int, code: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> None:
        self.send_response(status)
        etag = {"ETag": f'"{hashlib.sha256(body).hexdigest()}"'} if status == 200 else {}
        given = {"X-Error-Code": code} if code else {}
        for name, value in {
            "Content-Length": str(len(body)),
            **etag,
            **given,
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            Event().wait(self.server.pause)
            if self.command == "GET" and self.server.cuts:
                self.server.cuts -= 1
                self.close_connection = True
            else:
                self.wfile.write(body[len(body) // 2 :])

    def log_message(self, format: str, *args: object) -> None:
        """Stay silent."""


@contextmanager
def running_hub() -> Iterator[FakeHub]:
    """A hub that answers until the block ends."""
    with FakeHub() as hub:
        thread = threading.Thread(
            target=hub.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        )
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()


def point_hub_client_to(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Make huggingface_hub take `url` for the real Hub."""
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_nobody")
    monkeypatch.setattr(time, "sleep", lambda _: None)  # the client's pauses between attempts


def contents(folder: Path) -> dict[str, bytes]:
    """File name to content."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}
