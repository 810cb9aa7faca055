"""The client of a local daemon, on asyncio or on trio.

    async with Client() as client:
        answer = await client.query("digits", x)

One HTTP connection pool (httpx, whose transport is anyio's). A query is a stream of JSON lines; leaving it early, by
cancellation or an exception in `on_progress`, closes the stream, and the daemon cancels the session at every member.
"""

from __future__ import annotations

import inspect
import json
import os
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Self
from urllib.parse import quote, urlsplit

import anyio
import httpx

from finode.client.address import find_token, find_url
from finode.client.inputs import compact
from finode.client.results import Answer, Progress, convert
from finode.errors import (
    ConfigError,
    DaemonUnavailable,
    FinodeError,
    InputError,
    PeerRefused,
    RemoteError,
    SessionAborted,
    error_class,
)
from finode.node.interface import (
    ExplanationView,
    FeedbackView,
    ModelView,
    PeerView,
    QueryAnswer,
    ReceiptView,
    RewardsView,
    ServiceView,
    SessionView,
    StatusView,
)

CONNECT_TIMEOUT_S: Final = 5.0
SILENCE_TIMEOUT_S: Final = 20.0  # the daemon says something every 5 s while a query runs

VoteName = Literal["soft", "hard", "weighted", "entropy", "spectral", "augmented", "prior"]
OnProgress = Callable[[Progress], Awaitable[None] | None]


class Client:
    """Asks the daemon on this machine (or the one at `url`).

    Without `url` it is found by `home`, FINODE_API__BIND, the default home's `api.json`, or at 127.0.0.1:7878, in this
    order; the token comes from FINODE_API__TOKEN or the home's settings. `timeout` is the deadline in seconds of every
    request but queries, which have their own. Every error is a `FinodeError`, of the class that the daemon raised.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        token: str | None = None,
        home: Path | str | None = None,
        timeout: float = 30.0,
    ) -> None:
        self.url = (url if url is not None else find_url(home)).rstrip("/")
        if urlsplit(self.url).scheme not in ("http", "https") or not urlsplit(self.url).hostname:
            raise ConfigError(f"{self.url!r} is not the URL of a daemon's API", hint="such as http://127.0.0.1:7878")
        if token is None:
            # The home's token belongs to the home's daemon: it is never sent to a URL that the caller chose.
            token = find_token(home) if url is None else os.environ.get("FINODE_API__TOKEN", "")
        self._http = httpx.AsyncClient(
            base_url=self.url,
            headers={"authorization": f"Bearer {token}"} if token else {},
            timeout=httpx.Timeout(timeout, connect=CONNECT_TIMEOUT_S),
            # Plaintext inputs go to the daemon and to nobody else: no proxy, no redirect.
            trust_env=False,
            follow_redirects=False,
            verify=self.url.startswith("https:"),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections. A client that is used in `async with` does so itself."""
        await self._http.aclose()

    async def query(
        self,
        service: str,
        x: object,
        *,
        parties: int | None = None,
        vote: VoteName = "soft",
        reveal: Literal["probabilities", "top1", "label"] = "probabilities",
        deadline_s: float | None = None,
        engine: Literal["native", "crypten"] | None = None,
        weights: Mapping[str, float] | None = None,
        copies: int | None = None,
        gamma: float | None = None,
        on_progress: OnProgress | None = None,
    ) -> Answer:
        """Ask `service` about `x`: one input of the service's shape, or a batch (batch, *shape).

        `x` is a numpy array, a torch tensor, or nested lists of finite numbers. `on_progress`, a function or a
        coroutine function, is told of each step. `None` takes the daemon's own setting.

        `weights` go with the vote `weighted`: by an owner's organization, by the first digits of a model's version, or
        by "*" for all others. `copies` and `gamma` go with `augmented`.

        Raises `InputError` (a wrong shape, a NaN), `UnknownService`, `CommitteeError`, `SessionAborted`,
        `SessionCancelled`, `DaemonUnavailable` and others of `finode.errors`.
        """
        body: dict[str, Any] = {"service": service, "vote": vote, "reveal": reveal, **compact(x)}
        if parties is not None:
            body["parties"] = parties
        if deadline_s is not None:
            body["deadline_s"] = deadline_s
        if engine is not None:
            body["engine"] = engine
        if weights is not None:
            body["weights"] = dict(weights)
        if copies is not None:
            body["copies"] = copies
        if gamma is not None:
            body["gamma"] = gamma
        answer: Answer | None = None
        failure: BaseException | None = None
        with anyio.CancelScope() as scope:
            async for line in self._lines("/finode/v1/queries", body):
                match line.get("type"):
                    case "progress" if on_progress is not None and failure is None:
                        try:
                            told = on_progress(convert(line, Progress))
                            if inspect.isawaitable(told):
                                await told
                        except BaseException as error:
                            # Leave by way of a cancelled read: it closes the stream, and every generator between here
                            # and the socket, now and not when they are collected.
                            failure = error
                            scope.cancel()
                    case "answer":
                        answer = Answer.of(convert(line, QueryAnswer))
                    case "error":
                        failure = failure or _error_of(line)
        if failure is not None:
            raise failure
        if answer is None:
            raise DaemonUnavailable(f"the daemon at {self.url} stopped before it answered", hint="see its log")
        return answer

    async def status(self) -> StatusView:
        """Return what the daemon's node is and does."""
        return convert(await self._request("GET", "/finode/v1/status"), StatusView)

    async def peers(self) -> tuple[PeerView, ...]:
        """Return the peers that the node knows."""
        return convert((await self._request("GET", "/finode/v1/peers")).get("peers"), tuple[PeerView, ...])

    async def services(self) -> tuple[ServiceView, ...]:
        """Return the services offered in the federation."""
        return convert((await self._request("GET", "/finode/v1/services")).get("services"), tuple[ServiceView, ...])

    async def models(self) -> tuple[ModelView, ...]:
        """Return the node's own models."""
        return convert((await self._request("GET", "/finode/v1/models")).get("models"), tuple[ModelView, ...])

    async def sessions(self) -> tuple[SessionView, ...]:
        """Return the sessions that run on the node, and those that ended lately."""
        return convert((await self._request("GET", "/finode/v1/sessions")).get("sessions"), tuple[SessionView, ...])

    async def cancel(self, session: str) -> bool:
        """Cancel a session that this node asked for; False if none of that id runs."""
        path = f"/finode/v1/sessions/{quote(session, safe='')}"
        return (await self._request("DELETE", path, allow_missing=True)).get("cancelled") is True

    async def reload(self) -> None:
        """Have the daemon read its roster and its model registry again."""
        await self._request("POST", "/finode/v1/reload")

    async def receipts(self, epoch: int | None = None, limit: int = 100) -> tuple[ReceiptView, ...]:
        """Return receipts of the node's ledger, the latest first: of one epoch or of all, at most `limit` (1000)."""
        query = {"epoch": epoch, "limit": limit}
        found = await self._request("GET", "/finode/v1/receipts", query=query)
        return convert(found.get("receipts"), tuple[ReceiptView, ...])

    async def receipt(self, id: str) -> ReceiptView:
        """Return one receipt by its id or its session, or the first digits of either.

        Raises `UnknownRecord` if there is none, `InputError` if there are several or these are no digits of an id.
        """
        if not re.fullmatch("[0-9a-fA-F]{1,64}", id):
            raise InputError(f"{id!r} is no id of a receipt or a session", hint="an id is hexadecimal digits")
        return convert(await self._request("GET", f"/finode/v1/receipts/{id.lower()}"), ReceiptView)

    async def export_receipts(self, epoch: int | None = None) -> bytes:
        """Return the ledger's records, of one epoch or all, as a file that `finode receipts verify` reads."""
        response = await self._send("GET", "/finode/v1/receipts/export", query={"epoch": epoch})
        if not response.is_success:
            raise self._refused(response)
        return response.content

    async def rewards(self, epoch: int | None = None) -> RewardsView:
        """Return what every organization paid and earned, in one epoch or in all, in micro-credits."""
        return convert(await self._request("GET", "/finode/v1/rewards", query={"epoch": epoch}), RewardsView)

    async def explain(self, organization: str, epoch: int | None = None) -> ExplanationView:
        """Return why an organization (or a peer) has its balance: every amount, with the receipt that it comes from.

        Raises `UnknownRecord` for one that neither paid nor earned anything.
        """
        path = f"/finode/v1/rewards/{quote(organization, safe='')}"
        return convert(await self._request("GET", path, query={"epoch": epoch}), ExplanationView)

    async def feedback(self, session: str, labels: Iterable[int]) -> FeedbackView:
        """Share the true labels (indices of classes, -1 for an input without one) of a session that this node asked.

        Raises `InputError` or `PeerRefused` if the session is unknown, or its votes are not kept any more.
        """
        body = {"session": session, "labels": [int(label) for label in labels]}
        return convert(await self._request("POST", "/finode/v1/feedback", body=body), FeedbackView)

    async def ready(self) -> bool:
        """Whether the daemon answers, listens and has warm workers. Never raises for a daemon that is down."""
        try:
            response = await self._http.get("/v2/health/ready")
        except httpx.HTTPError:
            return False
        return response.status_code == 200

    async def _request(
        self,
        method: str,
        path: str,
        *,
        query: dict[str, int | None] | None = None,
        body: dict[str, Any] | None = None,
        allow_missing: bool = False,
    ) -> dict[str, Any]:
        response = await self._send(method, path, query=query, body=body)
        if response.is_success or (allow_missing and response.status_code == 404):
            return self._object(response.content)
        raise self._refused(response)

    async def _send(
        self,
        method: str,
        path: str,
        *,
        query: dict[str, int | None] | None = None,
        body: dict[str, Any] | None = None,
    ) -> httpx.Response:
        given = {name: value for name, value in (query or {}).items() if value is not None}
        try:
            return await self._http.request(method, path, params=given, json=body)
        except httpx.HTTPError as error:
            raise self._unavailable(error) from None

    async def _lines(self, path: str, body: dict[str, Any]) -> AsyncGenerator[dict[str, Any]]:
        timeout = httpx.Timeout(SILENCE_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
        try:
            async with self._http.stream("POST", path, json=body, timeout=timeout) as response:
                if not response.is_success:
                    await response.aread()
                    raise self._refused(response)
                async for line in response.aiter_lines():
                    yield self._object(line)
        except httpx.HTTPError as error:
            raise self._unavailable(error) from None

    def _unavailable(self, error: httpx.HTTPError) -> DaemonUnavailable:
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            return DaemonUnavailable(
                f"no daemon answers at {self.url}", hint="start it with `finode start`, or name its --home"
            )
        if isinstance(error, httpx.TimeoutException):
            return DaemonUnavailable(f"the daemon at {self.url} does not answer", hint="see its log")
        return DaemonUnavailable(f"the connection to the daemon at {self.url} was lost", hint="see its log")

    def _refused(self, response: httpx.Response) -> FinodeError:
        found = self._object(response.content)
        if "code" in found:
            return _error_of(found)
        message = found.get("error", f"the daemon at {self.url} answered with status {response.status_code}")
        if response.status_code == 401:
            return ConfigError(str(message), hint="set FINODE_API__TOKEN, or pass token=")
        return FinodeError(str(message))

    def _object(self, data: bytes | str) -> dict[str, Any]:
        try:
            found = json.loads(data)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise DaemonUnavailable(f"what answers at {self.url} is not a finode daemon", hint="check the address")
        return found


def _error_of(found: dict[str, Any]) -> FinodeError:
    """Return the exception that the daemon raised, with all that it said of it."""
    cls = error_class(str(found.get("code", "")))
    message, hint = str(found.get("message", "")), str(found.get("hint", ""))
    peer = str(found.get("peer", ""))
    if issubclass(cls, SessionAborted):
        number = found.get("round")
        return cls(
            message,
            culprit=str(found.get("culprit", "")),
            round=number if isinstance(number, int) else -1,
            hint=hint,
        )
    if issubclass(cls, PeerRefused):
        return cls(message, peer=peer, reason=str(found.get("reason", "")), hint=hint)
    if issubclass(cls, RemoteError):
        return cls(message, peer=peer, hint=hint)
    return cls(message, hint=hint)
