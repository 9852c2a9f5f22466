"""Systems whose papers hide words as BERT does: never [SEP], and of every text that has a word at least one."""

import pytest

from tests.systems.common import PROGRESS, VOCABULARY, build, example, watched
from tuwen.systems import bridgetower, ernie_unix2, flava, mlm, vilt

HIDES = {
    flava: lambda system, batch: system.mask_texts(batch, PROGRESS, whole=False),
    bridgetower: lambda system, batch: system.masked_words(system.encode_images(batch.images), batch, PROGRESS),
    ernie_unix2: lambda system, batch: system.hide(batch.texts, batch, PROGRESS, "mask"),
    vilt: lambda system, batch: system.masked_words(system.encode_images(batch.images), batch, PROGRESS),
    mlm: lambda system, batch: system.losses({}, batch, PROGRESS),
}


@pytest.mark.parametrize("module", HIDES, ids=lambda module: module.__name__.split(".")[-1])
def test_sep_is_never_told_and_a_word_always_is(module, monkeypatch):
    """Where every token is drawn, and where none is. Row 5 has a single word."""
    hidden = watched(monkeypatch, module, "mask_words")
    batch = example()
    words = batch.texts.mask & (batch.texts.ids != VOCABULARY.cls) & (batch.texts.ids != VOCABULARY.sep)
    for share in (1.0, 1e-12):
        HIDES[module](build(module.__name__.split(".")[-1], mask_share=share, whole_words=False), batch)
        told = hidden.pop()[1][1] >= 0
        assert bool((told <= words).all())
        assert told.sum(1).tolist() == (words.sum(1) if share == 1 else words.any(1).long()).tolist()
