"""What the vLLM engine decides before vLLM is there; the engine itself is tested by `make test-vllm`."""

from __future__ import annotations

import subprocess
import sys

import pytest

from data_prep.errors import UserError
from data_prep.synthesis.engines.vllm import check_engine_args

LEGAL = ["model", "dtype", "max_num_seqs", "gpu_memory_utilization", "enforce_eager"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"max_num_seq": 4}, "'max_num_seq'; did you mean 'max_num_seqs'"),
        ({"enforce_eager": True, "zzzz": 1}, "'zzzz'; legal: dtype, "),
        ({"dtype": "half"}, "'dtype' is a setting of its own"),
    ],
)
def test_an_engine_argument_that_is_none_is_refused_by_name(given: dict[str, object], words: str):
    with pytest.raises(UserError, match=words):
        check_engine_args(given, LEGAL)


def test_engine_arguments_that_vllm_has_pass():
    check_engine_args({"max_num_seqs": 4, "enforce_eager": True}, LEGAL)


def test_without_vllm_the_import_is_free_and_the_error_says_what_to_install():
    code = (
        "import sys; sys.modules['vllm'] = None; from data_prep.synthesis.engines.vllm import VllmEngine\n"
        "try: VllmEngine('m', max_new_tokens=1, temperature=0, max_model_len=8)\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "UserError" in done.stdout and "pip install instruction-pretraining[synth]" in done.stdout
