"""As much of Keystone as a Cinder and its clients ask of it: logins, tokens and their validation, a catalog.

The middleware in front of Cinder is the real one, so what it makes of service tokens is real too.
"""

from __future__ import annotations

import json
import threading
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

import attrs

PASSWORD = "open sesame"


@attrs.frozen
class Account:
    """A user in one project."""

    name: str
    project_id: str
    roles: tuple[str, ...]


class StubKeystone:
    """Serves on a free loopback port until closed.

    A token like `name:project` is valid by itself and an administrator's: it is what clients for noauth send.
    """

    def __init__(self, accounts: list[Account]) -> None:
        self._accounts = {account.name: account for account in accounts}
        self._tokens: dict[str, Account] = {}
        self.volume_url = ""
        self.logins: list[str] = []
        stub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                stub._get(self)

            def do_POST(self) -> None:
                stub._login(self)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # connections that end in the middle are no news here
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v3"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _get(self, request: BaseHTTPRequestHandler) -> None:
        if not request.path.startswith("/v3/auth/tokens"):
            version = {"id": "v3.14", "status": "stable", "links": [{"rel": "self", "href": self.url}]}
            alone = request.path.startswith("/v3")
            _answer(
                request, 200 if alone else 300, {"version": version} if alone else {"versions": {"values": [version]}}
            )
            return
        token = request.headers.get("X-Subject-Token", "")
        account = self._tokens.get(token)
        if account is None and ":" in token:
            name, _, project = token.partition(":")
            account = Account(name, project, ("admin", "member", "reader"))
        if account is None:
            _answer(request, 404, {"error": {"code": 404, "message": "no such token", "title": "Not Found"}})
            return
        _answer(request, 200, self._token(account), token)

    def _login(self, request: BaseHTTPRequestHandler) -> None:
        body = json.loads(request.rfile.read(int(request.headers["Content-Length"])))
        user = body["auth"]["identity"]["password"]["user"]
        account = self._accounts.get(user["name"])
        self.logins.append(user["name"])
        if account is None or user["password"] != PASSWORD:
            _answer(request, 401, {"error": {"code": 401, "message": "wrong password", "title": "Unauthorized"}})
            return
        token = uuid.uuid4().hex
        self._tokens[token] = account
        _answer(request, 201, self._token(account), token)

    def _token(self, account: Account) -> dict[str, Any]:
        domain = {"id": "default", "name": "Default"}
        urls = {"volumev3": self.volume_url, "identity": self.url}
        catalog = [{"id": kind, "type": kind, "name": kind, "endpoints": _endpoints(url)} for kind, url in urls.items()]
        return {
            "token": {
                "methods": ["password"],
                "audit_ids": ["audit"],
                "issued_at": "2026-01-01T00:00:00.000000Z",
                "expires_at": "2099-01-01T00:00:00.000000Z",
                "is_domain": False,
                "user": {"id": account.name, "name": account.name, "domain": domain, "password_expires_at": None},
                "project": {"id": account.project_id, "name": account.project_id, "domain": domain},
                "roles": [{"id": role, "name": role} for role in account.roles],
                "catalog": catalog,
            }
        }


def _endpoints(url: str) -> list[dict[str, str]]:
    return [
        {"id": interface, "interface": interface, "region": "one", "region_id": "one", "url": url}
        for interface in ("public", "internal", "admin")
    ]


def _answer(request: BaseHTTPRequestHandler, code: int, body: dict[str, Any], token: str | None = None) -> None:
    data = json.dumps(body).encode()
    request.send_response(code)
    request.send_header("Content-Type", "application/json")
    request.send_header("Content-Length", str(len(data)))
    if token is not None:
        request.send_header("X-Subject-Token", token)
    request.end_headers()
    request.wfile.write(data)
