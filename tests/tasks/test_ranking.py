"""Retrieval taught by a score of its own: where it starts, what it costs, and what then ranks."""

import math

import pytest
import torch

import tuwen
from tests.systems.common import PROGRESS, build, example
from tests.training.test_task_training import learnt, pretrained
from tuwen.data.batch import Images
from tuwen.data.corpora.scenes import Scenes
from tuwen.errors import UserError
from tuwen.objectives.matching import candidates
from tuwen.tasks.ranking import Ranker, RetrievalConfig, retrieval_head
from tuwen.training import checkpoint


@pytest.mark.slow  # ten seconds each
@pytest.mark.parametrize("name", ["bridgetower", "vilt"])
def test_at_step_0_of_a_fine_tuning_the_score_is_the_logit_of_a_match(name, tmp_path):
    """Card, section 4: row 1 of the match head; what the run then ranks by is the score."""
    base = pretrained(tmp_path / "base", name)
    run = learnt(tmp_path / "run", base, name, "retrieval", task__way="ranking", train__steps=1, train__lr=1e-12)
    before, after = tuwen.load(base), tuwen.load(run)
    scenes = Scenes(count=3, side=32)
    pictures, texts = [scenes.image(row) for row in range(3)], [scenes.record(row).texts["en"][0] for row in range(3)]
    both = []
    for model in (before, after):
        predictor = model.predictor
        seen = predictor.pictures([Images(torch.stack([predictor.pixels(x) for x in pictures]))])
        both.append((predictor, seen, predictor.texts(texts, "en")))
    with torch.no_grad():
        seen, read = (both[0][0].ready(x) for x in both[0][1:])
        logits = before.system.match_head(before.system.fuse([seen], read).pooled)
    scores = both[1][0].match(*both[1][1:])
    torch.testing.assert_close(scores[:, 0], logits[:, 1].float(), rtol=0, atol=1e-5)
    assert (logits[:, 0].abs() > 1e-4).all()  # log-odds are something else
    weights = checkpoint.load_tensors(run / "weights.safetensors")
    assert {key for key in weights if key.startswith("head.")} == {"head.layers.weight", "head.layers.bias"}


@torch.no_grad()
def test_the_loss_is_the_slow_version_s():
    system, batch = build("bridgetower").eval(), example()
    head = Ranker(system.adapt("ranking"), 4)
    system.attach(head)
    head.begin(system)
    loss = head.losses(system, batch, PROGRESS).terms["ranking"]
    images, texts, same = system.encode_images(batch.images), system.encode_texts(batch.texts), batch.same_here()
    draws, terms = PROGRESS.uniform(batch, 6, "candidates"), []
    for row in range(6):
        wrong = sorted((float(draws[row, k]), k) for k in range(6) if not same[row, k])[:3]
        scores = []
        for k in (row, *(k for _, k in wrong)):
            pair = images.select(torch.tensor([row])), texts.select(torch.tensor([k]))
            scores.append(float(head.layers(system.fuse([pair[0]], pair[1]).pooled)[0, 0]))
        terms.append(math.log(sum(math.exp(score - scores[0]) for score in scores)))
    assert float(loss) == pytest.approx(sum(terms) / 6, abs=1e-5)


def test_candidates_are_wrong_ones_first_and_never_the_row_s_own_again():
    same = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 1]]).bool()
    draws = torch.tensor([[0.1, 0.2, 0.3, 0.9], [0.5, 0.0, 0.9, 0.8], [0.0, 0.7, 0.1, 0.6], [0.3, 0.2, 0.1, 0.0]])
    columns, counts = candidates(same, draws, 3)
    assert columns.tolist() == [[0, 3, 1], [1, 3, 2], [2, 3, 1], [3, 2, 1]]
    assert counts.tolist() == [[True, True, False], [True, True, True], [True, True, True], [True, True, True]]
    every, _ = candidates(same, draws, 16)
    assert [sorted(row) for row in every.tolist()] == [[0, 1, 2, 3]] * 4


def test_a_system_without_such_a_score_is_refused():
    for name in ("clip", "albef"):
        with pytest.raises(UserError, match=r"cannot rank by a head: its paper has none; leave out task\.way=ranking"):
            retrieval_head(build(name), RetrievalConfig("retrieval", way="ranking"))
    with pytest.raises(ValueError, match="candidates must lie between 2"):
        RetrievalConfig("retrieval", candidates=1)
