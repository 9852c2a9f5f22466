"""DiDE as runs: a teacher by role, a task from a teacher that has learnt it, answers from pictures that were kept."""

from pathlib import Path

import pytest
import torch

import tuwen
from tests.systems.test_foundation_learning import recalls, trained
from tuwen.data.corpora.scenes import Scenes
from tuwen.errors import UserError
from tuwen.run import METRICS
from tuwen.training import loop
from tuwen.training.config import RunConfig
from tuwen.training.log import read_metrics
from tuwen.training.stages.recipe import read_recipe

CORPUS = "scenes:count=24,side=32,things=9,objects=2"
SETTINGS = {
    "train.steps": 2,
    "train.batch_size": 8,
    "train.threads": 1,
    "train.log_every": 1,
    "train.precision": "float32",
    "train.choose": "last",
    "data.workers": 0,
}


def run_of(folder, system: str, task: str | None = None, teacher: Path | None = None, **changes) -> Path:
    settings = {**SETTINGS, **{name.replace("__", "."): value for name, value in changes.items()}}
    if teacher is not None:
        settings["data.teachers"] = {"teacher": str(teacher)}
    return loop.train(RunConfig.of(system, "tiny", CORPUS, changes=settings, task=task), folder, quiet=True)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    """A pre-trained ViLT and its student, and both with each task."""
    place = tmp_path_factory.mktemp("runs")
    made = {"vilt": run_of(place / "vilt", "vilt", tokenizer__size=300)}
    made["dide"] = run_of(place / "dide", "dide", teacher=made["vilt"])
    for task in ("vqa", "two_pictures"):
        made[f"{task} taught"] = run_of(place / f"{task}-vilt", "vilt", task, init=str(made["vilt"]))
        made[task] = run_of(place / task, "dide", task, made[f"{task} taught"], init=str(made["dide"]))
    return made


def test_a_student_learns_from_its_teacher_s_role(runs):
    """Its tokenizer is the teacher's; attention and answers are its losses, and no labels."""
    tokenizers = {(runs[name] / "tokenizer.json").read_bytes() for name in ("vilt", "dide", "vqa", "two_pictures")}
    assert len(tokenizers) == 1
    terms = {name: set(read_metrics(runs[name] / METRICS)[-1]["losses"]) for name in ("dide", "vqa", "two_pictures")}
    assert terms["dide"] == {"contrast", "attention", "matching"}
    assert terms["vqa"] == terms["two_pictures"] == {"answers", "attention"}
    weights = tuwen.load(runs["vqa"]).system.state_dict()
    assert not any("teach" in name for name in weights)


def test_answers_from_kept_pictures_are_those_from_pictures(runs):
    """Each picture is encoded once for all of its questions; of two pictures, each for both places."""
    model, scenes = tuwen.load(runs["vqa"]), Scenes(count=3, side=32)
    pictures = [scenes.image(k) for k in range(3)]
    kept = model.keep(pictures)
    rows = [0, 2, 2, 1]
    questions = ["What is there?", "How many dogs?", "狗在哪里？", "What is there?"]
    cold = model.answer([pictures[k] for k in rows], questions)
    warm = model.answer(kept.select(torch.tensor(rows)), questions)
    assert [choice.name for choice in warm] == [choice.name for choice in cold]
    assert [choice.probability for choice in warm] == pytest.approx([c.probability for c in cold], abs=1e-6)

    model = tuwen.load(runs["two_pictures"])
    kept, left, right = model.keep(pictures), torch.tensor([0, 1]), torch.tensor([2, 0])
    cold = model.judge([[pictures[0], pictures[2]], [pictures[1], pictures[0]]], ["There is a dog."] * 2)
    warm = model.judge((kept.select(left), kept.select(right)), ["There is a dog."] * 2)
    assert [choice.probability for choice in warm] == pytest.approx([c.probability for c in cold], abs=1e-6)
    with pytest.raises(UserError, match="1 sequences of encoded pictures; this task is about 2 a row"):
        model.judge(kept.select(left), ["There is a dog."] * 2)
    with pytest.raises(UserError, match="2 rows of pictures and 3 texts"):
        model.judge((kept.select(left), kept.select(right)), ["There is a dog."] * 3)


def test_the_teacher_answers_from_what_it_keeps_too(runs):
    """Of ViLT that is its patches' embeddings."""
    model, scenes = tuwen.load(runs["vqa taught"]), Scenes(count=2, side=32)
    pictures = [scenes.image(0), scenes.image(1)]
    warm, cold = (model.answer(given, ["How many?"] * 2) for given in (model.keep(pictures), pictures))
    assert [choice.probability for choice in warm] == pytest.approx([c.probability for c in cold], abs=1e-6)


@pytest.mark.parametrize(
    ("teacher", "changes", "words"),
    [
        ("vilt", {}, "as teacher it teaches vqa, and it has learnt no task"),
        ("two_pictures taught", {}, "it teaches vqa, and it has learnt two_pictures"),
        ("vqa taught", {"task__most": 3}, "as teacher it tells other answers than this run learns"),
        ("vqa taught", {"model__image__heads": 4, "model__text__heads": 4, "init": None}, "has 2 heads, and this run"),
    ],
)
def test_a_teacher_that_has_learnt_something_else_is_refused(runs, tmp_path, teacher, changes, words):
    given = {name: value for name, value in {"init": str(runs["dide"]), **changes}.items() if value is not None}
    with pytest.raises(UserError, match=words) as error:
        run_of(tmp_path / "run", "dide", "vqa", runs[teacher], **given)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_without_a_teacher_it_is_told_how_to_give_one(tmp_path):
    with pytest.raises(UserError, match=r"dide learns from a teacher, a run that can fuse match: give --set data\.te"):
        run_of(tmp_path / "run", "dide")


def test_the_recipe_s_stages_are_whole():
    recipe = read_recipe(Path(__file__).parents[2] / "recipes" / "dide.yaml")
    assert [stage.system for stage in recipe.stages] == ["vilt", "dide"] * 4
    assert {stage.task for stage in recipe.stages} == {None, "vqa", "two_pictures", "entailment"}
    assert all(set(stage.teachers) == ({"teacher"} if stage.system == "dide" else set()) for stage in recipe.stages)


@pytest.mark.slow
def test_it_finds_pictures_and_texts(tmp_path):
    """A hundred seconds on a free core: ViLT for 200 steps, then its student for 400: mean recall, first stage, above
    four times that of chance."""
    trained("vilt", tmp_path / "vilt", **{"train.steps": 200})
    changes = {"train.steps": 400, "data.teachers": {"teacher": str(tmp_path / "vilt")}}
    for language, found in recalls(trained("dide", tmp_path / "dide", **changes)).items():
        assert found["first"] > 4 * found["chance"], language
