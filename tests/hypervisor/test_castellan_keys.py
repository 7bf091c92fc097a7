"""Keys from castellan: its own managers, and its client of Barbican before servers that answer as Barbican's do."""

import json
import logging
import sys
import threading
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import attrs
import pytest
from castellan.common.credentials import keystone_password
from castellan.common.objects import opaque_data, passphrase, symmetric_key
from castellan.options import set_defaults
from castellan.tests.unit.key_manager.mock_key_manager import MockKeyManager
from oslo_config import cfg

from cloudcore import errors
from cloudcore.disks import Disk, FileSource, LuksEncryption
from cloudcore.hypervisor.castellan_keys import CastellanKeys
from tests.attach.gateway import Gateway, page
from tests.test_forking import Held, forked

KEY = bytes(range(200, 232))
USER = object()


def disk_of(key_id):
    return Disk(
        volume_id=str(uuid.uuid4()), source=FileSource("/v", "raw"), encryption=LuksEncryption(secret_id=key_id)
    )


# --- what is made of a secret ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("secret", "opens"),
    [
        (symmetric_key.SymmetricKey("AES", 256, KEY), KEY.hex().encode()),
        (opaque_data.OpaqueData(KEY), KEY.hex().encode()),
        (passphrase.Passphrase(b"as it is"), b"as it is"),
    ],
)
def test_the_passphrase_is_what_nova_makes_of_the_key(secret, opens):
    manager = MockKeyManager()
    key_id = manager.store(USER, secret)
    assert CastellanKeys(USER, manager=manager)(disk_of(key_id)) == opens


def test_volumes_may_share_a_key():
    """Each has a libvirt secret of its own then, and names the key beside."""
    manager = MockKeyManager()
    key_id = manager.store(USER, symmetric_key.SymmetricKey("AES", 256, KEY))
    disk = attrs.evolve(
        disk_of(str(uuid.uuid4())), encryption=LuksEncryption(secret_id=str(uuid.uuid4()), key_id=key_id)
    )
    assert CastellanKeys(USER, manager=manager)(disk) == KEY.hex().encode()


def test_os_brick_makes_the_same():
    from os_brick.utils import get_passphrase_from_secret

    manager = MockKeyManager()
    for secret in (symmetric_key.SymmetricKey("AES", 256, KEY), passphrase.Passphrase(b"as it is")):
        key_id = manager.store(USER, secret)
        assert CastellanKeys(USER, manager=manager)(disk_of(key_id)).decode() == get_passphrase_from_secret(secret)


def test_a_key_without_bytes():
    manager = MockKeyManager()
    key_id = manager.store(USER, symmetric_key.SymmetricKey("AES", 256, None))
    with pytest.raises(errors.KeyNotFound, match="no bytes"):
        CastellanKeys(USER, manager=manager)(disk_of(key_id))


def test_a_key_that_is_not_there():
    wanted = str(uuid.uuid4())
    with pytest.raises(errors.KeyNotFound, match=wanted):
        CastellanKeys(USER, manager=MockKeyManager())(disk_of(wanted))


def test_nobody_asks():
    with pytest.raises(errors.PolicyDenied):
        CastellanKeys(lambda: None, manager=MockKeyManager())(disk_of(str(uuid.uuid4())))


def test_whoever_asks_is_asked_for_each_time():
    manager, asked = MockKeyManager(), []
    key_id = manager.store(USER, symmetric_key.SymmetricKey("AES", 256, KEY))
    keys = CastellanKeys(lambda: asked.append(1) or USER, manager=manager)
    for _ in range(3):
        keys(disk_of(key_id))
    assert asked == [1, 1, 1]


def test_a_disk_that_is_not_encrypted():
    with pytest.raises(errors.InvalidArgument, match="not encrypted"):
        CastellanKeys(USER, manager=MockKeyManager())(Disk(volume_id=str(uuid.uuid4()), source=FileSource("/v", "raw")))


def test_the_package_is_optional(monkeypatch):
    monkeypatch.setitem(sys.modules, "castellan.key_manager", None)
    with pytest.raises(errors.MissingExtra, match=r"cloudcore\[castellan\]"):
        CastellanKeys(USER)(disk_of(str(uuid.uuid4())))


@pytest.mark.parametrize("backend", ["no-such-backend", "no.such.module.Manager", "castellan.key_manager.NoSuchClass"])
def test_a_key_manager_that_is_configured_wrongly(backend):
    conf = cfg.ConfigOpts()
    conf([], project="cloudcore-test", default_config_files=[], default_config_dirs=[])
    set_defaults(conf)
    conf.set_override("backend", backend, "key_manager")
    wanted = str(uuid.uuid4())
    with pytest.raises(errors.KeyManagerUnavailable, match=rf"{wanted} .*\[key_manager\]") as caught:
        CastellanKeys(USER, configuration=conf)(disk_of(wanted))
    assert (caught.value.__cause__, caught.value.__context__) == (None, None)


# --- Barbican --------------------------------------------------------------------------------------------------------


class StubBarbican:
    """As much of Keystone and Barbican as castellan asks of them: a login, a secret's description, its bytes."""

    def __init__(self):
        self.secrets, self.status, self.logins = {}, None, True
        stub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                stub.get(self)

            def do_POST(self):
                self.rfile.read(int(self.headers["Content-Length"]))
                stub.login(self)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def login(self, request):
        if not self.logins:
            self.answer(request, 401, {"error": {"code": 401, "message": "no", "title": "Unauthorized"}})
            return
        endpoint = {"interface": "public", "url": self.url, "region": "r", "region_id": "r", "id": "e"}
        catalog = [{"type": "key-manager", "name": "barbican", "id": "b", "endpoints": [endpoint]}]
        token = {
            "methods": ["password"], "catalog": catalog, "expires_at": "2999-01-01T00:00:00Z",
            "issued_at": "2020-01-01T00:00:00Z", "user": {"id": "u", "name": "u", "domain": {"id": "d", "name": "d"}},
            "project": {"id": "p", "name": "p", "domain": {"id": "d", "name": "d"}}, "roles": [],
        }  # fmt: skip
        self.answer(request, 201, {"token": token}, {"X-Subject-Token": "token-of-the-user"})

    def get(self, request):
        parts = request.path.strip("/").split("/")
        if parts[0] == "v3":
            links = [{"rel": "self", "href": f"{self.url}/v3/"}]
            self.answer(request, 200, {"version": {"id": "v3.14", "status": "stable", "links": links}})
        elif parts[0] != "v1" or len(parts) < 3:
            version = {
                "id": "v1", "status": "CURRENT", "min_version": "1.0", "max_version": "1.1",
                "links": [{"rel": "self", "href": f"{self.url}/v1/"}],
            }  # fmt: skip
            self.answer(request, 200, {"versions": [version]})
        elif self.status is not None:
            self.answer(request, self.status, {"title": "no", "description": "no", "code": self.status})
        elif parts[2] not in self.secrets:
            self.answer(request, 404, {"title": "Not Found", "description": "no such secret", "code": 404})
        elif parts[-1] == "payload":
            self.answer(request, 200, self.secrets[parts[2]], {"Content-Type": "application/octet-stream"})
        else:
            description = {
                "name": "k", "algorithm": "aes", "bit_length": 256, "mode": "cbc", "secret_type": "symmetric",
                "status": "ACTIVE", "secret_ref": f"{self.url}/v1/secrets/{parts[2]}", "expiration": None,
                "created": "2026-01-01T00:00:00", "updated": "2026-01-01T00:00:00",
                "content_types": {"default": "application/octet-stream"},
            }  # fmt: skip
            self.answer(request, 200, description)

    @staticmethod
    def answer(request, status, body, headers=None):
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        request.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            request.send_header(name, value)
        request.send_header("Content-Length", str(len(raw)))
        request.end_headers()
        request.wfile.write(raw)


@pytest.fixture
def barbican():
    stub = StubBarbican()
    yield stub
    stub.close()


@pytest.fixture
def keys(barbican):
    conf = cfg.ConfigOpts()
    conf([], project="cloudcore-test", default_config_files=[], default_config_dirs=[])
    user = keystone_password.KeystonePassword(
        "p4ssword-of-the-user", auth_url=f"{barbican.url}/v3", username="u", user_domain_id="d", project_id="p"
    )
    made = CastellanKeys(user, configuration=conf)
    made._opened()
    conf.set_override("barbican_endpoint", barbican.url, "barbican")
    return made


def test_from_barbican(barbican, keys, caplog):
    caplog.set_level(logging.DEBUG)
    key_id = str(uuid.uuid4())
    barbican.secrets[key_id] = KEY
    disk = disk_of(key_id)
    assert keys(disk) == KEY.hex().encode()
    for text in (repr(keys), repr(disk), caplog.text):
        assert KEY.hex() not in text
        assert repr(KEY)[2:-1] not in text
        assert "p4ssword" not in text


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (404, errors.KeyNotFound),
        (401, errors.PolicyDenied),
        (403, errors.PolicyDenied),
        (400, errors.Refused),
        (429, errors.KeyManagerUnavailable),
        (500, errors.KeyManagerUnavailable),
        (503, errors.KeyManagerUnavailable),
    ],
)
def test_barbican_says_no(barbican, keys, status, error):
    barbican.status = status
    with pytest.raises(error) as caught:
        keys(disk_of(str(uuid.uuid4())))
    assert isinstance(caught.value, errors.Transient) == (error is errors.KeyManagerUnavailable)
    assert (caught.value.__cause__, caught.value.__context__) == (None, None)


def test_who_asks_may_not_log_in(barbican, keys):
    barbican.logins = False
    with pytest.raises(errors.PolicyDenied):
        keys(disk_of(str(uuid.uuid4())))


def test_barbican_is_away(barbican, keys):
    barbican.server.server_close()
    with pytest.raises(errors.KeyManagerUnavailable) as caught:
        keys(disk_of(str(uuid.uuid4())))
    assert isinstance(caught.value, errors.Transient)


# --- forked processes -------------------------------------------------------------------------------------------------


def test_child_asks_over_connections_of_its_own():
    """castellan's client of Vault keeps its connections; the parent's outlives the child, and no lock holds that up."""
    stored = {"type": "opaque", "value": KEY.hex(), "name": None, "created": None}
    with Gateway(0) as vault:
        vault.rule = lambda *_: page(body=json.dumps({"data": {"data": stored}}).encode(), kind="application/json")
        configuration = cfg.ConfigOpts()
        configuration([])
        url = f"http://127.0.0.1:{vault.port}"
        set_defaults(configuration, backend="vault", vault_url=url, vault_root_token_id="t")
        keys = CastellanKeys(USER, configuration=configuration)
        disk = disk_of(uuid.uuid4().hex)

        def ask() -> bool:
            return keys(disk) == KEY.hex().encode()

        assert ask()
        [pool] = keys._manager._session.get_adapter(url).poolmanager.pools._container.values()
        lock = pool.pool.mutex
        del pool
        with Held(keys._mutex), Held(lock):
            assert forked(ask) == "True"
        assert ask()
        ports = [port for _, port in vault.asked]
    assert ports[0] == ports[2] != ports[1]


def test_child_asks_the_key_manager_that_was_given():
    manager = MockKeyManager()
    key_id = manager.store(USER, opaque_data.OpaqueData(KEY))
    keys = CastellanKeys(USER, manager=manager)
    with Held(keys._mutex):
        assert forked(lambda: keys(disk_of(key_id)) == KEY.hex().encode()) == "True"
