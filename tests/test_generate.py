"""`tuwen generate`: what it prints, and mistakes."""

import json

import pytest

import tuwen
from tuwen import cli
from tuwen.data.corpora.scenes import Scenes
from tuwen.data.images import to_pillow
from tuwen.nn.generation import Generation
from tuwen.training import loop
from tuwen.training.config import RunConfig


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run, and two pictures beside it."""
    root = tmp_path_factory.mktemp("generate")
    changes = {"train.batch_size": 8, "train.steps": 2, "train.threads": 1, "data.workers": 0, "tokenizer.size": 200}
    config = RunConfig.of("ernie_unix2", "tiny", "scenes:count=16,side=32", changes=changes)
    loop.train(config, root / "run", quiet=True)
    for row in range(2):
        to_pillow(Scenes(side=32, count=2).image(row)).save(root / f"{row}.png")
    return root


def printed(capsys, *arguments: str) -> str:
    assert cli.main(["generate", *arguments]) == 0
    return capsys.readouterr().out


def test_what_is_made_is_what_the_model_makes(folder, capsys):
    pictures, model = [str(folder / f"{row}.png") for row in range(2)], tuwen.load(folder / "run")
    out = printed(capsys, str(folder / "run"), *pictures, "--language", "zh", "--method", "greedy", "--json")
    made = model.generate("zh", images=pictures, how=Generation("greedy"))
    results = [{"picture": picture, "made": text} for picture, text in zip(pictures, made, strict=True)]
    assert json.loads(out) == {"language": "zh", "results": results}
    assert printed(
        capsys, str(folder / "run"), *pictures, "--language", "en", "--texts", "一只猫", "两条狗", "--beams", "2"
    ).splitlines() == [
        f"{picture}\t{text}\t{made}"
        for picture, text, made in zip(
            pictures,
            ["一只猫", "两条狗"],
            model.generate("en", pictures, ["一只猫", "两条狗"], Generation(beams=2)),
            strict=True,
        )
    ]
    drawn = (str(folder / "run"), "--texts", "a", "--language", "zh", "--method", "nucleus", "--seed")
    seeds = [printed(capsys, *drawn, seed) for seed in "001"]
    assert seeds[0] == seeds[1] != seeds[2]


def test_mistakes(folder, capsys):
    with pytest.raises(SystemExit):
        cli.main(["generate", str(folder / "run"), "--language", "zh"])
    assert "give pictures, --texts, or both" in capsys.readouterr().err
    assert cli.main(["generate", str(folder / "run"), str(folder / "no.png"), "--language", "zh"]) == 1
    assert "no.png" in capsys.readouterr().err
    assert cli.main(["generate", str(folder / "run"), "--texts", "a", "--language", "fr"]) == 1
    assert "no language 'fr' in this run; it has en, zh" in capsys.readouterr().err
    assert cli.main(["generate", str(folder), "--texts", "a", "--language", "zh"]) == 1
    assert "give the folder of a run" in capsys.readouterr().err
