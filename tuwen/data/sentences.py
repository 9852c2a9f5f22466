"""Reports as their sentences: put together again in another order, and which of them say the same.

Shape legend: B rows, S sentences, L tokens.
"""

import torch
from torch import Tensor

from tuwen.data import draws
from tuwen.data.batch import Texts
from tuwen.data.text import Vocabulary


def places(owner: Tensor, rows: int) -> Tensor:
    """[S] int64: each sentence's place among those of its row, of owners [S] in order."""
    counts = torch.bincount(owner, minlength=rows)
    return torch.arange(len(owner), device=owner.device) - (counts.cumsum(0) - counts)[owner]


def reordered(sentences: Texts, order: Tensor, rows: int, vocabulary: Vocabulary, length: int) -> Texts:
    """Each row's text from its sentences, lowest `order` [S] first: `[CLS] tokens [SEP]`, at most `length` tokens.

    sentences: by `owner`, each row's one after the other, none without. Every row has the language of its first.
    """
    assert sentences.owner is not None
    rank = order.argsort(stable=True)
    rank = rank[sentences.owner[rank].argsort(stable=True)]
    ids, owner = sentences.ids[rank], sentences.owner[rank]
    content = sentences.mask[rank] & (ids != vocabulary.cls) & (ids != vocabulary.sep)
    of_row = owner[:, None].expand_as(ids)[content]
    counts = torch.bincount(of_row, minlength=rows)
    place = torch.arange(len(of_row), device=ids.device) - (counts.cumsum(0) - counts)[of_row]
    begin = 1 if vocabulary.cls >= 0 else 0
    counts = counts.clamp(max=length - begin - 1)
    width = min(-(-(int(counts.max()) + begin + 1) // 8) * 8, length)  # as `Tokenizer.pad` rounds it
    fits = place < length - begin - 1
    out = ids.new_full((rows, width), vocabulary.pad)
    out[of_row[fits], place[fits] + begin] = ids[content][fits]
    every = torch.arange(rows, device=ids.device)
    out[every, counts + begin] = vocabulary.sep
    if begin:
        out[:, 0] = vocabulary.cls
    mask = torch.arange(width, device=ids.device) < (counts + begin + 1)[:, None]
    first = places(sentences.owner, rows) == 0
    return Texts(out, mask, sentences.language[first])


def identities(texts: Texts) -> Tensor:
    """[S] int64, equal where the tokens are; of others with a chance of 2^-64 a pair."""
    key = torch.zeros(len(texts), dtype=torch.int64, device=texts.ids.device)
    for column, real in zip(texts.ids.unbind(1), texts.mask.unbind(1), strict=True):
        key = torch.where(real, draws.mix(key ^ column), key)
    return key
