"""HTTP to one server: the only module that knows aiohttp and orjson.

What goes wrong on the way is a ServerFault with a name, so that it can be counted, and the word
whether sending the same request again may help. Keys never enter a message: what a server says is
searched for the key before it is shown.
"""

from __future__ import annotations

import datetime
import email.utils
import os
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import aiohttp
import orjson
from yarl import URL

from paceline.errors import InputError

__all__ = ["Client", "Connection", "ServerFault", "encode", "open_connection"]

_TEXT_SHOWN = 300
# uvicorn, under most of these servers, closes a connection that was idle for five seconds; one
# that is closed while a request is on its way there looks like a reset.
_KEEP_ALIVE_S = 3.0
_RETRY_STATUS = frozenset({408, 425, 429})


class ServerFault(Exception):
    """A request that was not answered. `kind` is what it is counted under.

    `may_retry` says that the same request may succeed later; `is_away` that nobody listens there.
    """

    def __init__(
        self,
        kind: str,
        message: str,
        *,
        may_retry: bool,
        is_away: bool = False,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.may_retry = may_retry
        self.is_away = is_away
        self.retry_after_s = retry_after_s


class Connection(Protocol):
    """The settings of `EndpointConfig` that a connection needs."""

    @property
    def api_key_env(self) -> str: ...
    @property
    def verify_tls(self) -> bool: ...
    @property
    def ca_bundle(self) -> str: ...
    @property
    def connect_timeout_s(self) -> float: ...
    @property
    def idle_timeout_s(self) -> float: ...
    @property
    def total_timeout_s(self) -> float: ...


def encode(body: dict[str, Any]) -> bytes:
    """A request as JSON; arrays of ids go in as they are."""
    return orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)


@dataclass(frozen=True, slots=True)
class _Secret:
    """A key that no repr, and so no log or traceback, shows."""

    value: str

    def __repr__(self) -> str:
        return "_Secret()"


def open_connection(settings: Connection) -> tuple[aiohttp.ClientSession, _Secret]:
    """One pool of connections for all servers; call it on the event loop. Raises InputError."""
    secret = _Secret("")
    headers = {"Content-Type": "application/json"}
    if settings.api_key_env:
        secret = _Secret(os.environ.get(settings.api_key_env, "").strip())
        if not secret.value:
            raise InputError(
                f"The environment variable {settings.api_key_env} is not set "
                "(engine.endpoint.api_key_env).",
                hint=f"export {settings.api_key_env}=...",
            )
        if not secret.value.isascii() or not secret.value.isprintable():
            raise InputError(
                f"The environment variable {settings.api_key_env} holds no key that HTTP can carry."
            )
        headers["Authorization"] = f"Bearer {secret.value}"
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(
            limit=0, ssl=_tls(settings), keepalive_timeout=_KEEP_ALIVE_S, ttl_dns_cache=300
        ),
        timeout=aiohttp.ClientTimeout(
            total=settings.total_timeout_s,
            sock_connect=settings.connect_timeout_s,
            sock_read=settings.idle_timeout_s,
        ),
        headers=headers,
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=True,
    )
    return session, secret


def _tls(settings: Connection) -> ssl.SSLContext | bool:
    if not settings.verify_tls:
        return False
    if not settings.ca_bundle:
        return True
    try:
        return ssl.create_default_context(cafile=str(Path(settings.ca_bundle).expanduser()))
    except (OSError, ssl.SSLError) as error:
        raise InputError(
            f"engine.endpoint.ca_bundle: {settings.ca_bundle} cannot be read: {error}.",
            hint="a PEM file with the certificates to trust",
        ) from error


class Client:
    """One server of the pool."""

    def __init__(self, session: aiohttp.ClientSession, base: str, secret: _Secret) -> None:
        self.name = base
        self._session = session
        self._base = base
        self._secret = secret
        self._urls: dict[str, URL] = {}

    async def get(self, path: str) -> Any:
        """A small JSON document, or text where it is none. Raises ServerFault."""
        try:
            async with self._session.get(
                self._url(path), timeout=aiohttp.ClientTimeout(total=15)
            ) as response:
                body = await response.read()
                if response.status != 200:
                    raise self._status_fault(response, body)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise self._fault(error) from None
        try:
            return orjson.loads(body)
        except ValueError:
            return body.decode(errors="replace")

    async def post(self, path: str, body: bytes) -> Any:
        """The parsed answer. Raises ServerFault."""
        try:
            async with self._session.post(self._url(path), data=body) as response:
                answer = await response.read()
                if response.status != 200:
                    raise self._status_fault(response, answer)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise self._fault(error) from None
        return self._parse(answer)

    async def stream(self, path: str, body: bytes) -> AsyncIterator[Any]:
        """The parsed events of a streamed answer. Raises ServerFault, also when it is cut short."""
        try:
            async with self._session.post(self._url(path), data=body) as response:
                if response.status != 200:
                    raise self._status_fault(response, await response.read())
                rest = b""
                async for data in response.content.iter_any():
                    *lines, rest = (rest + data).split(b"\n")
                    for line in lines:
                        event = _event_of(line)
                        if event == b"[DONE]":
                            return
                        if event:
                            yield self._parse(event)
                if event := _event_of(rest):
                    if event == b"[DONE]":
                        return
                    yield self._parse(event)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise self._fault(error) from None

    def shown(self, text: str) -> str:
        """What a server said, fit for a message: on one line, short, and without the key."""
        text = " ".join(text.split())
        if self._secret.value:
            text = text.replace(self._secret.value, "(key)")
        return f"{text[:_TEXT_SHOWN]}..." if len(text) > _TEXT_SHOWN else text

    def _url(self, path: str) -> URL:
        if path not in self._urls:
            self._urls[path] = URL(self._base + path, encoded=True)
        return self._urls[path]

    def _parse(self, body: bytes) -> Any:
        try:
            answer = orjson.loads(body)
        except ValueError as error:
            raise ServerFault(
                "bad_json", f"{self.name} sent no whole JSON ({error}).", may_retry=True
            ) from None
        if not isinstance(answer, dict):
            raise ServerFault("bad_json", f"{self.name} sent no JSON object.", may_retry=True)
        return answer

    def _status_fault(self, response: aiohttp.ClientResponse, body: bytes) -> ServerFault:
        status = response.status
        text = self.shown(body.decode(errors="replace"))
        return ServerFault(
            f"http_{status}",
            f"{self.name} answered HTTP {status}: {text or response.reason}",
            may_retry=status >= 500 or status in _RETRY_STATUS,
            retry_after_s=_retry_after(response.headers.get("Retry-After")),
        )

    def _fault(self, error: BaseException) -> ServerFault:
        """What aiohttp or the system raised, as one of the faults that are counted."""
        where = urlsplit(self._base).netloc
        if isinstance(error, aiohttp.ClientConnectorCertificateError | aiohttp.ClientSSLError):
            return ServerFault(
                "tls", f"{self.name} has no certificate to trust: {error}", may_retry=False
            )
        if isinstance(error, aiohttp.ConnectionTimeoutError):
            return ServerFault(
                "timeout_connect", f"{where} let no connection in.", may_retry=True, is_away=True
            )
        if isinstance(error, aiohttp.SocketTimeoutError):
            return ServerFault("timeout_idle", f"{where} fell silent.", may_retry=True)
        if isinstance(error, TimeoutError):
            return ServerFault("timeout_total", f"{where} took too long.", may_retry=True)
        if isinstance(error, aiohttp.ClientConnectorError):
            reason = error.os_error.strerror or str(error.os_error)
            return ServerFault("refused", f"{where}: {reason}.", may_retry=True, is_away=True)
        if isinstance(error, aiohttp.InvalidURL):
            return ServerFault("url", f"{self.name} is no URL.", may_retry=False)
        return ServerFault(
            "reset",
            f"{where} broke the connection ({type(error).__name__}).",
            may_retry=True,
        )


def _event_of(line: bytes) -> bytes:
    """The data of one line of a stream of events; empty for a comment or another field."""
    return line[5:].strip() if line.startswith(b"data:") else b""


def _retry_after(value: str | None) -> float | None:
    """Seconds to wait, from a number or a date."""
    if value is None:
        return None
    if value.strip().isdigit():
        return float(value)
    try:
        moment = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    now = datetime.datetime.now(datetime.UTC)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.UTC)
    return max(0.0, (moment - now).total_seconds())
