"""Placement's own gabbi suite against a server of somebody else's: runs in the environment of the clients.

    python gabbi_runner.py PORT OPTIONS FILE...

OPTIONS (JSON) go to the server when it begins anew, before each file. The suite's fixtures write with Placement's own
objects; here the same calls go through the API. Prints one JSON document: ``{test: null, or why it failed}``.
"""

from __future__ import annotations

import json
import os
import re
import sys
import unittest
import urllib.error
import urllib.request
import uuid

import gabbi.driver
import placement.tests.functional.fixtures.gabbits as fixtures
from oslo_utils.fixture import uuidsentinel as uuids

PORT, OPTIONS = int(sys.argv[1]), json.loads(sys.argv[2])
FOLDER = os.path.join(os.path.dirname(fixtures.__file__), "..", "gabbits")


UUIDS = """
RP_UUID RP_NAME RP_UUID1 RP_NAME1 RP_UUID2 RP_NAME2 PROJECT_ID ADMIN_PROJECT_ID SERVICE_PROJECT_ID USER_ID
PROJECT_ID_ALT USER_ID_ALT INSTANCE_UUID MIGRATION_UUID CONSUMER_UUID PARENT_PROVIDER_UUID ALT_PARENT_PROVIDER_UUID
"""


def ask(method, path, body=None, version="1.39"):
    """One request; its JSON."""
    headers = {"x-auth-token": "admin", "x-roles": "admin,service", "openstack-api-version": f"placement {version}"}
    data = None
    if body is not None:
        data, headers["content-type"] = json.dumps(body).encode(), "application/json"
    request = urllib.request.Request(f"http://127.0.0.1:{PORT}{path}", data, headers, method=method)
    try:
        with urllib.request.urlopen(request) as answer:
            text = answer.read()
    except urllib.error.HTTPError as error:
        raise RuntimeError(f"{method} {path} {body}: {error.code} {error.read()[:400]}") from error
    return json.loads(text) if text else None


class Provider:
    """What a fixture has of a provider."""

    def __init__(self, identifier):
        self.uuid = identifier
        self.path = f"/resource_providers/{identifier}"

    def generation(self):
        return ask("GET", self.path)["generation"]

    def set_aggregates(self, aggregates, increment_generation=False):
        ask("PUT", f"{self.path}/aggregates", list(aggregates), version="1.18")


def create_provider(_, name, *aggregates, **more):
    identifier = more.get("uuid", getattr(uuids, name))
    body = {"name": name, "uuid": identifier}
    if more.get("parent"):
        body["parent_provider_uuid"] = more["parent"]
    ask("POST", "/resource_providers", body)
    provider = Provider(identifier)
    if aggregates:
        provider.set_aggregates(aggregates)
    return provider


def add_inventory(provider, resource_class, total, **more):
    if resource_class.startswith("CUSTOM_"):
        ask("PUT", f"/resource_classes/{resource_class}")
    body = {"resource_class": resource_class, "total": total, "max_unit": total, **more}
    ask("POST", f"{provider.path}/inventories", body)


def set_traits(provider, *traits):
    for name in traits:
        if name.startswith("CUSTOM_"):
            ask("PUT", f"/traits/{name}")
    ask(
        "PUT",
        f"{provider.path}/traits",
        {"traits": list(traits), "resource_provider_generation": provider.generation()},
    )


class Named:
    """A user, a project, a resource class: the API makes the first two by itself."""

    def __init__(self, _=None, external_id=None, name=None, context=None):
        self.external_id, self.name = external_id, name

    def create(self):
        if self.name is not None:
            ask("PUT", f"/resource_classes/{self.name}")


class Consumer:
    def __init__(self, user, project, identifier):
        self.uuid, self.user, self.project = identifier, user, project


def ensure_consumer(_, user, project, consumer_id=None):
    return Consumer(user, project, consumer_id or str(uuid.uuid4()))


def set_allocation(_, provider, consumer, amounts):
    owner = {"project_id": consumer.project.external_id, "user_id": consumer.user.external_id}
    ask(
        "PUT",
        f"/allocations/{consumer.uuid}",
        {"allocations": {provider.uuid: {"resources": amounts}}, **owner},
        "1.12",
    )


def create_user_and_project(_, prefix="fake"):
    return Named(external_id=f"{prefix}-user"), Named(external_id=f"{prefix}-project")


def start_fixture(self):
    rules = "open" if isinstance(self, fixtures.OpenPolicyFixture) else "strict" if self._secure_rbac else "default"
    origins = "http://valid.example.com" if isinstance(self, fixtures.CORSFixture) else ""
    ask("POST", "/-/begin", {**OPTIONS, "rules": rules, "origins": origins})
    self.context = None
    for name in UUIDS.split():
        os.environ[name] = str(uuid.uuid4())
    os.environ.update(
        CUSTOM_RES_CLASS="CUSTOM_IRON_NFV", CUSTOM_RES_CLASS1="CUSTOM_IRON_NFV1", CUSTOM_RES_CLASS2="CUSTOM_IRON_NFV2"
    )


fixtures.APIFixture.start_fixture = start_fixture
fixtures.APIFixture.stop_fixture = lambda self: None
fixtures.OpenPolicyFixture.start_fixture = start_fixture
fixtures.OpenPolicyFixture.stop_fixture = lambda self: None
fixtures.CORSFixture.start_fixture = start_fixture
fixtures.tb = sys.modules[__name__]
fixtures.user_obj = fixtures.project_obj = fixtures.rc_obj = type(
    "Objects", (), {"User": Named, "Project": Named, "ResourceClass": Named}
)


class Result(unittest.TestResult):
    """Collects the reasons; a test of the same name as one before gets a number."""

    def __init__(self):
        super().__init__()
        self.found, self._failed = {}, None

    def startTest(self, test):
        super().startTest(test)
        self._failed = None

    def stopTest(self, test):
        super().stopTest(test)
        name = unique = _name(test)
        number = 1
        while unique in self.found:
            number += 1
            unique = f"{name}#{number}"
        self.found[unique] = self._failed

    def addFailure(self, test, error):
        self._failed = f"{type(error[1]).__name__}: {error[1]}"

    def addError(self, test, error):
        self.addFailure(test, error)

    def addSkip(self, test, reason):
        self._failed = f"skipped: {reason}"


def _name(test):
    """File and name of a test, such as ``usage_get_total_usage``."""
    return re.sub(r"^.*gabbi_runner[._]|\.test_request$", "", test.id())


def main():
    wanted = set(sys.argv[3:])
    tests = gabbi.driver.build_tests(
        FOLDER,
        unittest.TestLoader(),
        host="127.0.0.1",
        port=PORT,
        test_loader_name="gabbi_runner",
        fixture_module=fixtures,
    )
    result = Result()
    for suite in tests:
        names = {_name(test) for test in suite}
        if not wanted or any(name.startswith(each) for name in names for each in wanted):
            suite.run(result)
    print(json.dumps(result.found))


main()
