"""The server engine against real HTTP servers on loopback, well and unwell."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from completions_server import serving
from tokenizers import decoders, processors
from tokenizers_for_tests import llama3_like, metaspace
from transformers import AutoTokenizer

from data_prep.errors import UserError
from data_prep.records import AugmentedText, Pair
from data_prep.settings import SynthesizeSettings
from data_prep.synthesis.engines import make_engine
from data_prep.synthesis.engines import server as server_module
from data_prep.synthesis.engines.contract import Completion, Request
from data_prep.synthesis.engines.server import ServerEngine, base_url, prompt_text
from data_prep.synthesis.wire import load_wire

ASK = Request([5, 6, 7], "a text", 2**63 + 11)


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client's back-off in milliseconds; how often it tries is what is tested."""
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.001)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


def run(urls: Sequence[str], requests: Sequence[Request] = (ASK,), **values: Any) -> list[Completion]:
    """Completions of requests made side by side, each in a call of its own."""

    async def all_of_them() -> list[Completion]:
        engine = ServerEngine(urls, "m", **{"max_new_tokens": 9, "temperature": 0.0, "retries": 2, **values})
        try:
            done = await asyncio.gather(*(engine.generate([request]) for request in requests))
        finally:
            await engine.close()
        return [completion for (completion,) in done]

    return asyncio.run(all_of_them())


def test_the_client_does_not_look_at_each_id_of_a_prompt():
    """It did, at 17 us each: a process could send prompts of 3,000 ids 18 times a second."""
    called = 0

    def count(_frame: object, event: str, _argument: object) -> None:
        nonlocal called
        called += event == "call"

    prompt = list(range(5000))
    with serving() as server:
        run([server.url])  # what is imported and built at the first call
        sys.setprofile(count)
        try:
            run([server.url], [Request(prompt, "a text", 1)])
        finally:
            sys.setprofile(None)
    assert server.bodies[-1]["prompt"] == prompt and called < len(prompt)


def one_after_another(urls: Sequence[str], count: int, **values: Any) -> list[Completion]:
    async def in_turn() -> list[Completion]:
        engine = ServerEngine(urls, "m", **{"max_new_tokens": 9, "temperature": 0.0, "retries": 0, **values})
        done = [(await engine.generate([ASK]))[0] for _ in range(count)]
        await engine.close()
        return done

    return asyncio.run(in_turn())


def unused_url() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{listener.getsockname()[1]}/v1"


def test_what_is_sent_and_what_comes_back():
    with serving() as server:
        (done,) = run([server.url], stop=["</s>"], extra_body={"top_p": 0.5}, api_key="k")
        (sampled,) = run([server.url.removesuffix("/v1")], temperature=0.7)
    assert done == Completion("word 5", "stop", 3, 7) == sampled
    sent = {"model": "m", "prompt": [5, 6, 7], "max_tokens": 9, "top_p": 1.0}
    assert server.bodies[0] == {**sent, "temperature": 0.0, "stop": ["</s>"], "top_p": 0.5}
    assert server.bodies[1] == {**sent, "temperature": 0.7, "seed": ASK.seed & 0x7FFFFFFF}
    assert server.keys == ["Bearer k", "Bearer none"]


def test_further_fields_come_from_the_settings_and_none_that_a_request_has_already(tmp_path: Path):
    folder, body = llama3_like(tmp_path), {"top_k": 0, "stop_token_ids": [1, 2], "top_p": 0.5}

    async def ask(**fields: Any) -> None:
        settings = SynthesizeSettings(engine="server", server_urls=(server.url,), server_model="m", server_body=fields)
        engine = make_engine(settings, folder, load_wire(folder))
        await engine.generate([ASK])
        await engine.close()

    with serving() as server:
        asyncio.run(ask())
        asyncio.run(ask(**body))
        with pytest.raises(UserError, match="server_body: 'temperature' is in each request already"):
            asyncio.run(ask(temperature=0.5))
    plain, further = server.bodies
    assert plain["top_p"] == 1.0 and further == {**plain, **body}


@pytest.mark.parametrize(
    ("script", "asked"), [(["busy"], 2), (["broken", "broken"], 3), (["close"], 2), (["busy", "close"], 3)]
)
def test_what_passes_is_tried_again(script: list[str], asked: int):
    with serving(script) as server:
        assert run([server.url])[0].text == "word 5"
    assert len(server.bodies) == asked
    assert all(body == server.bodies[0] for body in server.bodies)


@pytest.mark.parametrize(
    ("behaviour", "words", "asked"),
    [
        ("busy", "too many requests", 3),
        ("broken", "out of memory on rank 3", 3),
        ("refuse", "longer than the context of 8 tokens", 1),
        ("detail", "prompt: not a string", 1),
        ("close", "disconnected|ReadError|RemoteProtocolError", 3),
        ("garbage", "the answer is no JSON", 1),
        ("page", "maintenance", 1),
        ("empty", "the answer is no completion", 1),
        ('reason:"content_filter"', "content_filter", 1),
        ('reason:"abort"', "abort", 1),
        ("reason:null", "None", 1),
        ("bare", "does not count tokens", 1),
    ],
)
def test_what_stays_wrong_is_an_error_in_the_servers_words(behaviour: str, words: str, asked: int):
    with serving(default=behaviour) as server, pytest.raises(UserError, match=words) as caught:
        run([server.url])
    assert len(server.bodies) == asked and server.url in str(caught.value)


def test_a_server_that_hangs_is_tried_again_and_then_told_of():
    with serving(default="hang") as server, pytest.raises(UserError, match="timed out"):
        run([server.url], timeout_seconds=0.1, retries=1)
    assert len(server.bodies) == 2


@pytest.mark.parametrize("timeout", [0.01, 60.0])
def test_a_request_has_one_limit_for_all_its_tries(tmp_path: Path, timeout: float):
    """Of many tries that each time out, and of one that is let hang for long."""
    with serving(default="hang") as first, serving(default="hang") as second:
        settings = SynthesizeSettings(
            engine="server", server_urls=(first.url, second.url), request_timeout=timeout,
            request_retries=100_000, request_limit=0.3,
        )  # fmt: skip
        folder = llama3_like(tmp_path)

        async def asked() -> None:
            engine = make_engine(settings, folder, load_wire(folder))
            try:
                await engine.generate([ASK])
            finally:
                await engine.close()

        with pytest.raises(
            UserError, match=r"servers: no answer within 0\.3 seconds from http://.*request_limit"
        ) as told:
            asyncio.run(asyncio.wait_for(asked(), 30))
    assert first.url in str(told.value) and second.url in str(told.value)
    assert len(first.bodies) + len(second.bodies) == 1 if timeout == 60 else first.bodies or second.bodies


def test_a_completion_cut_off_and_one_without_counts(tmp_path: Path):
    tokenizer = AutoTokenizer.from_pretrained(llama3_like(tmp_path))
    with serving(['reason:"length"', "bare"]) as server:
        first, second = one_after_another([server.url], 2, tokenizer=tokenizer)
    assert (first.finish_reason, first.completion_tokens) == ("length", 7)
    counted = len(tokenizer("word 5", add_special_tokens=False).input_ids)
    assert second == Completion("word 5", "stop", 3, counted + 1)


def test_no_more_under_way_than_allowed_and_no_fewer():
    requests = [Request([number], "", 0) for number in range(12)]

    async def held() -> tuple[int, list[Completion]]:
        engine = ServerEngine([server.url], "m", max_new_tokens=9, temperature=0, concurrency=4)
        work = asyncio.gather(*(engine.generate([request]) for request in requests))
        while server.in_flight < 4:
            await asyncio.sleep(0)
        sent = sum(one.under_way for one in engine._servers)
        server.released.set()
        done = [completion for (completion,) in await work]
        await engine.close()
        return sent, done

    with serving(default="hold") as server:
        sent, done = asyncio.run(asyncio.wait_for(held(), 30))
    assert [completion.text for completion in done] == [f"word {number}" for number in range(12)]
    assert sent == server.most_in_flight == 4


def test_hundreds_are_under_way_at_once():
    """More than the hundred connections that the client's library has by default; none is answered before all came."""
    with serving(together=150) as server:
        done = run([server.url], [ASK] * 150, concurrency=150)
    assert len(done) == 150 == server.most_in_flight


def test_two_servers_share_the_load():
    with serving(together=2) as first, serving(together=2) as second:
        run([first.url, second.url], [ASK] * 8, concurrency=4)
    assert len(first.bodies) + len(second.bodies) == 8
    assert first.most_in_flight == second.most_in_flight == 2


def test_a_chain_stays_with_its_server_until_that_is_much_busier(monkeypatch: pytest.MonkeyPatch):
    chains = [Request([chain, step], "", 0, group=chain) for chain in (0, 1, 3) for step in range(3)]
    with serving() as first, serving() as second:
        run([first.url, second.url], chains, concurrency=1)
        assert {body["prompt"][0] for body in first.bodies} == {0}
        assert {body["prompt"][0] for body in second.bodies} == {1, 3}
    monkeypatch.setattr(server_module, "SLACK", 1)
    with serving(together=3) as first, serving(together=1) as second:
        run([first.url, second.url], [Request([0], "", 0, group=0)] * 4, concurrency=4)
    assert (len(first.bodies), len(second.bodies)) == (3, 1)  # 2 and 0, 2 and 1, 3 and 1 under way


def test_a_server_without_connection_rests_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch):
    with serving(default="close") as broken, serving() as well:
        assert len(one_after_another([broken.url, well.url], 5)) == 5
        assert (len(broken.bodies), len(well.bodies)) == (1, 5)
        monkeypatch.setattr(server_module, "REST_SECONDS", 0.0)
        one_after_another([broken.url, well.url], 5)
    assert (len(broken.bodies), len(well.bodies)) == (6, 10)


def test_a_server_that_is_back_gets_requests_again(monkeypatch: pytest.MonkeyPatch):
    """With both resting, a request goes to one all the same; its answer ends the rest."""
    with serving(["close"]) as first, serving(["close"]) as second:
        with pytest.raises(UserError, match="none answered"):
            one_after_another([first.url, second.url], 1)
        assert len(one_after_another([first.url, second.url], 3)) == 3
    assert len(first.bodies) + len(second.bodies) == 5


def test_a_request_that_one_server_cannot_answer_is_tried_at_the_next():
    with serving(default="broken") as broken, serving() as well:
        assert run([broken.url, well.url], retries=0)[0].text == "word 5"
    assert (len(broken.bodies), len(well.bodies)) == (1, 1)


def test_all_down_is_one_error_that_names_them():
    urls = [unused_url(), unused_url()]
    with pytest.raises(UserError, match=r"none answered.*; start them, or mend the addresses") as caught:
        run(urls, retries=1)
    assert all(url in str(caught.value) for url in urls) and "\n" not in str(caught.value)


def test_identity_is_of_the_completion_not_of_the_address():
    def identity(url: str = "http://a/v1", model: str = "m", **values: Any) -> Any:
        return ServerEngine([url], model, **{"max_new_tokens": 9, "temperature": 0.0, **values}).identity

    base = identity()
    assert base == identity("http://b:9/v1", concurrency=3, retries=1, api_key="k", timeout_seconds=5)
    changes: list[dict[str, Any]] = [
        {"model": "n"}, {"max_new_tokens": 8}, {"temperature": 1.0}, {"stop": ["x"]}, {"extra_body": {"top_k": 1}}
    ]  # fmt: skip
    assert all(identity(**change) != base for change in changes)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("http://a:1", "http://a:1/v1"),
        ("http://a:1/", "http://a:1/v1"),
        ("https://a/v1/", "https://a/v1"),
        ("http://a/v1/completions", "http://a/v1"),
        ("http://a/proxy/v2", "http://a/proxy/v2"),
    ],
)
def test_addresses(given: str, expected: str):
    assert base_url(given) == expected


@pytest.mark.parametrize("urls", [[], ["localhost:8000"], ["http://"], ["ftp://a"]])
def test_wrong_addresses(urls: list[str]):
    with pytest.raises(UserError, match="http://127"):
        run(urls)


@pytest.mark.parametrize("make", [llama3_like, metaspace])
@pytest.mark.parametrize("adds_bos", [True, False])
def test_as_text_the_server_sees_the_same_ids(make: Any, adds_bos: bool, tmp_path: Path):
    """A server that puts BOS before a text, and one that does not, must both see it once before each example."""
    folder = make(tmp_path)
    tokenizer, wire = AutoTokenizer.from_pretrained(folder), load_wire(folder)
    if make is metaspace:
        tokenizer.backend_tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
    if not adds_bos:
        tokenizer.backend_tokenizer.post_processor = processors.Sequence([])
    shot = AugmentedText("d", "The cell divides. Zwölf Deiche; 数据.", (Pair("What divides?", "The cell"),))
    prompt = [*wire.example(shot), *wire.opening("and each half of it <QUE> grows again.")]
    text = prompt_text(tokenizer, prompt)
    assert text.startswith("<|begin|>") is not adds_bos
    assert tokenizer(text).input_ids == prompt
    with serving() as server:
        run([server.url], [Request(prompt, "", 0)], prompt_form="text", tokenizer=tokenizer)
    assert server.bodies[0]["prompt"] == text


def test_a_tokenizer_that_does_not_spell_its_text_is_not_trusted_with_it(tmp_path: Path):
    folder = metaspace(tmp_path)
    tokenizer, wire = AutoTokenizer.from_pretrained(folder), load_wire(folder)  # without a decoder: blanks between all
    with pytest.raises(UserError, match="other words"):
        prompt_text(tokenizer, wire.opening("The cell divides"))


def test_a_text_that_spells_a_special_token_is_not_sent_as_text(tmp_path: Path):
    folder = llama3_like(tmp_path)
    tokenizer, wire = AutoTokenizer.from_pretrained(folder), load_wire(folder)
    with pytest.raises(UserError, match="other special ids"):
        prompt_text(tokenizer, wire.opening("it ends here: <|end|> and begins"))
    with pytest.raises(UserError, match="needs a tokenizer"):
        run(["http://a"], prompt_form="text")


def test_without_the_client_the_import_is_free_and_the_error_says_what_to_install():
    code = (
        "import sys; sys.modules['openai'] = None; from data_prep.synthesis.engines.server import ServerEngine\n"
        "try: ServerEngine(['http://a'], 'm', max_new_tokens=1, temperature=0)\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "UserError" in done.stdout and "pip install" in done.stdout
