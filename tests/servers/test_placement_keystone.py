"""The Placement API of the examples behind the real keystonemiddleware, with tokens of a stub of Keystone."""

from __future__ import annotations

import json
import logging
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from wsgiref.simple_server import make_server

import pytest

from tests.attach.keystone_stub import PASSWORD, Account, StubKeystone
from tests.servers.real_placement import Handler, Server
from tests.services import require
from tests.services._host import REPOSITORY

ACCOUNTS = [
    Account("placement", "service", ("service",)),
    Account("root", "ops", ("admin", "member", "reader")),
    Account("reader", "one", ("reader",)),
]


class Client:
    def __init__(self, keystone: str, port: int) -> None:
        self._keystone, self._port = keystone, port

    def token(self, name: str) -> str:
        user = {"name": name, "password": PASSWORD, "domain": {"id": "default"}}
        body = {"auth": {"identity": {"methods": ["password"], "password": {"user": user}}}}
        request = urllib.request.Request(f"{self._keystone}/auth/tokens", json.dumps(body).encode(), method="POST")
        with urllib.request.urlopen(request) as answer:
            return answer.headers["X-Subject-Token"]

    def call(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any, Any]:
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        given |= {"openstack-api-version": "placement 1.39", "content-type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self._port}{path}", data, given, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.loads(answer.read() or "null"), answer.headers
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read() or "null"), error.headers


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    require("keystonemiddleware")
    sys.path.insert(0, str(REPOSITORY / "examples"))
    from placement_api.wsgi import create_application

    folder: Path = tmp_path_factory.mktemp("keystone")
    logging.getLogger("keystonemiddleware").setLevel(logging.CRITICAL)
    with StubKeystone(ACCOUNTS) as keystone:
        settings = {
            "auth_type": "password", "auth_url": keystone.url, "username": "placement", "password": PASSWORD,
            "project_name": "service", "user_domain_id": "default", "project_domain_id": "default",
            "www_authenticate_uri": keystone.url,
        }  # fmt: skip
        application = create_application(settings, database=f"sqlite:///{folder}/placement.db")
        server = make_server("127.0.0.1", 0, application, Server, Handler)
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield Client(keystone.url, server.server_port)
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


def test_who_has_no_valid_token_sees_nothing_but_the_versions(client: Client) -> None:
    assert client.call("GET", "/")[0] == 200
    assert client.call("GET", "/resource_providers")[0] == 401
    assert client.call("GET", "/resource_providers", x_auth_token="made-up")[0] == 401


def test_an_administrator_does_everything(client: Client) -> None:
    token = client.token("root")
    status, made, headers = client.call("POST", "/resource_providers", {"name": "cn1"}, x_auth_token=token)
    assert status == 200
    assert client.call("GET", f"/resource_providers/{made['uuid']}", x_auth_token=token)[1] == made
    assert headers["last-modified"]
    assert client.call("GET", "/allocation_candidates?resources=VCPU:1", x_auth_token=token)[0] == 200


def test_a_reader_sees_the_usages_of_the_own_project_and_no_more(client: Client) -> None:
    token = client.token("reader")
    assert client.call("GET", "/usages?project_id=one", x_auth_token=token)[0] == 200
    assert client.call("GET", "/usages?project_id=two", x_auth_token=token)[0] == 403
    assert client.call("GET", "/resource_providers", x_auth_token=token)[0] == 403


@pytest.mark.parametrize("token", [True, False], ids=["with a reader's token", "without a token"])
def test_what_a_client_says_of_itself_is_not_believed(client: Client, token: bool) -> None:
    """Headers that the middleware is to set, sent by the client."""
    forged = {"x_roles": "admin", "x_user_id": "root", "x_project_id": "ops", "x_identity_status": "Confirmed"}
    if token:
        forged["x_auth_token"] = client.token("reader")
    assert client.call("GET", "/resource_providers", **forged)[0] == (403 if token else 401)


def test_settings_come_from_a_file_as_deployments_have_it(tmp_path: Path) -> None:
    require("keystonemiddleware")
    sys.path.insert(0, str(REPOSITORY / "examples"))
    from placement_api.wsgi import settings_of

    file = tmp_path / "keystone.conf"
    file.write_text("[DEFAULT]\n[keystone_authtoken]\nauth_url = http://keystone/v3\npassword = 100%sure\n")
    assert settings_of(str(file)) == {"auth_url": "http://keystone/v3", "password": "100%sure"}
    file.write_text("[other]\n")
    with pytest.raises(ValueError, match="keystone_authtoken"):
        settings_of(str(file))
