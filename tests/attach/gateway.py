"""A gateway in front of a real Cinder that passes requests on, or answers them itself with anything at all."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self

Answer = tuple[int, dict[str, str], bytes]
HOP = {"connection", "transfer-encoding", "content-length", "keep-alive"}


class Gateway:
    """Listens on a free port. *rule* sees (method, path) and gives an answer, or None to pass the request on.

    With *after*, the request is passed on first and its answer is thrown away.
    """

    def __init__(self, port: int) -> None:
        self.rule: Callable[[str, str], Answer | None] = lambda *_: None
        self.after = False
        self.answered = 0
        self.asked: list[tuple[str, int]] = []  # path, and the port of who asks
        gateway = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def _serve(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                gateway.asked.append((self.path, self.client_address[1]))
                canned = gateway.rule(self.command, self.path)
                answer = self._passed_on(body) if canned is None or gateway.after else None
                if canned is not None:
                    gateway.answered += 1
                    answer = canned
                assert answer is not None
                status, headers, content = answer
                self.send_response_only(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                if status != 204:
                    self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def _passed_on(self, body: bytes) -> Answer:
                onward = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
                headers = {k: v for k, v in self.headers.items() if k.lower() not in {"connection", "host"}}
                headers["Host"] = f"127.0.0.1:{gateway.port}"  # links that Cinder makes lead through here
                onward.request(self.command, self.path, body=body, headers=headers)
                got = onward.getresponse()
                content = got.read()
                onward.close()
                return got.status, {k: v for k, v in got.getheaders() if k.lower() not in HOP}, content

        for method in ("GET", "POST", "PUT", "DELETE"):
            setattr(Handler, f"do_{method}", Handler._serve)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port: int = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def answer(self, method: str, part: str, answer: Answer, *, after: bool = False, times: int = 10**6) -> None:
        """Answer requests of *method* with *part* in their path, *times* times; pass on all others."""
        left = [times]

        def rule(asked: str, path: str) -> Answer | None:
            if asked != method or part not in path or left[0] == 0:
                return None
            left[0] -= 1
            return answer

        self.after = after
        self.rule = rule

    def heal(self) -> None:
        """Pass everything on again."""
        self.rule = lambda *_: None
        self.after = False

    def close(self) -> None:
        """Stop."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def page(status: int = 200, body: bytes = b"<html>please log in</html>", kind: str = "text/html") -> Answer:
    """What a login gateway, a cache or a captive portal says."""
    return status, {"Content-Type": kind}, body


def json(body: bytes, status: int = 200) -> Answer:
    return page(status, body, "application/json")
