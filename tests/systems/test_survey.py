"""The survey as the registry: its own table, closed vocabularies, what objectives require, our systems."""

import dataclasses
import json
import math

import pytest
import torch

from tests.systems.common import PROGRESS, VOCABULARY, build, example, shaken, units
from tuwen import cli, systems, tasks
from tuwen.data.batch import Batch, Images
from tuwen.data.spans import Spans
from tuwen.errors import UserError
from tuwen.nn import transformer
from tuwen.objectives.contrastive import contrastive
from tuwen.objectives.matching import matching_loss
from tuwen.systems.ernie_unix2 import Streams
from tuwen.systems.survey import Axes
from tuwen.systems.survey.axes import DATASETS, INTERACTIONS, OBJECTIVES, PARTS, VISION_ENCODERS
from tuwen.systems.survey.table import TABLE

BOTH = {"dual", "fusion"}  # of systems that read pictures and texts
DUAL = Axes("bert", ("patch",), ("dot_product",), ("cmcl",), ("coco",))


# ---- card, section 11


def test_all_rows_of_the_surveys_table_stand():
    """Check 2: 23 rows from keys alone."""
    assert len(TABLE) == 23
    assert TABLE["CLIP"].provides == {"patch", "grid", "dot_product", "dual"}
    assert TABLE["FLAVA"].provides >= {"dual", "fusion", "codebook"}
    every = {name for row in TABLE.values() for name in row.objectives}
    assert {"mlm", "mrc", "mrfr", "mvm", "itm", "cmcl", "prefix_lm", "seq2seq_lm", "wra", "mmm"} <= every


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"text": "brt"}, "text encoder called 'brt' (did you mean bert?); there are none, bert, roberta"),
        ({"vision": ("patches",)}, "(did you mean patch?); there are region, grid, patch"),
        ({"interaction": ("single",)}, "there are none, dot_product, "),
        ({"objectives": ("itc",)}, "no objective called 'itc'"),
        ({"data": ("cocoa",)}, "did you mean coco?"),
        ({"decoder": "yes"}, "there are none, causal, seq2seq, pixels"),
        ({"parts": ("codes",)}, "no part called 'codes'"),
    ],
)
def test_an_unknown_key_lists_the_valid_ones(change, said):
    """Check 2."""
    with pytest.raises(ValueError, match="called") as caught:
        dataclasses.replace(DUAL, **change)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("objective", "lacks", "mended"),
    [
        ("itm", "fusion", {"interaction": ("dual_stream",)}),
        ("mrc", "fusion, region", {"interaction": ("single_stream",), "vision": ("region",)}),
        ("mmm", "codebook, fusion", {"interaction": ("stacked",), "parts": ("codebook",)}),
        ("mim", "codebook", {"parts": ("codebook",)}),
        ("ic", "decoder", {"decoder": "causal"}),
        ("distillation", "teacher", {"parts": ("teacher",)}),
        ("mvm", "dictionary, fusion, grid", {"interaction": ("single_stream",), "vision": ("grid",)}),
        ("vqa", "fusion or decoder", {"decoder": "seq2seq"}),
    ],
)
def test_an_objective_without_what_it_requires_is_refused(objective, lacks, mended):
    """Checks 1 and 8 (mrc, mrfr require regions): before training, with the reason."""
    with pytest.raises(ValueError, match="requires") as caught:
        dataclasses.replace(DUAL, objectives=("cmcl", objective))
    assert str(caught.value).endswith(f"requires {lacks}")
    parts = ("dictionary",) if objective == "mvm" else ()
    changes = {"parts": parts, **mended, "objectives": ("cmcl", objective)}
    assert dataclasses.replace(DUAL, **changes).objectives == ("cmcl", objective)


def test_every_requirement_is_something_that_can_be_given():
    gifts = {"dual", "fusion", "decoder", *VISION_ENCODERS, *INTERACTIONS, *PARTS}
    for name, entry in OBJECTIVES.items():
        assert {part for need in entry.requires for part in need.split("|")} <= gifts, name


def test_image_counts_and_pair_counts_are_kept_apart():
    """Section 3.4: the survey's table mixes both in one column."""
    assert (DATASETS["coco"].images, DATASETS["coco"].pairs) == (328.124, None)
    assert (DATASETS["redcaps"].images, DATASETS["redcaps"].pairs) == (None, 12_000)


def test_albef_is_a_bert_split_in_two_with_cross_attention_in_the_upper_half():
    """Check 3: its keys are the survey's row and what it is built from."""
    system = systems.find("albef")
    ours, row = system.paper.axes, TABLE["ALBEF"]
    assert (ours.text, ours.vision, set(ours.data)) == (row.text, row.vision, set(row.data))
    assert set(row.interaction) <= set(ours.interaction)
    assert set(row.objectives) <= set(ours.objectives)
    config = system.Config.sized("tiny")
    six = {part: dataclasses.replace(getattr(config, part), layers=6) for part in ("text", "fusion")}
    built = system(dataclasses.replace(config, **six), VOCABULARY)
    blocks = [*built.encoders.text.stack.blocks, *built.fusion.stack.blocks]
    assert [hasattr(block, "cross") for block in blocks] == [False] * 6 + [True] * 6


@pytest.mark.parametrize(
    ("name", "single"),
    [("flava", True), ("mvptr", True), ("ernie_unix2", True), ("albef", False), ("bridgetower", False)],
)
def test_one_stream_attends_to_all_and_two_streams_to_themselves_and_each_other(name, single, monkeypatch):
    """Check 4: [n + m, n + m], closed to padding alone; or never anything as long as both."""
    system, batch = build(name).eval(), example()
    images, texts = system.encode_images(batch.images), system.encode_texts(batch.texts)
    seen, real = [], transformer.attend

    def record(q, k, v, allowed, *rest):
        seen.append((q.shape[2], k.shape[2], allowed))
        return real(q, k, v, allowed, *rest)

    monkeypatch.setattr(transformer, "attend", record)
    system.match(images, texts) if system.can("match") else system.fuse([images], texts)
    words, regions = texts.state_mask.shape[1], next(iter(images.states.values())).shape[1]
    assert words != regions
    whole = words + regions + (name == "flava")  # its joint class token
    assert len(seen) >= system.config.fusion.layers
    for queries, keys, allowed in seen:
        if single:
            assert (queries, keys) == (whole, whole)
            assert int((~allowed).sum()) == int((~texts.state_mask).sum())
            assert allowed.expand(6, 1, whole, whole)[:, 0].eq(allowed[:, 0]).all()  # the same for every query
        else:
            assert {queries, keys} <= {words, regions, 1}
    assert single or {(q, k) for q, k, _ in seen} & {(words, regions), (1, regions)}


def spanned(change: str = "") -> Batch:
    """The common batch with a span of every kind a text, its pictures or its words changed for others."""
    batch = example()
    rows = torch.arange(6).repeat_interleave(3)
    spans = Spans(rows, torch.ones_like(rows), torch.full_like(rows, 2), rows + 500, torch.arange(3).repeat(6))
    ids = batch.texts.ids
    if change == "texts":
        ids = torch.where(ids > 4, 44 - ids, ids)
    pixels = 255 - batch.images.pixels if change == "images" else batch.images.pixels
    images = Images(pixels, views={"second": pixels})
    return dataclasses.replace(batch, images=images, texts=dataclasses.replace(batch.texts, ids=ids, spans=spans))


@pytest.mark.parametrize("name", [name for name in systems.names() if systems.find(name).paper.axes.provides & BOTH])
def test_vectors_of_one_side_do_not_depend_on_the_other_and_joint_states_do(name):
    """Check 5, on the training step's own encoding."""
    streams = {"streams": Streams(texts=0, parallel=0, both=0)} if name == "ernie_unix2" else {}
    system = shaken(build(name, **streams)).eval()
    plain, other_images, other_texts = (system.encode(spanned(x), PROGRESS) for x in ("", "images", "texts"))
    for part in ("pooled", "tokens"):
        images, texts = (getattr(plain[side], part) for side in ("images", "texts"))
        if images is not None:
            assert torch.equal(getattr(other_texts["images"], part), images)
            assert (getattr(other_images["images"], part) != images).any()
        if texts is not None:
            assert torch.equal(getattr(other_images["texts"], part), texts)
            assert (getattr(other_texts["texts"], part) != texts).any()
    if system.can("match"):
        images, others = (encoded["images"] for encoded in (plain, other_images))
        assert (system.match(images, plain["texts"]) != system.match(others, plain["texts"])).all()


def test_contrast_is_symmetric_and_nothing_for_one_pair_alone():
    """Check 6."""
    images, texts = units(5, 8, seed=1), units(5, 8, seed=2)
    same = torch.eye(5, dtype=torch.bool)
    there, back = (
        contrastive(images, texts, images, texts, same, 0.1),
        contrastive(texts, images, texts, images, same, 0.1),
    )
    assert float(there) == pytest.approx(float(back), abs=1e-12)
    one = [x[:1] for x in (images, texts)]
    assert float(contrastive(*one, *one, same[:1, :1], 0.1)) == 0


def test_constant_matching_costs_ln_2():
    """Check 7; its regressed and classified regions have no counterpart here: no system reads a detector's regions."""
    labels = torch.tensor([1, 0, 0, 1])
    for constant in (0.0, 7.5):
        assert float(matching_loss(torch.full((4, 2), constant), labels)) == pytest.approx(math.log(2))


def test_targets_of_masked_patches_do_not_depend_on_the_mask():
    """Check 7, of what stands here for masked regions: FLAVA's codes are of the whole picture."""
    system, batch = build("flava").eval(), example()
    codes = torch.randint(0, 256, (6, 3, 32, 32), generator=torch.Generator().manual_seed(1))
    views = dataclasses.replace(batch.images, views={"codes": codes / 255})
    targets = []
    for epoch_step in (3, 8):
        seen = dataclasses.replace(batch, images=views, texts=None)
        progress = dataclasses.replace(PROGRESS, step=epoch_step)
        hidden = system.hide(seen, progress)
        targets.append((hidden, system.codes.codes(views.views["codes"])))
    assert (targets[0][0] != targets[1][0]).any()
    assert torch.equal(targets[0][1], targets[1][1])


# ---- our systems


@pytest.mark.parametrize("name", systems.names())
def test_a_system_declares_what_its_code_has(name):
    system = systems.find(name)
    axes = system.paper.axes
    assert axes is not None, "declare axes in its Paper; keys are in tuwen/systems/survey/axes.py"
    assert axes.data
    assert axes.objectives
    assert ("fusion" in axes.provides) == (system.can("match") or system.can("fuse"))
    assert (axes.decoder in ("causal", "seq2seq")) == (system.can("generate") or system.can("likelihood"))
    assert (axes.text == "none") == (not system.can("encode_texts"))


def test_a_task_that_needs_more_than_a_dual_encoder_has_is_refused_with_the_reason(capsys):
    """Check 8."""
    with pytest.raises(UserError, match=r"clip cannot do translation: .* needs generate.* cosine of two vectors"):
        tasks.able("clip", "translation")
    assert tasks.able("clip", "retrieval") is tasks.find_task("retrieval")
    assert tasks.able("mvptr", "grounding") is tasks.find_task("grounding")
    with pytest.raises(UserError, match=r"clip cannot do grounding: .* systems that can: .*mvptr.*slan"):
        tasks.able("clip", "grounding")
    assert cli.main(["systems", "clip", "--task", "translation"]) == 1
    assert "systems that can: ernie_unix2" in capsys.readouterr().err
    assert cli.main(["systems", "--task", "translation", "--json"]) == 0
    able = {found["name"] for found in json.loads(capsys.readouterr().out)["systems"]}
    assert able == {"ernie_unix2"}


def test_the_table_is_built_from_the_code(monkeypatch, capsys):
    system = systems.find("clip")
    told = dataclasses.replace(system.paper, axes=dataclasses.replace(system.paper.axes, data=("wukong",)))
    monkeypatch.setattr(system, "paper", told)
    monkeypatch.setattr(system, "locate", lambda self, images, texts: None)
    assert cli.main(["systems", "clip", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["axes"]["data"] == {"wukong": "Wukong"}
    assert "grounding" in found["tasks"]
    assert cli.main(["systems", "albef", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["axes"]["objectives"]["itm"]["requires"] == ["fusion"]


def test_what_is_published_is_told_from_what_a_run_builds(capsys):
    """The survey's axes are the papers'; a run of them builds a plain ViT and BERT unless it is given towers."""
    assert cli.main(["systems"]) == 0
    assert capsys.readouterr().out.splitlines()[0].startswith("encoders and data as published; `tuwen systems NAME`")
    for name in ("bridgetower", "tokenflow"):
        built = systems.find(name).paper
        config = systems.find(name).Config.sized("base")
        assert (config.image.backbone, config.text.backbone, config.text.kind) == (None, None, "bert")
        assert built.image_encoder.startswith("ViT (published")
        assert built.text_encoder.startswith("BERT")
