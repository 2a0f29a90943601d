"""The vLLM engine, and the server engine before vLLM's own server, with a real model on a CPU.

    tools/vllm_cpu.sh FOLDER; make test-vllm VLLM=FOLDER/bin/python

The oracle is transformers, in this process: greedy completions in float32 of the same prompts.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from data_prep.errors import UserError
from data_prep.fetch import fetch_model
from data_prep.records import AugmentedText, Pair
from data_prep.synthesis.engines.contract import Completion, Request
from data_prep.synthesis.engines.server import ServerEngine
from data_prep.synthesis.wire import load_wire

HERE = Path(__file__).parent
PYTHON = os.environ.get("IPT_VLLM_PYTHON", "")
TOKENS = 16
START_LINES = 2000  # of log, at most, before the server serves

pytestmark = pytest.mark.skipif(not PYTHON, reason="no Python with vLLM: see make test-vllm")


@pytest.fixture(scope="module")
def model() -> Path:
    return fetch_model("smollm2-135m-instruct")


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    """vLLM on a CPU: 1 GiB for keys and values, and nobody told."""
    own = {"PYTHONPATH": str(HERE.parents[1]), "VLLM_CPU_KVCACHE_SPACE": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    return {**os.environ, **own, "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="module")
def prompts(model: Path) -> list[list[int]]:
    """Prompts in the wire format, one of them with a shot, and a few words."""
    wire = load_wire(model)
    shot = AugmentedText("d", "The cat sat on the mat.", (Pair("Where did the cat sit?", "On the mat."),))
    texts = ["Water boils at 100 degrees.", "Der Hund bellt laut im Garten.", "长江是亚洲最长的河流。"]
    openings = [wire.opening(text) for text in texts]
    return [
        *openings,
        [*wire.example(shot), *openings[0]],
        wire.encode("The capital of France is"),
        wire.encode("1, 2, 3,"),
    ]


@pytest.fixture(scope="module")
def expected(model: Path, prompts: list[list[int]]) -> list[Completion]:
    """transformers, a token at a time, each time over the whole sequence: up to a special id or TOKENS."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    oracle = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    completions = []
    for prompt in prompts:
        ids: list[int] = []
        while len(ids) < TOKENS and not (ids and ids[-1] in tokenizer.all_special_ids):
            with torch.inference_mode():
                ids.append(int(oracle(torch.tensor([prompt + ids])).logits[0, -1].argmax()))
        ended = ids[-1] in tokenizer.all_special_ids
        text = tokenizer.decode(ids[:-1] if ended else ids, clean_up_tokenization_spaces=False)
        completions.append(Completion(text, "stop" if ended else "length", len(prompt), len(ids)))
    return completions


@pytest.fixture(scope="module")
def found(model: Path, prompts: list[list[int]], environment: dict[str, str], tmp_path_factory: Any) -> Any:
    folder = tmp_path_factory.mktemp("vllm")
    (folder / "prompts.json").write_text(json.dumps(prompts), encoding="utf-8")
    command = [PYTHON, HERE / "vllm_worker.py", model, folder / "prompts.json", folder / "found.json"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-8000:]
    return json.loads((folder / "found.json").read_text(encoding="utf-8"))


def test_greedy_completions_are_those_of_transformers(found: Any, expected: list[Completion]):
    assert [Completion(**row) for row in found["greedy"]] == expected


def test_requests_side_by_side_are_as_alone(found: Any, expected: list[Completion]):
    assert len(found["many"]) == 40
    assert all(Completion(**row) == expected[place % len(expected)] for place, row in enumerate(found["many"]))


def test_a_prompt_that_goes_on_from_another_is_served_from_the_cache(found: Any):
    """vLLM keeps whole blocks of tokens, 128 or fewer in each."""
    chain = found["chain"]
    assert chain["shared"] - 128 < chain["hits"] <= chain["shared"] and chain["hits"] > 0
    assert chain["second"]["prompt_tokens"] == chain["shared"] + 3


def test_sampling_is_by_the_request_s_seed(found: Any):
    first, again, other = found["sampled"]
    assert first == again != other and first != found["greedy"]


def test_what_is_wrong_is_told_in_vllm_s_words_and_the_engine_goes_on(found: Any, expected: list[Completion]):
    assert "did you mean 'max_num_seqs'" in found["unknown"] and "'dtype' is a setting of its own" in found["ours"]
    assert found["no_model"].startswith("UserError: /no/such/model: vLLM did not start: ")
    assert "600" in found["too_long"] and "512" in found["too_long"]
    assert [Completion(**row) for row in found["after"]] == expected[:1]
    assert found["dead"].startswith("EngineDeadError: EngineCore encountered an issue")


def test_its_identity_is_of_the_model_and_of_what_is_sampled(found: Any):
    identity = found["identity"]
    assert len(identity["model"]) == 32 and identity["dtype"] == "float32"
    assert identity["engine_args"] == {}  # how many at once, and whether compiled, is how it is made


@pytest.fixture(scope="module")
def server_url(model: Path, environment: dict[str, str]) -> Iterator[str]:
    """vLLM's OpenAI-compatible server on loopback."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    options = {
        "--model": model,
        "--served-model-name": "m",
        "--host": "127.0.0.1",
        "--port": port,
        "--dtype": "float32",
    }
    more = {"--max-model-len": 512, "--max-num-seqs": 16}
    listed = [str(word) for option in {**options, **more}.items() for word in option]
    command = [PYTHON, "-m", "vllm.entrypoints.openai.api_server", *listed, "--enforce-eager"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        log = []
        for line, _ in zip(process.stdout, range(START_LINES), strict=False):
            log.append(line)
            if "Application startup complete" in line:
                break
        assert "Application startup complete" in "".join(log), "".join(log)[-8000:]
        yield f"http://127.0.0.1:{port}"
        process.terminate()
        process.communicate()


@pytest.mark.parametrize("prompt_form", ["tokens", "text"])
def test_the_server_engine_before_a_real_server(
    prompt_form: Any, server_url: str, model: Path, prompts: list[list[int]], expected: list[Completion]
):
    tokenizer = AutoTokenizer.from_pretrained(model)
    body = {"stop_token_ids": sorted(tokenizer.all_special_ids), "skip_special_tokens": False}

    async def run() -> tuple[list[Completion], str]:
        engine = ServerEngine(
            [server_url], "m", max_new_tokens=TOKENS, temperature=0, prompt_form=prompt_form, tokenizer=tokenizer,
            extra_body=body, concurrency=4,
        )  # fmt: skip
        done = await asyncio.gather(*(engine.generate([Request(prompt, "", 1)]) for prompt in prompts))
        with pytest.raises(UserError) as caught:
            await engine.generate([Request([5] * 600, "", 1)])
        await engine.close()
        return [completion for (completion,) in done], str(caught.value)

    done, words = asyncio.run(run())
    if prompt_form == "tokens":
        assert done == expected
    else:  # the tokens of the last line ends are others
        assert done[4:] == expected[4:]
    assert "512" in words and "refused" in words
