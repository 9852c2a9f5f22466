"""What a training loses to a program that is busy beside it. Writes benchmarks/results/busy_neighbour.json.

    python benchmarks/busy_neighbour.py                # about four minutes on two cores, when nothing else runs
    python benchmarks/busy_neighbour.py --rounds 1     # noisy

Each round trains `clip` with as many threads as there are cores twice, in processes of their own: with torch's waiting
threads asleep (GOMP_SPINCOUNT=0, what tuwen sets) and spinning (300000, what GNU OpenMP does by itself), alone and
beside one process that computes without end; the order turns from round to round. A ratio is the median over rounds of
asleep over spinning, in pairs a second as the run's own provenance has them.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

RESULT = Path(__file__).parent / "results" / "busy_neighbour.json"
SPINS = {"asleep": "0", "spinning": "300000"}


@contextmanager
def neighbour(busy: bool) -> Iterator[None]:
    """One process that computes without end, if `busy`."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if busy else None
    try:
        yield
    finally:
        if process:
            process.kill()
            process.wait()


def pairs_per_second(corpus: Path, out: Path, steps: int, threads: int, spins: str) -> float:
    """Of one training, as its provenance says."""
    words = [
        sys.executable,
        "-m",
        "tuwen",
        "train",
        "clip",
        "--size",
        "tiny",
        "--corpus",
        str(corpus),
        "--out",
        str(out),
    ]
    words += ["--steps", str(steps), "--set", "train.batch_size=64", "data.workers=0"]
    environment = os.environ | {"GOMP_SPINCOUNT": spins, "OMP_NUM_THREADS": str(threads)}
    subprocess.run(words, env=environment, check=True, capture_output=True)
    return json.loads((out / "provenance.json").read_text())["finished"]["pairs_per_second"]


def measure(folder: Path, rounds: int, steps: int, threads: int) -> dict:
    corpus = folder / "scenes"
    build = [sys.executable, "-m", "tuwen", "data", "build", "scenes:count=512,side=64", "--out", str(corpus)]
    subprocess.run(build, check=True, capture_output=True)
    speeds: dict[str, dict[str, list[float]]] = {place: {way: [] for way in SPINS} for place in ("alone", "beside")}
    for turn in range(rounds):
        for place in speeds:
            for way in sorted(SPINS, reverse=bool(turn % 2)):
                with neighbour(place == "beside"):
                    out = folder / f"{turn}-{place}-{way}"
                    speeds[place][way].append(pairs_per_second(corpus, out, steps, threads, SPINS[way]))
                print(turn, place, way, round(speeds[place][way][-1]), "pairs/s", file=sys.stderr)
    ratios = {
        place: statistics.median(a / b for a, b in zip(by["asleep"], by["spinning"], strict=True))
        for place, by in speeds.items()
    }
    return {"pairs_per_second": speeds, "asleep_over_spinning": ratios}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measured = measure(Path(folder), args.rounds, args.steps, args.threads)
    about = {"cores": os.cpu_count(), "threads": args.threads, "steps": args.steps, "load": os.getloadavg()}
    args.out.write_text(json.dumps(about | measured, indent=1) + "\n")
    print(json.dumps(measured["asleep_over_spinning"]))


if __name__ == "__main__":
    main()
