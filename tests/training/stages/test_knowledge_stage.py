"""`do: knowledge`: a lexicon with vectors in the stage's folder, that a later stage's runs read entities by."""

import shutil

import numpy as np
import pytest

from tuwen.data.beside import TABLE
from tuwen.data.lexicons.files import saved_lexicon
from tuwen.errors import UserError
from tuwen.training.stages.go import run_recipe
from tuwen.training.stages.recipe import plan, read_recipe

RECIPE = """
size: tiny
stages:
  - {name: graph, do: knowledge, set: {lexicon: scenes, epochs: 2, width: 8, batches: 2}}
  - {name: main, do: train, system: bagformer, set: {tokenizer.lexicon: graph, train.steps: 2, train.batch_size: 8}}
train: {least_steps: 1}
data: {workers: 0}
"""


def test_a_run_reads_entities_by_the_lexicon_of_an_earlier_stage(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE, encoding="utf-8")
    corpus = "scenes:count=40,side=32"
    stages = run_recipe(read_recipe(path), corpus, tmp_path / "out", quiet=True)
    made, kept = (saved_lexicon(planned.folder) for planned in stages)
    assert len(made) == 157
    assert made.vectors.shape == (157, 8)
    assert kept.digest == made.digest
    assert np.array_equal(kept.vectors, made.vectors)
    assert (stages[0].folder / TABLE).is_file()
    before = (stages[0].folder / "lexicon.safetensors").stat().st_mtime_ns
    run_recipe(read_recipe(path), corpus, tmp_path / "out", quiet=True)  # done, and left
    assert (stages[0].folder / "lexicon.safetensors").stat().st_mtime_ns == before


def test_vectors_learnt_otherwise_are_another_input_and_a_moved_folder_is_none(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE, encoding="utf-8")
    corpus = "scenes:count=40,side=32"
    run_recipe(read_recipe(path), corpus, tmp_path / "out", quiet=True, rehearsal=False)
    (tmp_path / "out").rename(tmp_path / "moved")
    done = (tmp_path / "moved" / "main" / "stage.json").read_bytes()
    run_recipe(read_recipe(path), corpus, tmp_path / "moved", quiet=True, rehearsal=False)
    assert (tmp_path / "moved" / "main" / "stage.json").read_bytes() == done
    shutil.rmtree(tmp_path / "moved" / "graph")
    with pytest.raises(UserError, match=r"moved/main: .*graph has changed since"):
        run_recipe(read_recipe(path, {"graph.epochs": 3}), corpus, tmp_path / "moved", quiet=True, rehearsal=False)


def test_a_stage_that_makes_no_lexicon_is_told(tmp_path):
    path = tmp_path / "recipe.yaml"
    stages = "stages:\n  - {name: first, do: train, system: clip}\n"
    stages += "  - {name: main, do: train, system: clip, set: {tokenizer.lexicon: first}}\n"
    path.write_text(stages, encoding="utf-8")
    with pytest.raises(UserError, match="the stage first makes no lexicon"):
        plan(read_recipe(path), "scenes", tmp_path / "out", {})
