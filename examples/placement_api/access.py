"""Who may do what: callers by their headers, and the rules of Placement's policy."""

from __future__ import annotations

from collections.abc import Mapping

import attrs
from placement_api.calls import Problem


@attrs.frozen(kw_only=True)
class Caller:
    """Who asks, as keystonemiddleware says it (or, without login, as the caller says itself)."""

    user_id: str | None = None
    project_id: str | None = None
    roles: frozenset[str] = frozenset()


def caller_of(headers: Mapping[str, str], scheme: str, *, required: bool) -> Caller:
    """Read the headers.

    ``noauth``: the token is ``USER`` or ``USER:PROJECT`` and believed; ``admin`` is the administrator. ``keystone``:
    behind keystonemiddleware's ``auth_token``, which checks the token, sets these headers and drops the client's own.
    """
    if not required:
        return Caller()
    roles = headers.get("x-roles")
    if scheme == "keystone":
        if not headers.get("x-user-id"):
            raise Problem(
                401, "This server could not verify that you are authorized to access the document you requested."
            )
        return Caller(
            user_id=headers["x-user-id"],
            project_id=headers.get("x-project-id"),
            roles=frozenset(role.strip() for role in (roles or "").split(",")),
        )
    token = headers.get("x-auth-token")
    if token is None:
        raise Problem(401, "This server could not verify that you are authorized to access the document you requested.")
    user, _, project = token.partition(":")
    given = roles.split(",") if roles is not None else ["admin"] if user == "admin" else []
    scope = headers.get("openstack-system-scope")
    mine = None if scope else headers.get("x-project-id") or project or user
    return Caller(user_id=user, project_id=mine, roles=frozenset(role.strip() for role in given))


class Rules:
    """Placement's policy: administrators and services do everything; readers of a project see its usages.

    ``default`` are its rules with the older ones beside them, as it ships them; ``strict`` the newer ones alone, where
    only a service may reshape; ``open`` lets everybody do everything.
    """

    def __init__(self, kind: str) -> None:
        if kind not in {"default", "strict", "open"}:
            raise ValueError(f"rules: {kind!r} is none of default, strict, open")
        self._kind = kind

    def check(self, path: str, method: str, caller: Caller, project_id: str | None) -> None:
        """Refuse what the caller may not."""
        if path in {"", "/"} or self._kind == "open":
            return
        if caller.project_id is None:  # of the whole system: everything here is asked for within a project
            raise Problem(403, f"Policy does not allow {method} {path} to be performed.")
        allowed = caller.roles & (
            {"service"} if path == "/reshaper" and self._kind == "strict" else {"admin", "service"}
        )
        reader = path == "/usages" and "reader" in caller.roles and caller.project_id == project_id
        if not (allowed or reader):
            raise Problem(403, f"Policy does not allow {method} {path} to be performed.")
