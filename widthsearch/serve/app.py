"""The server: read only, for this machine alone, or beyond it for whoever has the token."""

from __future__ import annotations

import hmac
import ipaddress
import json
import re
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import optuna
import uvicorn
from sqlalchemy.exc import SQLAlchemyError
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from widthsearch.database.checks import reading
from widthsearch.database.connection import Database, reason
from widthsearch.errors import UsageError, describe_error
from widthsearch.report.summary import finite
from widthsearch.report.types.kinds import Summary
from widthsearch.serve.pages import UNREAD, list_page, login_page, message_page
from widthsearch.serve.studies import Studies
from widthsearch.show.browser import POLICY
from widthsearch.show.page import report_page

COOKIE = "widthsearch_token"
PATIENCE_SECONDS = 0.5  # that a list of studies waits for those that have changed
REFRESH_SECONDS = 30  # of a list in the browser, and of the report of a study that runs
_HERE = ["127.0.0.1", "localhost", "::1", "[::1]"]
_LARGEST_FORM = 4096  # bytes
#: Nothing is loaded from anywhere, and no other page may frame or post to one of these.
_HEADERS = {
    "Content-Security-Policy": f"{POLICY}; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


def serve(database: Database, host: str, port: int, token: str | None, say: Callable[[str], None]) -> None:
    """Serve until Ctrl-C; ``say`` gets the address once it listens (port 0: any free one).

    Raises :class:`UsageError` for a host beyond this machine without a ``token``, and if the port cannot be
    used.
    """
    if token is None and not _is_here(host):
        raise UsageError(
            f"--host {host!r}: beyond this machine only with a token: give --token-file FILE (make one: "
            "openssl rand -hex 16 > FILE)"
        )
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise UsageError(f"--host {host} --port {port}: {describe_error(error)}") from None
    shown = f"[{host}]" if ":" in host else host
    with listening:
        say(f"http://{shown}:{listening.getsockname()[1]} (Ctrl-C ends it)")
        config = uvicorn.Config(app_of(database, token), log_level="error", server_header=False)
        uvicorn.Server(config).run(sockets=[listening])


def _is_here(host: str) -> bool:
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def token_in(file: str) -> str:
    """The token in a file; :class:`UsageError` for a file or token that is none."""
    try:
        token = Path(file).read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise UsageError(f"--token-file {file!r:.200}: {describe_error(error)}") from None
    if not re.fullmatch(r"[\w.~+/=-]{16,}", token, re.ASCII):
        raise UsageError(
            f"--token-file {file!r:.200}: a token is 16 letters or digits at least, e.g. openssl rand -hex 16"
        )
    return token


def app_of(database: Database, token: str | None) -> Starlette:
    """The application, for any ASGI server."""
    answers = _Answers(database, token)
    routes = [
        Route("/", answers.index),
        Route("/studies/{name:path}", answers.study),
        Route("/api/studies", answers.api_index),
        Route("/api/studies/{name:path}", answers.api_study),
        Route("/health", answers.health),
        *([Route("/login", answers.login, methods=["POST"])] if token is not None else []),
    ]
    middleware = [Middleware(_Guard, token=token)]
    if token is None:  # a page whose name was bent to 127.0.0.1 is told by its Host
        middleware.append(Middleware(TrustedHostMiddleware, allowed_hosts=_HERE, www_redirect=False))
    handlers: dict[Any, Any] = {UsageError: _refused, SQLAlchemyError: _refused, _NoSuchStudyError: _refused}
    return Starlette(routes=routes, middleware=middleware, exception_handlers=handlers)


class _Answers:
    """What each route answers with."""

    def __init__(self, database: Database, token: str | None) -> None:
        self._database, self._token = database, token
        self._studies = Studies(database)
        self._studies.look(0.0)  # begins to read

    def _wanted(self, request: Request) -> Summary:
        name = request.path_params["name"]
        summary = None
        while summary is None:  # at first it is being read
            found = self._studies.look(PATIENCE_SECONDS)
            if name not in found:
                raise _NoSuchStudyError(f"no study {name!r}")
            summary = found[name]
        if isinstance(summary, UsageError):
            raise summary
        return summary

    def index(self, request: Request) -> Response:
        found = self._studies.look(PATIENCE_SECONDS)
        page = list_page(self._database.shown, found).encode(errors="backslashreplace")
        seconds = 1 if None in found.values() else REFRESH_SECONDS
        return HTMLResponse(page, headers={"Refresh": str(seconds)})

    def study(self, request: Request) -> Response:
        summary = self._wanted(request)
        with reading(request.path_params["name"]):
            page = report_page(summary, self._database)
        again = {"Refresh": str(REFRESH_SECONDS)} if summary["status"] == "running" else {}
        return HTMLResponse(page.encode(errors="backslashreplace"), headers=again)

    def api_index(self, request: Request) -> Response:
        found = self._studies.look(PATIENCE_SECONDS)
        return JSONResponse([_brief(name, summary) for name, summary in found.items()])

    def api_study(self, request: Request) -> Response:
        text = json.dumps(finite(self._wanted(request)), allow_nan=False)
        return Response(text, media_type="application/json")

    def health(self, request: Request) -> Response:
        assert isinstance(self._database.storage, optuna.storages.RDBStorage)
        with self._database.storage.engine.connect() as connection:
            connection.exec_driver_sql("SELECT 1")
        return PlainTextResponse("ok")

    async def login(self, request: Request) -> Response:
        form = parse_qs((await _start_of(request)).decode(errors="replace"))
        if not _same(self._token, form.get("token", [""])[0]):
            return HTMLResponse(login_page(refused=True), 401)
        answer = RedirectResponse("/", 303)
        answer.set_cookie(COOKIE, str(self._token), httponly=True, samesite="strict")
        return answer


class _NoSuchStudyError(Exception):
    pass


class _Guard:
    """Lets nobody in without the token, if there is one, and gives every answer its headers."""

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self._app, self._token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = {name.lower() for name, _ in message["headers"]}
                extra = [(k.lower().encode(), v.encode()) for k, v in _HEADERS.items()]
                message["headers"] = [*message["headers"], *(pair for pair in extra if pair[0] not in own)]
            await send(message)

        if scope["type"] != "http" or scope["path"] in ("/health", "/login") or self._may(Request(scope)):
            await self._app(scope, receive, sending)
        elif scope["path"].startswith("/api/"):
            header = {"WWW-Authenticate": "Bearer"}
            refusal = JSONResponse({"error": "give the token: Authorization: Bearer ..."}, 401, header)
            await refusal(scope, receive, sending)
        else:
            await HTMLResponse(login_page(refused=False), 401)(scope, receive, sending)

    def _may(self, request: Request) -> bool:
        given = request.headers.get("authorization", "")
        if given.lower().startswith("bearer "):
            return _same(self._token, given[7:].strip())
        return self._token is None or _same(self._token, request.cookies.get(COOKIE, ""))


def _same(token: str | None, given: str) -> bool:
    """Compared in a time that does not tell how much of it is right."""
    return token is None or hmac.compare_digest(token.encode(), given.encode(errors="replace"))


async def _start_of(request: Request) -> bytes:
    """The body, as far as a form with a token is long."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > _LARGEST_FORM:
            return b""
    return body


def _brief(name: str, summary: Summary | UsageError | None) -> dict[str, Any]:
    """A study in a list of them."""
    if summary is None:
        return {"name": name, "error": UNREAD}
    if isinstance(summary, UsageError):
        return {"name": name, "error": str(summary)}
    parts: dict[str, Any] = dict(summary)
    wanted = ("kind", "status", "decision", "progress", "last_change")
    return {"name": name, **{key: finite(parts.get(key)) for key in wanted}}


def _refused(request: Request, error: Exception) -> Response:
    """What went wrong, in one line."""
    code = 404 if isinstance(error, _NoSuchStudyError) else 503 if isinstance(error, SQLAlchemyError) else 500
    says = f"the database does not answer: {reason(error)}" if code == 503 else str(error)
    if request.url.path.startswith("/api/"):
        return JSONResponse({"error": says}, code)
    return HTMLResponse(message_page(says).encode(errors="backslashreplace"), code)
