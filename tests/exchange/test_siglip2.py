"""SigLIP 2, of one resolution and NaFlex: from pictures and strings to vectors as transformers makes them."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import tuwen
from tests.exchange.checkpoints import TEXT, VISION, randomised
from tuwen import cli
from tuwen.errors import UserError
from tuwen.exchange.exporting import export_model
from tuwen.exchange.importing import import_model
from tuwen.nn.published.files import tensors_of
from tuwen.nn.published.towers import image_weights, text_weights
from tuwen.nn.towers import image_tower

t = pytest.importorskip("transformers")

LENGTH = 20
STRINGS = ["A Red bus", "a red bus!", "", "Ünïcode CAFÉ  with   spaces", "狗在草地上 runs", "the long one " * 9]
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
SQUASHED = "pictures are squashed to 32x32; NaFlex's aspect ratio is not kept"
SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]  # Gemma's first five


def gemma(kind: str = "GemmaTokenizer", **options):
    """Gemma's form: merges over characters, other characters as bytes, no token at the start."""
    letters = [chr(k) for k in (*range(97, 123), *range(65, 91))]
    merges = [("r", "e"), ("re", "d"), ("R", "e"), ("Re", "d"), ("b", "u"), ("bu", "s"), ("▁", "red"), ("▁", "Red")]
    pieces = [*SPECIAL, *(f"<0x{k:02X}>" for k in range(256)), "▁", *letters, "狗", *map("".join, merges)]
    vocabulary = {piece: place for place, piece in enumerate(pieces)}
    ends = {"add_bos_token": False, "add_eos_token": True, "padding_side": "right", "model_input_names": ["input_ids"]}
    return getattr(t, kind)(vocab=vocabulary, merges=merges, **ends, **options)


WORDS = len(gemma())
READ = TEXT | {"vocab_size": WORDS, "max_position_embeddings": LENGTH, "projection_size": 24, "bos_token_id": 2}
READ |= {"eos_token_id": 1}
SIDE = VISION["image_size"]


def fixed():
    square = {"height": SIDE, "width": SIDE}
    model = t.SiglipModel(t.SiglipConfig(text_config=READ, vision_config=VISION))
    return randomised(model), t.SiglipImageProcessorPil(size=square, resample=2)


def naflex(patches: int = 16):
    seen = {name: value for name, value in VISION.items() if name != "image_size"} | {"num_patches": 16}
    model = t.Siglip2Model(t.Siglip2Config(text_config=READ, vision_config=seen))
    return randomised(model), t.Siglip2ImageProcessorPil(patch_size=8, max_num_patches=patches)


def saved(folder, model, processor, tokenizer=None):
    for part in (model, processor, tokenizer or gemma()):
        part.save_pretrained(folder)
    return str(folder)


def pictures(*sizes):
    """Rough pictures of (width, height)."""
    generator = np.random.default_rng(3)
    return [Image.fromarray(generator.integers(0, 256, (high, wide, 3), dtype=np.uint8)) for wide, high in sizes]


def ids_of(folder, texts):
    """Ids as AutoTokenizer gives them to the model: padding is text, and no mask is given."""
    found = t.AutoTokenizer.from_pretrained(folder)(
        texts, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt"
    )
    assert list(found) == ["input_ids"]
    return found["input_ids"]


@torch.no_grad()
def theirs(folder, shown, texts):
    """(picture, text) unit vectors by transformers alone, from the folder."""
    model = t.AutoModel.from_pretrained(folder).eval()
    processor = t.AutoImageProcessor.from_pretrained(folder, backend="pil")
    out = model(**processor(shown, return_tensors="pt"), input_ids=ids_of(folder, texts))
    return F.normalize(out.image_embeds, dim=-1), F.normalize(out.text_embeds, dim=-1)


def compared(folder, run, out, architecture: str) -> None:
    """Vectors and ids as transformers makes them, of the folder and of what is exported; imported again the same."""
    shown = pictures((SIDE, SIDE), (SIDE, SIDE), (SIDE, SIDE))
    model = tuwen.load(run)
    got = model.embed(images=shown, texts=STRINGS)
    assert export_model(run, out) == architecture
    for place in (folder, out):
        want = theirs(place, shown, STRINGS)
        torch.testing.assert_close(got.images, want[0], **CLOSE)
        torch.testing.assert_close(got.texts, want[1], **CLOSE)
        read = model.system.encoders.text.padded(*model.tokenizer.encode(STRINGS, LENGTH))[0]
        assert torch.equal(read, ids_of(place, STRINGS))
    again = run.with_name("again")
    import_model(str(out), again)
    first, second = (tensors_of(place / "weights.safetensors") for place in (run, again))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert (run / "config.yaml").read_text().replace(str(folder), str(out)) == (again / "config.yaml").read_text()
    published, written = tensors_of(run.with_name("theirs")), tensors_of(out)
    assert published.keys() == written.keys()
    assert all(torch.equal(published[name], written[name]) for name in published)


TOKENIZERS = {"cased": "GemmaTokenizer", "lower case": "Siglip2Tokenizer"}


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_of_one_resolution_with_gemmas_tokenizer(kind, tmp_path):
    folder = saved(tmp_path / "theirs", *fixed(), gemma(TOKENIZERS[kind]))
    report = import_model(folder, tmp_path / "run")
    assert report.notes == ()
    compared(folder, tmp_path / "run", tmp_path / "out", "SiglipModel")
    written = tuwen.load(tmp_path / "run").tokenizer
    assert (written.pieces("A RED") == written.pieces("a red")) == (kind == "lower case")


def test_lower_case_as_its_config_asks_though_the_class_of_gemma_forgets_it(tmp_path):
    """transformers 5.23 passes do_lower_case over here; the published models say it, and were trained so."""
    folder = saved(tmp_path / "theirs", *fixed(), gemma(do_lower_case=True))
    import_model(folder, tmp_path / "run")
    ids = tuwen.load(tmp_path / "run").tokenizer.encode([text.upper() for text in STRINGS], LENGTH)[0]
    assert torch.equal(ids, ids_of(folder, [text.lower() for text in STRINGS])[:, : ids.shape[1]])


def test_naflex(tmp_path, capsys):
    folder = saved(tmp_path / "theirs", *naflex())
    assert cli.main(["import", folder, "--out", str(tmp_path / "run")]) == 0
    assert SQUASHED in capsys.readouterr().out.splitlines()
    assert SQUASHED in (tmp_path / "run" / "provenance.json").read_text()
    compared(folder, tmp_path / "run", tmp_path / "out", "Siglip2Model")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["vision_config"]["num_patches"] == 16


@torch.no_grad()
def test_naflex_pictures_of_other_sizes(tmp_path):
    folder = saved(tmp_path / "theirs", *naflex())
    import_model(folder, tmp_path / "run")
    model = tuwen.load(tmp_path / "run")
    squares = pictures((50, 50), (17, 17), (64, 64))
    want = theirs(folder, squares, STRINGS)[0]
    got = model.embed(images=squares).images
    assert (got * want).sum(1).min() > 0.999, "of a square only single levels of the resized pixels differ"
    wide = pictures((60, 20))
    squashed = [wide[0].resize((SIDE, SIDE), Image.Resampling.BILINEAR)]
    got, same = model.embed(images=wide).images, theirs(folder, squashed, STRINGS)[0]
    assert (got * same).sum() > 0.999


def test_naflex_gives_towers_too(tmp_path):
    folder = saved(tmp_path / "theirs", *naflex())
    seen, read = image_weights(folder), text_weights(folder)
    assert seen.report.notes == (SQUASHED,)
    assert seen.report.unexpected["text_model.head.weight"] == "not of the image tower"
    assert read.report.unexpected["vision_model.head.probe"] == "not of the text tower"
    tower = image_tower(seen.config)
    assert tower.load_state_dict(dict(seen.tensors), strict=False).missing_keys == ["mean", "std"]
    assert read.tokenizer.pieces("A RED") == read.tokenizer.pieces("a red")


def test_what_makes_no_square_of_the_tower_is_refused(tmp_path):
    folder = saved(tmp_path / "theirs", *naflex(patches=64))
    with pytest.raises(UserError, match=r"pictures of 64 pixels, but config\.json's tower reads 32"):
        import_model(folder, tmp_path / "run")
    told = json.loads((tmp_path / "theirs" / "config.json").read_text())
    told["vision_config"]["num_patches"] = 15
    (tmp_path / "theirs" / "config.json").write_text(json.dumps(told))
    with pytest.raises(UserError, match="15 patches make no square"):
        import_model(folder, tmp_path / "run")


def test_a_config_that_leaves_out_its_words(tmp_path):
    """Files of transformers 4 leave out what is the class's default."""
    folder = saved(tmp_path / "theirs", *fixed())
    told = json.loads((tmp_path / "theirs" / "config.json").read_text())
    del told["text_config"]["vocab_size"]
    (tmp_path / "theirs" / "config.json").write_text(json.dumps(told))
    (tmp_path / "theirs" / "preprocessor_config.json").unlink()
    report = import_model(folder, tmp_path / "run")
    told = "no preprocessor_config.json: pictures are resized to a square, with CLIP's mean and deviation"
    assert told in report.lines()
    assert tuwen.load(tmp_path / "run").tokenizer.vocabulary.size == WORDS
