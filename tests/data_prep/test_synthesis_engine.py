"""The transformers engine on a real architecture: batching changes nothing, stops where it should."""

import asyncio
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from data_prep.errors import UserError
from data_prep.fetch import fetch_model
from data_prep.settings import SynthesizeSettings
from data_prep.synthesis.engines import Completion, Request
from data_prep.synthesis.engines.transformers import TransformersEngine, fingerprint, shared_prefix


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random Llama with the real SmolLM2 tokenizer; its generation defaults would sample."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = AutoTokenizer.from_pretrained(fetch_model("smollm2-135m-instruct"))
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, bos_token_id=1, eos_token_id=2, initializer_range=0.3,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.generation_config.update(do_sample=True, temperature=2.0, top_p=0.5, repetition_penalty=1.5)
    model.save_pretrained(folder)
    return folder


def engine(model_dir: Path, **values) -> TransformersEngine:
    return TransformersEngine(model_dir, SynthesizeSettings(**{"max_new_tokens": 12, "dtype": "float32", **values}))


def generate(runner: TransformersEngine, prompts: list[list[int]], seed: int = 0) -> list[Completion]:
    return asyncio.run(runner.generate([Request(prompt, "", seed) for prompt in prompts]))


def greedy(runner: TransformersEngine, prompt: list[int]) -> list[int]:
    """The plainest generation there is: the whole sequence again for every token."""
    ids = list(prompt)
    for _ in range(12):
        with torch.inference_mode():
            ids.append(int(runner.model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def test_a_batch_with_a_shared_beginning_and_padding_is_as_one_by_one(model_dir: Path):
    runner = engine(model_dir)
    head = list(range(100, 140))
    prompts = [[*head, 7, 8, 9], [*head, 50], [*head, *range(300, 320)], [9, *head]]
    for batch in (prompts[:3], prompts, prompts[3:]):
        completions = generate(runner, batch)
        for prompt, completion in zip(batch, completions, strict=True):
            assert completion.text == runner.tokenizer.decode(greedy(runner, prompt))
            assert (completion.prompt_tokens, completion.completion_tokens) == (len(prompt), 12)
            assert completion.finish_reason == "length"


def test_it_stops_at_any_special_token_and_counts_it(model_dir: Path):
    runner = engine(model_dir)
    prompt = list(range(100, 140))
    for special in (0, 1, 2):
        original = runner.model.lm_head.weight.data.clone()
        expected = greedy(runner, prompt)
        runner.model.lm_head.weight.data[special] = runner.model.lm_head.weight.data[expected[5]] * 1.01
        completion = generate(runner, [prompt, [5, *prompt]])[0]
        runner.model.lm_head.weight.data.copy_(original)
        place = expected.index(expected[5])
        assert completion.finish_reason == "stop" and completion.completion_tokens == place + 1
        assert completion.text == runner.tokenizer.decode(expected[:place])


def test_sampling_is_repeatable_and_depends_on_the_seed(model_dir: Path):
    prompts = [[5, 6, 7], [8, 9]]
    state = torch.get_rng_state()
    first, again = (generate(engine(model_dir, temperature=1.0), prompts) for _ in range(2))
    assert first == again != generate(engine(model_dir, temperature=1.0), prompts, seed=2)
    assert torch.equal(state, torch.get_rng_state())


def test_its_identity_is_all_that_a_completion_depends_on(model_dir: Path, tmp_path: Path):
    base = dict(engine(model_dir).identity)
    assert base != dict(engine(model_dir, dtype="bfloat16").identity) and base["model"] == fingerprint(model_dir)
    assert base == dict(engine(model_dir, seed=9, batch_size=2).identity)
    with pytest.raises(UserError, match="no model could be loaded"):
        engine(tmp_path)


@pytest.mark.parametrize("left", [0, 5, 5000])
def test_damaged_weights_are_told_in_one_line(model_dir: Path, tmp_path: Path, left: int):
    folder = shutil.copytree(model_dir, tmp_path / "model")
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:left])
    with pytest.raises(UserError, match=r"model: no model could be loaded \(SafetensorError: .+\); give a whole"):
        engine(folder)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 4.00 GiB."),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
    ],
)
@pytest.mark.parametrize("place", ["from_pretrained", "to"])
def test_a_model_that_does_not_fit_the_memory_is_told_in_one_line(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch, error: RuntimeError, place: str
):
    def full(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(LlamaForCausalLM, place, full)
    with pytest.raises(UserError, match=f"no model could be loaded .*{error.args[0][-16:-1]}.*memory holds it"):
        engine(model_dir)


def test_shared_prefix_leaves_each_prompt_a_token():
    assert shared_prefix([[1, 2, 3]]) == 0
    assert shared_prefix([[1, 2, 3], [1, 2, 4]]) == 2
    assert shared_prefix([[1, 2], [1, 2], [1, 2, 3]]) == 1
    assert shared_prefix([[1], [2, 3]]) == 0
