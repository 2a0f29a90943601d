"""Template data: enough styles, distinct ones, and every fault of a file told in one line."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from templates_data import LANGUAGES, MODES, PAIRS, chain_of

from data_prep.errors import UserError
from data_prep.settings import RenderSettings
from data_prep.templates.documents import render_chain
from data_prep.templates.styles import OURS, languages, load_styles

LISTS = load_styles("en").lists
FIELDS = re.compile(r"\{\w+\}")
# Words that only label: a style whose wording is nothing else counts once.
_WORDS = """
q a question questions answer answers query response reply prompt task instruction input output text passage options
choices solution
"""
LABELS = frozenset(_WORDS.split())


def wording(entry: tuple[str, ...]) -> tuple[str, ...]:
    """The words of a style: without fields, punctuation, case, labels, single letters and numbers."""
    words = re.findall(r"\w+", FIELDS.sub(" ", " ".join(entry)).casefold())
    return tuple(word for word in words if word not in LABELS and len(word) > 1 and not word.isdigit())


def pool(*names: str) -> list[tuple[str, ...]]:
    return [entry for name in names for entry in LISTS[name]]


@pytest.mark.parametrize(
    ("names", "least"),
    [
        (("free.anywhere", "free.with_text"), 50),
        (("options.anywhere", "options.with_text"), 30),
        (("rationale.anywhere", "rationale.with_text"), 30),
        (("options_rationale.anywhere", "options_rationale.with_text"), 30),
        (("texts.anywhere", "texts.before_pairs"), 30),
        (("tasks.anywhere", "tasks.after_text", "tasks.before_text"), 30),
        (("dialogue.openings", "dialogue.openings_with_text"), 15),
    ],
)
def test_styles_are_many_and_distinct_in_their_words(names: tuple[str, ...], least: int) -> None:
    """The bare style (no words at all) counts as one of them."""
    wordings = [wording(entry) for entry in pool(*names)]
    assert len(set(wordings)) >= least
    twice = sorted({words for words in wordings if wordings.count(words) > 1})
    assert twice == []


def test_lists_of_a_file_are_distinct_across_its_lists() -> None:
    assert len({wording(entry) for entry in pool("texts.anywhere", "texts.before_pairs", "texts.after_pairs")}) == len(
        pool("texts.anywhere", "texts.before_pairs", "texts.after_pairs")
    )
    marks = {"A.", "A)", "(A)", "[A]", "(a)", "a)", "1.", "1)", "-", "*"}
    shown = {
        FIELDS.sub(lambda field: {"{letter}": "A", "{lower}": "a", "{number}": "1"}.get(field[0], ""), line).strip()
        for line, _ in LISTS["option_lines.lines"]
    }
    assert marks <= shown


def test_closed_book_styles_do_not_speak_of_a_text() -> None:
    kinds = ("free", "options", "rationale", "options_rationale")
    names = [*(f"{kind}.anywhere" for kind in kinds), "tasks.anywhere", "dialogue.openings"]
    for entry in pool(*names):
        assert not re.search(r"\b(passage|text|article|document|author|source|above|below)\b", " ".join(entry))
    for kind in kinds:  # nor do the others say where it stands: in an inverted document it comes later
        for entry in pool(f"{kind}.with_text"):
            assert not re.search(r"\b(above|below|just read|following text)\b", " ".join(entry))


# What speaks of a question, or of an order, where a pair may be either ("Who founded it?", "Name the founder.").
ONE_KIND = {
    "en": r"\b(question|know:|asked:|tell me:|the task|carr(y|ied)|requested|done:|completed|solve)",
    "de": r"frage\b|wüsste",
    "zh": "我想知道|这项任务|完成如下",
}
# What speaks of several, over what may be a single pair or example.
SEVERAL = {
    "en": r"(?i)\b(questions|answers|tasks|exercises|notes|examples|ones|some|few|each|every one|these(?! lines))\b",
    "de": r"\b(Fragen|Antworten|Aufgaben|Beispiele|Einige|Diese)\b",
    "zh": "一些|几个",
}


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_style_fits_questions_and_orders_and_a_lead_in_fits_one_pair(language: str) -> None:
    lists = load_styles(language).lists
    for entry in (*lists["free.anywhere"], *lists["free.with_text"]):
        assert not re.search(ONE_KIND[language], FIELDS.sub("", " ".join(entry)).lower()), entry
    names = [name for name in lists if name.startswith(("tasks.", "texts.", "questions_only."))]
    leads = [lead for name in names for (lead,) in lists[name]]
    for lead in (*leads, *(over for over, _ in lists["worked_examples.headings"])):
        assert not re.search(SEVERAL[language], lead), lead


def test_no_blank_stands_beside_a_chinese_sentence() -> None:
    parts = [part for entries in load_styles("zh").lists.values() for entry in entries for part in entry]
    assert not [part for part in parts if re.search(r"\} [^\x00-\x7f]|[^\x00-\x7f] \{", part)]


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_language_is_data_alone(language: str) -> None:
    """Every word of a German or Chinese document is of its folder: none of the English wordings is left."""
    styles = load_styles(language)
    assert languages() == sorted(LANGUAGES) and styles.name.startswith(f"{language}@")
    foreign = re.compile(r"\b(the|this|answer|question|passage|options?|reply|read)\b", re.IGNORECASE)
    for mode in MODES:
        for number in range(40):
            text = render_chain(chain_of(number), styles, RenderSettings(mode=mode, unanswerable=1.0))[0].text
            words = "".join(text.text[span.start : span.end] for span in text.spans if span.kind == "template")
            if language != "en":
                assert not foreign.search(words)
            if language == "zh":
                assert not re.search(r"[A-Za-z]", words)
    if language == "de":
        assert any(letter in str(styles.lists) for letter in "äöüß")


def copy(tmp_path: Path, language: str = "de") -> Path:
    return Path(shutil.copytree(OURS / language, tmp_path / language))


FAULTS = [
    ("free.yaml", '["{question}", "{answer}"]', '["{question}", "{reply}"]', "style 1: the field {reply} is unknown"),
    ("free.yaml", '["{question}", "{answer}"]', '["{question}", "Nun"]', "expected {answer} once, found it 0 times"),
    ("free.yaml", '["{question}", "{answer}"]', '["{question}?", "{answer}"]', "a mark after '{question}'"),
    ("free.yaml", '["{question}", "{answer}"]', '"{question} {answer}"', "style 1: expected a list of 2 strings"),
    ("free.yaml", '["{question}", "{answer}"]', '["{question}", 3]', "style 1: expected a list of 2 strings"),
    ("free.yaml", '["{question}", "{answer}"]', '["\\ud800 {question}", "{answer}"]', "surrogate"),
    ("free.yaml", "anywhere:\n", "anywhere: nothing\nother:\n", "anywhere: expected a list of at least one style"),
    ("free.yaml", "with_text:", "with_tekst:", "'with_text' is missing"),
    ("free.yaml", "version: 2", "", "version: expected a whole number from 1 up, found none"),
    ("free.yaml", "version: 2", "version: eins", "found 'eins'"),
    ("free.yaml", "version: 2", "version: 1\nversion: 2", "free.yaml:3: not YAML ('version' stands twice)"),
    ("free.yaml", "version: 2", "version: 1\nmore: []", "more: there is no such list"),
    ("free.yaml", "with_text:", "with_text: [", "free.yaml:"),
    ("free.yaml", "version: 2", "2001-99-99", "free.yaml"),
    ("texts.yaml", "shown: 0.5", "shown: 5", "shown: expected a number from 0 to 1, found 5"),
    ("texts.yaml", '"Text:\\n{text}"', '"Text:\\n{text} {text}"', "expected {text} once, found it 2 times"),
    ("tasks.yaml", '- "Übung"', '- "Übung"\n  - "Übung"', "anywhere, style 4: the same as style 3"),
    ("questions_only.yaml", "answers: false", "answers: true", "answers: expected false"),
    ("option_lines.yaml", '"({number})"]', '"({zahl})"]', "the field {zahl} is unknown"),
]


@pytest.mark.parametrize(("name", "old", "new", "told"), FAULTS)
def test_a_fault_is_told_with_file_and_place(tmp_path: Path, name: str, old: str, new: str, told: str) -> None:
    path = copy(tmp_path) / name
    content = path.read_text()
    assert old in content
    path.write_text(content.replace(old, new, 1))
    with pytest.raises(UserError) as error:
        load_styles("de", tmp_path)
    assert told in str(error.value) and name in str(error.value) and "\n" not in str(error.value)
    assert error.value.mend


def test_missing_and_unknown_files_and_folders(tmp_path: Path) -> None:
    folder = copy(tmp_path)
    (folder / "labels.yaml").rename(folder / "lables.yaml")
    with pytest.raises(UserError, match=r"lables.yaml: no template file has this name; did you mean 'labels.yaml'"):
        load_styles("de", tmp_path)
    (folder / "lables.yaml").unlink()
    with pytest.raises(UserError, match=r"labels.yaml: no such file; add it"):
        load_styles("de", tmp_path)
    with pytest.raises(UserError, match=r"no templates for the language 'fr'; there are: de, en, zh"):
        load_styles("fr")
    with pytest.raises(UserError, match=r"no templates for the language 'fr'; --templates is the folder"):
        load_styles("fr", tmp_path / "nowhere")
    (folder / "labels.yaml").write_bytes(b"version: 1\nlabels: [\xff]")
    with pytest.raises(UserError, match="not UTF-8 at byte 20"):
        load_styles("de", tmp_path)


def test_the_fingerprint_follows_the_styles_and_not_the_comments(tmp_path: Path) -> None:
    path = copy(tmp_path) / "tasks.yaml"
    path.write_text("# a remark\n" + path.read_text())
    assert load_styles("de", tmp_path) == load_styles("de")
    path.write_text(path.read_text().replace("Übung", "Aufgaben"))
    assert load_styles("de", tmp_path).name != load_styles("de").name


ANY = st.text(st.characters(codec=None), max_size=30)
VALUES = st.recursive(
    ANY | st.none() | st.booleans() | st.integers(), lambda inner: st.lists(inner, max_size=3), max_leaves=6
)


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(["free", "options", "labels", "dialogue", "option_lines", "texts"]),
    st.dictionaries(st.sampled_from(["version", "anywhere", "labels", "turns", "lines", "shown", "x"]) | ANY, VALUES),
)
def test_whatever_stands_in_a_file_is_styles_or_one_line(tmp_path_factory, name: str, change: dict) -> None:
    folder = copy(tmp_path_factory.mktemp("t"))
    path = folder / f"{name}.yaml"
    content = {**yaml.safe_load(path.read_text()), **change}
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    try:
        styles = load_styles("de", folder.parent)
    except UserError as error:
        assert "\n" not in str(error) and path.name in str(error)
    else:
        text = render_chain(chain_of(0, [PAIRS]), styles, RenderSettings())[0].text
        text.text.encode()
