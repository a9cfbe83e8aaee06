"""From a request's sequences to its answer: whole, or as a stream of events."""

from __future__ import annotations

import asyncio
import json
import math
import time
import uuid
from collections.abc import AsyncIterator, Coroutine
from typing import Any, Callable, Optional

from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from gpt_neo.errors import DataError
from gpt_neo.serving.answers import ChatChoice, Choice, answer_json, error_json, usage_json
from gpt_neo.serving.detokenizer import Piece
from gpt_neo.serving.engine import Engine, Sequence
from gpt_neo.serving.metrics import Metrics
from gpt_neo.serving.requests import Completion, RequestError, Served, decode


class Completions:
    """Answers /v1/completions and /v1/chat/completions.

    Args:
      seconds: most time for one request.
      limit: answers that may wait for a row.
    """

    def __init__(self, engine: Engine, served: Served, metrics: Metrics, seconds: float, limit: int) -> None:
        self.engine, self.served, self.metrics, self.seconds, self.limit = engine, served, metrics, seconds, limit
        self.open = 0  # answers on their way, waiting ones included
        self.pace = 1.0  # seconds that an answer lately took

    def retry_after(self) -> int:
        """Seconds after which a row should be free, 1 to 60."""
        ahead = max(0, self.open - self.engine.decoder.rows) / self.engine.decoder.rows
        return max(1, min(60, math.ceil(self.pace * ahead / 2)))

    def take_places(self, count: int) -> None:
        """Count answers among those on their way; who takes the places counts them off `open` again.

        Raises:
          RequestError: too many wait already.
        """
        if count > self.engine.decoder.rows + self.limit - self.open:
            raise RequestError(f"{self.open} answers are on their way, and more may not wait", status=429)
        self.open += count

    async def answer(self, request: Request, body: dict, parse: Callable[[dict, Served], Completion]) -> Response:
        """The response to a request's JSON.

        Args:
          parse: `parse_completion` or `parse_chat`.

        Raises:
          RequestError: a field is wrong, or too many wait already.
        """
        completion = await run_in_threadpool(parse, body, self.served)
        exchange = Exchange(completion, self)
        if self.engine.ended or self.engine.stopping:
            return JSONResponse(error_json("no answers can be given any more", 503), 503)
        self.take_places(len(exchange.sequences))
        exchange.submit()
        if completion.stream:
            return EventStream(exchange)
        return await whole(request, exchange)


class Exchange:
    """One request on its way through the engine."""

    def __init__(self, completion: Completion, owner: Completions) -> None:
        self.completion, self.owner, self.served = completion, owner, owner.served
        self.name = f"{'chatcmpl' if completion.chat else 'cmpl'}-{uuid.uuid4().hex}"
        self.created = int(time.time())
        self.pieces: asyncio.Queue = asyncio.Queue()
        self.loop = asyncio.get_running_loop()
        self.began: Optional[float] = None
        self.heard = False  # whether the engine has told anything
        self.choices: list[Choice] = []
        self.sequences: list[Sequence] = []
        c, kind = completion, ChatChoice if completion.chat else Choice
        for prompt, text in zip(c.prompts, c.texts):
            if c.echo and text is None:
                text = decode([i for i in prompt if i < self.served.tokenizer.n_vocab], self.served)
            for sample in range(c.best_of):
                number = len(self.sequences)
                self.choices.append(kind(number, prompt, text or "", c))
                # What is best is decided by log-probabilities.
                logprobs = 0 if c.logprobs is None and c.best_of > c.n else c.logprobs
                self.sequences.append(
                    Sequence(
                        number,
                        prompt,
                        sample,
                        c.max_tokens,
                        c.options,
                        c.stop,
                        self.teller(number),
                        c.adjustments,
                        c.ends,
                        logprobs,
                        score_prompt=c.echo and c.logprobs is not None,
                        request=self.name,
                    )
                )

    def teller(self, number: int) -> Callable[[Any], None]:
        """The way of one sequence's pieces from the engine's thread to the event loop: of a stream at once, of a whole
        answer the first, by which its time is measured, and the others with the last."""
        held: list = []
        mail, whole = self.owner.engine.mail, not self.completion.stream

        def tell(piece: Any) -> None:
            held.append(piece)
            going = isinstance(piece, Piece) and piece.finish is None
            if not (whole and going and self.heard):
                self.heard = True
                mail.put(self.loop, self.pieces, (number, held.copy()))
                held.clear()

        return tell

    def submit(self) -> None:
        """Hand the sequences, whose places are taken, to the engine."""
        self.began = time.monotonic()
        self.owner.engine.submit(self.sequences)

    def end(self) -> None:
        """Free what the exchange holds, whether it has ended or nobody wants it any more."""
        if self.began is None:
            return
        owner, seconds = self.owner, time.monotonic() - self.began
        if all(choice.finish for choice in self.choices):
            owner.metrics.seconds.observe(seconds)
            owner.pace = 0.9 * owner.pace + 0.1 * seconds
        else:
            owner.metrics.cancelled.inc()
        owner.open -= len(self.sequences)
        for sequence in self.sequences:
            sequence.cancel()
        self.began = None

    async def take(self) -> AsyncIterator[tuple]:
        """Yield (choice, text, tokens, offsets) as they come, until every choice has ended.

        Raises:
          TimeoutError, or what the engine failed with.
        """
        left, first, began = len(self.choices), True, self.began
        assert began is not None  # it may be ended while this waits, by a client that leaves
        while left:
            remaining = self.owner.seconds - (time.monotonic() - began)
            if self.pieces.empty():
                number, pieces = await asyncio.wait_for(self.pieces.get(), max(0.0, remaining))
            elif remaining <= 0:
                raise asyncio.TimeoutError  # also of a client that takes what comes too slowly
            else:
                number, pieces = self.pieces.get_nowait()
            if first and not isinstance(pieces[0], BaseException):
                self.owner.metrics.first.observe(time.monotonic() - began)
                first = False
            choice = self.choices[number]
            for piece in pieces:
                if isinstance(piece, BaseException):
                    raise EngineError(str(piece)) from piece
                yield (choice, *choice.add(piece, self.served))
            left -= choice.finish is not None
            if len(pieces) > 1:
                await asyncio.sleep(0)  # many whole answers may be there at once: others have their turn

    def json(self) -> dict:
        """The whole answer: of each prompt's best_of choices the n of the highest mean log-probability."""
        c, found = self.completion, []
        for first in range(0, len(self.choices), c.best_of):
            group = self.choices[first : first + c.best_of]
            if c.best_of > c.n:
                group = sorted(group, key=lambda choice: -choice.mean_logprob())[: c.n]
            found += group
        for index, choice in enumerate(found):
            choice.index = index
        return self.body([choice.json(self.served) for choice in found], self.usage())

    def body(self, choices: list, usage: Optional[dict], streamed: bool = False) -> dict:
        """The body of an answer, or of one event of a stream."""
        kind = "chat.completion" + ".chunk" * streamed if self.completion.chat else "text_completion"
        return answer_json(kind, self.name, self.created, self.served, choices, usage)

    def usage(self) -> dict:
        """Tokens that it took."""
        return usage_json(self.completion, sum(choice.drawn for choice in self.choices))

    async def events(self) -> AsyncIterator[bytes]:
        """The answer as server-sent events; those that are there together are sent together."""
        ready: list[bytes] = []
        try:
            async for choice, text, tokens, offsets in self.take():
                part = choice.part(text, tokens, offsets, self.served)
                ready.append(event(self.body([part], None, streamed=True)))
                if self.pieces.empty():
                    yield b"".join(ready)
                    ready.clear()
            if self.completion.include_usage:
                yield event(self.body([], self.usage(), streamed=True))
            yield b"data: [DONE]\n\n"
        except (asyncio.TimeoutError, EngineError) as error:
            yield b"".join(ready) + event(error_json(failure_text(error, self.owner.seconds), 500))


class EventStream(StreamingResponse):
    """An exchange's events; a client that leaves, even before the first one, frees its rows."""

    def __init__(self, exchange: Exchange) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(exchange.events(), headers=headers, media_type="text/event-stream")
        self.exchange = exchange

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Send them."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.exchange.end()


class EngineError(Exception):
    """An answer was cut off, or the engine ended. Its cause is a DataError where what was asked for cannot be done."""


def event(body: dict) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(body).encode() + b"\n\n"


def failure_text(error: BaseException, seconds: float) -> str:
    """What to tell a client whose answer did not come."""
    late = isinstance(error, asyncio.TimeoutError)
    return f"the answer was not complete within {seconds:g} s" if late else str(error)


async def whole(request: Request, exchange: Exchange) -> Response:
    """The answer in one piece; a client that leaves frees its rows."""

    async def collect() -> None:
        async for _ in exchange.take():
            pass

    try:
        await unless_gone(request, collect())
        return JSONResponse(await run_in_threadpool(exchange.json))
    except (asyncio.TimeoutError, EngineError) as error:
        unmet = 400 if isinstance(error.__cause__, DataError) else 503
        status = 504 if isinstance(error, asyncio.TimeoutError) else unmet
        return JSONResponse(error_json(failure_text(error, exchange.owner.seconds), status), status)
    finally:
        exchange.end()


async def unless_gone(request: Request, work: Coroutine) -> Any:
    """What the work returns; it is cancelled when the client leaves.

    Raises:
      ClientDisconnect: it has left.
    """

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect()
        return await working
    finally:
        working.cancel()
        leaving.cancel()
