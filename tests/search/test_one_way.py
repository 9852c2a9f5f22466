"""One way from a picture to a score: index, `tuwen embed`, `tuwen.load` and the evaluation agree, for every system.

Runs of random weights whose tower cuts the middle square out of a picture, and twenty pictures of odd shapes and modes.
"""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import tuwen
from tests.search.common import untrained
from tuwen import systems, tasks
from tuwen.data.open import open_corpus
from tuwen.predictor import vectors
from tuwen.search.build import build_index
from tuwen.search.embed import embed
from tuwen.search.query import Query, Searcher
from tuwen.tasks.encoding import encode_captions, encode_pictures
from tuwen.tasks.retrieval import Side

RANKING = [
    name for name in systems.names() if {"retrieval", "text_retrieval"} <= {*tasks.of_system(systems.find(name))}
]
CROP = {"model.image.shorter_side": 37}  # of a side of 32: as 256 and 224
COLOURS = ("red", "green", "blue", "grey", "pink", "teal", "gold", "rust", "white", "black")


def drawing(number: int, height: int, width: int) -> Image.Image:
    """Rough colours of that shape, no two numbers alike."""
    colours = np.random.default_rng(number).integers(0, 256, (min(5, height), min(7, width), 3), dtype=np.uint8)
    return Image.fromarray(colours).resize((width, height), Image.Resampling.BICUBIC)


def odd_pictures(folder) -> list[str]:
    """Files of twenty pictures: shapes from 1 x 1 to 1 x 500, every mode that Pillow writes, turned by EXIF."""
    upright = Image.Exif()
    upright[0x0112] = 6
    plain = drawing(0, 60, 90)
    grey16 = Image.fromarray(np.random.default_rng(9).integers(0, 65536, (45, 70), dtype=np.uint16))
    clear = drawing(8, 50, 50).convert("RGBA")
    clear.putalpha(drawing(10, 50, 50).convert("L"))
    given = {
        "plain.jpg": (plain, {}),
        "line.png": (drawing(1, 1, 500), {}),
        "tall.png": (drawing(2, 300, 40), {}),
        "pole.png": (drawing(3, 500, 1), {}),
        "dot.png": (drawing(4, 1, 1), {}),
        "few.bmp": (drawing(5, 2, 3), {}),
        "grey.png": (drawing(6, 80, 50).convert("L"), {}),
        "faint.png": (drawing(7, 64, 31).convert("LA"), {}),
        "clear.png": (clear, {}),
        "deep.png": (grey16, {}),
        "palette.png": (drawing(11, 33, 90).convert("P", palette=Image.Palette.ADAPTIVE), {}),
        "bits.png": (drawing(12, 70, 41).convert("1"), {}),
        "print.jpg": (drawing(13, 48, 96).convert("CMYK"), {}),
        "turned.jpg": (drawing(14, 40, 100), {"exif": upright}),
        "steps.jpg": (drawing(15, 99, 35), {"progressive": True}),
        "web.webp": (drawing(16, 37, 37), {"lossless": True}),
        "moving.gif": (drawing(17, 45, 80), {"save_all": True, "append_images": [drawing(18, 45, 80)]}),
        "scan.tiff": (drawing(19, 36, 200), {}),
        "large.jpg": (drawing(20, 300, 400), {}),
        "exact.png": (drawing(21, 32, 32), {}),
    }
    for name, (image, options) in given.items():
        image.save(folder / name, **options)
    return list(given)


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """(folder of a pair table, its files): every picture with a text of its own."""
    folder = tmp_path_factory.mktemp("odd")
    names = odd_pictures(folder)
    texts = [f"{COLOURS[k % 10]} {COLOURS[k // 10]} and {COLOURS[(3 * k) % 10]}" for k in range(len(names))]
    rows = [
        {"id": n, "image": n, "texts": {"en": [text]}, "split": "train"} for n, text in zip(names, texts, strict=True)
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder, names


@pytest.fixture(scope="module")
def run_of(tmp_path_factory):
    """The run of a system, made once."""
    made = {}

    def run(name, **changes):
        key = (name, *sorted(changes.items()))
        if key not in made:
            made[key] = untrained(tmp_path_factory.mktemp(name) / "run", name, **changes)
        return made[key]

    return run


def evaluated(predictor, folder):
    """(names, first-stage vectors [20, D], final scores [texts, 20], texts) by the evaluation, in batches of 3."""
    corpus = open_corpus(str(folder), "train")
    gallery = corpus.gallery("en")
    with predictor.evaluating():
        pictures = encode_pictures(predictor, corpus, gallery.rows, 3)
        texts = encode_captions(predictor, gallery.texts, 3)
        side = Side(predictor, pictures.encoded, texts, "text_to_image", 20, 5, 1 << 20)
        final = side.final(0, len(texts))
    names = [corpus.record(int(row)).id for row in pictures.rows]
    return names, vectors(pictures.encoded), final, [caption.text for caption in gallery.texts]


def compared(searcher, names, final, texts) -> tuple[float, float]:
    """(largest difference of search's scores from the evaluation's, by how much a picture of a top ten is no such)."""
    difference = intruder = 0.0
    for scores, text in zip(final.double(), texts, strict=True):
        results = searcher.search([Query(text)], top=20, candidates=20)[0].results
        assert len(results) == 20
        place = [names.index(result.id) for result in results]
        served = torch.tensor([result.score for result in results], dtype=torch.float64)
        difference = max(difference, float((served - scores[place]).abs().max()))
        tenth = float(scores.sort(descending=True).values[9])
        intruder = max(intruder, tenth - float(scores[place[:10]].min()))
    return difference, intruder


@pytest.mark.parametrize("name", RANKING)
def test_what_is_measured_is_what_is_served(name, shown, run_of, tmp_path):
    folder, files = shown
    run = run_of(name, **CROP)
    model = tuwen.load(run)
    names, expected, final, texts = evaluated(model.predictor, folder)
    assert sorted(names) == sorted(files)
    index = build_index(run, folder, tmp_path / "index", tokens="float32", batch_size=7)
    position = index.snapshot.among(names)
    stored = index.vectors(index.snapshot, np.array([position[n] for n in names]))
    embed(run, folder, tmp_path / "vectors", batch_size=4)
    (file,) = (tmp_path / "vectors").glob("*.parquet")
    bulk = pq.read_table(file).to_pydict()
    by_name = dict(zip(bulk["id"], bulk["vector"], strict=True))
    loaded = model.embed(images=[folder / n for n in names], batch_size=6).images
    for others in (stored, torch.tensor([by_name[n] for n in names]), loaded):
        torch.testing.assert_close(others, expected, atol=1e-6, rtol=0)
    assert float((expected - expected.mean(0)).norm(dim=1).min()) > 1e-3  # pictures are told apart
    difference, _ = compared(Searcher(index), names, final, texts)
    print(name, difference, float(final.std()))
    assert difference < 1e-5 * max(1.0, float(final.abs().max()))


@pytest.mark.parametrize("name", ["r2d2", "wukong"])
@pytest.mark.parametrize(("tokens", "bound"), [("float16", 3e-4), ("int8", 6e-3)])
def test_rounded_parts_keep_the_top_ten_within_a_bound(name, tokens, bound, shown, run_of, tmp_path):
    """Final scores are off by at most the bound; who is in a top ten by mistake misses it by at most twice that."""
    run = run_of(name, **CROP)
    names, _, final, texts = evaluated(tuwen.load(run).predictor, shown[0])
    difference, intruder = compared(
        Searcher(build_index(run, shown[0], tmp_path / "i", tokens=tokens)), names, final, texts
    )
    print(name, tokens, difference, intruder, float(final.std()))
    assert 0 < difference < bound
    assert intruder <= 2 * bound
