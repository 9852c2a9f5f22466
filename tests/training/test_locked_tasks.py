"""A task learnt on a locked image tower: its pictures are computed once, however many rows ask of them and however many
pictures a row shows."""

import numpy as np
import pytest
import torch

from tuwen.data.open import open_corpus
from tuwen.tasks.vqa import questions_of
from tuwen.training import features, loop
from tuwen.training.checkpoint import load_tensors
from tuwen.training.config import RunConfig

CORPUS = "scenes:count=24,side=32,things=9,objects=2"
SETTINGS = {
    "train.steps": 4,
    "train.batch_size": 8,
    "train.threads": 1,
    "train.precision": "float32",
    "train.choose": "last",
    "data.workers": 0,
    "tokenizer.size": 300,
    "model.image.locked": True,
}


def weights(folder, task: str | None, corpus: str = CORPUS) -> dict[str, torch.Tensor]:
    settings = SETTINGS if task else SETTINGS | {"data.augment": "none"}
    run = loop.train(RunConfig.of("clip", "tiny", corpus, changes=settings, task=task), folder, quiet=True)
    return load_tensors(run / "weights.safetensors")


KINDS = [("vqa", CORPUS), ("two_pictures", CORPUS), (None, "moving:count=12,side=32")]


@pytest.mark.parametrize(("task", "corpus"), KINDS)
def test_kept_features_are_those_of_the_pictures(task, corpus, tmp_path, monkeypatch):
    """Of one picture, of two, and of the frames of a clip."""
    monkeypatch.setenv("TUWEN_CACHE", str(tmp_path / "cache"))
    kept = weights(tmp_path / "kept", task, corpus)
    assert list((tmp_path / "cache" / "features").glob("image-*")), "nothing was kept"
    monkeypatch.setattr(features, "image_features", lambda *_: None)
    plain = weights(tmp_path / "plain", task, corpus)
    for name, value in plain.items():
        torch.testing.assert_close(kept[name], value, rtol=0, atol=1e-5, msg=name)


def test_rows_of_one_picture_share_its_features():
    rows = questions_of(open_corpus(CORPUS, "train"))
    identities, firsts = rows.image_ids(), features.first_rows(rows)
    assert len(np.unique(firsts)) == len(np.unique(identities)) < len(rows)
    for row, first in enumerate(firsts):
        assert first <= row
        assert identities[first] == identities[row]
