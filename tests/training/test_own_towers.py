"""Runs whose towers come from runs of one's own, each tower from another: `init: {image: RUN, text: RUN}`."""

from pathlib import Path

import pytest
import torch

from tuwen.errors import UserError
from tuwen.nn.towers import fitted_positions
from tuwen.training import checkpoint, loop, start
from tuwen.training.config import RunConfig

CORPUS = "scenes:count=24,side=32"
PLAIN = {"train.steps": 1, "train.batch_size": 8, "train.threads": 1, "train.precision": "float32"}
PLAIN |= {"data.workers": 0, "data.augment": "none", "tokenizer.size": 200, "model.image.side": 32}


def config_of(system: str, **changes) -> RunConfig:
    return RunConfig.of(system, "tiny", CORPUS, changes=PLAIN | {n.replace("__", "."): v for n, v in changes.items()})


def tower(run: Path | str, name: str, file="weights.safetensors", stem="encoders") -> dict[str, torch.Tensor]:
    """A tower's tensors by their names within it."""
    tensors = checkpoint.load_tensors(Path(run) / file)
    return {k.removeprefix(f"{stem}.{name}."): v for k, v in tensors.items() if k.startswith(f"{stem}.{name}.")}


@pytest.fixture(scope="module")
def donors(tmp_path_factory):
    """A run of clip with smaller pictures and a smaller tokenizer, and one of cookie with longer texts."""
    folder = tmp_path_factory.mktemp("donors")
    pictures = config_of("clip", train__seed=1, model__image__side=16, tokenizer__size=100)
    texts = config_of("cookie", train__seed=2, model__text__length=40, model__pictures=0)
    return [
        str(loop.train(config, folder / name, quiet=True)) for name, config in (("image", pictures), ("text", texts))
    ]


def test_each_tower_is_its_own_run_s_and_its_teacher_begins_as_it(donors, tmp_path):
    """Towers of clip and of cookie in albef, trained for a step that moves nothing; its own seed's are others."""
    image, text = donors
    sets = {"train__lr": 1e-12, "train__seed": 3}
    run = loop.train(config_of("albef", init={"image": image, "text": text}, **sets), tmp_path / "run", quiet=True)
    assert RunConfig.read(run).init == {"image": image, "text": text}
    for name, donor in zip(("image", "text"), donors, strict=True):
        mine, theirs = tower(run, name), tower(donor, name)
        assert mine.keys() == theirs.keys()
        assert len(theirs) > 10
        taught = tower(run, name, "state/step-00000001/training.safetensors", "teacher.encoders")
        for part, tensor in theirs.items():
            expected = tensor
            if part == "positions" and name == "text":
                expected = tensor[: len(mine[part])]
            elif part == "positions":
                module = start.build_system(RunConfig.read(run), start.Tokenizer.load(run / "tokenizer.json")).encoders
                expected = fitted_positions(tensor, mine[part], module.image)
                assert len(expected) > len(tensor)
            torch.testing.assert_close(mine[part], expected, rtol=0, atol=1e-9, msg=part)
            torch.testing.assert_close(taught[part], expected, rtol=0, atol=1e-9, msg=part)
    assert (run / "tokenizer.json").read_bytes() == (Path(text) / "tokenizer.json").read_bytes()


def test_one_tower_alone_leaves_the_other_as_the_seed_draws_it(donors, tmp_path):
    plain = loop.train(config_of("clip", train__lr=1e-12), tmp_path / "plain", quiet=True)
    run = loop.train(config_of("clip", train__lr=1e-12, init={"image": donors[0]}), tmp_path / "run", quiet=True)
    assert (run / "tokenizer.json").read_bytes() == (plain / "tokenizer.json").read_bytes()
    for part, tensor in tower(plain, "text").items():
        torch.testing.assert_close(tower(run, "text")[part], tensor, rtol=0, atol=1e-9, msg=part)
    theirs, mine, drawn = (tower(place, "image")["class_token"] for place in (donors[0], run, plain))
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-9)
    assert (mine - drawn).abs().max() > 1e-3


def test_a_text_tower_goes_into_a_run_with_entities_of_its_own(donors, tmp_path):
    """The words are the donor's, the lexicon is the new run's: what ARL starts from never heard of a graph."""
    lexicon = tmp_path / "things.tsv"
    lexicon.write_text("dog\tname:en\tdog\ncat\tname:en\tcat\ndog\tis a\tanimal\n")
    sets = {"train__lr": 1e-12, "tokenizer__lexicon": str(lexicon)}
    run = loop.train(config_of("arl", init={"text": donors[1]}, **sets), tmp_path / "run", quiet=True)
    for part, tensor in tower(donors[1], "text").items():
        expected = tensor[: len(tower(run, "text")[part])] if part == "positions" else tensor
        torch.testing.assert_close(tower(run, "text")[part], expected, rtol=0, atol=1e-9, msg=part)
    assert "animal" in (run / "lexicon.tsv").read_text()


@pytest.mark.parametrize(
    ("system", "changes", "words"),
    [
        (
            "clip",
            {"init": {"image": 0}, "model__image__layers": 1},
            r"its image tower has another layers \(2, here 1\)",
        ),
        ("flava", {"init": {"text": 1}}, r"its text tower has another kind \(bert, here flava\)"),
        ("clip", {"init": {"text": 1}, "tokenizer__file": 0}, "its text tower reads another tokenizer; leave out"),
        ("clip", {"init": {"image": "nowhere"}}, r"nowhere.*cannot be read|nowhere: holds no"),
        ("clip", {"init": {"video": 0}}, r"config field init: expected .*image.* got"),
    ],
)
def test_other_towers_are_refused_in_a_line(donors, tmp_path, system, changes, words):
    settings = {
        name: donors[v] if isinstance(v, int) and name != "model__image__layers" else v for name, v in changes.items()
    }
    settings["init"] = {
        name: donors[v] if isinstance(v, int) else str(tmp_path / v) for name, v in changes["init"].items()
    }
    if "tokenizer__file" in settings:
        settings["tokenizer__file"] = str(Path(settings["tokenizer__file"]) / "tokenizer.json")
    with pytest.raises(UserError, match=words) as error:
        loop.train(config_of(system, **settings), tmp_path / "run", quiet=True)
    assert "\n" not in str(error.value)
