"""The command as a user meets it: help with units and defaults, and bad input told in one line."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import TinyRun, environment, ipt, ipts, with_byte_tokenizer
from forks import warm_python

from data_prep.blend import plan
from data_prep.indexing.layout import bin_path
from data_prep.manifest import BlockHasher
from data_prep.settings import BlendSettings, SourceSettings
from megatron_ipt.cli.main import told_in_a_line

VERBS = [
    "run",
    "data fetch",
    "data collect",
    "data synthesize",
    "data check",
    "data decontaminate",
    "data report-pairs",
    "data render",
    "data render-instructions",
    "data index",
    "data inspect",
    "data verify",
    "data trace",
    "data merge",
    "blend plan",
    "plan",
    "train",
    "convert import",
    "convert export",
    "convert parity",
    "evaluate",
    "report",
    "ablate",
    "doctor",
]


def test_every_verb_has_help(tmp_path: Path) -> None:
    assert "Usage: ipt" in ipt("--help", fresh=True).stdout
    for verb, done in ipts(tmp_path, {verb: [*verb.split(), "--help"] for verb in VERBS}).items():
        assert f"Usage: ipt {verb}" in done.stdout


def test_help_says_units_and_defaults() -> None:
    text = " ".join(ipt("data", "synthesize", "--help").stdout.replace("│", " ").split())
    assert "longest completion [tokens]" in text
    assert "[default: 400]" in text
    text = " ".join(ipt("train", "--settings").stdout.replace("│", " ").split())
    assert "train.clip_grad 1.0 largest global gradient norm" in text


def fails(*arguments: object) -> str:
    """The one line that a failing call prints last; no traceback anywhere."""
    done = ipt(*arguments, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    lines = done.stderr.strip().splitlines()
    assert lines[-1].startswith("error: ")
    return lines[-1]


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_lines_that_are_not_documents_are_named(tmp_path: Path) -> None:
    bad = write(tmp_path / "bad.jsonl", '{"id": "a", "text": "x"}\n{"id": "b", "text": \n')
    none = write(tmp_path / "none.jsonl", '{"id": "a", "title": "x"}\n')
    chains = write(tmp_path / "chains.jsonl", "")
    for path, told in ((bad, "bad.jsonl:2"), (none, "none.jsonl:1")):
        assert told in fails("data", "render", chains, path, tmp_path / "out")
        assert not (tmp_path / "out" / "raw.jsonl").exists()


def test_render_shows_or_writes_and_instructions_are_rendered(tmp_path: Path) -> None:
    pair = '{"question": "Who kept bees?", "answer": "Mira."}'
    text = f'{{"document_id": "d", "text": "Mira kept bees.", "pairs": [{pair}]}}'
    chains = write(tmp_path / "chains.jsonl", f'{{"id": "c", "texts": [{text}]}}\n')
    corpus = write(tmp_path / "corpus.jsonl", '{"id": "d", "text": "Mira kept bees."}\n')
    page = tmp_path / "page.html"
    assert "Who kept bees?" in ipt("data", "render", chains, "--preview", 1, "--preview-html", page).stdout
    assert "Who kept bees?" in page.read_text() and sorted(tmp_path.iterdir()) == [chains, corpus, page]
    ipt("data", "render", chains, corpus, tmp_path / "out", "--mode", "dialogue", "--layout", "both")
    assert len((tmp_path / "out" / "augmented.jsonl").read_text().splitlines()) == 2
    assert "OUT: where to write is not said" in fails("data", "render", chains, corpus)
    told = fails("data", "render", chains, corpus, tmp_path / "out", "--language", "xx")
    assert "no templates for the language 'xx'; there are: de, en, zh" in told
    rows = write(tmp_path / "rows.jsonl", '{"prompt": "Who?", "response": "I."}\n{"prompt": "Who?"}\n')
    call = ("data", "render-instructions", rows, "--out", tmp_path / "rows.out.jsonl", "--question-key", "prompt")
    assert "rows.jsonl:2: expected a string under 'response'" in fails(*call)
    write(rows, '{"prompt": "Who?", "response": "I."}\n')
    ipt(*call)
    assert '"text":"Who? I."' in (tmp_path / "rows.out.jsonl").read_text()


def test_missing_things_are_named(tmp_path: Path) -> None:
    text = write(tmp_path / "text.jsonl", '{"id": "a", "text": "x"}\n')
    assert "tokenizer.json" in fails("data", "index", text, "--prefix", tmp_path / "p", "--tokenizer", tmp_path)
    assert "no such file" in fails("run", tmp_path / "none.yaml")
    assert "no such file" in fails("blend", "plan", tmp_path / "none.yaml", tmp_path / "out")
    assert "no such run" in fails("report", tmp_path / "none")
    assert "no Hugging Face directory" in fails("evaluate", tmp_path, text, "--out", tmp_path / "o.json")
    assert "--rounds" in fails("data", "synthesize", text, tmp_path / "out", "--rounds", "0")


def test_paths_that_cannot_be_are_told_in_a_line(tmp_path: Path, write_dataset: Any) -> None:
    file = write(tmp_path / "a.jsonl", '{"id": "a", "text": "x"}\n')
    write_dataset(tmp_path / "one", [[1, 2, 3, 0]], vocab_size=512)
    below = f"{file}/x"
    for call in (("data", "merge", below, tmp_path / "one"), ("data", "render", file, file, below)):
        assert f"error: {file}" in (told := fails(*call)) and "choose another path" in told
    chain = '{"id": "c", "texts": [{"document_id": "a", "text": "x", "pairs": [{"question": "Q?", "answer": "A."}]}]}\n'
    chains = write(tmp_path / "chains.jsonl", chain)
    told = fails("data", "render", chains, "--preview-html", f"{file}/p.html")
    assert f"error: {file}: File exists; a file stands where a folder is needed" in told


def test_every_fault_of_a_named_file_is_told_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def too_many() -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (sum(1 for _ in Path("/proc/self/fd").iterdir()) + 8, hard))
        try:
            with ExitStack() as stack:
                for _ in range(soft):
                    stack.enter_context(there.open())
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    there = write(tmp_path / "there", "")
    (tmp_path / "loop").symlink_to("loop")
    long = "x" * 300
    faults: dict[str, Callable[[], object]] = {
        f"{tmp_path / long}: File name too long; give a shorter name": (tmp_path / long).mkdir,
        f"{there}/x: Not a directory; a file stands where a folder is": (there / "x").mkdir,
        f"{tmp_path}: Is a directory; a folder stands where a file is": (tmp_path).read_text,
        f"{tmp_path / 'loop'}: Too many levels of symbolic links; links lead": (tmp_path / "loop").read_text,
        f"{there}: Too many open files; allow more open files": too_many,
        f"{tmp_path}: Directory not empty; mend this, or": tmp_path.rmdir,
    }
    for told, fault in faults.items():
        with pytest.raises(SystemExit) as end:
            told_in_a_line(fault)
        assert end.value.code == 1
        shown = capsys.readouterr().err
        assert shown.startswith(f"error: {told}") and shown.count("\n") == 1
    with pytest.raises(BrokenPipeError):  # of no file: a fault of ours
        told_in_a_line(partial(os.write, broken_pipe(), b"x"))


def broken_pipe() -> int:
    reader, writer = os.pipe()
    os.close(reader)
    return writer


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("train.train_itres=5", "did you mean 'train_iters'?"),
        ("train.tensor_model_parallel_size=3", "does not divide"),
        ("model.vocab_size=100", "tokenized with 512 tokens, the model has 100"),
    ],
)
def test_a_run_that_cannot_start_says_why_in_one_line(tiny: TinyRun, tmp_path: Path, override: str, told: str) -> None:
    assert told in fails("train", tiny.recipe, f"output_dir={tmp_path}", override)
    assert not (tmp_path / "train" / "checkpoints").exists()


@pytest.fixture(scope="module")
def one_step_and_refusals(
    tiny: TinyRun, tmp_path_factory: pytest.TempPathFactory, write_dataset: Any, train_layouts: Any
) -> tuple[Path, dict[str, str]]:
    """The folder of a run of one step, and what is told (expected -> told) of runs that a rank refuses."""
    folder = tmp_path_factory.mktemp("refused")
    damaged, place = damaged_blend(folder, write_dataset)
    other_tokenizer = with_byte_tokenizer(tiny.hf, folder / "hf")
    overrides = {
        "does not compute what transformers computes": ["model.rotary_base=100"],
        "is of no use to a model of 3 layers": ["model.num_layers=3"],
        "no such blend": ["train.blend=/nowhere/blend.json"],
        "OptimizerConfig has no such field": ["train.optimizer_config={beta: 1}"],
        place: [f"train.blend={damaged}"],
        "was written with another tokenizer than the one in": [f"model.load_hf={other_tokenizer}"],
    }
    other_rate = [f"train.save={tiny.folder}/one_step/train/checkpoints", "train.train_iters=1", "train.lr=5e-4"]
    overrides["is the end of a run with other settings (train.lr 0.001 -> 0.0005)"] = other_rate
    jobs = {f"refused-{number}": override for number, override in enumerate(overrides.values())}
    found = train_layouts(1, {"one_step": ["train.train_iters=1", "train.parity_gate=false"], **jobs})
    assert not list(tiny.folder.glob("refused-*/train/checkpoints"))
    return tiny.folder / "one_step", {told: found[job]["error"] for told, job in zip(overrides, jobs, strict=True)}


def test_what_only_a_rank_finds_is_a_line_too(one_step_and_refusals: tuple[Path, dict[str, str]]) -> None:
    for expected, told in one_step_and_refusals[1].items():
        assert expected in told and "\n" not in told


def damaged_blend(folder: Path, write_dataset: Any) -> tuple[Path, str]:
    """A blend with a damaged byte between the ends of a file, which opening does not look at, and its place.

    Opening a dataset looks at the first and the last block of a file; here blocks are of 2,048 bytes.
    """
    prefix = folder / "data"
    manifest = write_dataset(prefix, [[1 + place % 500 for place in range(60)] + [0]] * 40, vocab_size=512)
    hasher = BlockHasher(2048)
    hasher.update(bin_path(prefix).read_bytes())
    manifest.model_copy(update={"bin": hasher.finish()}).write(prefix)
    plan(BlendSettings(sources={"data": SourceSettings(prefix=prefix, weight=1)}, seq_length=64), folder / "blend")
    content = bytearray(bin_path(prefix).read_bytes())
    content[len(content) // 2] ^= 1
    bin_path(prefix).write_bytes(content)
    return folder / "blend" / "blend.json", f"data.bin: block {len(content) // 2 // 2048}, from byte"


def test_torchrun_itself_tells_it_too(tiny: TinyRun, tmp_path: Path) -> None:
    command = [warm_python(), "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1", "-m"]
    command += ["megatron_ipt.pretrain", "--recipe", str(tiny.recipe), f"output_dir={tmp_path}", "train.seq_length=32"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode != 0
    assert "error: train.seq_length: 32 is not the blend's 64; set both to the same" in done.stderr


def test_a_full_disk_keeps_the_checkpoint_before(
    tiny: TinyRun, one_step_and_refusals: tuple[Path, dict[str, str]]
) -> None:
    """A limit on file size stands in for the full disk: the write of a checkpoint fails half way."""
    folder = one_step_and_refusals[0]
    arguments = [tiny.recipe, f"output_dir={folder}", "train.parity_gate=false", "train.train_iters=2"]
    command = " ".join(map(str, [sys.executable, "-m", "megatron_ipt.cli.main", "train", *arguments]))
    done = subprocess.run(
        ["bash", "-c", f"ulimit -f 100; exec {command}"], capture_output=True, text=True, env=environment(), check=False
    )
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert "iter_0000002: the checkpoint was not written" in last
    assert "iter_0000001 is untouched" in last
    ipt("train", *arguments)
    assert (folder / "train" / "checkpoints" / "iter_0000002" / "run_card.json").exists()


def test_a_step_runs_again_only_when_something_changed(tmp_path: Path) -> None:
    """The step `check` alone, on chains written by hand."""
    chains = tmp_path / "run" / "pairs" / "chains.jsonl"
    chains.parent.mkdir(parents=True)
    pair = {"question": "Who kept bees?", "answer": "Mira kept bees."}
    line = '{"id": "c", "texts": [{"document_id": "d", "text": "Mira kept bees.", "pairs": [%s]}]}\n'
    write(chains, line % str(pair).replace("'", '"'))
    recipe = write(tmp_path / "r.yaml", f"name: x\noutput_dir: {tmp_path / 'run'}\ncheck: {{}}\n")

    def state(*overrides: Any) -> str:
        found = [row for row in ipt("run", recipe, *overrides).stdout.splitlines() if row.startswith("check: ")]
        return found[0].split()[1]

    assert [state(), state()] == ["runs", "unchanged"]
    assert [state("check.min_grounding=0.9"), state("check.min_grounding=0.9")] == ["runs", "unchanged"]
    write(tmp_path / "run" / "checked" / "chains.jsonl", "")
    assert state("check.min_grounding=0.9") == "runs"
    write(chains, line % str({**pair, "question": "Who had bees?"}).replace("'", '"'))
    assert [state("check.min_grounding=0.9"), state("check.min_grounding=0.9")] == ["runs", "unchanged"]


def test_doctor_prints_the_table_and_what_is_missing() -> None:
    text = ipt("doctor", fresh=True).stdout
    assert "gloo" in text and "nccl" in text
    assert "ready to train" in text


def doctor(version: str) -> subprocess.CompletedProcess[str]:
    """`ipt doctor` where what `version` says of a `name` comes first: a suite in the function that tells versions."""
    code = f"""
import sys
from importlib.metadata import PackageNotFoundError
from megatron_ipt.cli import doctor, main
found = doctor.version
def version(name):
    {version}
    return found(name)
doctor.version = version
sys.argv = ["ipt", "doctor"]
main.main()"""
    return subprocess.run(
        [warm_python(), "-c", code], capture_output=True, text=True, env=environment("megatron"), check=False
    )


@pytest.mark.parametrize(("package", "code"), [("pyarrow", 1), ("rich", 1), ("lm-eval", 0)])
def test_the_doctor_says_no_when_training_lacks_a_package(package: str, code: int) -> None:
    """pyarrow belongs to the extras prep and train both, lm-eval to neither; a container's health rests on the code."""
    done = doctor(f"if name == {package!r}: raise PackageNotFoundError(name)")
    assert done.returncode == code, done.stdout + done.stderr
    assert package in next(line for line in done.stdout.splitlines() if line.startswith("missing for"))


@pytest.fixture(scope="module")
def datasets(tiny: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a byte tokenizer in `hf` and the datasets `a` (a training text with markup in it) and `b`."""
    folder = tmp_path_factory.mktemp("datasets")
    hf = with_byte_tokenizer(tiny.hf, folder / "hf")
    spans = {"ends": [7, 8, 12, 13, 16], "kinds": "t.q.a", "of": [0, -1, 0, -1, 0]}
    origin = {
        "document_id": "doc[/b]",
        "source": "[red]x\x9b2J\x9d0;t\u202e",
        "start": 3,
        "end": 10,
        "checks": ["form length"],
        "at": 0,
    }
    row = {
        "id": "chain",
        "text": "[/b] \x1bc\nWho?\nBee",
        "origins": [origin],
        "template": "t",
        "seed": 5,
        "spans": spans,
    }
    commands = {}
    for name, line in (("a", row), ("b", {"id": "raw", "text": "honey"})):
        text = write(folder / f"{name}.jsonl", json.dumps(line) + "\n")
        commands[name] = ("data", "index", text, "--prefix", folder / name, "--tokenizer", hf)
    assert [done.returncode for done in ipts(folder, commands).values()] == [0, 0]
    return folder


def test_datasets_are_inspected_traced_merged_and_verified(datasets: Path, tmp_path: Path) -> None:
    a, b, hf = datasets / "a", datasets / "b", datasets / "hf"
    commands = {
        "inspect": ("inspect", a, "--tokenizer", hf),
        "figures": ("inspect", a, "--json"),
        "trace": ("trace", a, "--token", 9, "--tokenizer", hf),
        "token": ("trace", a, "--token", 2, "--tokenizer", hf, "--json"),
        "document": ("trace", a, "--document", 0),
        "merge": ("merge", datasets / "m", a, b),
        "verify": ("verify", a, b, datasets / "m", "--jobs", 2),
        "sample": ("verify", a, "--sample", 2),
    }
    done = ipts(tmp_path, {name: ("data", *command) for name, command in commands.items()})
    assert {name: (one.returncode, one.stderr) for name, one in done.items() if one.returncode} == {}
    shown = {name: one.stdout for name, one in done.items()}
    assert "[/b] ␛c" in shown["inspect"] and "\x1b" not in shown["inspect"]
    assert "[red]x<U+009B>2J<U+009D>0;t<U+202E>" in shown["inspect"]
    assert not set(shown["inspect"]) & set("\x9b\x9d\u202e")
    found = json.loads(shown["figures"])
    assert (found["documents"], found["tokens"]) == (1, 17)
    assert found["tokens_by_class"] == {"text": 7, "question": 4, "answer": 3, "template": 2, "control": 1}
    assert "question of pair 0" in shown["trace"] and "Who?" in shown["trace"]
    assert "form, length" in shown["trace"] and "doc[/b]" in shown["trace"]
    token = json.loads(shown["token"])["token"]
    assert (token["text"], token["character"], token["exact"]) == ("b", 5, True)
    assert "document" in shown["document"]
    assert shown["verify"].count("everything") == 3
    assert "header, sizes and 2 blocks" in shown["sample"]


def test_wrong_datasets_are_told_in_a_line(datasets: Path, tiny: TinyRun, tmp_path: Path) -> None:
    a, hf = datasets / "a", datasets / "hf"
    assert "there is no token 17: they are numbered from 0 to 16" in fails("data", "trace", a, "--token", 17)
    assert "give --token N or --document N" in fails("data", "trace", a)
    assert "no manifest" in fails("data", "inspect", tmp_path / "none")
    assert "another tokenizer than the one in" in fails(
        "data", "inspect", tiny.blend.parents[1] / "one", "--tokenizer", hf
    )
    assert "its tokenizer's fingerprint is" in fails("data", "merge", tmp_path / "m", a, tiny.blend.parents[1] / "one")
    damaged = tmp_path / "d"
    ipt("data", "merge", damaged, a)
    for suffix in ("bin", "spans"):
        path = tmp_path / f"d.{suffix}"
        path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    done = ipt("data", "verify", damaged, a, tmp_path / "none", check=False)
    assert done.returncode == 1
    assert [line.split(": ")[1].rpartition("/")[2] for line in done.stderr.splitlines()] == [
        "d.bin",
        "d.spans",
        "none.manifest.json",
    ]
    assert "everything" in done.stdout


@pytest.mark.parametrize(
    ("torch", "mend"),
    [
        ("2.12.0a0+5aff3928d8.nv26.05", "python tools/in_image.py install image.txt -e '.[train]'"),
        ("2.13.0a0+nv", "python tools/in_image.py install image.txt -e '.[train]'"),
        ("2.13.0+cpu", "pip install -c constraints-cpu.txt -e '.[train]'"),
    ],
)
def test_the_doctor_keeps_the_images_torch(torch: str, mend: str) -> None:
    told = f"if name == 'torch': return {torch!r}\n    if name == 'psutil': raise PackageNotFoundError(name)"
    text = " ".join(doctor(told).stdout.split())
    assert f"missing for train: psutil; in the checkout: {mend}" in text


@pytest.mark.parametrize(
    ("files", "told"),
    [
        (
            {"transformer_engine/__init__.py": "raise OSError('libcudart.so.13')"},
            "transformer-engine does not import: OSE",
        ),
        ({"apex/__init__.py": "", "apex/optimizers.py": "1 / 0"}, "megatron-core does not import: ZeroDivisionError"),
    ],
)
def test_the_doctor_says_no_when_a_gpu_build_is_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], told: str
) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content, encoding="utf-8")
    (tmp_path / "transformer_engine-2.8.0.dist-info").mkdir()
    (tmp_path / "transformer_engine-2.8.0.dist-info" / "METADATA").write_text(
        "Name: transformer-engine\nVersion: 2.8.0\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    done = ipt("doctor", check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    assert told in done.stdout and "training cannot run here" in done.stdout
    if "transformer" in told:
        assert "2.8.0" in next(line for line in done.stdout.splitlines() if "transformer-engine" in line)


def test_the_interpreter_is_looked_for(tmp_path: Path) -> None:
    """make says what to do where there is no Python 3.12."""
    root = Path(__file__).parents[2]
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("bash", "sh", "cat", "sed", "touch", "make", "env"):
        found = next(Path(folder, name) for folder in os.environ["PATH"].split(":") if Path(folder, name).exists())
        (tools / name).symlink_to(found)
    done = subprocess.run(
        ["make", "-C", str(root), f"VENV={tmp_path / 'venv'}", f"{tmp_path / 'venv'}/.installed"],
        capture_output=True,
        text=True,
        env={"PATH": str(tools)},
        check=False,
    )
    assert done.returncode != 0
    assert "no Python 3.12 found; install CPython 3.12" in done.stderr
