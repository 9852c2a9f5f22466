"""Checkpoints of open_clip and cn_clip, in and out: the vectors are those of the projects' towers, built here apart."""

import gzip
import json
import math
from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import tuwen
from tests.exchange.checkpoints import IDS, TEXT, pieces, randomised, write_tokenizer
from tuwen import cli
from tuwen.data.batch import Images, Texts
from tuwen.errors import UserError
from tuwen.exchange.importing import import_model
from tuwen.exchange.openai_out import export_openai
from tuwen.nn.published.tokenizer import byte_pairs

PIXELS = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(2))
REAL = IDS != 0
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
WORDS, LENGTH, EMBED = 60, 20, 12


class QuickGELU(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(1.702 * x)


class Block(nn.Module):
    """A residual block of OpenAI's CLIP, by torch's own attention."""

    def __init__(self, width: int, heads: int, act):
        super().__init__()
        self.attn, self.ln_1, self.ln_2 = nn.MultiheadAttention(width, heads), nn.LayerNorm(width), nn.LayerNorm(width)
        layers = (("c_fc", nn.Linear(width, 4 * width)), ("gelu", act()), ("c_proj", nn.Linear(4 * width, width)))
        self.mlp = nn.Sequential(OrderedDict(layers))

    def forward(self, x, mask=None):
        normed = self.ln_1(x)
        x = x + self.attn(normed, normed, normed, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp(self.ln_2(x))


class Blocks(nn.Module):
    def __init__(self, width: int, heads: int, layers: int, act):
        super().__init__()
        self.resblocks = nn.ModuleList(Block(width, heads, act) for _ in range(layers))

    def forward(self, x, mask=None):
        x = x.transpose(0, 1)
        for block in self.resblocks:
            x = block(x, mask)
        return x.transpose(0, 1)


class Visual(nn.Module):
    def __init__(self, act, width: int = 128, heads: int = 2, patch: int = 8):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.positional_embedding = nn.Parameter(torch.zeros((32 // patch) ** 2 + 1, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = Blocks(width, heads, 2, act)
        self.proj = nn.Parameter(torch.zeros(width, EMBED))

    def forward(self, pixels):
        x = self.conv1(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], 1) + self.positional_embedding
        return self.ln_post(self.transformer(self.ln_pre(x))[:, 0]) @ self.proj


class Text(nn.Module):
    def __init__(self, act, width: int = 64, heads: int = 1):
        super().__init__()
        self.token_embedding = nn.Embedding(WORDS, width)
        self.positional_embedding = nn.Parameter(torch.zeros(LENGTH, width))
        self.transformer, self.ln_final = Blocks(width, heads, 3, act), nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.zeros(width, EMBED))

    def encode(self, ids, ends):
        x = self.token_embedding(ids) + self.positional_embedding[: ids.shape[1]]
        mask = torch.full((ids.shape[1],) * 2, -math.inf).triu(1)
        return self.ln_final(self.transformer(x, mask))[torch.arange(len(ids)), ends] @ self.text_projection


class OpenClip(Text):
    """The layout of open_clip's CLIP: the text tower's parts at the top of the model."""

    def __init__(self, quick: bool):
        act = QuickGELU if quick else nn.GELU
        super().__init__(act)
        self.visual, self.logit_scale = Visual(act), nn.Parameter(torch.tensor(2.5))


def vectors(model, run=None):
    """(pictures, texts) unit vectors of the reference, or of a run."""
    if run is not None:
        texts = Texts(IDS, REAL, torch.zeros(3, dtype=torch.int64))
        system = tuwen.load(run).system
        return system.encode_images(Images(PIXELS)).pooled, system.encode_texts(texts).pooled
    return F.normalize(model.visual(PIXELS), dim=-1), F.normalize(model.encode(IDS, REAL.sum(1) - 1), dim=-1)


def equal(first, second) -> None:
    for mine, theirs in zip(first, second, strict=True):
        torch.testing.assert_close(mine, theirs, **CLOSE)


SETTINGS = {
    "model_cfg": {
        "embed_dim": EMBED,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 128, "patch_size": 8},
        "text_cfg": {"context_length": LENGTH, "vocab_size": WORDS, "width": 64, "heads": 1, "layers": 3},
    },
    "preprocess_cfg": {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3], "interpolation": "bilinear"},
}


@pytest.mark.parametrize(("quick", "apart"), [(False, False), (True, True)])
@torch.no_grad()
def test_open_clips_folder_and_back(quick, apart, tmp_path):
    from safetensors.torch import save_file

    model, folder = randomised(OpenClip(quick)), tmp_path / "theirs"
    folder.mkdir()
    tensors = dict(model.state_dict())
    if apart:  # newer files: the text tower is a module, and squashed pictures
        tensors = {n if n.startswith(("visual.", "logit")) else f"text.{n}": v for n, v in tensors.items()}
    settings = SETTINGS | {"model_cfg": SETTINGS["model_cfg"] | {"quick_gelu": quick, "custom_text": apart}}
    settings["preprocess_cfg"] = settings["preprocess_cfg"] | {"resize_mode": "squash" if apart else "shortest"}
    save_file(tensors, folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps(settings))
    write_tokenizer(folder)
    report = import_model(str(folder), tmp_path / "run")
    assert not report.unexpected
    assert not report.notes
    expected = vectors(model)
    equal(vectors(None, tmp_path / "run"), expected)
    loaded = tuwen.load(tmp_path / "run")
    image = loaded.config.model.image
    assert (image.resample, image.shorter_side, image.mean) == ("bilinear", None if apart else 32, (0.4, 0.5, 0.6))
    assert float(loaded.system.log_scale) == 2.5 + float(model.logit_scale - 2.5)

    export_openai(tmp_path / "run", tmp_path / "out", "open_clip")
    import_model(str(tmp_path / "out"), tmp_path / "again")
    equal(vectors(None, tmp_path / "again"), expected)
    config = json.loads((tmp_path / "out" / "open_clip_config.json").read_text())
    assert config["preprocess_cfg"] == settings["preprocess_cfg"]
    assert config["model_cfg"]["quick_gelu"] == quick
    assert config["model_cfg"]["text_cfg"]["eos_id"] == 3, "this vocabulary's end is not its highest id"
    other = OpenClip(quick)
    from safetensors.torch import load_file

    state = load_file(tmp_path / "out" / "open_clip_model.safetensors")
    other.load_state_dict({name.removeprefix("text."): value for name, value in state.items()})
    equal(vectors(other.eval()), expected)


@torch.no_grad()
def test_a_training_checkpoint_of_open_clip_is_read_by_its_shapes(tmp_path, monkeypatch):
    monkeypatch.setattr("tuwen.exchange.openai.find_spec", lambda name: None)
    model = randomised(OpenClip(False))
    state = {f"module.{name}": value for name, value in model.state_dict().items()}
    optimizer = {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1e-3}]}
    torch.save({"epoch": 3, "name": "run", "state_dict": state, "optimizer": optimizer}, tmp_path / "epoch_3.pt")
    with pytest.raises(UserError, match=r"no tokenizer there; give --tokenizer bpe_simple_vocab_16e6\.txt\.gz"):
        import_model(str(tmp_path / "epoch_3.pt"), tmp_path / "run")
    write_tokenizer(tmp_path)
    (note,) = import_model(str(tmp_path / "epoch_3.pt"), tmp_path / "run").notes
    assert "no open_clip_config.json beside it" in note
    equal(vectors(None, tmp_path / "run"), vectors(model))
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"quick_gelu": True}))
    import_model(str(tmp_path / "epoch_3.pt"), tmp_path / "quick")
    assert tuwen.load(tmp_path / "quick").config.model.text.activation == "quick_gelu"


@torch.no_grad()
def test_cn_clips_checkpoint_and_back(tmp_path, monkeypatch):
    monkeypatch.setattr("tuwen.exchange.openai.find_spec", lambda name: None)
    t = pytest.importorskip("transformers")
    visual = randomised(Visual(QuickGELU))
    bert = randomised(t.BertModel(t.BertConfig(**TEXT | {"hidden_size": 64, "num_attention_heads": 1})))
    projection = torch.randn(64, EMBED, generator=torch.Generator().manual_seed(3))
    state = {f"visual.{name}": value for name, value in visual.state_dict().items()}
    state |= {f"bert.{name}": value for name, value in bert.state_dict().items() if "position_ids" not in name}
    state |= {"text_projection": projection, "logit_scale": torch.tensor(4.6)}
    content = {"epoch": 2, "step": 9, "name": "mine", "state_dict": {f"module.{n}": v for n, v in state.items()}}
    torch.save(content, tmp_path / "clip_cn.pt")
    with pytest.raises(UserError, match=r"give --tokenizer vocab\.txt"):
        import_model(str(tmp_path / "clip_cn.pt"), tmp_path / "run")
    (tmp_path / "vocab.txt").write_text("\n".join(pieces()) + "\n")
    report = import_model(str(tmp_path / "clip_cn.pt"), tmp_path / "run")
    assert set(report.unexpected) == {"bert.pooler.dense.weight", "bert.pooler.dense.bias"}
    states = bert(input_ids=IDS, attention_mask=REAL.long()).last_hidden_state
    expected = F.normalize(visual(PIXELS), dim=-1), F.normalize(states[:, 0] @ projection, dim=-1)
    equal(vectors(None, tmp_path / "run"), expected)
    model = tuwen.load(tmp_path / "run")
    assert model.tokenizer.encode(["ab"], 20)[0][0, :4].tolist() == [2, 5, 32, 3], "[CLS] a ##b [SEP]"
    assert model.config.model.image.shorter_side is None, "cn_clip squashes pictures"

    export_openai(tmp_path / "run", tmp_path / "out", "cn_clip")
    again = torch.load(tmp_path / "out" / "clip_cn.pt", weights_only=True)["state_dict"]
    assert again.keys() == {f"module.{name}" for name in state if "pooler" not in name}
    assert all(torch.equal(again[f"module.visual.{name}"], value) for name, value in visual.state_dict().items())
    assert torch.equal(again["module.text_projection"], projection)
    import_model(str(tmp_path / "out" / "clip_cn.pt"), tmp_path / "again")
    equal(vectors(None, tmp_path / "again"), expected)
    assert (tmp_path / "out" / "vocab.txt").read_text().split()[: len(pieces())] == pieces()


def slow_pairs(text: str, merges: list[tuple[str, str]]) -> list[str]:
    """Byte pair encoding of a word as its inventors describe it: the earliest merge first, one at a time."""
    parts = [*text[:-1], text[-1] + "</w>"]
    for first, second in merges:
        k = 0
        while k < len(parts) - 1:
            if (parts[k], parts[k + 1]) == (first, second):
                parts[k : k + 2] = [first + second]
            k += 1
    return parts


def test_clips_merges_are_read_from_openais_packed_list(tmp_path):
    merges = [("d", "o"), ("do", "g</w>"), ("a", "b"), ("ab", "c"), ("1", "2</w>"), ("å", "¥")]
    with gzip.open(tmp_path / "bpe.txt.gz", "wt", encoding="utf-8") as file:
        file.write("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in merges) + "\nx y\nleft out\n")
    tokenizer = byte_pairs(tmp_path / "bpe.txt.gz", 512 + len(merges) + 2)
    words = tokenizer.vocabulary
    assert (words.cls, words.sep, words.size) == (518, 519, 520)
    for text, parts in (
        ("DOG  abcab", ["dog", "abcab"]),
        ("dogs 12!", ["dogs", "1", "2", "!"]),
        ("it's", ["it", "'s"]),
    ):
        assert tokenizer.pieces(text) == [piece for part in parts for piece in slow_pairs(part, merges)]
    assert tokenizer.pieces("好") == ["å¥", "½</w>"], "bytes e5 a5 bd as letters"
    assert [tokenizer._inner.token_to_id(piece) for piece in ("!", "~", "¡", "Ā", "!</w>", "do")] == [
        0,
        93,
        94,
        188,
        256,
        512,
    ]
    (tmp_path / "bad.txt.gz").write_bytes(b"no gzip")
    with pytest.raises(UserError, match="not the merges of CLIP's tokenizer"):
        byte_pairs(tmp_path / "bad.txt.gz", 520)


def test_what_the_towers_do_not_have_is_refused_by_name(tmp_path):
    from safetensors.torch import save_file

    tensors = dict(OpenClip(False).state_dict())
    save_file(tensors, tmp_path / "open_clip_model.safetensors")
    write_tokenizer(tmp_path)
    changes = (
        ("vision_cfg", "pool_type", "avg", "vision_cfg.pool_type is 'avg'"),
        ("vision_cfg", "timm_model_name", "vit_base", "vision_cfg.timm_model_name is 'vit_base'"),
        ("text_cfg", "hf_model_name", "xlm-roberta-base", "text_cfg.hf_model_name is 'xlm-roberta-base'"),
        ("text_cfg", "no_causal_mask", True, "text_cfg.no_causal_mask is True"),
    )
    for part, name, value, line in changes:
        model = SETTINGS["model_cfg"] | {part: SETTINGS["model_cfg"][part] | {name: value}}
        (tmp_path / "open_clip_config.json").write_text(json.dumps(SETTINGS | {"model_cfg": model}))
        with pytest.raises(UserError, match=line):
            import_model(str(tmp_path), tmp_path / "run")
    padded = SETTINGS | {"preprocess_cfg": {"resize_mode": "longest"}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(padded))
    with pytest.raises(UserError, match="resize_mode 'longest' pads"):
        import_model(str(tmp_path), tmp_path / "run")
    torch.save({"visual.layer1.0.conv1.weight": torch.zeros(2)}, tmp_path / "resnet.pt")
    with pytest.raises(UserError, match="no checkpoint of open_clip or cn_clip"):
        import_model(str(tmp_path / "resnet.pt"), tmp_path / "run")
    torch.save(tensors | {"token_embedding.weight": torch.tensor(0.0)}, tmp_path / "number.pt")
    with pytest.raises(UserError, match="no word embeddings there"):
        import_model(str(tmp_path / "number.pt"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_pickle_with_more_than_tensors_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"state_dict": {"visual.conv1.weight": Evil()}}, tmp_path / "evil.pt")
    with pytest.raises(UserError, match="running what it holds is not safe"):
        import_model(str(tmp_path / "evil.pt"), tmp_path / "run")
    assert not (tmp_path / "ran").exists()


def test_a_run_of_a_size_of_clips_goes_out_without_a_setting(tmp_path, capsys):
    corpus = "scenes:count=24,side=32"
    few = "model.image.side=32 model.image.layers=1 model.image.width=64 model.image.heads=1 model.text.layers=1"
    few += " model.text.width=64 model.text.heads=1 train.batch_size=8 data.workers=0"
    for size, target in (("clip-small", "open_clip"), ("chinese-clip-small", "cn_clip")):
        shorter = " model.image.shorter_side=32" if size == "clip-small" else ""
        run, out = tmp_path / size, tmp_path / target
        words = f"train clip --corpus {corpus} --out {run} --size {size} --steps 1 --set {few}{shorter}"
        assert cli.main(words.split()) == 0
        assert cli.main(["export", str(run), "--to", "hf", "--out", str(tmp_path / f"{size}-hf")]) == 0
        capsys.readouterr()
        assert cli.main(["export", str(run), "--to", target, "--out", str(out), "--json"]) == 0
        assert str(out) in json.loads(capsys.readouterr().out)["load"]
        source = out if target == "open_clip" else out / "clip_cn.pt"
        import_model(str(source), tmp_path / f"{size}-again")
        equal(vectors(None, tmp_path / f"{size}-again"), vectors(None, run))
    assert cli.main(["export", str(tmp_path / "clip-small"), "--to", "cn_clip", "--out", str(tmp_path / "no")]) == 1
    assert "a `clip` of --size chinese-clip-b16" in capsys.readouterr().err


def test_a_folder_of_weights_where_a_run_belongs_says_how_to_make_one(tmp_path, capsys):
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    assert cli.main(["eval", str(tmp_path), "--corpus", "scenes", "--task", "retrieval"]) == 1
    assert f"`tuwen import {tmp_path} --out RUN` makes one" in capsys.readouterr().err


def test_a_plain_vocabulary_beside_weights_keeps_its_ends(tmp_path):
    from tuwen.nn.published.tokenizer import tokenizer_of

    (tmp_path / "vocab.txt").write_text("\n".join(pieces()) + "\n")
    tokenizer = tokenizer_of(tmp_path, 60)
    assert tokenizer.encode(["ab"], 20)[0][0, :4].tolist() == [2, 5, 32, 3]
