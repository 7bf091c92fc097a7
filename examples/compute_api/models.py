"""What goes over the wire: Nova's shapes, and errors as RFC 9457 has them."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Identifier = Annotated[
    str,
    Field(
        pattern=r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$",
        examples=["a" * 8 + "-0000-4000-8000-" + "0" * 12],
    ),
]
Word = Annotated[str, Field(min_length=1, max_length=255, pattern=r"^[\x20-\x7e]+$")]
Tag = Annotated[str, Field(min_length=1, max_length=60, pattern=r"^[A-Za-z0-9_.-]+$")]


class Strict(BaseModel):
    """Refuses what it does not know."""

    model_config = ConfigDict(extra="forbid")


class Problem(BaseModel):
    """RFC 9457: what went wrong, for programs and for people."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    error: str | None = None


class Link(BaseModel):
    rel: str
    href: str


class Flavor(BaseModel):
    id: str
    name: str
    vcpus: int
    ram: int
    disk: int


class FlavorAnswer(BaseModel):
    flavor: Flavor


class FlavorsAnswer(BaseModel):
    flavors: list[Flavor]


class NewServer(Strict):
    name: Word
    flavorRef: Word
    imageRef: Word | None = None
    networks: Any = None
    metadata: dict[Word, Word] = Field(default={}, max_length=20)
    tags: list[Tag] = Field(default=[], max_length=20)


class CreateServer(Strict):
    server: NewServer


class Server(BaseModel):
    """A server; of one in a cell that does not answer, what the directory knows, with status UNKNOWN."""

    id: str
    name: str | None = None
    status: str
    tenant_id: str
    user_id: str | None = None
    created: datetime
    updated: datetime | None = None
    flavor: dict[str, str] | None = None
    image: dict[str, str] | None = None
    host: str | None = Field(default=None, serialization_alias="OS-EXT-SRV-ATTR:host")
    vm_state: str | None = Field(default=None, serialization_alias="OS-EXT-STS:vm_state")
    links: list[Link] = []


class ServerAnswer(BaseModel):
    server: Server


class ServersAnswer(BaseModel):
    servers: list[Server]
    servers_links: list[Link] = []


class Resize(Strict):
    flavorRef: Word


class Action(Strict):
    """Exactly one of these."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"minProperties": 1, "maxProperties": 1})

    resize: Resize | None = None
    migrate: None = None
    confirmResize: None = None
    revertResize: None = None


class NewAttachment(Strict):
    volumeId: Identifier
    device: Annotated[str, Field(pattern=r"^/dev/[a-z]{2,4}$")] | None = None
    tag: Tag | None = None


class CreateAttachment(Strict):
    volumeAttachment: NewAttachment


class VolumeAttachment(BaseModel):
    id: str
    volumeId: str
    serverId: str
    device: str | None = None


class AttachmentAnswer(BaseModel):
    volumeAttachment: VolumeAttachment


class AttachmentsAnswer(BaseModel):
    volumeAttachments: list[VolumeAttachment]


class NewVolume(Strict):
    size: int = Field(default=1, ge=1, le=1000, description="GiB")
    multiattach: bool = False


class Volume(BaseModel):
    id: str
    size: int
    multiattach: bool
    status: str


class Version(BaseModel):
    id: str
    status: str
    version: str
    min_version: str
    links: list[Link]


class VersionsAnswer(BaseModel):
    versions: list[Version]


class Health(BaseModel):
    ready: bool
    providers: int
    lag: int | None
