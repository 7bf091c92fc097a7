"""A compute API on cloudcore, as a FastAPI application: Nova's calls for servers, their moves and their volumes.

    uvicorn --factory compute_api.app:create_app

``COMPUTE_DATABASE`` (default: SQLite in ``COMPUTE_FOLDER``) is for placement, directory and volumes; the servers of
each cell lie in ``COMPUTE_FOLDER`` (default ``compute``). With ``COMPUTE_TELEMETRY=1`` spans and metrics go to
OpenTelemetry.
"""

from __future__ import annotations

import hashlib
import logging
import os
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlencode

from compute_api.cloud import FLAVORS, Caller, ComputeCloud, flavor, open_cloud
from compute_api.metrics import Metrics
from compute_api.models import (
    Action,
    AttachmentAnswer,
    AttachmentsAnswer,
    CreateAttachment,
    CreateServer,
    FlavorAnswer,
    FlavorsAnswer,
    Health,
    Identifier,
    Link,
    NewVolume,
    Problem,
    Server,
    ServerAnswer,
    ServersAnswer,
    Version,
    VersionsAnswer,
    Volume,
    VolumeAttachment,
    Word,
)
from fastapi import Depends, FastAPI, Header, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from cloudcore import listing, problems
from cloudcore.aio import AsyncCellRouter
from cloudcore.attach import Attachment
from cloudcore.errors import CloudcoreError, InvalidArgument
from cloudcore.listing import Record, Sort

STATUS = {"active": "ACTIVE", "building": "BUILD", "error": "ERROR", "resized": "VERIFY_RESIZE", "deleted": "DELETED"}
COLUMNS = {"created_at": "created_at", "updated_at": "updated_at", "display_name": "display_name", "host": "host",
           "uuid": "uuid", "vm_state": "vm_state", "project_id": "project_id"}  # fmt: skip
SortKey = Literal["created_at", "updated_at", "display_name", "host", "uuid", "vm_state", "project_id"]

log = logging.getLogger(__name__)
PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"description": title, "content": {problems.MEDIA_TYPE: {"schema": Problem.model_json_schema()}}}
    for status, title in (
        (400, "Wrong request"),
        (401, "Who?"),
        (403, "Not allowed"),
        (404, "Not found"),
        (405, "Wrong method"),
        (409, "Conflict"),
        (422, "Not as described"),
        (503, "Try again"),
    )
}


def told(problem: problems.Problem) -> JSONResponse:
    return JSONResponse(problem.document(), problem.status, problem.headers(), media_type=problems.MEDIA_TYPE)


def refused(_: Request, error: Exception) -> Response:
    """Every error of cloudcore's, in the one place; of one that is no caller's business the log alone has the words."""
    assert isinstance(error, CloudcoreError)
    problem = problems.problem_of(error)
    if problem.status == 500:
        log.error("%s", error, exc_info=error)
    return told(problem)


def not_as_described(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    if first["loc"][0] == "path":  # what is no identifier names nothing
        status, title, detail = 404, "Not found", f"nothing is called {first.get('input')}"
    else:
        status, title, detail = 422, "Not as described", f"{'/'.join(map(str, first['loc']))}: {first['msg']}"
    return told(problems.Problem(status=status, title=title, detail=detail, error="RequestValidationError"))


def http_problem(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    problem = problems.Problem(
        status=error.status_code, title="Refused", detail=str(error.detail), error="HTTPException"
    )
    response = told(problem)
    response.headers.update(error.headers or {})
    return response


# --- what every call needs -------------------------------------------------------------------------------------------


def the_cloud(request: Request) -> ComputeCloud:
    cloud: ComputeCloud = request.app.state.cloud
    return cloud


def the_router(request: Request) -> AsyncCellRouter:
    router: AsyncCellRouter = request.app.state.router
    return router


def the_caller(
    x_auth_token: Annotated[str | None, Header(max_length=200, pattern=r"^[\x21-\x7e]*$")] = None,
) -> Caller:
    """Without a login: the token is ``USER`` or ``USER:PROJECT``, and ``admin`` sees everything."""
    user, _, project = (x_auth_token or "demo").partition(":")
    return Caller(project_id=project or user or "demo", user_id=user or "demo", admin=user == "admin")


def operation_id(
    caller: Annotated[Caller, Depends(the_caller)],
    idempotency_key: Annotated[
        str | None, Header(min_length=1, max_length=200, pattern=r"^[\x21-\x7e]+$", description="Repeat with the same")
    ] = None,
) -> str:
    """The id under which a call takes effect once: of the caller's key, each project for itself."""
    if idempotency_key is None:
        return uuid.uuid4().hex
    return hashlib.sha256(f"{caller.project_id}/{idempotency_key}".encode()).hexdigest()[:48]


Cloud = Annotated[ComputeCloud, Depends(the_cloud)]
Who = Annotated[Caller, Depends(the_caller)]
Key = Annotated[str, Depends(operation_id)]


# --- servers ---------------------------------------------------------------------------------------------------------


class ListQuery:
    """Nova's parameters for lists of servers."""

    def __init__(
        self,
        request: Request,
        caller: Who,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
        marker: Identifier | None = None,
        cursor: Annotated[str | None, Query(max_length=4000)] = None,
        sort_key: Annotated[list[SortKey], Query(max_length=5)] = [],  # noqa: B006 - FastAPI copies it
        sort_dir: Annotated[list[Literal["asc", "desc"]], Query(max_length=5)] = [],  # noqa: B006
        changes_since: Annotated[datetime | None, Query(alias="changes-since")] = None,
        name: Word | None = None,
        status: Annotated[Word | None, Query()] = None,
        host: Word | None = None,
        tags: Annotated[str | None, Query(pattern=r"^[A-Za-z0-9_.,-]+$")] = None,
        all_tenants: bool = False,
    ) -> None:
        self.url, self.marker = request.url, marker
        self.cursor = None if marker else cursor  # some clients add a marker to the link that they were given
        self.given = [pair for pair in request.query_params.multi_items() if pair[0] not in {"cursor", "marker"}]
        states = [state for state, shown in STATUS.items() if shown == status.upper()] if status else None
        where: dict[str, Any] = {} if states is None else {"vm_state": states}
        if name is not None:
            where["display_name"] = {"contains": name}
        keys = dict(zip(sort_key, [*sort_dir, *["desc"] * len(sort_key)], strict=False))
        self.query = listing.Query(
            where=where or None,
            sort=[Sort(column, descending=way == "desc") for column, way in keys.items()] or None,
            limit=limit,
            tenant=None if all_tenants and caller.admin else caller.project_id,
            host=host,
            changes_since=changes_since
            if changes_since is None or changes_since.tzinfo
            else changes_since.astimezone(),
            deleted=None if changes_since else False,
            tags=[tag for tag in tags.split(",") if tag] if tags else (),
            unknown=True,
        )

    def next(self, cursor: str) -> Link:
        """Where the list goes on."""
        return Link(rel="next", href=f"{self.url.replace(query='')}?{urlencode([*self.given, ('cursor', cursor)])}")


def shown(record: Record, request: Request) -> Server:
    """A record as Nova shows it; a stand-in of a dead cell's record, as Nova's 2.69 does, in part."""
    href = str(request.url_for("show_server", server_id=record["uuid"]))
    known = {"id": record["uuid"], "tenant_id": record["project_id"], "created": record["created_at"]}
    links = [Link(rel="self", href=href)]
    if record.unknown:
        return Server(**known, status="UNKNOWN", links=links)
    return Server(
        **known,
        name=record["display_name"],
        status="DELETED" if record["deleted"] else STATUS.get(record["vm_state"], "UNKNOWN"),
        user_id=record["user_id"],
        updated=record["updated_at"],
        flavor={"id": record["flavor"]} if record["flavor"] else None,
        image={"id": record["image_ref"]} if record["image_ref"] else None,
        host=record["host"],
        vm_state=record["vm_state"],
        links=links,
    )


def add_servers(app: FastAPI) -> None:
    """``/servers``."""

    async def listed(request: Request, asked: ListQuery, router: AsyncCellRouter) -> ServersAnswer:
        page = await router.page(asked.query, cursor=asked.cursor, marker=asked.marker)
        links = [asked.next(page.next_cursor)] if page.next_cursor else []
        return ServersAnswer(servers=[shown(record, request) for record in page.records], servers_links=links)

    @app.get("/servers")
    @app.get("/servers/detail")
    async def list_servers(
        request: Request,
        asked: Annotated[ListQuery, Depends()],
        router: Annotated[AsyncCellRouter, Depends(the_router)],
    ) -> ServersAnswer:
        """List servers over all cells; those of a cell that does not answer have the status UNKNOWN."""
        return await listed(request, asked, router)

    @app.post("/servers", status_code=202)
    def create_server(body: CreateServer, request: Request, cloud: Cloud, caller: Who, operation: Key) -> ServerAnswer:
        """Boot a server. Metadata ``fail_on`` names hosts, separated by commas, on which its guest is to fail."""
        server = body.server
        wanted: dict[str, Any] = {"name": server.name, "flavor": server.flavorRef, "image": server.imageRef or None}
        wanted |= {"metadata": server.metadata, "tags": server.tags}
        return ServerAnswer(server=shown(cloud.boot(caller, operation, wanted), request))

    @app.get("/servers/{server_id}")
    def show_server(server_id: Identifier, request: Request, cloud: Cloud, caller: Who) -> ServerAnswer:
        return ServerAnswer(server=shown(cloud.server(caller, server_id), request))

    @app.delete("/servers/{server_id}", status_code=204)
    def delete_server(server_id: Identifier, cloud: Cloud, caller: Who) -> None:
        cloud.delete(caller, server_id)

    @app.post("/servers/{server_id}/action", status_code=202)
    def act(server_id: Identifier, body: Action, cloud: Cloud, caller: Who, operation: Key) -> Response:
        """Resize, migrate, and end either: the body holds one of them."""
        chosen = body.model_fields_set
        if len(chosen) != 1:
            raise InvalidArgument(f"expected one action, got {', '.join(sorted(chosen)) or 'none'}", field="body")
        (name,) = chosen
        if name == "resize":
            if body.resize is None:
                raise InvalidArgument("resize: flavorRef is missing", field="resize")
            cloud.move(caller, server_id, operation, "resize", body.resize.flavorRef)
        elif name == "migrate":
            cloud.move(caller, server_id, operation, "cold")
        elif name == "confirmResize":
            cloud.confirm(caller, server_id)
            return Response(status_code=204)
        else:
            cloud.revert(caller, server_id)
        return Response(status_code=202)


# --- volumes ---------------------------------------------------------------------------------------------------------


def as_nova(attachment: Attachment) -> VolumeAttachment:
    target = attachment.settings.target
    return VolumeAttachment(
        id=attachment.volume_id,
        volumeId=attachment.volume_id,
        serverId=attachment.instance_id,
        device=f"/dev/{target}" if target else None,
    )


def add_volumes(app: FastAPI) -> None:
    """``/servers/{id}/os-volume_attachments``, and volumes to attach."""
    path = "/servers/{server_id}/os-volume_attachments"

    @app.get(path)
    def list_attachments(server_id: Identifier, cloud: Cloud, caller: Who) -> AttachmentsAnswer:
        return AttachmentsAnswer(volumeAttachments=[as_nova(each) for each in cloud.attachments(caller, server_id)])

    @app.post(path)
    def attach(
        server_id: Identifier, body: CreateAttachment, cloud: Cloud, caller: Who, operation: Key
    ) -> AttachmentAnswer:
        wanted = body.volumeAttachment
        done = cloud.attach(caller, server_id, operation, wanted.volumeId, wanted.device)
        return AttachmentAnswer(volumeAttachment=as_nova(done))

    @app.get(path + "/{volume_id}")
    def show_attachment(server_id: Identifier, volume_id: Identifier, cloud: Cloud, caller: Who) -> AttachmentAnswer:
        return AttachmentAnswer(volumeAttachment=as_nova(cloud.attachment(caller, server_id, volume_id)))

    @app.delete(path + "/{volume_id}", status_code=202)
    def detach(server_id: Identifier, volume_id: Identifier, cloud: Cloud, caller: Who) -> Response:
        cloud.detach(caller, server_id, volume_id)
        return Response(status_code=202)

    @app.post("/volumes", status_code=202)
    def create_volume(body: NewVolume, cloud: Cloud, caller: Who, operation: Key) -> Volume:
        """Make a volume; a deployment's are Cinder's."""
        made = cloud.volume(caller, operation, body.size, multiattach=body.multiattach)
        return Volume(id=made.id, size=made.size // 2**30, multiattach=made.multiattach, status=made.status)


# --- everything together ---------------------------------------------------------------------------------------------


def add_flavors(app: FastAPI) -> None:
    @app.get("/flavors")
    @app.get("/flavors/detail")
    def list_flavors() -> FlavorsAnswer:
        return FlavorsAnswer(flavors=[flavor(identifier) for identifier in FLAVORS])  # type: ignore[misc]

    @app.get("/flavors/{flavor_id}")
    def show_flavor(flavor_id: Word) -> FlavorAnswer:
        if flavor_id not in FLAVORS:
            raise HTTPException(404, f"no flavor {flavor_id}")
        return FlavorAnswer(flavor=flavor(flavor_id))  # type: ignore[arg-type]


def add_probes(app: FastAPI, metrics: Metrics) -> None:
    """For whoever runs it: alive, ready, and how much of what."""

    @app.get("/")
    async def versions(request: Request) -> VersionsAnswer:
        """What clients look at first; there is one version."""
        here = Link(rel="self", href=str(request.base_url))
        return VersionsAnswer(
            versions=[Version(id="v2.1", status="CURRENT", version="2.1", min_version="2.1", links=[here])]
        )

    @app.get("/healthz", response_class=PlainTextResponse)
    async def healthz() -> str:
        return "ok"

    @app.get("/readyz")
    def readyz(cloud: Cloud) -> Health:
        """503 while the database does not answer."""
        status = cloud.tree.status()
        return Health(ready=True, providers=status.providers, lag=status.lag)

    @app.get("/metrics", response_class=PlainTextResponse)
    async def numbers() -> str:
        return metrics.text()


def create_app(open_it: Callable[..., ComputeCloud] = open_cloud) -> FastAPI:
    """The application. Its cloud is opened when it starts: interrupted work is finished then, and closed at the end."""
    metrics = Metrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        folder = Path(os.environ.get("COMPUTE_FOLDER", "compute"))
        cloud = await run_in_threadpool(open_it, folder, os.environ.get("COMPUTE_DATABASE"), metrics.observer())
        await run_in_threadpool(cloud.manager.recover)
        app.state.cloud, app.state.router = cloud, AsyncCellRouter(cloud.router)
        yield
        await run_in_threadpool(cloud.close)

    app = FastAPI(title="Compute on cloudcore", version="0.1.0", lifespan=lifespan, responses=PROBLEMS)
    app.add_exception_handler(CloudcoreError, refused)
    app.add_exception_handler(RequestValidationError, not_as_described)
    app.add_exception_handler(HTTPException, http_problem)
    add_servers(app)
    add_volumes(app)
    add_flavors(app)
    add_probes(app, metrics)
    return app
