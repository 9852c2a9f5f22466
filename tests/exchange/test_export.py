"""A run trained here goes out: transformers gives its vectors, and the card says what it was made of."""

import json

import pytest
import torch

import tuwen
from tests.exchange.checkpoints import IDS
from tuwen import cli
from tuwen.data.batch import Images, Texts

t = pytest.importorskip("transformers")

CORPUS = "scenes:count=24,side=32"
CHINESE_CLIP = "model.image.pre_norm=true model.image.patch_bias=false model.image.projection=unbiased"
CHINESE_CLIP += " model.text.projection=unbiased"
FEW = "train.batch_size=8 train.seed=5 data.workers=0 data.augment=none train.precision=float32"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "mine"
    words = f"train clip --corpus {CORPUS} --out {folder} --size tiny --steps 2 --set {CHINESE_CLIP} {FEW}"
    assert cli.main(words.split()) == 0
    return folder


def test_the_architecture_gives_the_runs_vectors(run, tmp_path, capsys):
    assert cli.main(["export", str(run), "--to", "hf", "--out", str(tmp_path / "out"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["architecture"] == "ChineseCLIPModel"
    system = tuwen.load(run).system
    theirs = t.ChineseCLIPModel.from_pretrained(tmp_path / "out").eval()
    pixels = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    real = IDS != 0
    with torch.no_grad():
        want = theirs(input_ids=IDS, attention_mask=real.long(), pixel_values=pixels)
        images, texts = system.encode_images(Images(pixels)), system.encode_texts(Texts(IDS, real, IDS[:, 0]))
    for mine, other in ((images, want.image_embeds), (texts, want.text_embeds)):
        torch.testing.assert_close(mine.pooled, other, rtol=1e-5, atol=1e-5)
    words = t.AutoTokenizer.from_pretrained(tmp_path / "out")(["a red dog", "狗"], padding=True)
    ids, mask = tuwen.load(run).tokenizer.encode(["a red dog", "狗"], 32)
    for row in range(2):
        theirs_ids = [i for i, on in zip(words["input_ids"][row], words["attention_mask"][row], strict=True) if on]
        assert [i for i in ids[row][mask[row]].tolist() if i > 3] == [i for i in theirs_ids if i > 3]


def test_the_card_says_what_it_was_made_of(run, tmp_path):
    assert cli.main(["export", str(run), "--to", "hf", "--out", str(tmp_path / "out")]) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    origin = json.loads((run / "provenance.json").read_text())
    found = json.loads((run / "retrieval.json").read_text())
    assert "A `clip` of tuwen, as `ChineseCLIPModel` of transformers" in card
    assert origin["corpus"]["fingerprint"] in card
    assert "2 steps of 8 pairs, learning rate 0.001, float32, seed 5" in card
    first = found["languages"]["zh"]["first"]
    told = f"| zh | first | {first['mean_recall']:.1f} | {first['image_to_text']['r1']:.1f} |"
    assert told in card
    assert "CC-BY" in card, "the licence of what it was trained on"


def test_what_has_no_architecture_there_is_refused_with_the_change_to_make(tmp_path, capsys):
    words = f"train clip --corpus {CORPUS} --out {tmp_path / 'run'} --size tiny --steps 1 --set {FEW}"
    assert cli.main(words.split()) == 0
    capsys.readouterr()
    assert cli.main(["export", str(tmp_path / "run"), "--to", "hf", "--out", str(tmp_path / "out")]) == 1
    told = capsys.readouterr().err
    assert "model.image.projection=unbiased" in told
    assert told.count("\n") == 1
    assert not (tmp_path / "out").exists()
