"""A blend with a split: what is set apart is never drawn, in no source; each source has a validation set of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_dataset import save_tokenizer, training_text, write_rows

from data_prep.blend import append, differences, first_difference, open_source, plan, read_blend, resolve
from data_prep.blend.file import open_validation, pack_paths
from data_prep.blend.megatron_forms import write_forms
from data_prep.errors import UserError
from data_prep.indexing import index
from data_prep.indexing.lineage import read_lineage
from data_prep.manifest import read_manifest
from data_prep.packing import open_pack
from data_prep.packing.splits import is_validation
from data_prep.records import AugmentedText, Chain, Pair
from data_prep.settings import BlendSettings, IndexSettings, SourceSettings

TEXTS = [AugmentedText(f"doc-{number}", f"Wand {number}. " * 5, (Pair("Was?", "Das."),)) for number in range(120)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`raw`: documents 0 to 79; `augmented`: chains of 60 to 119 in pairs."""
    folder = tmp_path_factory.mktemp("split")
    save_tokenizer(folder / "tokenizer")
    chains = [Chain(f"c{n}", (TEXTS[n], TEXTS[n + 1])) for n in range(60, 120, 2)]
    write_rows(folder / "raw.jsonl", [{"id": text.document_id, "text": text.text} for text in TEXTS[:80]])
    write_rows(folder / "augmented.jsonl", [training_text(chain, seed=1).to_json() for chain in chains])
    write_rows(folder / "more.jsonl", [{"id": text.document_id, "text": text.text} for text in TEXTS[40:60]])
    for name in ("raw", "augmented", "more"):
        settings = IndexSettings(encoder="tokenizers")
        index(settings, [folder / f"{name}.jsonl"], folder / "tokenizer", folder / name)
    return folder


def settings(**more: object) -> BlendSettings:
    sources = {
        "raw": {"prefix": "raw", "weight": 2},
        "augmented": {"prefix": "augmented", "kind": "augmented", "policy": "chains", "weight": 1},
    }
    values = {"sources": sources, "seq_length": 128, "period": 30, "allow": ["copies"], **more}
    return BlendSettings.model_validate(values)


def ids(prefix: Path, pack: str) -> set[str]:
    """The raw documents of a pack table."""
    table, origins = open_pack(prefix.with_name(pack)), read_lineage(prefix)["origins"].to_pylist()
    documents = {piece.document for number in range(table.sequences) for piece in table.pieces(number)}
    return {origin["document_id"] for document in documents for origin in origins[document]}


def test_no_raw_document_is_on_both_sides_of_any_source(folder: Path) -> None:
    plan(settings(split={"validation": 0.3}), folder / "out", folder)
    blend = read_blend(folder / "out/blend.json")
    train = [ids(source.prefix, source.pack) for source in blend.sources]
    apart = [ids(source.prefix, source.validation.pack) for source in blend.sources if source.validation]
    assert len(apart) == 2
    assert not (train[0] | train[1]) & (apart[0] | apart[1])
    assert train[0] | apart[0] == {f"doc-{number}" for number in range(80)}
    sizes = {text.document_id: len(text.text.encode()) for text in TEXTS}
    assert blend.sources[0].validation is not None
    assert blend.sources[0].validation.text_bytes == sum(sizes[name] for name in apart[0])
    assert blend.sources[0].validation.documents == len(apart[0])
    assert blend.sources[0].documents == len(train[0])
    tables = {source.pack for source in blend.sources}
    tables |= {source.validation.pack for source in blend.sources if source.validation}
    assert len(tables) == 4 and {path.name for path in pack_paths(blend)} == tables


def test_megatrons_options_cannot_say_a_split(folder: Path) -> None:
    with pytest.raises(UserError, match="train on all documents, also on those that the split sets apart"):
        write_forms(resolve(settings(split={"validation": 0.3}), folder), folder / "forms")
    assert not (folder / "forms").exists()


def test_the_split_is_part_of_what_a_run_has_seen(folder: Path) -> None:
    hashes = set()
    for split in (None, {"validation": 0.3}, {"validation": 0.3, "seed": 5}):
        plan(settings(split=split), folder / "out", folder)
        hashes.add(read_blend(folder / "out/blend.json").hash)
    assert len(hashes) == 3


def test_a_source_that_is_appended_is_split_alike(folder: Path) -> None:
    plan(settings(split={"validation": 0.3}), folder / "out", folder)
    blend = read_blend(folder / "out/blend.json")
    longer = append(blend, 40, {"more": 1}, {"more": SourceSettings(prefix=folder / "more", kind="raw")})
    source = longer.sources[-1]
    assert longer.split == blend.split and source.validation is not None
    apart = ids(folder / "raw", blend.sources[0].validation.pack)  # type: ignore[union-attr]
    assert not ids(source.prefix, source.pack) & apart
    assert ids(source.prefix, source.validation.pack) <= apart


def test_the_papers_mix_counts_the_texts_that_are_trained_on(folder: Path) -> None:
    """A fifth of the texts augmented: by the samples that a text takes on the training side."""
    sources = {"raw": {"prefix": "raw"}, "augmented": {"prefix": "augmented", "kind": "augmented", "policy": "chains"}}
    of = {"split": {"validation": 0.3}, "mode": "paper_from_scratch", "train_samples": 1000, "period": 50_000}
    blend = resolve(settings(sources=sources, **of), folder)
    assert blend.split is not None
    train = [not is_validation(text.document_id, blend.split) for text in TEXTS]
    texts = {"raw": sum(train[:80]), "augmented": sum(2 for n in range(60, 120, 2) if train[n] and train[n + 1])}
    assert texts["augmented"] < sum(train[60:])  # some are in chains of both sides
    parts = {"raw": 0.8, "augmented": 0.2}
    samples = {s.name: parts[s.name] * s.sequences / texts[s.name] for s in blend.sources}
    for source, share in zip(blend.sources, blend.phases[0].shares, strict=True):
        assert share / 50_000 == pytest.approx(samples[source.name] / sum(samples.values()), abs=1 / 50_000)


def test_a_training_side_shorter_than_a_sequence_is_refused(folder: Path) -> None:
    """The dataset is longer; what the split leaves of it is not."""
    of = {"sources": {"more": {"prefix": "more", "weight": 1}}, "seq_length": 512, "split": {"validation": 0.7}}
    assert read_manifest(folder / "more").tokens > 513
    told = r"sources\.more: \d+ tokens on the training side of the split, shorter than a sequence and its label \(513\)"
    with pytest.raises(UserError, match=told):
        resolve(BlendSettings.model_validate(of), folder)
    assert resolve(BlendSettings.model_validate({**of, "allow": ["short_source"]}), folder).sources[0].sequences == 1


def test_the_plan_counts_what_is_predicted(folder: Path) -> None:
    table = plan(settings(split={"validation": 0.3}, train_samples=60), folder / "out", folder)
    blend = read_blend(folder / "out/blend.json")
    for row, source in zip(table.rows, blend.sources, strict=True):
        pack = open_pack(source.prefix.with_name(source.pack))
        labels = 0
        for number in range(pack.sequences):
            before = None
            for piece in pack.pieces(number):
                follows = before is not None and (before.document, before.offset + before.length) == (
                    piece.document,
                    piece.offset,
                )
                labels += piece.length - (source.policy == "chains" and not follows)
                before = piece
            labels -= source.policy == "concatenate"
        assert row.epochs is not None
        assert row.tokens_drawn == round(row.epochs * labels)


def test_other_ids_of_the_same_texts_are_another_split(tmp_path: Path) -> None:
    """The tokens stay, so that nothing but the lineage tells."""
    save_tokenizer(tmp_path / "tokenizer")
    of = {"sources": {"raw": {"prefix": "raw", "weight": 1}}, "seq_length": 64, "period": 8}
    apart, hashes = [], []
    for name in ("a", "b"):
        rows = [{"id": f"{name}-{number}", "text": f"Wand {number}. " * 5} for number in range(60)]
        write_rows(tmp_path / "raw.jsonl", rows)
        index(IndexSettings(encoder="tokenizers"), [tmp_path / "raw.jsonl"], tmp_path / "tokenizer", tmp_path / "raw")
        blend = resolve(BlendSettings.model_validate({**of, "split": {"validation": 0.3}}), tmp_path)
        (source,) = blend.sources
        assert source.validation is not None
        drawn = {row["id"] for row in rows if is_validation(row["id"], blend.split)}
        assert ids(source.prefix, source.validation.pack) == drawn
        assert ids(source.prefix, source.pack) == {row["id"] for row in rows} - drawn
        assert source.validation.text_bytes == sum(len(row["text"]) for row in rows if row["id"] in drawn)
        apart.append(source)
        hashes.append((blend.hash, resolve(BlendSettings.model_validate(of), tmp_path).hash))
    assert hashes[0][0] != hashes[1][0]
    assert hashes[0][1] == hashes[1][1]  # without a split the ids decide nothing
    for opened in (open_source, open_validation):
        opened(apart[1])
        with pytest.raises(UserError, match="lineage was written again after the blend was planned"):
            opened(apart[0])


def test_another_lineage_is_another_past(folder: Path) -> None:
    """Though the tables have as many sequences."""
    blend = resolve(settings(split={"validation": 0.3}), folder)
    raw, augmented = blend.sources
    other = blend.with_changes(sources=(raw, augmented.model_copy(update={"lineage_hash": "0" * 32})))
    first = next(sample for sample in range(99) if blend.locate(sample).source == 1)
    assert first_difference(blend, blend) is None and first_difference(blend, other) == first
    (told,) = differences(blend, other)
    assert told == "source 'augmented': its documents have another lineage, which its pack table was made from"


def test_a_split_of_a_dataset_without_lineage_is_refused(tmp_path: Path, write_dataset) -> None:
    write_dataset(tmp_path / "d", [[1, 2, 3, 0]] * 40)
    of = {"sources": {"d": {"prefix": "d", "weight": 1}}, "seq_length": 8, "period": 8, "split": {"validation": 0.3}}
    with pytest.raises(UserError, match="no lineage, so a split cannot tell"):
        resolve(BlendSettings.model_validate(of), tmp_path)
