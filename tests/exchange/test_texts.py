"""Published tokenizers: the ids, ends, lower-casing and cutting of transformers' own, from a folder alone."""

import json

import pytest
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, processors

from tuwen.errors import UserError
from tuwen.nn.published.tokenizer import tokenizer_of

t = pytest.importorskip("transformers")

LENGTH = 12
TEXTS = ["A Red bus", "a red bus!", "", "Ünïcode CAFÉ  with   spaces", "狗在草地上 runs", "the long one " * 9]
LETTERS = [chr(k) for k in range(97, 123)]
BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def bert(folder, lower: bool):
    """vocab.txt alone, as old checkpoints have it."""
    pieces = [*BERT, *LETTERS, *map(str.upper, LETTERS), *(f"##{c}" for c in LETTERS), "red", "bus", "Red", "狗", "!"]
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")
    told = {"do_lower_case": lower, "tokenizer_class": "BertTokenizer", "model_max_length": LENGTH}
    roles = ("pad", "unk", "cls", "sep", "mask")
    told |= {f"{role}_token": piece for role, piece in zip(roles, BERT, strict=True)}
    (folder / "tokenizer_config.json").write_text(json.dumps(told))


def clip(folder):
    """Byte-level merges, lower case, a start and an end token; the end token pads."""
    inner = tokenizers.ByteLevelBPETokenizer(lowercase=True)
    ends = ["<|startoftext|>", "<|endoftext|>"]
    inner.train_from_iterator(TEXTS, vocab_size=300, special_tokens=ends, show_progress=False)
    start, end = ((token, inner.token_to_id(token)) for token in ends)
    inner._tokenizer.post_processor = processors.BertProcessing(end, start)
    names = {"bos_token": ends[0], "eos_token": ends[1], "pad_token": ends[1], "unk_token": ends[1]}
    t.PreTrainedTokenizerFast(tokenizer_object=inner._tokenizer, **names).save_pretrained(folder)


def unigram(folder, starts: bool):
    """XLM-R's form, with <s>; or T5's and SigLIP's, with the end token alone."""
    specials = ["<pad>", "</s>", "<unk>", *(["<s>"] if starts else [])]
    pieces = [(piece, 0.0) for piece in specials] + [("▁", -2.0), ("▁red", -3.0), ("bus", -4.0), ("狗", -5.0)]
    pieces += [(letter, -6.0) for letter in LETTERS]
    inner = tokenizers.Tokenizer(models.Unigram(pieces, 2, False))
    inner.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    single = "<s> $A </s>" if starts else "$A </s>"
    ids = [(piece, specials.index(piece)) for piece in ("<s>", "</s>") if piece in specials]
    inner.post_processor = processors.TemplateProcessing(single=single, special_tokens=ids)
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"} | ({"bos_token": "<s>"} if starts else {})
    t.PreTrainedTokenizerFast(tokenizer_object=inner, **names).save_pretrained(folder)


KINDS = {
    "bert": lambda folder: bert(folder, True),
    "bert, cased": lambda folder: bert(folder, False),
    "clip": clip,
    "xlm-roberta": lambda folder: unigram(folder, True),
    "siglip": lambda folder: unigram(folder, False),
}


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_those_of_transformers(kind, tmp_path):
    KINDS[kind](tmp_path)
    theirs = t.AutoTokenizer.from_pretrained(tmp_path)
    ours = tokenizer_of(tmp_path, 2000, kind)
    ids, mask = ours.encode(TEXTS, LENGTH)
    want = theirs(TEXTS, padding=True, truncation=True, max_length=LENGTH)
    for row, text in enumerate(TEXTS):
        real = [i for i, on in zip(want["input_ids"][row], want["attention_mask"][row], strict=True) if on]
        assert ids[row][mask[row]].tolist() == real, text
    assert (ids[~mask] == theirs.pad_token_id).all(), "padding on the right, by their piece"
    assert ids.shape[1] == LENGTH
    assert ours.vocabulary.sep == theirs.convert_tokens_to_ids(theirs.sep_token or theirs.eos_token)


def test_a_name_of_a_special_token_in_a_text_is_text(tmp_path):
    KINDS["xlm-roberta"](tmp_path)
    ours = tokenizer_of(tmp_path, 2000)
    ids, mask = ours.encode(["x</s>x"], LENGTH)
    assert (ids[mask] == ours.vocabulary.sep).sum() == 1


@pytest.mark.parametrize("side", ["padding_side", "truncation_side"])
def test_the_left_side_is_refused(side, tmp_path):
    KINDS["bert"](tmp_path)
    told = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(told | {side: "left"}))
    with pytest.raises(UserError, match="on the left"):
        tokenizer_of(tmp_path, 2000)


def test_the_left_side_is_refused_where_tokenizer_json_or_the_class_says_so(tmp_path):
    KINDS["clip"](tmp_path)
    inner = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    inner.enable_padding(direction="left")
    inner.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match="on the left"):
        tokenizer_of(tmp_path, 2000)
    KINDS["siglip"](tmp_path)
    told = json.loads((tmp_path / "tokenizer_config.json").read_text()) | {"tokenizer_class": "GemmaTokenizerFast"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(told))
    with pytest.raises(UserError, match="on the left"):
        tokenizer_of(tmp_path, 2000, "siglip")


def test_other_tokens_around_a_text_than_named_are_refused(tmp_path):
    KINDS["clip"](tmp_path)
    inner = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    start = "<|startoftext|>"
    inner.post_processor = processors.TemplateProcessing(single=f"{start} $A", special_tokens=[(start, 0)])
    inner.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match=r"stand between \['<\|startoftext\|>'\], not"):
        tokenizer_of(tmp_path, 2000)


def test_more_pieces_than_words_and_none_at_all_are_refused(tmp_path):
    KINDS["bert"](tmp_path)
    with pytest.raises(UserError, match="pieces, the model 80 words"):
        tokenizer_of(tmp_path, 80)
    assert tokenizer_of(tmp_path, 2000).vocabulary.size <= 2000
    (tmp_path / "vocab.txt").unlink()
    with pytest.raises(UserError, match="no tokenizer there"):
        tokenizer_of(tmp_path, 2000)
