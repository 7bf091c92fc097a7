"""OpenStack's Placement API, microversions 1.0 to 1.39, as an ASGI application on cloudcore.

    uvicorn --factory placement_api.app:create_app

The environment says the rest: ``PLACEMENT_DATABASE`` (default ``sqlite:///placement.db``), ``PLACEMENT_AUTH``
(``noauth`` or ``keystone``), ``PLACEMENT_RULES`` (``default``, ``strict`` or ``open``), ``PLACEMENT_GENERATIONS``
(``placement`` or ``cloudcore``), ``PLACEMENT_ORIGINS`` (for CORS).
"""

from __future__ import annotations

import json
import logging
import os
import re
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from placement_api.access import Rules, caller_of
from placement_api.allocations import Allocations
from placement_api.calls import FIRST, LAST, NOT_ALLOWED, Answer, Call, Handler, Problem, Version, dotted, now
from placement_api.candidates import Candidates
from placement_api.cloud import Cloud
from placement_api.names import Classes, Traits
from placement_api.providers import Providers
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from cloudcore.errors import CloudcoreError, ProviderNotFound, Transient
from cloudcore.problems import problem_of

SERVICE = "placement"
VERSION = re.compile(r"(\d+)\.(\d+)")

log = logging.getLogger(__name__)


def home(_: Call) -> Answer:
    """What versions there are; asked without login."""
    version = {
        "id": f"v{dotted(FIRST)}",
        "max_version": dotted(LAST),
        "min_version": dotted(FIRST),
        "status": "CURRENT",
        "links": [{"rel": "self", "href": ""}],
    }
    return Answer(body={"versions": [version]}, modified=now())


def routes_of(cloud: Cloud) -> dict[str, dict[str, Handler]]:
    """Path → method → handler. The whole API on one page."""
    providers, classes, traits = Providers(cloud), Classes(cloud), Traits(cloud)
    allocations, candidates = Allocations(cloud), Candidates(cloud)
    one = "/resource_providers/{uuid}"
    return {
        "/": {"GET": home},
        "": {"GET": home},
        "/resource_classes": {"GET": classes.list, "POST": classes.create},
        "/resource_classes/{name}": {"GET": classes.show, "PUT": classes.update, "DELETE": classes.delete},
        "/traits": {"GET": traits.list},
        "/traits/{name}": {"GET": traits.show, "PUT": traits.update, "DELETE": traits.delete},
        "/resource_providers": {"GET": providers.list, "POST": providers.create},
        one: {"GET": providers.show, "PUT": providers.update, "DELETE": providers.delete},
        f"{one}/inventories": {
            "GET": providers.inventories,
            "POST": providers.add_inventory,
            "PUT": providers.set_inventories,
            "DELETE": providers.delete_inventories,
        },
        f"{one}/inventories/{{resource_class}}": {
            "GET": providers.inventory,
            "PUT": providers.set_inventory,
            "DELETE": providers.delete_inventory,
        },
        f"{one}/usages": {"GET": providers.usages},
        f"{one}/aggregates": {"GET": providers.aggregates, "PUT": providers.set_aggregates},
        f"{one}/traits": {"GET": providers.traits, "PUT": providers.set_traits, "DELETE": providers.delete_traits},
        f"{one}/allocations": {"GET": providers.allocations},
        "/allocations": {"POST": allocations.set_many},
        "/allocations/{consumer_uuid}": {
            "GET": allocations.show,
            "PUT": allocations.set_one,
            "DELETE": allocations.delete,
        },
        "/allocation_candidates": {"GET": candidates.list},
        "/usages": {"GET": allocations.usages},
        "/reshaper": {"POST": allocations.reshape},
    }


class Endpoint:
    """One path: from a request of HTTP to a call, and from its answer back."""

    def __init__(self, path: str, handlers: Mapping[str, Handler], cloud: Cloud, rules: Rules, auth: str) -> None:
        self._path, self._handlers, self._cloud, self._rules, self._auth = path, handlers, cloud, rules, auth

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = await self._respond(Request(scope, receive))
        await response(scope, receive, send)

    async def _respond(self, request: Request) -> Response:
        version: Version | None = None
        identifier = f"req-{uuid.uuid4()}"
        try:
            caller = caller_of(
                request.headers, self._auth, required=request.url.path.rstrip("/") != request.scope.get("root_path", "")
            )
            version = version_of(request.headers.get("openstack-api-version"))
            call = await self._call(request, version)
            handler = self._handlers.get(request.method)
            if handler is None:
                detail = f"The method {request.method} is not allowed for this resource. {NOT_ALLOWED}"
                raise Problem(405, detail, allow=", ".join(self._handlers))
            self._rules.check(self._path, request.method, caller, dict(call.query).get("project_id"))
            answer = await run_in_threadpool(self._answer, handler, call)
        except Problem as problem:
            return problem_response(problem, version, identifier)
        except Exception as error:  # nothing may leave without an answer
            log.exception("%s %s", request.method, request.url.path)
            return problem_response(Problem(500, type(error).__name__), version, identifier)
        content = b"" if answer.body is None else json.dumps(answer.body).encode()
        headers = {**headers_of(version, identifier), **answer.headers(version)}
        if answer.location is not None:
            headers["location"] = call.host + answer.location
        if answer.body is not None:
            headers["content-type"] = "application/json"
        return Response(content, answer.status, headers)

    def _answer(self, handler: Handler, call: Call) -> Answer:
        try:
            self._cloud.tree.refresh()
            return handler(call)
        except ProviderNotFound as error:
            raise Problem(404, f"No resource provider with uuid {error.identifier} found") from error
        except Transient as error:
            log.warning("not done: %s", error)  # the words may name servers, so the caller has others
            raise Problem(503, problem_of(error).detail) from error
        except CloudcoreError as error:
            log.exception("not foreseen")
            raise Problem(500, type(error).__name__) from error

    async def _call(self, request: Request, version: Version) -> Call:
        length = request.headers.get("content-length")
        if length is not None and not length.isdigit():
            raise Problem(400, "content-length header must be an integer")
        if length not in {None, "0"} and not request.headers.get("content-type"):
            raise Problem(400, "content-type header required when content-length > 0")
        return Call(
            version=version,
            method=request.method,
            path=request.path_params,
            query=tuple(request.query_params.multi_items()),
            body=await request.body(),
            headers=request.headers,
            prefix=request.scope.get("root_path", ""),
            host=str(request.base_url).rstrip("/").removesuffix(request.scope.get("root_path", "")),
        )


def version_of(header: str | None) -> Version:
    """The microversion that a client asks for: of ``OpenStack-API-Version: placement 1.39``; 1.0 if of none."""
    asked = ""
    for part in (header or "").split(","):
        service, _, value = part.strip().partition(" ")
        if service.lower() == SERVICE:
            asked = value.strip()
    if not asked:
        return FIRST
    if asked == "latest":
        return LAST
    found = VERSION.fullmatch(asked)
    if found is None:
        raise Problem(400, f"invalid version string: {asked}")
    version = int(found[1]), int(found[2])
    if not FIRST <= version <= LAST:
        raise Problem(406, f"Unacceptable version header: {asked}")
    return version


def headers_of(version: Version | None, identifier: str) -> dict[str, str]:
    """What goes along with every answer."""
    found = {"x-openstack-request-id": identifier, "vary": "openstack-api-version"}
    if version is not None:
        found["openstack-api-version"] = f"{SERVICE} {dotted(version)}"
    return found


def problem_response(problem: Problem, version: Version | None, identifier: str) -> Response:
    """An error as its response."""
    content = json.dumps(problem.document(version, identifier)).encode()
    headers = {**headers_of(version, identifier), **problem.headers, "content-type": "application/json"}
    return Response(content, problem.status, headers)


def create_app(
    database: str | None = None,
    *,
    auth: str | None = None,
    rules: str | None = None,
    generations: str | None = None,
    origins: str | None = None,
) -> Starlette:
    """The application; what is not given comes from the environment."""

    def setting(given: str | None, name: str, default: str) -> str:
        return os.environ.get(f"PLACEMENT_{name}", default) if given is None else given

    cloud = Cloud(
        setting(database, "DATABASE", "sqlite:///placement.db"),
        generations=setting(generations, "GENERATIONS", "placement"),
    )
    table = Rules(setting(rules, "RULES", "default"))
    scheme = setting(auth, "AUTH", "noauth")

    async def nowhere(request: Request, _: Exception) -> Response:
        try:
            caller_of(request.headers, scheme, required=True)
            version: Version | None = version_of(request.headers.get("openstack-api-version"))
        except Problem as problem:
            return problem_response(problem, None, f"req-{uuid.uuid4()}")
        return problem_response(Problem(404, "The resource could not be found."), version, f"req-{uuid.uuid4()}")

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        cloud.close()

    allowed = [origin for origin in setting(origins, "ORIGINS", "").split(",") if origin]
    cors = Middleware(
        CORSMiddleware, allow_origins=allowed, allow_headers=["openstack-api-version"], allow_methods=["*"]
    )
    application = Starlette(
        routes=[
            Route(path, Endpoint(path, handlers, cloud, table, scheme))
            for path, handlers in routes_of(cloud).items()
            if path
        ],
        middleware=[cors] if allowed else [],
        exception_handlers={404: nowhere},
        lifespan=lifespan,
    )
    application.state.cloud = cloud
    return application
