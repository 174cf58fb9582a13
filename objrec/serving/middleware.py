"""Around every request: its id, its log line, its place in the metrics, and an answer even when we fail."""

from __future__ import annotations

import itertools
import json
import logging
import re
import secrets
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from objrec.serving.state import State

logger = logging.getLogger("objrec.serving")
PATHS = frozenset({"/", "/score", "/livez", "/readyz", "/version", "/metrics", "/docs", "/openapi.json"})
QUIET = frozenset({"/livez", "/readyz", "/metrics"})  # asked every few seconds by machines: counted, not logged
REQUEST_ID = re.compile(rb"[A-Za-z0-9._\-]{1,128}")


class RequestObserver:
    """ASGI middleware. A client's ``X-Request-ID`` is kept where it is harmless, else one is made."""

    def __init__(self, app: ASGIApp, state: State) -> None:
        self.app, self.state = app, state
        self._prefix, self._count = secrets.token_hex(6), itertools.count()  # a system call each would cost 0.2 ms

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        given = next((v for k, v in scope["headers"] if k == b"x-request-id"), b"")
        made_id = f"{self._prefix}-{next(self._count):x}"
        request_id = given.decode() if REQUEST_ID.fullmatch(given) else made_id
        fields: dict[str, Any] = {} if request_id == made_id else {"made_id": made_id}
        scope["state"] = {"request_id": request_id, "made_id": made_id, "fields": fields}
        status = 0

        async def observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id.encode())]
                if status == 401:
                    message["headers"].append((b"www-authenticate", b'Bearer realm="objrec"'))
                if self.state.draining or status in (408, 413):  # an unread body must not become the next request
                    message["headers"].append((b"connection", b"close"))
            await send(message)

        # HEAD is answered as GET; the server's own scope still says HEAD, so that it leaves the body out
        inner = {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope
        prefix = self.state.settings.root_path
        if prefix and scope["path"].startswith(f"{prefix}/"):  # of a proxy that leaves it there
            inner = {**inner, "path": scope["path"][len(prefix) :], "raw_path": b""}
        try:
            await self.app(inner, receive, observed)
        except Exception:
            logger.exception("failed", extra={"fields": {"request_id": request_id}})
            if not status:
                status = 500
                await _send_500(observed, request_id)
        self._observe(
            {**inner, "method": scope["method"]},
            status,
            time.perf_counter() - started,
            {"request_id": request_id, **fields},
        )

    def _observe(self, scope: Scope, status: int, seconds: float, fields: dict[str, Any]) -> None:
        path = "/v2" if scope["path"].startswith("/v2/") else scope["path"] if scope["path"] in PATHS else "other"
        self.state.metrics.observe_request(path, status, seconds)
        if path in QUIET and status < 500:
            return
        client = scope.get("client")
        line = {
            "method": scope["method"],
            "path": scope["path"][:200],
            "status": status,
            "ms": round(1000 * seconds, 2),
            "client": client[0] if client else None,
            **fields,
        }
        logger.info("request", extra={"fields": line})


async def _send_500(send: Send, request_id: str) -> None:
    problem = {"error": "internal", "reason": "this is our fault: the log has more", "request_id": request_id}
    body = json.dumps(problem).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 500, "headers": headers})
    await send({"type": "http.response.body", "body": body})
