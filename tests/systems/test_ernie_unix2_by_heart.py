"""ERNIE-UniX2 says a handful of translations by heart (card, section 11, check 8)."""

import pytest
import torch

from tests.systems.common import PROGRESS, build
from tests.systems.test_ernie_unix2 import ONLY, OTHER, bilingual
from tuwen.nn.generation import Generation
from tuwen.tasks.text_metrics import translation_scores


def test_greedy_decoding_of_learnt_translations_is_exact():
    """Check 8: BLEU 100. Two rows have one source and other targets: their pictures decide."""
    torch.manual_seed(0)
    system, batch = build("ernie_unix2", languages=3, streams=ONLY["both"], label_smoothing=0.0), bilingual()
    optimizer = torch.optim.AdamW(system.parameters(), 3e-3)
    for _ in range(120):
        optimizer.zero_grad()
        system(batch, PROGRESS).total.backward()
        optimizer.step()
    system.eval()
    said = system.generate(
        system.encode_images(batch.images), batch.texts, torch.ones(6, dtype=torch.int64), Generation("greedy")
    )
    lines = [[" ".join(str(i) for i in row if i > 4) for row in rows] for rows in (said.ids.tolist(), OTHER)]
    assert translation_scores(*lines, "en")["bleu"] == pytest.approx(100)
