"""Private corpora: no patient's text, name or path in a log, page, error, metric or tokenizer of any command."""

import json
import re
import stat
from argparse import _SubParsersAction
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.data.made import json_lines, picture, put
from tuwen import cli
from tuwen.data.beside import SideTable, write_table
from tuwen.data.corpora.faults import Fault, Faults
from tuwen.data.findings import findings_named
from tuwen.data.needs import numbers, tags_of
from tuwen.data.open import open_corpus, splits_of
from tuwen.data.private import SHOW
from tuwen.data.text import Tokenizer
from tuwen.errors import UserError
from tuwen.training import start
from tuwen.training.config import TokenizerConfig
from tuwen.training.stages.work import keyed

SECRETS = ("xanthoquark", "mustermann")  # a word of few reports; the patients' name, in ids and paths
LETTERS = "abcdefghijklmnop"


def reports(folder: Path, count: int = 24) -> Path:
    """A private table: pictures and ids called as patients, a word of three reports, a broken picture and row."""
    rows = []
    for n in range(count):
        word = "xanthoquark" if n % 8 == 0 else f"opacity {LETTERS[n % 16]}"
        text = f"The lungs are clear, {word}. Heart size {n % 7} of {LETTERS[n % 13]} is normal."
        split = ("train", "train", "val", "test")[n % 4] if n else "train"
        row = {
            "id": f"mustermann-{n}",
            "image": f"mustermann_{n}.png",
            "texts": {"en": [text, f"No change since study {n % 7}."], "zh": [f"双肺清晰{n % 7}"]},
            "split": split,
        }
        rows.append(row | {"patient": f"Mustermann {n}", "cls": n % 2})
        put(folder, f"mustermann_{n}.png", picture(9 * n + 9, "PNG") if n != 4 else b"\x89PNG mustermann broken")
    put(folder, "pairs.jsonl", json_lines(*rows) + '{"id": "mustermann-99", "texts": "xanthoquark"}\n')
    put(folder, "zeroshot.json", json.dumps({"classnames": {"en": ["clear", "ill"]}, "templates": {"en": ["a {c}"]}}))
    put(folder, "corpus.yaml", "private: true\n")
    return folder


def told(text: str) -> list[str]:
    return [secret for secret in SECRETS if secret in text.lower()]


def telling(*places: Path) -> list[str]:
    """Files that tell a secret, in their bytes or their names."""
    files = [path for place in places for path in ([place] if place.is_file() else place.rglob("*")) if path.is_file()]
    wrong = [path for path in files if told(path.read_bytes().decode("latin-1")) or told(path.name)]
    return [str(path) for path in wrong]


@pytest.fixture
def table(tmp_path):
    return reports(tmp_path / "data")


@pytest.fixture
def tell(capsys):
    """Runs a command; what it wrote to both streams."""

    def run(*words) -> str:
        run.status = cli.main([str(word) for word in words])
        captured = capsys.readouterr()
        return captured.out + captured.err

    return run


TINY = ("--size", "tiny", "--steps", "3", "--set", "train.batch_size=4", "data.workers=0", "tokenizer.size=400")


def test_the_mark_of_a_table_goes_on_to_all_that_is_made_of_it(table, tmp_path):
    corpus = open_corpus(table, "train", "skip")
    assert corpus.private
    assert corpus.record(0).private
    assert "mustermann" not in corpus.record(0).called
    assert open_corpus(f"mix:{table}=1", "train", "skip").private
    (table / "corpus.yaml").write_text("private: false\n")
    assert not open_corpus(table, "train", "skip").private
    for wrong in ("private: perhaps\n", "public: true\n", "[1]\n", "private: [\n", "private: true\nname: x\n"):
        (table / "corpus.yaml").write_text(wrong)
        with pytest.raises(UserError, match=r"corpus\.yaml.*write private: true"):
            open_corpus(table, "train", "skip")
    put(tmp_path, "folder/corpus.yaml", "private: true\n")
    put(tmp_path, "folder/1.png", picture(9))
    put(tmp_path, "folder/1.txt", "clear")
    assert open_corpus(tmp_path / "folder", splits_of(tmp_path / "folder")[0]).private


def test_faults_are_told_by_number_unless_asked_for(table, monkeypatch):
    faults = [str(fault) for fault in open_corpus(table, "train", "skip").faults]
    assert len(faults) == 2
    assert not told("".join(faults).replace(str(table), ""))
    assert re.search(r"pairs\.jsonl:25: missing key \(no\. 1\), of a private corpus \(TUWEN_SHOW_PRIVATE=1", faults[0])
    with pytest.raises(UserError) as caught:
        open_corpus(table, "train", "stop")
    assert not told(str(caught.value))
    monkeypatch.setenv(SHOW, "1")
    assert told("".join(map(str, open_corpus(table, "train", "skip").faults)))


def test_a_file_of_one_patient_is_not_named():
    faults = Faults("skip", "mimic-cxr")
    for name in ("mustermann.txt", "mustermann.xml", "mustermann.jpg"):
        faults.add(Fault(Path("p10") / name, 3, "empty text", "says mustermann"))
    assert [str(fault)[:35] for fault in faults.listed] == [f"mimic-cxr:3: empty text (no. {n}), of" for n in (1, 2, 3)]


CHEST = "mustermann/train/patient00001,Xanthoquark,1.0\n"
FAULTY_FILES = [
    ("chexpert", "train.csv", CHEST, "no column Path among of a private corpus"),
    ("roco-v2", "train_concepts.csv", CHEST, "no column ID among of a private corpus"),
    ("slake", "train.json", '[{"xanthoquark": 1, "xanthoquark": 2}]', "broken JSON: of a private corpus"),
    ("vqa-rad", "VQA_RAD Dataset Public.json", '[{"mustermann": 1, "mustermann": 2}]', "broken JSON: of a private"),
    ("", "pairs.csv", CHEST, "no column for the picture among of a private corpus"),
    ("", "pairs.csv", f"image,text,mustermann,mustermann\n{CHEST}", "column of a private corpus"),
]


@pytest.mark.parametrize(("kind", "name", "content", "what"), FAULTY_FILES)
def test_a_mistake_of_a_whole_file_is_told_without_its_words(kind, name, content, what, tmp_path, monkeypatch):
    """The first row of a table without a header is a patient's."""
    put(tmp_path, "train_captions.csv", "ID,Caption\n")
    put(tmp_path, "corpus.yaml", "private: true\n")
    place = f"{kind}:{tmp_path}" if kind else tmp_path / name
    put(tmp_path, name, content)
    with pytest.raises(UserError, match=re.escape(what)) as caught:
        open_corpus(place, "train", "skip")
    assert name in str(caught.value)
    assert not told(str(caught.value))
    monkeypatch.setenv(SHOW, "1")
    with pytest.raises(UserError) as caught:
        open_corpus(place, "train", "skip")
    assert told(str(caught.value))


def test_a_value_that_is_none_is_not_shown(table, tmp_path, monkeypatch):
    """Of rows, in lines that say what a column must hold; and the id that a table beside them has twice."""
    corpus = open_corpus(table, "train", "skip")
    record = replace(corpus.record(0), columns={"tags": "xanthoquark", "findings": {"Edema": "xanthoquark"}})
    write_table(tmp_path / "twice.parquet", keyed(["mustermann-1"] * 2, None, age=[1, 2]), private=True)
    mistakes = [
        lambda: tags_of(record, "en"),
        lambda: numbers(record, "tags"),
        lambda: findings_named(record, "en"),
        lambda: SideTable.read(tmp_path / "twice.parquet"),
    ]
    for shown in (False, True):
        if shown:
            monkeypatch.setenv(SHOW, "1")
        for mistake in mistakes:
            with pytest.raises(UserError) as caught:
                mistake()
            assert bool(told(str(caught.value))) == shown, caught.value


@pytest.mark.parametrize("kind", ["wordpiece", "unigram"])
def test_a_tokenizer_keeps_no_piece_of_few_reports(kind):
    """A piece stays where a word of five reports holds it; the same report twice is one."""
    common = [[f"the heart is normal in study {n}"] for n in range(20)]
    rare = [[f"xanthoquark again {n}"] for n in range(4)] + [["xanthoquark once"]] * 50
    texts = [text for report in common + rare for text in report]
    whole = Tokenizer.train(texts, kind, 400)
    kept = whole.without_rare(common + rare, 5)
    entries = json.loads(kept.to_json())["model"]["vocab"]
    stay = [(entry if isinstance(entry, str) else entry[0]).removeprefix("##").strip("▁") for entry in entries]
    distinct = {tuple(report) for report in common + rare}
    for piece in stay:
        if piece and not piece.startswith("["):
            assert sum(any(piece in word for word in " ".join(report).split()) for report in distinct) >= 5, piece
    assert "xanthoquark" in "".join(whole.pieces("xanthoquark")).replace("##", "").replace("▁", "")
    assert "heart" in stay
    assert kept.pieces("the heart") == whole.pieces("the heart")
    assert kept.ids(["heart zebra"])[0].max() < kept.vocabulary.size
    more = whole.without_rare([*common, *rare, ["xanthoquark more"]], 6)  # now six distinct reports hold it
    assert "xanthoquark" in "".join(more.pieces("xanthoquark")).replace("##", "").replace("▁", "")


def test_trimming_to_a_private_corpus_is_refused(table, monkeypatch):
    """Which pieces of a published vocabulary stay would tell the corpus's words."""
    published = SimpleNamespace(tokenizer=Tokenizer.train(["xanthoquark lungs"], size=100))
    monkeypatch.setattr(start.towers, "read_text", lambda weights: published)
    config = SimpleNamespace(tokenizer=TokenizerConfig(trim=True), text_weights="x")
    with pytest.raises(UserError, match=r"tokenizer\.trim: which pieces a private corpus uses would tell its words"):
        start.make_tokenizer(config, [open_corpus(table, "train", "skip")])


def test_the_commands_of_every_day_tell_nothing(table, tmp_path, tell):
    """Curation, training, evaluation, index: streams and files, but for what was asked for, which is marked."""
    seen = tell("data", "check", table, "--json", "--page", tmp_path / "check.html")
    seen += tell("data", "show", table, "--out", tmp_path / "show.html")
    seen += tell("data", "clean", table, "--out", tmp_path / "clean", "--drop", "similar_picture,similar_text")
    seen += tell("data", "build", table, "--out", tmp_path / "built")
    seen += tell("data", "build", table, "--out", tmp_path / "strict", "--strict")
    seen += tell("train", "clip", "--corpus", table, "--out", tmp_path / "run", *TINY)
    seen += tell("train", "clip", "--corpus", table, "--out", tmp_path / "stopped", *TINY, "data.on_bad=stop")
    seen += tell("eval", tmp_path / "run", "--corpus", table, "--task", "retrieval", "--json")
    seen += tell("eval", tmp_path / "run", "--corpus", table, "--task", "zero_shot")
    seen += tell("index", tmp_path / "run", table, "--out", tmp_path / "index", "--json")
    seen += tell("embed", tmp_path / "run", tmp_path / "built", "--out", tmp_path / "vectors")
    few = ("--set", "count=1", "least=5")
    seen += tell("data", "concepts", tmp_path / "run", "--corpus", table, "--out", tmp_path / "concepts", *few)
    assert "xanthoquark" not in seen.lower()
    assert not told(seen), [line for line in seen.splitlines() if told(line)]
    assert "no. 1" in seen
    run = tmp_path / "run"
    assert (run / "tokenizer.json").is_file()
    assert telling(run, tmp_path / "check.html", tmp_path / "show.html", tmp_path / "clean/removed.jsonl") == []
    built = tmp_path / "built"
    assert json.loads((built / "corpus.json").read_text())["private"] is True
    assert open_corpus(built, "train").private
    assert open_corpus(built, "train").record(0).private
    for folder in (built, *(tmp_path / name for name in ("index", "clean", "vectors", "concepts"))):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert telling(built / "corpus.json", *built.glob("broken.jsonl")) == []


def leaves(root, path=()):
    """The commands of a parser."""
    groups = [action for action in root._actions if isinstance(action, _SubParsersAction)]
    for group in groups:
        for name, below in group.choices.items():
            yield from leaves(below, (*path, name))
    if not groups:
        yield " ".join(path)


RECIPE = """
train: {steps: 3, batch_size: 4}
data: {workers: 0}
tokenizer: {size: 400}
stages:
  - {name: first, do: train, system: blip}
  - {name: doubt, do: noise, run: first}
  - {name: main, do: train, system: clip, beside: [doubt]}
"""


@pytest.mark.slow
def test_no_command_tells_anything(table, tmp_path, tell):
    """Three minutes: every command there is, in order; what was asked for is looked at last."""
    run, blip, other = tmp_path / "clip", tmp_path / "blip", tmp_path / "other"
    put(tmp_path, "recipe.yaml", RECIPE)
    shown = table / "mustermann_5.png"
    index, query = tmp_path / "index", "the lungs are clear"
    learn = ["clip", "--corpus", table, "--init", run, *TINY[2:], "--task"]
    commands: dict[str, list[list]] = {
        "systems": [[]],
        "data list": [["mimic-cxr"]],
        "data build": [[table, "--out", tmp_path / "built"]],
        "data check": [[table], [table, "--json", "--page", tmp_path / "check.html"], [tmp_path / "built"]],
        "data clean": [[table, "--out", tmp_path / "clean", "--drop", "similar_text"]],
        "data clicks": [[table, "--out", tmp_path / "clicks"]],
        "data show": [[table, "--out", tmp_path / "show.html"]],
        "train": [
            ["clip", "--corpus", table, "--out", run, *TINY],
            ["clip", "--corpus", tmp_path / "built", "--out", other, *TINY, "data.on_bad=stop"],
            ["--resume", run],
            ["blip", "--corpus", table, "--out", blip, *TINY, "model.score=published"],
            ["ernie_unix2", "--corpus", table, "--out", tmp_path / "unix2", *TINY],
            [*learn, "classification", "--out", tmp_path / "task"],
            [*learn, "captioning", "--out", tmp_path / "caption"],
        ],
        "run": [[tmp_path / "recipe.yaml", "--corpus", table, "--out", tmp_path / "stages", "--size", "tiny"]],
        "data noise": [[blip, "--corpus", table, "--out", tmp_path / "noise"]],
        "data concepts": [[run, "--corpus", table, "--out", tmp_path / "concepts", "--set", "count=1", "least=5"]],
        "data caption": [[tmp_path / "caption", "--corpus", table, "--out", tmp_path / "captions"]],
        "knowledge": [["findings", "--corpus", table, "--out", tmp_path / "lexicon", "--set", "epochs=1"]],
        "eval": [
            [run, "--corpus", table, "--task", task, "--json"]
            for task in ("retrieval", "zero_shot", "matching", "text_retrieval", "image_retrieval", "linear_probe")
        ]
        + [[tmp_path / "task", "--corpus", table], [tmp_path / "caption", "--corpus", table]],
        "explain": [[blip, shown, query, "--out", tmp_path / "words.png"]],
        "compare": [
            ["clip", "--corpus", table, "--out", tmp_path / "compare", "--budget", "steps=2", *TINY[:2], *TINY[4:]],
            ["--runs", run, blip, "--corpus", table, "--out", tmp_path / "judged"],
        ],
        "claim": [[]],
        "report": [[run], [tmp_path / "compare"]],
        "index": [[blip, table, "--out", index]],
        "search": [[index, query, "--json"]],
        "recall": [[index, "--json"]],
        "embed": [[run, tmp_path / "built", "--out", tmp_path / "vectors", "--json"]],
        "serve": [[tmp_path / "nothing", "--no-keys"]],
        "key": [[tmp_path / "keys", "reader"]],
        "generate": [[tmp_path / "unix2", shown, "--language", "en"]],
        "import": [[tmp_path / "nothing", "--out", tmp_path / "imported"]],
        "export": [[run, "--to", "onnx"]],
    }
    assert set(commands) == set(leaves(cli.parser()))
    asked = {"search", "generate"}  # whose output is what was asked for
    refused = {"data check", "data clicks", "serve", "import"}  # faults found; no column of clicks; nothing there
    wrong = {}
    for name, calls in commands.items():
        for words in calls:
            output = tell(*name.split(), *words)
            assert tell.status == 0 or name in refused, (name, words, output)
            if name not in asked and told(output.replace(shown.name, "")):
                wrong[f"{name} {words}"] = [line for line in output.splitlines() if told(line)][:3]
    assert wrong == {}
    private = [index, tmp_path / "built", tmp_path / "clean", tmp_path / "vectors", tmp_path / "captions"]
    private += [tmp_path / name for name in ("noise", "concepts", "clicks")]
    made = [path for path in tmp_path.iterdir() if path not in private and path != table]
    table_of_stage = str(tmp_path / "stages/doubt/table.parquet")  # asked for by the recipe; keyed by the rows' ids
    assert telling(*made) == [table_of_stage]
    assert stat.S_IMODE(index.stat().st_mode) == 0o700
