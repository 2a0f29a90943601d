"""The engine of a fleet: any OpenAI-compatible completions endpoint, several of them too.

Connections, time-outs, back-off and Retry-After are the `openai` client's.  The requests of a chain go to one server,
which has their beginning in its cache, unless it has many more under way than another; others go to the server with
the least.  One that cannot be reached is rested: it gets a request again when its rest is over or nobody else is left.
A request that a server could not answer, its retries used up, is tried at the others.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal, Protocol
from urllib.parse import urlsplit

from data_prep.errors import UserError
from data_prep.synthesis.engines.contract import Completion, Request

REST_SECONDS = 30.0
CONNECT_SECONDS = 10.0
# Seeds above this are refused by servers that keep them in 32 bits, with a sign.
LARGEST_SEED = 2**31 - 1
# What the client asks for by name; the true values are in its `extra_body`, of which it does not look at each id.
_TAKEN_AS_IT_IS: Mapping[str, Any] = {"model": "", "prompt": ""}
OURS = ("model", "prompt", "max_tokens", "temperature", "seed", "n", "stream")
SAMPLES_OF_ALL: Mapping[str, Any] = {"top_p": 1.0}
"""Named in each request, as every server knows it: else a server's own default, or that of the model's files, holds."""
# More requests under way than the least busy server has: a chain then goes there, and begins without a cache.
SLACK = 8


class Tokenizer(Protocol):
    """What is asked of a tokenizer of `transformers`."""

    bos_token_id: int | None
    all_special_ids: list[int]

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool, clean_up_tokenization_spaces: bool) -> str:
        """The text of ids."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Ids of a text; what spells a special token becomes it."""


@dataclass
class _Server:
    """One endpoint: its address, its client, and how it fares."""

    url: str
    client: Any = None
    under_way: int = 0
    rested_until: float = 0.0

    def rest(self) -> None:
        self.rested_until = time.monotonic() + REST_SECONDS


class ServerEngine:
    """Completions of an OpenAI-compatible server, or of several that serve the same model.

    Args:
        urls: base addresses, such as `http://127.0.0.1:8000/v1`; `/v1` is added to one without a path.
        model: the name under which the servers know the model.
        temperature: 0 is greedy; else each request is sampled from its own seed.
        timeout_seconds: how long one try of a request may last [seconds].
        retries: tries of a request at one server after the first.
        limit_seconds: how long a request may take, all its tries at all servers together [seconds].
        api_key: sent as the bearer token; a server of one's own asks for none.
        prompt_form: "tokens" sends ids; "text" is for servers that take none, and needs `tokenizer`.
        stop: strings that end a completion, as the server understands them.
        tokenizer: counts completion tokens where the server does not.
        extra_body: further fields of a request (`top_k`, `stop_token_ids`, ...); an identity holds them.

    Raises:
        UserError: no address or a wrong one, no `openai` package, text asked for without a tokenizer, or a further
            field that a request has anyway.
    """

    batch_size = 1

    def __init__(
        self,
        urls: Sequence[str],
        model: str,
        *,
        max_new_tokens: int,
        temperature: float,
        concurrency: int = 256,
        timeout_seconds: float = 600,
        retries: int = 5,
        limit_seconds: float = 1800,
        api_key: str | None = None,
        prompt_form: Literal["tokens", "text"] = "tokens",
        stop: Sequence[str] = (),
        tokenizer: Tokenizer | None = None,
        extra_body: Mapping[str, Any] | None = None,
    ) -> None:
        if not urls:
            raise UserError("urls", "no server is given", "name at least one, such as http://127.0.0.1:8000/v1")
        if prompt_form == "text" and tokenizer is None:
            raise UserError("prompt_form", "'text' needs a tokenizer", "give the model's, or send 'tokens'")
        self.concurrency = concurrency
        self.tokenizer = tokenizer
        self.prompt_form = prompt_form
        self.max_new_tokens, self.temperature, self.stop = max_new_tokens, temperature, list(stop)
        self.extra_body = full_body(extra_body or {})
        self.model = model
        self._limit_seconds = limit_seconds
        self._room = asyncio.Semaphore(concurrency)
        self._openai = _import_openai()
        self._servers = [_Server(url) for url in dict.fromkeys(map(base_url, urls))]
        for server in self._servers:
            server.client = self._client(server, api_key, timeout_seconds, retries)

    @property
    def identity(self) -> Mapping[str, Any]:
        """Not the addresses: where a completion was made does not change it."""
        return {
            "engine": "server",
            "model": self.model,
            "prompt_form": self.prompt_form,
            "max_new_tokens": self.max_new_tokens,
            "temperature": self.temperature,
            "stop": self.stop,
            "extra_body": self.extra_body,
        }

    async def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """One completion a request, in their order.

        Raises:
            UserError: no server answered, or not in time; one refused the request, or ended it for another reason than
                "stop" or "length"; always with the server's address and words.
        """
        return list(await asyncio.gather(*map(self._bounded, requests)))

    async def close(self) -> None:
        """Closes the connections."""
        for server in self._servers:
            await server.client.close()

    def _client(self, server: _Server, api_key: str | None, timeout_seconds: float, retries: int) -> Any:
        """A client that rests its server at the first failure, while its own retries go on."""
        base = self._openai.DefaultAioHttpClient

        class Watched(base):  # type: ignore[misc, valid-type]
            async def send(self, *args: Any, **options: Any) -> Any:
                try:
                    response = await super().send(*args, **options)
                except Exception:
                    server.rest()
                    raise
                server.rested_until = 0.0
                return response

        timeout = self._openai.Timeout(timeout_seconds, connect=min(timeout_seconds, CONNECT_SECONDS))
        # Over aiohttp: httpx' own pool looks at all connections at each request, which takes 30 ms where it has 1,000.
        limits = type(self._openai.DEFAULT_CONNECTION_LIMITS)(max_connections=self.concurrency)
        return self._openai.AsyncOpenAI(
            base_url=server.url,
            api_key=api_key or "none",
            max_retries=retries,
            timeout=timeout,
            http_client=Watched(timeout=timeout, limits=limits),
        )

    async def _bounded(self, request: Request) -> Completion:
        """One request, when there is room for it; its time counts from then on."""
        failed: dict[str, str] = {}
        async with self._room:
            try:
                async with asyncio.timeout(self._limit_seconds):
                    return await self._complete(request, failed)
            except TimeoutError as error:
                tried = "".join(f"; {url} ({words})" for url, words in failed.items())
                problem = f"no answer within {self._limit_seconds:g} seconds from {self._addresses()}{tried}"
                mend = "look at their load, or give more time by request_limit"
                raise UserError("servers", problem, mend) from error

    def _addresses(self) -> str:
        return ", ".join(server.url for server in self._servers)

    async def _complete(self, request: Request, failed: dict[str, str]) -> Completion:
        """Tries each server until one answers; the `openai` client retries at each.  `failed` is what each said."""
        body = self._body(request)
        while len(failed) < len(self._servers):
            server = self._choose(failed, request.group)
            server.under_way += 1
            try:
                answer = await server.client.completions.create(**_TAKEN_AS_IT_IS, extra_body=body)
            except (
                self._openai.APIConnectionError,
                self._openai.InternalServerError,
                self._openai.RateLimitError,
            ) as e:
                failed[server.url] = _words(e)
            except self._openai.APIError as error:
                raise UserError(server.url, f"the server refused a request: {_words(error)}") from error
            except ValueError as error:
                raise UserError(server.url, f"the answer is no JSON ({error})", "expected a completion") from error
            else:
                return self._completion(server.url, request, answer)
            finally:
                server.under_way -= 1
        told = "; ".join(f"{url} ({words})" for url, words in failed.items())
        raise UserError("servers", f"none answered: {told}", "start them, or mend the addresses")

    def _choose(self, failed: Mapping[str, str], group: int | None) -> _Server:
        """Of those that have not failed this request: awake ones first, the group's own, the least busy."""
        now = time.monotonic()
        left = [server for server in self._servers if server.url not in failed]
        least = min(server.under_way for server in left)
        home = None if group is None else self._servers[group % len(self._servers)]

        def key(server: _Server) -> tuple[bool, bool, int]:
            at_home = server is home and server.under_way <= least + SLACK
            return server.rested_until > now, not at_home, server.under_way

        return min(left, key=key)

    def _body(self, request: Request) -> dict[str, Any]:
        as_text = self.tokenizer if self.prompt_form == "text" else None
        body: dict[str, Any] = {
            "model": self.model,
            "prompt": prompt_text(as_text, request.prompt) if as_text is not None else list(request.prompt),
            "max_tokens": self.max_new_tokens,
            "temperature": self.temperature,
        }
        if self.stop:
            body["stop"] = self.stop
        if self.temperature > 0:
            body["seed"] = request.seed & LARGEST_SEED
        return {**body, **self.extra_body}

    def _completion(self, url: str, request: Request, answer: Any) -> Completion:
        """A checked completion: the client builds its objects from whatever the server sent."""
        choices = getattr(answer, "choices", None)
        choice = choices[0] if isinstance(choices, list) and choices else None
        text, reason = getattr(choice, "text", None), getattr(choice, "finish_reason", None)
        if not isinstance(text, str):
            raise UserError(url, f"the answer is no completion: {str(answer)[:200]!r}", "expected choices[0].text")
        if reason not in ("stop", "length"):
            problem = f"a completion ended for the reason {reason!r}, not 'stop' or 'length': {text[:200]!r}"
            raise UserError(url, problem)
        usage = getattr(answer, "usage", None)
        prompt_tokens = getattr(usage, "prompt_tokens", None) or len(request.prompt)
        completion_tokens = getattr(usage, "completion_tokens", None)
        if completion_tokens is None:
            completion_tokens = self._count(url, text) + (reason == "stop")
        return Completion(text, reason, prompt_tokens, completion_tokens)

    def _count(self, url: str, text: str) -> int:
        if self.tokenizer is None:
            raise UserError(url, "the server does not count tokens (no `usage`)", "give the model's tokenizer")
        return len(self.tokenizer.encode(text, add_special_tokens=False))


def full_body(given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a request that may change what is answered, beside those that it has by its settings.

    Raises:
        UserError: one of those is among what is given.
    """
    for name in given:
        if name in OURS:
            raise UserError("server_body", f"'{name}' is in each request already", "leave it out; settings decide it")
    return {**SAMPLES_OF_ALL, **given}


def base_url(url: str) -> str:
    """An address as the client takes it: without `/completions`, with `/v1` where it has no path.

    Raises:
        UserError: it is not of http or https.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise UserError("urls", f"{url!r} is no address of a server", "expected one such as http://127.0.0.1:8000/v1")
    path = parts.path.rstrip("/").removesuffix("/completions") or "/v1"
    return f"{parts.scheme}://{parts.netloc}{path}"


def prompt_text(tokenizer: Tokenizer, prompt: Sequence[int]) -> str:
    """The prompt as a text that the server's tokenizer turns back into the same special ids and the same words.

    A first BOS is left out when the tokenizer puts one before a text by itself.  Between special ids the tokens may be
    others: those of a prompt's last line ends depend on what follows them.

    Raises:
        UserError: at token level other special ids would stand (raw text that spells one, say), or other text.
    """
    whole = _spell(tokenizer, prompt)
    bos = tokenizer.bos_token_id
    text = whole
    if prompt and prompt[0] == bos and tokenizer.encode("a", add_special_tokens=True)[0] == bos:
        text = whole.removeprefix(_spell(tokenizer, prompt[:1]))
    seen = tokenizer.encode(text, add_special_tokens=True)
    special = set(tokenizer.all_special_ids)
    same_ids = [token for token in seen if token in special] == [token for token in prompt if token in special]
    if not same_ids or _spell(tokenizer, seen) != whole:
        problem = "as text this prompt has other special ids or other words than as tokens"
        raise UserError("prompt_form", problem, "send 'tokens'")
    return text


def _spell(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """The text of ids, the parts between special ids each by itself: a tokenizer that marks the beginning of a text
    marks that of each part too."""
    special = set(tokenizer.all_special_ids)
    parts = [list(part) for _, part in groupby(ids, key=lambda token: token if token in special else None)]
    return "".join(
        tokenizer.decode(part, skip_special_tokens=False, clean_up_tokenization_spaces=False) for part in parts
    )


def _words(error: Any) -> str:
    """What went wrong in the server's words, else in those of the connection."""
    body, cause = getattr(error, "body", None), error.__cause__
    if body is not None:
        told = isinstance(body, Mapping) and isinstance(body.get("message"), str)
        return str(error.message) if told or str(body) in error.message else f"{error.message} {str(body)[:500]}"
    if cause is None:
        return str(error.message)
    return f"{error.message} {type(cause).__name__}: {cause}".removesuffix(": ")


def _import_openai() -> Any:
    """Imported when an engine is made: it takes most of a second."""
    try:
        import aiohttp  # noqa: F401 - the client says it is missing when it is made, in words of its own
        import openai
    except ImportError as error:
        raise UserError(
            "engine server",
            f"the package 'openai[aiohttp]' is missing ({error})",
            "pip install instruction-pretraining[server]",
        ) from error
    return openai
