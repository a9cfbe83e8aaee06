"""The routes, and what stands before them: the token, the origin, limits of size and time."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import hmac
import importlib.resources
import json
import logging
import urllib.parse
from collections.abc import Awaitable
from typing import Any, Callable, Optional

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from gpt_neo.config.network import attention_layers, kinds_of
from gpt_neo.serving.answers import error_json, safe_name
from gpt_neo.serving.attention_maps import picture_json
from gpt_neo.serving.chat import parse_chat
from gpt_neo.serving.completions import Completions, failure_text, unless_gone
from gpt_neo.serving.engine import Engine
from gpt_neo.serving.metrics import Metrics
from gpt_neo.serving.requests import (
    RequestError,
    Served,
    checked_ids,
    decode,
    parse_completion,
    parse_json,
    parse_picture,
    parse_text_or_ids,
)
from gpt_neo.serving.run import is_loopback

LOG = logging.getLogger("gpt_neo.serving")
# Nothing is loaded from elsewhere, and no other page may hold this one.
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
DROPPED = 8  # times the largest body
PAGE_FILES = {"": "text/html", "page.css": "text/css", "page.js": "text/javascript", "attention.js": "text/javascript"}


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one client, or all of them, may ask for.

    body: bytes. body_seconds: until a body is there. seconds: until an answer is. waiting: answers that may wait for a
    row. key: the bearer token, None for no need of one.
    """

    body: int = 1 << 20
    body_seconds: float = 20.0
    seconds: float = 600.0
    waiting: int = 256
    key: Optional[str] = None


class Server:
    """The routes over one engine."""

    def __init__(self, engine: Engine, served: Served, limits: Limits, metrics: Metrics, created: int) -> None:
        self.engine, self.served, self.limits, self.metrics = engine, served, limits, metrics
        self.created = created
        self.completions = Completions(engine, served, metrics, limits.seconds, limits.waiting)
        config = engine.decoder.config
        self.heads = [kind.heads(config) for kind in kinds_of(config)]
        eos = served.eos_id
        self.eos_name = None if eos is None else served.tokenizer.backend.id_to_token(eos)
        self.layers = attention_layers(config)

    def app(self) -> Starlette:
        """The ASGI application."""
        routes = [
            ("/v1/completions", self.complete, "POST"),
            ("/v1/chat/completions", self.complete_chat, "POST"),
            ("/v1/models", self.models, "GET"),
            ("/v1/models/{name:path}", self.model, "GET"),
            ("/tokenize", self.tokenize, "POST"),
            ("/detokenize", self.detokenize, "POST"),
            ("/tokenizer_info", self.tokenizer_info, "GET"),
            ("/attention", self.attention, "POST"),
            ("/metrics", self.show_metrics, "GET"),
        ]
        table = [Route(path, self.guarded(path, handler), methods=[method]) for path, handler, method in routes]
        table += [Route(path, self.health) for path in ("/healthz", "/health")]
        table += [Route("/openapi.json", description)]
        table += [Route("/" + name, functools.partial(page_file, name)) for name in PAGE_FILES]
        return Starlette(routes=table, exception_handlers={HTTPException: refuse_route})

    def guarded(self, path: str, handler: Callable[[Request], Awaitable[Response]]) -> Callable:
        """Check who asks, and answer mistakes as the API does."""

        async def call(request: Request) -> Response:
            headers = {}
            try:
                self.check_sender(request)
                response = await handler(request)
            except RequestError as error:
                if error.status == 429:
                    headers = {"Retry-After": str(self.completions.retry_after())}
                if error.status == 401:
                    headers = {"WWW-Authenticate": "Bearer"}
                body = error_json(error.message, error.status, error.field, error.code)
                response = JSONResponse(body, error.status, headers)
            except ClientDisconnect:
                self.metrics.requests.labels(path, "gone").inc()
                return Response()  # which nobody reads
            except asyncio.TimeoutError as error:
                text = failure_text(error, self.limits.seconds)
                response = JSONResponse(error_json(text, 504), 504)
            except Exception:  # the other requests go on
                LOG.exception("%s failed", path)
                response = JSONResponse(error_json("the server failed; its log says why", 500), 500)
            self.metrics.requests.labels(path, str(response.status_code)).inc()
            return response

        return call

    def check_sender(self, request: Request) -> None:
        """The bearer token, where there is one; and no page of another site, which a browser would let in.

        A page can also make the name of its own site lead to this machine: so without a token only names of this
        machine are answered.
        """
        here, origin = request.headers.get("host", ""), request.headers.get("origin")
        try:
            host = urllib.parse.urlsplit("//" + here).hostname or ""
            site = urllib.parse.urlsplit(origin).netloc if origin else here
        except ValueError as error:
            raise RequestError(f"the header Host or Origin is no address: {error}") from error
        if self.limits.key is None and not is_loopback(host):
            raise RequestError(f"the header Host names {host!r}; without a token it has to be this machine", status=403)
        if site != here:
            raise RequestError(f"the page {origin} is not of this server", status=403)
        key = self.limits.key
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        sent = scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), (key or "").encode())
        if key is not None and not sent:
            raise RequestError("the header Authorization has to be Bearer and the server's token", status=401)

    async def body(self, request: Request) -> dict:
        """The JSON object that was sent.

        A client that is still sending when it is refused finds a closed connection and no answer. So what is too long
        is read to its end, and dropped, unless it is longer than DROPPED times the limit.
        """
        limit = self.limits.body
        length = request.headers.get("content-length", "0")
        too_long = RequestError(f"the body has more than the {limit} bytes that are allowed", status=413)
        if length.isdigit() and int(length) > DROPPED * limit:
            raise too_long

        async def receive() -> bytes:
            found, size = bytearray(), 0
            async for part in request.stream():
                size += len(part)
                if size <= limit:
                    found += part
                elif size > DROPPED * limit:
                    break
            if size > limit:
                raise too_long
            return bytes(found)

        try:
            return parse_json(await asyncio.wait_for(receive(), self.limits.body_seconds))
        except asyncio.TimeoutError as error:
            raise RequestError(f"no whole body within {self.limits.body_seconds:g} s", status=408) from error

    async def complete(self, request: Request) -> Response:
        """POST /v1/completions."""
        return await self.completions.answer(request, await self.body(request), parse_completion)

    async def complete_chat(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        return await self.completions.answer(request, await self.body(request), parse_chat)

    def model_json(self) -> dict:
        """The model as /v1/models lists it, with what the page needs to know."""
        kinds = self.engine.decoder.config.attention_types
        layers = [{"layer": i, "kind": kinds[i], "heads": self.heads[i]} for i in self.layers]
        return {
            "id": self.served.name,
            "object": "model",
            "created": self.created,
            "owned_by": "local",
            "max_model_len": self.served.length,
            "layers": layers,
            "picture_tokens": self.engine.decoder.picture,
        }

    async def models(self, request: Request) -> Response:
        """GET /v1/models."""
        return JSONResponse({"object": "list", "data": [self.model_json()]})

    async def model(self, request: Request) -> Response:
        """GET /v1/models/NAME."""
        if request.path_params["name"] != self.served.name:
            raise RequestError(f"no such model; this server has {self.served.name!r}", "model", 404, "model_not_found")
        return JSONResponse(self.model_json())

    async def tokenize(self, request: Request) -> Response:
        """POST /tokenize {prompt} -> {tokens}.

        The name of the end-of-text token alone is its id, which the evaluation harness finds out in this way; within a
        text it is text, as in training.
        """
        body = await self.body(request)
        ids: list
        if self.eos_name is not None and body.get("prompt") == self.eos_name:
            ids = [self.served.eos_id]
        else:
            ids = await run_in_threadpool(parse_text_or_ids, {"prompt": body.get("prompt")}, self.served)
        return JSONResponse({"tokens": ids, "count": len(ids), "max_model_len": self.served.length})

    async def detokenize(self, request: Request) -> Response:
        """POST /detokenize {tokens} -> {prompt}."""
        body = await self.body(request)
        ids = checked_ids(body.get("tokens"), "tokens", self.served.n_vocab)
        return JSONResponse({"prompt": await run_in_threadpool(decode, ids, self.served)})

    async def tokenizer_info(self, request: Request) -> Response:
        """GET /tokenizer_info: the names of the special tokens, as the evaluation harness asks for them."""
        name, served = self.eos_name, self.served
        return JSONResponse(
            {
                "eos_token": name,
                "bos_token": name,
                "pad_token": name,
                "chat_template": served.chat.source if served.chat else None,
                "eos_token_id": served.eos_id,
                "vocab_size": served.tokenizer.n_vocab,
            }
        )

    async def attention(self, request: Request) -> Response:
        """POST /attention {prompt or tokens, layer, head}: the weights of that head, see `picture`."""
        body = await self.body(request)
        decoder = self.engine.decoder
        ids, layer, head = await run_in_threadpool(
            parse_picture, body, self.served, self.layers, self.heads, decoder.picture
        )
        loop = asyncio.get_running_loop()
        told: asyncio.Future = loop.create_future()

        def tell(found: Any) -> None:
            loop.call_soon_threadsafe(lambda: None if told.done() else told.set_result(found))

        self.completions.take_places(1)
        try:
            self.engine.picture(ids, layer, tell, wanted=lambda: not told.done())
            found = await unless_gone(request, asyncio.wait_for(told, self.limits.seconds))
        finally:
            told.cancel()
            self.completions.open -= 1
        if isinstance(found, BaseException):
            raise found
        names = [safe_name(self.served.tokenizer, i) for i in ids]
        kind = decoder.config.attention_types[layer]
        return JSONResponse(await run_in_threadpool(picture_json, kind, found, layer, head, decoder.config, names))

    async def show_metrics(self, request: Request) -> Response:
        """GET /metrics."""
        self.metrics.busy.set(len(self.engine.rows))
        self.metrics.waiting.set(len(self.engine.waiting))
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4")

    async def health(self, request: Request) -> Response:
        """GET /healthz: 503 once no answer can come any more."""
        well = not (self.engine.ended or self.engine.stopping)
        return JSONResponse({"status": "ok" if well else "failed"}, 200 if well else 503)


async def refuse_route(request: Request, error: Exception) -> Response:
    """No such path, or not with this method."""
    assert isinstance(error, HTTPException)
    return Response(
        json.dumps(error_json(f"{request.method} {request.url.path}: {error.detail}", error.status_code)),
        error.status_code,
        dict(error.headers or {}),
        "application/json",
    )


async def description(request: Request) -> Response:
    """GET /openapi.json: the routes and their fields."""
    text = await run_in_threadpool((importlib.resources.files("gpt_neo.serving") / "openapi.json").read_bytes)
    return Response(text, media_type="application/json")


async def page_file(name: str, request: Request) -> Response:
    """A file of the page."""
    folder = importlib.resources.files("gpt_neo.serving") / "page"
    text = await run_in_threadpool((folder / (name or "page.html")).read_bytes)
    return Response(text, headers=PAGE_HEADERS, media_type=PAGE_FILES[name])
