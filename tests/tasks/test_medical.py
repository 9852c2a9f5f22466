"""Oversight, findings by pairs of prompts, error correction: by hand, against public functions, and as they learn."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from tests.systems.common import build
from tests.tasks.stub import DualStub, Pairs, Table, ready
from tuwen.data.batch import Images
from tuwen.data.corpora.scenes import Scenes
from tuwen.data.corpus import Record
from tuwen.data.loader import DataConfig, Loader
from tuwen.data.order import Order
from tuwen.data.text import Tokenizer
from tuwen.errors import UserError
from tuwen.nn.decoder import Speaker
from tuwen.nn.generation import Generation, generate
from tuwen.predictor import Predictor
from tuwen.systems.system import Progress
from tuwen.tasks import areas, correction, find_task, findings, oversight
from tuwen.tasks.areas import area_with_interval, group_of
from tuwen.tasks.captioning import word_vectors
from tuwen.tasks.correction import CorrectionHead, evaluate_correction, read_faulty
from tuwen.tasks.findings import pair_of_probabilities
from tuwen.tasks.marks import Marks
from tuwen.training.config import RunConfig

# ---- areas


def test_areas_are_scikit_learn_s_ties_included():
    generator = np.random.Generator(np.random.PCG64(1))
    for _ in range(20):
        labels = generator.integers(0, 2, 30)
        scores = generator.integers(0, 8, 30).astype(float)
        assert areas._area(labels, scores) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert areas._area(np.array([1, 1, -1]), np.zeros(3)) is None
    assert areas._area(np.array([1, 0, -1]), np.array([1.0, 0.0, 9.0])) == 1.0


def test_an_interval_is_that_of_groups_drawn_together():
    labels, scores = np.tile([0, 1], 40), np.tile([0.0, 1.0], 40)
    groups = [str(k // 4) for k in range(80)]
    assert area_with_interval(labels, scores, groups) == {"auc": 1.0, "low": 1.0, "high": 1.0}
    noise = np.random.Generator(np.random.PCG64(2)).normal(size=80)
    by_row = area_with_interval(labels, scores + 2 * noise, [str(k) for k in range(80)])
    assert by_row["low"] < by_row["auc"] < by_row["high"]
    # the same 20 rows four times over are 20 groups: an interval as wide as that of the 20 alone
    few_labels, few_scores = labels[:20], (scores + 2 * noise)[:20]
    alone = area_with_interval(few_labels, few_scores, [str(k) for k in range(20)])
    copied = area_with_interval(np.tile(few_labels, 4), np.tile(few_scores, 4), [str(k) for k in range(20)] * 4)
    assert copied == pytest.approx(alone)
    one_group = area_with_interval(np.array([0, 1, 1]), np.array([0.0, 1, 2]), ["a", "a", "a"])
    assert (one_group["low"], one_group["high"]) == (1.0, 1.0)
    assert area_with_interval(np.array([0, 1]), np.array([0.0, 1]), ["a", "b"])["low"] == 1.0


def test_rows_of_one_patient_are_one_group():
    assert group_of(Record("a", {}, 1, {"patient": "7"})) == group_of(Record("b", {}, 2, {"patient": "7"}))
    assert group_of(Record("a", {}, 1, {"patient": ""})) == group_of(Record("b", {}, 1, {}))
    assert group_of(Record("a", {}, 1, {})) != group_of(Record("a", {}, 2, {}))


# ---- oversight


def test_a_rule_that_knows_the_side_finds_wrong_sides_alone(monkeypatch):
    """Picture k shows something on the left where k is even; a score that reads it and nothing else."""
    reports = [{"en": [f"nodule {k} in the {'left' if k % 2 == 0 else 'right'} lung"]} for k in range(12)]
    corpus = Pairs(reports)
    monkeypatch.setattr(oversight, "encode_captions", lambda predictor, captions, size: [c.text for c in captions])

    def scores(predictor, images, texts, image, text):
        shown = ["left" if int(k) % 2 == 0 else "right" for k in image]
        return torch.tensor([0.9 if side in texts[t] else 0.2 for side, t in zip(shown, text.tolist(), strict=True)])

    monkeypatch.setattr(oversight, "pair_scores", scores)
    predictor = ready(DualStub(Table(torch.zeros(12, 4))), corpus)
    kinds = oversight.evaluate_oversight(predictor, corpus)["languages"]["en"]["kinds"]
    assert set(kinds) == {"swapped", "location"}  # nothing else can be got wrong here
    assert kinds["location"] == {
        "auc": 1.0,
        "low": 1.0,
        "high": 1.0,
        "blind": 1.0,  # rolled by six the pictures show the same side
        "above": 1.0,
        "pairs": 12,
        "groups": 12,
    }
    # swapped reports are of the other side about half of the time, else alike
    swapped = kinds["swapped"]
    assert swapped["auc"] == pytest.approx(swapped["above"])
    assert 0.5 < swapped["auc"] < 1
    few = oversight.evaluate_oversight(predictor, corpus, limit=10)["languages"]["en"]["kinds"]["location"]
    assert few["blind"] == 0.0  # rolled by five, another


def test_reports_in_which_nothing_can_be_wrong_are_refused():
    corpus = Pairs([{"en": ["the same"]}] * 3)
    with pytest.raises(UserError, match="no report in which an error can be made"):
        oversight.evaluate_oversight(ready(DualStub(Table(torch.zeros(3, 1))), corpus), corpus)


# ---- findings


def test_a_pair_of_prompts_scores_a_half_where_both_are_alike():
    """Card, check 10: within (0.268, 0.732)."""
    odds = torch.linspace(-40, 40, 9, dtype=torch.float64)
    assert torch.equal(pair_of_probabilities(odds, odds), torch.full((9,), 0.5, dtype=torch.float64))
    spread = pair_of_probabilities(odds[:, None], odds)
    assert spread.min() >= 1 / (1 + math.e)
    assert spread.max() <= math.e / (1 + math.e)
    assert float(pair_of_probabilities(torch.tensor(0.0), torch.tensor(-50.0))) == pytest.approx(
        1 / (1 + math.exp(-0.5))
    )


def test_findings_by_hand(monkeypatch):
    """Log-odds that are the label's own for one finding, and the same for all for the other."""
    columns = [{"findings": {"Edema": int(k < 3), "Nodule": k % 2, "Mass": 0}, "patient": str(k)} for k in range(8)]
    columns[7]["findings"]["Edema"] = -1
    corpus = Pairs([{"en": [str(k)]} for k in range(8)], columns=columns)
    asked = []

    def logits(predictor, pictures, texts, batch_size):
        return torch.tensor(
            [[float(k < 3) if "Edema" in t and t[:2] != "No" else 0.0 for t in asked] for k in range(8)]
        )

    predictor = ready(DualStub(Table(torch.zeros(8, 1))), corpus)
    monkeypatch.setattr(findings, "_logits", logits)
    monkeypatch.setattr(Predictor, "texts", lambda self, texts, *rest: asked.extend(texts))
    told = Marks()
    measured = findings.evaluate_findings(predictor, corpus, marks=told)
    marks = measured["languages"]["en"]
    assert set(marks["findings"]) == {"Edema", "Nodule"}  # nobody has the third
    assert (marks["findings"]["Edema"]["auc"], marks["findings"]["Edema"]["rows"]) == (1.0, 7)
    assert (marks["findings"]["Nodule"]["auc"], marks["findings"]["Nodule"]["there"]) == (0.5, 4)
    assert marks["mean_auc"] == marks["low"] == marks["high"] == 0.75
    assert told.figure() == pytest.approx(0.75)
    assert sum(len(part.values) for name, part in told.parts.items() if "Edema" in name) == 7  # not the uncertain one
    with pytest.raises(UserError, match="no finding that some"):
        findings.evaluate_findings(predictor, corpus, limit=1)


def test_the_first_stage_asks_by_the_difference_of_its_logits():
    """CheXzero's, of a system without a cross encoder: cosines over its temperature, mean over prompts."""
    scenes = Scenes(count=6, side=32)
    texts = [text for row in range(6) for spoken in scenes.record(row).texts.values() for text in spoken]
    tokenizer = Tokenizer.train([*texts, "No . There is shows picture"], size=300)
    system = build("clip", vocabulary=tokenizer.vocabulary).eval()
    predictor = Predictor(system, tokenizer, scenes.languages, RunConfig.of("clip", "tiny", "scenes").model)
    pixels = torch.stack([scenes.image(row) for row in range(6)])
    pictures = predictor.pictures([Images(pixels)])
    prompts = [(["a cat", "cat"], ["no cat"]), (["a dog"], ["no dog"])]
    scores = findings.prompt_scores(predictor, pictures, prompts, "en")
    scale = float(system.log_scale.detach().exp())
    vectors = {text: predictor.texts([text], "en").pooled[0] for pair in prompts for side in pair for text in side}
    for row in range(6):
        for k, (there, gone) in enumerate(prompts):
            means = [np.mean([float(pictures.pooled[row] @ vectors[t]) for t in side]) for side in (there, gone)]
            expected = 1 / (1 + math.exp(-scale * (means[0] - means[1])))
            assert float(scores[row, k]) == pytest.approx(expected, abs=1e-5)


# ---- correction


def test_the_head_is_taught_the_right_report_from_the_faulty_one():
    scenes = Scenes(count=8, side=32, languages="en")
    task = find_task("correction")()
    rows = task.rows(scenes, "train")
    texts = [text for row in range(8) for text in scenes.record(row).texts["en"]]
    tokenizer = Tokenizer.train(texts, size=300)
    system = build("max_vl", vocabulary=tokenizer.vocabulary).eval()
    head = CorrectionHead(system, task.config).eval()
    needs = head.needs()
    order = Order(8, 8, 0)
    loader = Loader(
        rows,
        tokenizer,
        order,
        DataConfig(augment="none", workers=0),
        type(system).reads(system.config),
        needs,
        0,
        32,
        32,
    )
    batch = loader[0]
    faulty = batch.columns["faulty"]
    changed = 0
    for k, row in enumerate(batch.index.tolist()):
        record = rows.record(row)
        right = tokenizer.decode(batch.texts.ids[k : k + 1, 1:])[0]
        place = [tokenizer.decode(tokenizer.encode([t], 32)[0][:, 1:])[0] for t in record.texts["en"]].index(right)
        wrong = tokenizer.decode(tokenizer.encode([record.columns["faulty"]["en"][place]], 32)[0][:, 1:])[0]
        assert tokenizer.decode(faulty.ids[k : k + 1, 1:])[0] == wrong
        changed += wrong != right
    assert changed > 0
    loss = head.losses(system, batch, Progress(0, 1, 1, 8)).terms["reports"]
    fused = system.fuse([system.encode_images(batch.images)], system.encode_texts(faulty))
    words = system.encoders.text.words.weight
    by_text = head.decoder.likelihood(batch.texts, fused.states, fused.mask, words)
    assert float(loss.detach()) == pytest.approx(
        -float(by_text.detach().sum() / batch.texts.mask[:, 1:].sum()), rel=1e-5
    )
    # with other pictures another loss: they are read
    others = dataclasses.replace(batch, images=Images(batch.images.pixels.roll(1, 0)))
    assert float(head.losses(system, others, Progress(0, 1, 1, 8)).terms["reports"]) != float(loss)


def test_a_picture_is_encoded_once_for_all_languages_and_mended_as_one_row_at_a_time(monkeypatch):
    scenes, task = Scenes(count=5, side=32), find_task("correction")()
    texts = [text for row in range(5) for spoken in scenes.record(row).texts.values() for text in spoken]
    tokenizer = Tokenizer.train(texts, size=300)
    system = build("max_vl", vocabulary=tokenizer.vocabulary).eval()
    head = CorrectionHead(system, task.config).eval()
    predictor = Predictor(system, tokenizer, scenes.languages, RunConfig.of("max_vl", "tiny", "scenes").model)
    rows, made, seen = task.rows(scenes, "test"), {"en": [], "zh": []}, []
    for row in range(5):
        record = rows.record(row)
        for language in made:
            fused = read_faulty(
                system,
                Images(scenes.image(row)[None]),
                predictor.tokens([record.columns["faulty"][language][0]], language),
            )
            spoken = torch.tensor([scenes.languages.index(language)])
            speaker = Speaker(head.decoder, word_vectors(system), spoken, fused.states, fused.mask)
            ids = generate(speaker, tokenizer.vocabulary, Generation("greedy", most=6)).ids
            made[language] += tokenizer.decode(ids)
    encode_images, cases = system.encode_images, []
    monkeypatch.setattr(system, "encode_images", lambda images: seen.append(len(images)) or encode_images(images))
    monkeypatch.setattr(correction, "_marks", lambda mended: cases.append(mended) or {})
    evaluate_correction(predictor, head, rows, batch_size=3, how=Generation("greedy", most=6))
    assert seen == [3, 2]
    assert [[text for _, _, text, _ in mended] for mended in cases] == [made["en"], made["zh"]]
    assert len(set(made["en"] + made["zh"])) > 1


def test_what_is_mended_and_what_is_left_are_counted_apart(monkeypatch):
    cases = [("a b", "a c", "A b", "name"), ("d e", "d f", "d f", "location"), ("g", "g", "g", ""), ("h", "h", "x", "")]
    monkeypatch.setattr(correction, "_mended", lambda *rest: cases)
    corpus = Pairs([{"en": ["1"]}])
    marks = evaluate_correction(ready(DualStub(Table(torch.zeros(1, 1))), corpus), None, corpus)["languages"]["en"]
    assert (marks["mended"], marks["left"], marks["faulty"], marks["reports"]) == (50.0, 50.0, 2, 4)
    assert marks["kinds"] == {"name": 100.0, "location": 0.0}
