"""Three walks through the product, each one script of the pages' own commands: a shop, an evaluator, a researcher."""

import csv
import json
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file

ROOT = Path(__file__).parents[1]
WALKS = Path(__file__).parent / "walks"
COLOURS = {"红色": "red", "蓝色": "blue", "绿色": "green", "黄色": "yellow", "紫色": "purple"}
SHAPES = {"圆盘": "disc", "方块": "square", "三角": "triangle"}

pytestmark = pytest.mark.slow  # 29 minutes beside ten other programs, most of it starting tuwen twenty times


def walk(name: str, folder: Path, package: Path = ROOT) -> None:
    """Runs a script in a folder, `tuwen` and `python` being those of this environment; package: where tuwen/ lies."""
    (folder / "bin").mkdir()
    for tool, words in (("tuwen", "-m tuwen"), ("python", "")):
        (folder / "bin" / tool).write_text(f'#!/bin/sh\nexec "{sys.executable}" {words} "$@"\n')
        (folder / "bin" / tool).chmod(0o755)
    changes = {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(package), "TUWEN_LANG": "en"}
    environment = os.environ | changes | {"TUWEN_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    script = ["bash", str(WALKS / f"{name}.sh")]
    done = subprocess.run(script, cwd=folder, env=environment, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def draw(colour: str, shape: str, number: int) -> Image.Image:
    """A thing of one colour on a grey ground, its place and size drawn by its number."""
    chance = random.Random(number)
    picture = Image.new("RGB", (96, 96), (chance.randint(200, 235),) * 3)
    side, x, y = chance.randint(40, 60), chance.randint(5, 30), chance.randint(5, 30)
    box, pen = (x, y, x + side, y + side), ImageDraw.Draw(picture)
    if shape == "disc":
        pen.ellipse(box, fill=colour)
    elif shape == "square":
        pen.rectangle(box, fill=colour)
    else:
        pen.polygon([(x + side // 2, y), (x, y + side), (x + side, y + side)], fill=colour)
    return picture


def test_a_shop_exports_its_goods_and_searches_them(tmp_path):
    (tmp_path / "export" / "images").mkdir(parents=True)
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    rows = [["图片", "商品标题", "价格", "标签", "类目"]]
    kinds = [(colour, shape) for colour in COLOURS for shape in SHAPES]
    for number in range(240):
        colour, shape = kinds[number % len(kinds)]
        draw(COLOURS[colour], SHAPES[shape], number).save(tmp_path / "export" / "images" / f"{number}.jpg")
        tags = "促销，包邮" if number % 2 else "新品"
        rows.append([f"images/{number}.jpg", f"{colour}的{shape}", f"{5 + number % 40}", tags, shape])
    with open(tmp_path / "export" / "goods.csv", "w", encoding="gb18030", newline="") as file:
        csv.writer(file).writerows(rows)
    walk("shop", tmp_path)
    results = json.loads((tmp_path / "chinese.json").read_text("utf-8"))["results"]
    assert len(results) == 5
    goods = {f"export/images/{n}.jpg": row for n, row in enumerate(rows[1:])}
    shown = [goods[re.sub(r".*export/", "export/", result["image"])] for result in results]
    assert all(10 <= float(row[2]) <= 30 and "促销" in row[3] for row in shown)
    assert [row[1] for row in shown].count("红色的圆盘") >= 3, [row[1] for row in shown]  # one in fifteen is
    english = json.loads((tmp_path / "english.json").read_text("utf-8"))["results"]  # never trained on
    assert any("蓝色" in goods[re.sub(r".*export/", "export/", result["image"])][1] for result in english)


def test_an_evaluator_measures_a_checkpoint_of_open_clip(tmp_path):
    for split, numbers in (("train", range(16)), ("test", range(16, 40))):
        for number in numbers:
            colour, shape = list(COLOURS.values())[number % 5], list(SHAPES.values())[number % 3]
            place = tmp_path / "photos" / f"{number}.png"
            place.parent.mkdir(exist_ok=True)
            draw(colour, shape, number).save(place)
            row = {"id": str(number), "image": place.name, "texts": {"en": [f"a {colour} {shape}"]}}
            row |= {"split": split, "cls": list(COLOURS.values()).index(colour)}
            with open(tmp_path / "photos" / "pairs.jsonl", "a") as file:
                file.write(json.dumps(row) + "\n")
    names = {"classnames": {"en": list(COLOURS.values())}, "templates": {"en": ["a {c} thing"]}}
    (tmp_path / "names.json").write_text(json.dumps(names))
    made = tmp_path / "made"
    few = "model.image.side=32 model.image.shorter_side=32 model.image.layers=2 model.text.layers=2"
    train = f"train clip --corpus {tmp_path}/photos --out {made} --size clip-small --steps 2 --set {few} "
    export = f"export {made} --to open_clip --out {tmp_path}/checkpoints/open"
    for words in (f"{train} train.batch_size=8 data.workers=0", export, f"eval {made} --corpus {tmp_path}/photos"):
        words += " --task retrieval --json" if words.startswith("eval") else ""
        done = subprocess.run([sys.executable, "-m", "tuwen", *words.split()], capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0, done.stderr[-3000:]
    ours = json.loads(done.stdout)["languages"]
    weights = next((tmp_path / "checkpoints/open").glob("*.safetensors"))
    state = {f"module.{name}": value for name, value in load_file(weights).items()}
    torch.save({"epoch": 1, "state_dict": state}, tmp_path / "checkpoints/epoch_1.pt")  # as open_clip's training does
    walk("evaluator", tmp_path)
    read = {name: json.loads((tmp_path / f"{name}.json").read_text()) for name in ("merged", "published", "file")}
    assert read["merged"]["languages"] == read["file"]["languages"] == ours
    assert (read["merged"]["texts"], read["published"]["texts"]) == (15, 24)  # equal texts are one, or apart
    classes = json.loads((tmp_path / "classes.json").read_text())
    assert (classes["classes"], classes["images"]) == (5, 24)
    assert next((tmp_path / "exported/open").glob("*.safetensors")).is_file()


def test_a_researcher_adds_an_objective_and_compares_it(tmp_path):
    shutil.copytree(ROOT / "tuwen", tmp_path / "tuwen", ignore=shutil.ignore_patterns("__pycache__"))
    for text in re.findall(r"^```python\n(.*?)^```", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE | re.DOTALL):
        name = text.splitlines()[0].removeprefix("# ")
        with open(tmp_path / ("use.py" if name == "use" else name), "a") as file:
            file.write(text)
    walk("researcher", tmp_path, tmp_path)
    closer = json.loads((tmp_path / "closer.json").read_text())["languages"]
    assert set(closer) == {"en", "zh"}
    assert closer["en"] > 0.2  # three colours are learnt in no time
    compared = json.loads((tmp_path / "runs/compare/comparison.json").read_text())
    assert set(compared["systems"]) == {"clip", "sigmoid"}
    assert (tmp_path / "runs/compare/report.html").is_file()
