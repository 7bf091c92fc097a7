"""What a scheduler hands to a cell: one claimed host and the hosts to fall back on, as values and as JSON.

A :class:`Selection` needs nothing else to be acted on: each :class:`HostChoice` carries the exact allocation that it
would claim. Rules of the contents follow Nova's Queens release (specs *return-alternate-hosts* and
*return-selection-objects*): the primary comes first and is claimed, alternates are in the primary's cell and are not.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from typing import Any

import attrs

from cloudcore._values import normalise_uuid, require_integer, require_mapping, require_text
from cloudcore.errors import InvalidSelection
from cloudcore.notebook import html_of, table
from cloudcore.placement.forest.values import FrozenDict

__all__ = ["SELECTION_VERSION", "HostChoice", "Selection"]

SELECTION_VERSION = 1
"""Version of the JSON form. A reader takes any document of this version and keeps fields that it does not know."""

Allocations = Mapping[str, Mapping[str, int]]
Mappings = Mapping[str, tuple[str, ...]]


def _freeze_allocations(value: Allocations) -> Allocations:
    if not isinstance(value, Mapping) or not value:
        raise InvalidSelection(
            "allocations: expected {provider: {resource class: amount}}", field="allocations", value=value
        )
    frozen: dict[str, Mapping[str, int]] = {}
    for provider, amounts in value.items():
        if not isinstance(amounts, Mapping) or not amounts:
            raise InvalidSelection(f"allocations: nothing asked of {provider}", field="allocations", value=amounts)
        for resource_class, amount in amounts.items():
            require_integer(amount, f"allocations[{provider}][{resource_class}]", minimum=1, error=InvalidSelection)
        frozen[normalise_uuid(provider, "allocations", InvalidSelection)] = FrozenDict(amounts)
    return FrozenDict(frozen)


def _freeze_mappings(value: Mapping[str, Any]) -> Mappings:
    return FrozenDict({suffix: tuple(providers) for suffix, providers in value.items()})


def _freeze(value: Mapping[str, Any]) -> Mapping[str, Any]:
    return FrozenDict(require_mapping(value, "selection", InvalidSelection))


@attrs.frozen(kw_only=True)
class HostChoice:
    """One host on which an instance may run, with the claim that takes it.

    Attributes:
        root: UUID of the host's root provider.
        name: Name of that provider: where the work is sent.
        cell: Name of the cell that the host belongs to.
        allocations: ``{provider uuid: {resource class: amount}}``, amounts in the unit of each class.
        mappings: ``{group suffix: provider uuids}``: which provider satisfies which group of the request.
        names: ``{provider uuid: name}`` of what it takes beside its root, as read at selection; for people.
        generations: ``{provider uuid: generation}`` as read at selection; a hint of staleness, never a condition.
        weight: The host's score, higher is better.
        rank: Place among all hosts that fitted, 0 is the best.
        extra: Fields of the JSON form that this release does not know; they travel on unchanged.
    """

    root: str
    name: str
    cell: str
    allocations: Allocations = attrs.field(converter=_freeze_allocations)
    mappings: Mappings = attrs.field(factory=dict, converter=_freeze_mappings)
    names: Mapping[str, str] = attrs.field(factory=dict, converter=_freeze)
    generations: Mapping[str, int] = attrs.field(factory=dict, converter=_freeze)
    weight: float = 0.0
    rank: int = 0
    extra: Mapping[str, Any] = attrs.field(factory=dict, converter=_freeze)

    def as_json(self) -> dict[str, Any]:
        """Plain dictionaries and lists, ready for :func:`json.dumps`."""
        return {
            **self.extra,
            "root": self.root,
            "name": self.name,
            "cell": self.cell,
            "allocations": {provider: dict(amounts) for provider, amounts in self.allocations.items()},
            "mappings": {suffix: list(providers) for suffix, providers in self.mappings.items()},
            "generations": dict(self.generations),
            "weight": self.weight,
            "rank": self.rank,
            **({"names": dict(self.names)} if self.names else {}),
        }

    def _table_row_(self) -> dict[str, Any]:
        names = {**self.names, self.root: self.name}
        return {
            "name": self.name,
            "cell": self.cell,
            "weight": self.weight,
            "rank": self.rank,
            "allocations": {names.get(provider, provider): held for provider, held in self.allocations.items()},
        }

    def _repr_html_(self) -> str:
        return html_of(table([self]))


@attrs.frozen(kw_only=True)
class Selection:
    """The hosts of one instance: a primary, which is claimed, and alternates in its cell, which are not.

    A value: immutable, comparable, safe to share between threads.

    Attributes:
        instance: UUID of the instance; the consumer that holds the primary's allocation.
        primary: The claimed host.
        alternates: Fallbacks in the order in which they are to be tried.
        project_id: Owner of the claim.
        user_id: User of the claim.
        migration: UUID of the migration that holds the source, where the primary is the destination of a move.
        extra: Fields of the JSON form that this release does not know; they travel on unchanged.
    """

    instance: str
    primary: HostChoice
    alternates: tuple[HostChoice, ...] = ()
    project_id: str
    user_id: str
    migration: str | None = None
    extra: Mapping[str, Any] = attrs.field(factory=dict, converter=_freeze)

    def __attrs_post_init__(self) -> None:
        hosts = [choice.root for choice in self.choices]
        if len(set(hosts)) != len(hosts):
            raise InvalidSelection(
                f"instance {self.instance}: a host stands twice among its choices", field="alternates"
            )
        for alternate in self.alternates:
            if alternate.cell != self.primary.cell:
                raise InvalidSelection(
                    f"instance {self.instance}: alternate {alternate.name} is in cell {alternate.cell}, "
                    f"its primary {self.primary.name} in {self.primary.cell}",
                    field="alternates",
                    value=alternate.cell,
                )

    def _table_row_(self) -> dict[str, Any]:
        return {
            "instance": self.instance,
            "cell": self.cell,
            "primary (claimed)": self.primary.name,
            "alternates (not claimed)": [choice.name for choice in self.alternates],
            "allocations": self.primary._table_row_()["allocations"],
            "migration": self.migration,
        }

    def _repr_html_(self) -> str:
        moves = f"; it moves here, and migration {self.migration} holds the source" if self.migration else ""
        primary = "Destination, claimed" if self.migration else "Primary, claimed"
        return html_of(
            f"Instance {self.instance}, claimed for project {self.project_id}{moves}",
            table([self.primary], title=primary),
            table(self.alternates, title="Alternates, not claimed"),
        )

    @property
    def choices(self) -> tuple[HostChoice, ...]:
        """The primary, then the alternates."""
        return (self.primary, *self.alternates)

    @property
    def cell(self) -> str:
        """The cell of every choice."""
        return self.primary.cell

    def to_json(self, *, key: bytes | None = None) -> str:
        """Write the selection with a seal over its contents.

        Args:
            key: Shared secret of scheduler and cells. With it the seal is an HMAC-SHA-256 that nobody else can make;
                without it a SHA-256 that tells damage and careless edits.
        """
        body = {
            **self.extra,
            "version": SELECTION_VERSION,
            "instance": self.instance,
            "project_id": self.project_id,
            "user_id": self.user_id,
            "primary": self.primary.as_json(),
            "alternates": [alternate.as_json() for alternate in self.alternates],
            **({"migration": self.migration} if self.migration else {}),
        }
        text = _to_json(body)
        return f'{text[:-1]},"seal":"{_seal(text, key)}"}}'

    @classmethod
    def from_json(cls, text: str | bytes, *, key: bytes | None = None) -> Selection:
        """Read what :meth:`to_json` wrote.

        Raises:
            InvalidSelection: It is no selection, was altered after it was sealed (or sealed with another *key*), or is
                of a version that this release does not read.
        """
        body = _opened(text, key)
        try:
            known: dict[str, Any] = {
                "instance": normalise_uuid(body.pop("instance"), "instance", InvalidSelection),
                "project_id": require_text(body.pop("project_id"), "project_id", error=InvalidSelection),
                "user_id": require_text(body.pop("user_id"), "user_id", error=InvalidSelection),
                "primary": _choice(body.pop("primary")),
                "alternates": tuple(_choice(alternate) for alternate in body.pop("alternates")),
            }
            if body.get("migration") is not None:
                known["migration"] = normalise_uuid(body.pop("migration"), "migration", InvalidSelection)
        except InvalidSelection:
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InvalidSelection(f"selection: {error} is missing or malformed", field="selection") from error
        return cls(**known, extra=body)


_CHOICE_FIELDS = frozenset(field.name for field in attrs.fields(HostChoice)) - {"extra"}


def _choice(value: Mapping[str, Any]) -> HostChoice:
    if not isinstance(value, Mapping):
        raise InvalidSelection(f"selection: expected the JSON object of a host, got {value!r}", field="selection")
    known = {name: value[name] for name in _CHOICE_FIELDS if name in value}
    known["root"] = normalise_uuid(known.get("root", ""), "root", InvalidSelection)
    for name, most in (("name", 200), ("cell", 255)):
        require_text(known.get(name, ""), name, maximum=most, error=InvalidSelection)
    return HostChoice(**known, extra={name: value[name] for name in value if name not in _CHOICE_FIELDS})


_to_json = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode


def _seal(text: str, key: bytes | None) -> str:
    if key is None:
        return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"
    return f"hmac-sha256:{hmac.new(key, text.encode(), hashlib.sha256).hexdigest()}"


def _opened(text: str | bytes, key: bytes | None) -> dict[str, Any]:
    try:
        body = json.loads(text)
        seal = body.pop("seal", None) if isinstance(body, dict) else None
        sealed = _to_json(body)
    except (ValueError, TypeError, RecursionError) as error:
        raise InvalidSelection(f"selection: not JSON ({error})", field="selection") from error
    if not isinstance(body, dict):
        raise InvalidSelection("selection: expected a JSON object", field="selection")
    if not isinstance(seal, str) or not hmac.compare_digest(seal.encode(errors="replace"), _seal(sealed, key).encode()):
        raise InvalidSelection(
            "selection: the seal does not fit; it was altered on its way, or sealed with another key", field="seal"
        )
    version = body.pop("version", None)
    if version != SELECTION_VERSION:
        raise InvalidSelection(
            f"selection: version {version!r}, this release reads {SELECTION_VERSION}", field="version", value=version
        )
    return body
