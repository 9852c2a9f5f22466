"""open_clip and cn_clip themselves, where they are installed: they read what is exported, and we what they write."""

import pytest
import torch
import torch.nn.functional as F

import tuwen
from tests.exchange.checkpoints import randomised
from tuwen import cli
from tuwen.data.batch import Images
from tuwen.exchange.importing import import_model

pytestmark = pytest.mark.slow  # two minutes
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
FEW = "model.image.side=32 model.image.layers=2 model.text.layers=2 train.batch_size=8 data.workers=0"
SENTENCES = ["a red dog, isn't it?", "两只  狗在草地上", "Ünïcode & 12 34"]
PIXELS = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(2))


def exported(size: str, target: str, tmp_path):
    run, out = tmp_path / "run", tmp_path / "out"
    shorter = " model.image.shorter_side=32" if size == "clip-small" else ""
    words = f"train clip --corpus scenes:count=24,side=32 --out {run} --size {size} --steps 1 --set {FEW}{shorter}"
    assert cli.main(words.split()) == 0
    assert cli.main(["export", str(run), "--to", target, "--out", str(out)]) == 0
    return tuwen.load(run), out


def test_open_clip_reads_an_export(tmp_path):
    open_clip = pytest.importorskip("open_clip")
    ours, out = exported("clip-small", "open_clip", tmp_path)
    theirs, _, _ = open_clip.create_model_and_transforms(f"local-dir:{out}")
    ids = open_clip.get_tokenizer(f"local-dir:{out}")(["a red dog", "狗"])
    own, mask = ours.tokenizer.encode(["a red dog", "狗"], 77)
    for row in range(2):
        assert ids[row][ids[row] != ours.tokenizer.vocabulary.pad].tolist() == own[row][mask[row]].tolist()
    theirs.eval().requires_grad_(False)
    torch.testing.assert_close(
        theirs.encode_image(PIXELS, normalize=True), ours.system.encode_images(Images(PIXELS)).pooled, **CLOSE
    )
    vectors = ours.embed(texts=["a red dog", "狗"]).texts
    torch.testing.assert_close(theirs.encode_text(ids, normalize=True), vectors, **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-B-32-quickgelu"])
def test_a_checkpoint_that_open_clip_wrote_gives_its_vectors(name, tmp_path):
    open_clip = pytest.importorskip("open_clip")
    model = randomised(
        open_clip.create_model(name, vision_cfg={"image_size": 64, "layers": 2, "width": 128, "patch_size": 32})
    )
    torch.save({"epoch": 1, "name": name, "state_dict": model.state_dict()}, tmp_path / "epoch_1.pt")
    if name.endswith("quickgelu"):
        (tmp_path / "open_clip_config.json").write_text('{"quick_gelu": true}')
    import_model(str(tmp_path / "epoch_1.pt"), tmp_path / "run")  # its tokenizer is the package's own list
    ours = tuwen.load(tmp_path / "run")
    ids = open_clip.get_tokenizer(name)(SENTENCES)
    own, mask = ours.tokenizer.encode(SENTENCES, 77)
    for row in range(3):
        count = int(mask[row].sum())
        assert ids[row, :count].tolist() == own[row, :count].tolist()
        assert not ids[row, count:].any()
    expected = model.encode_text(ids, normalize=True)
    torch.testing.assert_close(ours.embed(texts=SENTENCES).texts, expected, **CLOSE)
    pixels = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(
        ours.system.encode_images(Images(pixels)).pooled, model.encode_image(pixels, normalize=True), **CLOSE
    )


@torch.no_grad()
def test_cn_clip_reads_an_export_and_we_its_own_checkpoint(tmp_path, monkeypatch):
    pytest.importorskip("cn_clip")
    from cn_clip.clip import tokenize, utils
    from cn_clip.clip.model import CLIP

    sizes = {"vision_layers": 2, "vision_width": 128, "vision_patch_size": 16, "image_resolution": 32, "embed_dim": 12}
    texts = {"hidden_size": 64, "intermediate_size": 256, "num_attention_heads": 1, "num_hidden_layers": 2}
    texts |= {"max_position_embeddings": 512, "type_vocab_size": 2, "hidden_act": "gelu", "initializer_range": 0.02}
    texts |= {"attention_probs_dropout_prob": 0.1, "hidden_dropout_prob": 0.1}
    settings = sizes | {f"text_{name}": value for name, value in texts.items()} | {"vocab_size": 21128}
    model = randomised(CLIP(**settings))
    torch.save({"state_dict": {f"module.{n}": v for n, v in model.state_dict().items()}}, tmp_path / "mine.pt")
    import_model(str(tmp_path / "mine.pt"), tmp_path / "run")  # its vocabulary is the package's
    ours, sentences = tuwen.load(tmp_path / "run"), ["一只红色的狗，在跑", "A red DOG"]
    expected = F.normalize(model.encode_text(tokenize(sentences)), dim=-1)
    torch.testing.assert_close(ours.embed(texts=sentences).texts, expected, **CLOSE)
    torch.testing.assert_close(
        ours.system.encode_images(Images(PIXELS)).pooled, F.normalize(model.encode_image(PIXELS), dim=-1), **CLOSE
    )

    assert cli.main(["export", str(tmp_path / "run"), "--to", "cn_clip", "--out", str(tmp_path / "out")]) == 0
    configs = tmp_path / "clip" / "model_configs"
    configs.mkdir(parents=True)
    for path in (tmp_path / "out").glob("*.json"):
        (configs / path.name).write_text(path.read_text())
    monkeypatch.setattr(utils, "__file__", str(tmp_path / "clip" / "utils.py"))
    names = {"vision_model_name": "tuwen-image", "text_model_name": "tuwen-text", "input_resolution": 32}
    again, _ = utils.load_from_name(str(tmp_path / "out" / "clip_cn.pt"), "cpu", **names)
    # cn_clip holds its weights in half precision before it goes back to float32
    cosine = F.cosine_similarity(again.eval().encode_text(tokenize(sentences)), expected)
    assert float(cosine.min()) > 0.9999
