"""The survey as the registry: its own table, closed vocabularies, what objectives and tasks require, our systems."""

import dataclasses
import json

import pytest

from tuwen import cli, systems
from tuwen.errors import UserError
from tuwen.systems.survey import Axes
from tuwen.systems.survey.axes import DATASETS, INTERACTIONS, OBJECTIVES, PARTS, TASKS, VISION_ENCODERS
from tuwen.systems.survey.table import TABLE

DUAL = Axes("bert", ("patch",), ("dot_product",), ("cmcl",), ("coco",))
READING = {"vqa", "nlvr", "vcr", "entailment"}
WRITING = {"captioning", "translation"}


# ---- card, section 11


def test_all_rows_of_the_surveys_table_stand():
    """Check 2: 23 rows from keys alone."""
    assert len(TABLE) == 23
    assert TABLE["CLIP"].tasks == ("retrieval", "zero_shot", "matching")
    assert set(TABLE["ALBEF"].tasks) >= READING
    assert not WRITING & set(TABLE["ALBEF"].tasks)
    assert {"vqa", "captioning", "grounding"} <= set(TABLE["VL-T5"].tasks)
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
    for name, entry in [*OBJECTIVES.items(), *TASKS.items()]:
        assert {part for need in entry.requires for part in need.split("|")} <= gifts, name


def test_image_counts_and_pair_counts_are_kept_apart():
    """Section 3.4: the survey's table mixes both in one column."""
    assert (DATASETS["coco"].images, DATASETS["coco"].pairs) == (328.124, None)
    assert (DATASETS["redcaps"].images, DATASETS["redcaps"].pairs) == (None, 12_000)


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
    assert set(axes.tasks) - {"grounding"} == set(systems.tasks_of(system)) - {"grounding"}
    assert (axes.text == "none") == (not system.can("encode_texts"))


def test_question_answering_on_a_pure_dual_encoder_is_refused_with_the_reason(capsys):
    """Check 8."""
    with pytest.raises(UserError, match=r"clip cannot do vqa: .* needs fusion or decoder.* cosine of two vectors"):
        systems.refuse_impossible("clip", "vqa")
    systems.refuse_impossible("albef", "vqa")
    systems.refuse_impossible("clip", "retrieval")
    systems.refuse_impossible("clip", "a_task_of_your_own")
    assert cli.main(["systems", "clip", "--task", "vqa"]) == 1
    assert "systems that can: albef" in capsys.readouterr().err
    assert cli.main(["systems", "--task", "vqa", "--json"]) == 0
    able = {found["name"] for found in json.loads(capsys.readouterr().out)["systems"]}
    assert {"albef", "r2d2"} <= able
    assert not {"clip", "prd2"} & able


def test_the_table_is_built_from_the_code(monkeypatch, capsys):
    system = systems.find("clip")
    told = dataclasses.replace(system.paper, axes=dataclasses.replace(system.paper.axes, data=("wukong",)))
    monkeypatch.setattr(system, "paper", told)
    monkeypatch.setattr(system, "fuse", lambda self, images, texts: None)
    assert cli.main(["systems", "clip", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["axes"]["data"] == {"wukong": "Wukong"}
    assert "nlvr" in found["tasks"]
    assert cli.main(["systems", "albef", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["axes"]["objectives"]["itm"]["requires"] == ["fusion"]
