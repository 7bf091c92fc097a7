"""The one place that talks to python-cinderclient and keystoneauth1: sends, and says what became of it.

Both packages are untyped here and come with the extra ``cinder``; they are imported when a client is made.
"""

from __future__ import annotations

import contextlib
import contextvars
import copy
import threading
import time
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import attrs

from cloudcore._extras import require_extra
from cloudcore._forks import leave_to_parent, when_forked
from cloudcore.attach.volumes.cinder_rules import Effect, judge, seconds_to_wait, strange
from cloudcore.errors import (
    CloudcoreError,
    OutcomeUnknown,
    PolicyDenied,
    VolumeServiceError,
    VolumeServiceUnavailable,
)
from cloudcore.observability import span

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from cloudcore.attach.volumes.cinder_rules import Call

__all__ = ["Http", "is_noauth", "noauth_session"]

Answer = TypeVar("Answer")

SERVICE_ROLES = "X-Service-Roles"
SERVICE_TOKEN = "X-Service-Token"  # noqa: S105 - the name of a header
FLOOR = 0.05
"""Seconds that even a request at the very end of its time is given, so that its time limit is a valid one."""


class _Token(Protocol):
    """The part of keystoneauth's plugins that is used for service tokens."""

    def get_token(self, session: Any) -> str | None:
        """A valid token."""


@attrs.frozen
class _Sending:
    """What holds for the requests of the present call."""

    until: float
    headers: Mapping[str, str]
    answers: list[Any] = attrs.field(factory=list)


_sending: contextvars.ContextVar[_Sending] = contextvars.ContextVar("cloudcore_cinder_sending")


def _bounded(session: Any, *, timeout: float, clock: Callable[[], float]) -> Any:
    """A view of the session with a time limit and extra headers for each call, and without its log of answers.

    keystoneauth logs every answer at DEBUG; those of the attachments API hold the keys to storage.
    """
    view = require_extra("keystoneauth1.adapter", "cinder").Adapter(session)

    def request(url: str, method: str, **options: Any) -> Any:
        sending = _sending.get()
        options["headers"] = {**(options.get("headers") or {}), **sending.headers}
        options["timeout"] = max(FLOOR, min(timeout, sending.until - clock()))
        options["log"] = False
        answer = session.request(url, method, **options)
        sending.answers[:] = [answer]
        return answer

    view.request = request
    return view


def is_noauth(session: Any) -> bool:
    """Whether the service behind this session asks nobody for a token, and so believes what headers claim."""
    noauth = require_extra("keystoneauth1.noauth", "cinder")
    contributed = require_extra("cinderclient.contrib.noauth", "cinder")
    return isinstance(session.auth, noauth.NoAuth | contributed.CinderNoAuthPlugin)


def noauth_session(endpoint: str, *, user_id: str, project_id: str) -> Any:
    """A keystoneauth session for a Cinder that runs with ``auth_strategy = noauth``."""
    plugins = require_extra("cinderclient.contrib.noauth", "cinder")
    sessions = require_extra("keystoneauth1.session", "cinder")
    plugin = plugins.CinderNoAuthPlugin(user_id, project_id, endpoint=endpoint.rstrip("/"))
    return sessions.Session(auth=plugin)


class Http:
    """A python-cinderclient whose failures are told in cloudcore's words. May be shared between threads.

    Args:
        session: keystoneauth's session.
        timeout: Seconds that one request may take. Above Cinder's own ``rpc_response_timeout`` (60 s), so that its
            verdict is heard.
        service_auth: Plugin of the account whose token goes along with deletes.
        clock: Monotonic seconds.
        client_options: For ``cinderclient.client.Client``: ``region_name``, ``endpoint_type`` and so on.
    """

    def __init__(
        self,
        session: Any,
        *,
        timeout: float,
        service_auth: _Token | None = None,
        clock: Callable[[], float] = time.monotonic,
        **client_options: Any,
    ) -> None:
        self._library = require_extra("cinderclient.client", "cinder")
        self._refused: type[Exception] = require_extra("cinderclient.exceptions", "cinder").ClientException
        self._failures = require_extra("keystoneauth1.exceptions", "cinder")
        self._original = session
        self._session = _bounded(session, timeout=timeout, clock=clock)
        self._service_auth = service_auth
        self._noauth = is_noauth(session)
        self._options = client_options
        when_forked(self, Http._part)

    def _part(self) -> None:
        """In a forked child: from here on the session, whosever it is, has connections and locks of this process."""
        _renew_connections(self._original.session)
        _renew_locks(self._original.auth)
        _renew_locks(self._service_auth)

    def client(self, microversion: str) -> Any:
        """A ``cinderclient`` client that speaks this version. Sends nothing yet."""
        return self._library.Client(microversion, session=self._session, **self._options)

    def send(
        self, call: Call, request: Callable[[], Any], read: Callable[[Any], Answer], *, until: float, service: bool
    ) -> Answer:
        """Make one request and read its answer.

        Args:
            call: What it is, for the errors.
            request: Makes it, through a client of :meth:`client`.
            read: Takes what is needed out of the answer.
            until: Instant of the clock at which the time of the whole call is over.
            service: Send the service token along.

        Raises:
            CloudcoreError: As :class:`~cloudcore.attach.VolumeService` says.
        """
        failure: CloudcoreError
        sending = _Sending(until, self._service_headers(call) if service else {})
        try:
            with _with(sending), span("attach.cinder", call=call.name, subject=call.subject):
                answer = request()
        except self._refused as refusal:
            failure = self._verdict(call, refusal, sending.answers)
        except self._failures.ClientException as error:
            failure = self._broken(call, error)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            failure = _nonsense(call, error)  # the library could not take the answer apart
        else:
            try:
                _verify(call, sending.answers)
                return read(answer)
            except (LookupError, TypeError, ValueError, AttributeError, CloudcoreError) as error:
                failure = _nonsense(call, error)
        # Raised out here, the error has no context: neither Cinder's text nor the answer can be dug out of it.
        raise failure

    def _service_headers(self, call: Call) -> Mapping[str, str]:
        """What tells Cinder that a service asks, not a user."""
        if self._service_auth is None:
            return {SERVICE_ROLES: "service"} if self._noauth else {}
        token = why = None
        try:
            token = self._service_auth.get_token(self._original)
        except self._failures.ClientException as error:
            why = str(error)
        if not token:
            raise VolumeServiceUnavailable(
                f"{call.name} of {call.subject}: no service token: {why or 'none was given'}"
            )
        return {SERVICE_TOKEN: token}

    def _verdict(self, call: Call, refusal: Any, answers: Sequence[Any]) -> CloudcoreError:
        """An answer came, and it is no success."""
        headers = answers[-1].headers if answers else {}
        return judge(
            call,
            int(refusal.code),
            str(refusal.message or ""),
            request_id=refusal.request_id,
            retry_after=seconds_to_wait(headers.get("Retry-After"), headers.get("Date")),
        )

    def _broken(self, call: Call, error: Exception) -> CloudcoreError:
        """No answer came, or nothing could be sent."""
        name = type(error).__name__
        if isinstance(error, self._failures.Unauthorized | self._failures.Forbidden):
            return PolicyDenied(f"{call.name} of {call.subject}: not logged in: {error}", rule=call.name)
        if isinstance(error, self._failures.ConnectionError):
            if _never_sent(error):
                return VolumeServiceUnavailable(f"{call.name} of {call.subject}: no connection ({name})")
            return call.unknown(f"the connection broke or no answer came in time ({name})")
        return VolumeServiceUnavailable(f"{call.name} of {call.subject}: nothing was sent: {error}")


def _renew_connections(session: Any) -> None:
    """Give a ``requests`` session what it has after unpickling: no connection, and else the same."""
    from requests.adapters import HTTPAdapter

    for adapter in set(session.adapters.values()):
        if isinstance(adapter, HTTPAdapter):
            leave_to_parent(adapter.poolmanager, adapter.proxy_manager)
            adapter.__setstate__(adapter.__getstate__())
    session.cookies = copy.copy(session.cookies)  # with a lock of its own


def _renew_locks(plugin: Any) -> None:
    """Let nobody be in the midst of logging in. The token stays: it may be used by any number of processes."""
    if hasattr(plugin, "_lock"):
        plugin._lock = threading.Lock()  # noqa: SLF001 - of keystoneauth, which has no other way
    for name in ("user_auth", "service_auth"):  # a wrapper of both
        if hasattr(plugin, name):
            _renew_locks(getattr(plugin, name))


@contextlib.contextmanager
def _with(sending: _Sending) -> Iterator[None]:
    token = _sending.set(sending)
    try:
        yield
    finally:
        _sending.reset(token)


def _never_sent(error: BaseException) -> bool:
    """Whether no connection was ever made: refused, no route, no such name, or no answer to the connection itself."""
    from requests.exceptions import ConnectTimeout
    from urllib3.exceptions import NewConnectionError

    below = error.__context__
    if isinstance(below, ConnectTimeout):
        return True
    reason = getattr(below.args[0], "reason", None) if below is not None and below.args else None
    return isinstance(reason, NewConnectionError)


def _verify(call: Call, answers: Sequence[Any]) -> None:
    """Check that the answer is one that Cinder gives to *call*.

    Raises:
        ValueError: It is not: a gateway's page, say.
    """
    if not answers:
        return  # what was asked needed no request
    answer = answers[-1]
    body = None
    if answer.content:
        try:
            body = answer.json()
        except ValueError:
            body = answer.content
    if trouble := strange(call, answer.status_code, body):
        raise ValueError(trouble)


def _nonsense(call: Call, error: Exception) -> CloudcoreError:
    """A success that cannot be read. Its words may be secret, so only the kind of trouble is named."""
    text = f"{call.name} of {call.subject}: the answer is not what Cinder answers ({type(error).__name__})"
    return VolumeServiceError(text) if call.effect is Effect.NONE else OutcomeUnknown(text)
