"""Is two-stage search fast, and at what loss? Writes benchmarks/results/search.json, a section a part.

    python benchmarks/search.py recall --run runs/r2d2     # a trained small model over 10,000 scenes; minutes
    python benchmarks/search.py speed                      # base shapes, random weights, 2,000 pictures; minutes
    python benchmarks/search.py million                    # a million vectors: torch, Lance, faiss; tens of minutes
    TUWEN_MILVUS_PYTHON=/tmp/milvus/bin/python python benchmarks/search.py million --milvus    # the same with Milvus

recall: the least k whose two-stage recall keeps 98 % of a full re-ranking's (mean of recall at 1, 5, 10), and the least
k that gives 98 % of the full re-ranking's own first 1, 5 and 10 results.
speed: (a) two stages from cached tokens, all of them or pooled to --token-budget, (b) the cross encoder over
everything, (c) the first stage alone, (d) two stages that encode the k pictures again. Tokens and vectors are drawn,
not encoded: speed does not depend on them.
Both report seconds of the process's time on one core, so that what else the machine does counts little.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F

from tuwen import systems
from tuwen.data.images import encode_jpeg
from tuwen.data.open import open_corpus
from tuwen.data.text import Tokenizer
from tuwen.nn.encoded import Encoded
from tuwen.predictor import Predictor
from tuwen.search import nearest
from tuwen.search.build import build_index
from tuwen.search.columns import vector_column
from tuwen.search.index import Index
from tuwen.search.ingest import part_field, schema_of
from tuwen.search.parts import Layout
from tuwen.search.query import Query, Searcher
from tuwen.search.recall import two_stage_recall
from tuwen.search.record import IndexRecord
from tuwen.training.config import RunConfig

RESULT = Path(__file__).parent / "results" / "search.json"
SCENES = "scenes:side=64,things=24,objects=3,whole=true,count={}"
QUERIES = ["a red bird to the left of a small cat on a blue ground", "一只红色的鸟在小猫的左边"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=("recall", "speed", "million"))
    parser.add_argument("--run", type=Path, help="recall: a run trained on these scenes")
    parser.add_argument("--pictures", type=int, help="default: 10000 for recall, 2000 for speed, 1000000 for million")
    parser.add_argument("--queries", type=int, default=60, help="recall: texts asked")
    parser.add_argument("--systems", nargs="+", default=["albef", "r2d2"], help="speed: systems")
    parser.add_argument("--candidates", type=int, default=64, help="speed: k")
    matched = "speed: pictures (b) is timed with, from which its time for all of them is reckoned (default: all)"
    parser.add_argument("--everything", type=int, metavar="N", help=matched)
    pooled = "pooled tokens a picture (speed: 50 by default; recall: not measured by default)"
    parser.add_argument("--token-budget", type=int, help=pooled)
    parser.add_argument("--width", type=int, default=256, help="million: numbers a vector (default 256)")
    parser.add_argument("--milvus", action="store_true", help="million: measure Milvus alone")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    parts: dict[str, Callable] = {"recall": recall, "speed": speed, "million": million}
    with tempfile.TemporaryDirectory() as folder:
        figures = parts[options.part](options, Path(folder))
    results = json.loads(options.out.read_text()) if options.out.exists() else {}
    name = f"vectors_{figures['vectors']}" if options.part == "million" else options.part
    section = results.get(name, {}) if options.milvus else {}
    command = " ".join(["python", *sys.argv])
    results[name] = {"hardware": hardware(), "command": command, "threads": 1, **section, **figures}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(figures, indent=1))


def hardware() -> dict:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in lines if "model name" in line), "")
    packages = {name: version(name) for name in ("torch", "pylance", "numpy")}
    return {"processor": model, "cores": os.cpu_count(), "python": platform.python_version(), **packages}


def seconds(work: Callable[[], object], repeats: int = 3) -> float:
    """Least seconds of the process's time, after a call that warms up."""
    work()
    times = []
    for _ in range(repeats):
        clock = time.process_time()
        work()
        times.append(time.process_time() - clock)
    return min(times)


# ---- recall


def recall(options, folder: Path) -> dict:
    count = options.pictures or 10_000
    location = SCENES.format(count)
    clock = time.process_time()
    index = build_index(options.run, location, folder / "index", split="test", progress=True)
    built = time.process_time() - clock
    searcher = Searcher(index)
    corpus = open_corpus(location, "test")
    texts, right = scene_queries(searcher, corpus, options.queries)
    clock = time.process_time()
    figures = two_stage_recall(searcher, texts, right)
    full = (time.process_time() - clock) / len(texts)
    if options.token_budget:
        source = {"split": "test", "token_budget": options.token_budget}
        pooled = build_index(options.run, location, folder / "pooled", **source)
        own = two_stage_recall(Searcher(pooled), texts, right, exact=searcher)
        about = {"tokens": options.token_budget, "bytes_a_picture": round(pooled.size() / len(pooled))}
        figures["pooled"] = {**about, "loss": pooled.about.get("loss"), **own}
    goal = 0.98 * mean(figures["full"])
    stages = figures["two_stage"].items()
    least = {
        "recall": next((int(k) for k, own in stages if mean(own) >= goal), None),
        "same_results": next((int(k) for k, own in stages if mean(own, "kept") >= 98), None),
    }
    return {
        "pictures": len(index),
        "index_seconds": round(built, 1),
        "bytes_a_picture": round(index.size() / len(index)),
        "loss": index.about.get("loss"),
        **figures,
        "seconds_a_query_full": round(full, 3),
        "least_k": {what: at(k, searcher, texts, full) for what, k in least.items() if k is not None},
    }


def mean(recalls: dict, what: str = "r") -> float:
    return sum(recalls[f"{what}{top}"] for top in (1, 5, 10)) / 3


def at(k: int, searcher: Searcher, texts: list[str], full: float) -> dict:
    """Seconds a query of two stages with k candidates, eight queries at once and one alone, against `full` seconds."""
    asked = [Query(text) for text in texts[:8]]
    many = seconds(lambda: searcher.search(asked, candidates=k)) / len(asked)
    alone = seconds(lambda: searcher.search(asked[:1], candidates=k))
    spent = {"seconds_a_query_of_8": round(many, 4), "seconds_alone": round(alone, 4)}
    return {"k": k, **spent, "throughput_ratio": round(full / many, 1), "latency_ratio": round(full / alone, 1)}


def scene_queries(searcher: Searcher, corpus, count: int) -> tuple[list[str], list[list[int]]]:
    """Captions of scenes over the corpus, and the positions of all scenes each is true of."""
    snapshot = searcher.index.snapshot
    place = {name: k for k, name in enumerate(snapshot.dataset.to_table(columns=["id"])["id"].to_pylist())}
    gallery = corpus.gallery()
    chosen = np.linspace(0, len(gallery.texts) - 1, count).round().astype(int).tolist()
    names = [corpus.record(row).id for row in gallery.rows]
    right = [
        [place[names[k]] for k in gallery.relevance.images_of(text).tolist() if names[k] in place] for text in chosen
    ]
    return [gallery.texts[text].text for text in chosen], right


# ---- speed


def speed(options, folder: Path) -> dict:
    count, k, pooled = options.pictures or 2_000, options.candidates, options.token_budget or 50
    return {
        "pictures": count,
        "candidates": k,
        "b_timed_with": options.everything or count,
        "token_budget": pooled,
        **{
            name: speed_of(name, count, k, options.everything or count, pooled, folder / name)
            for name in options.systems
        },
    }


def speed_of(name: str, count: int, k: int, everything: int, pooled: int, folder: Path) -> dict:
    predictor = random_predictor(name)
    indexes = {budget: random_index(predictor, folder / str(budget), count, budget) for budget in (None, pooled, 0)}
    two, of_pooled, again = (Searcher(index) for index in indexes.values())
    asked = [Query(text) for text in QUERIES]
    times = {
        "a_two_stages": seconds(lambda: two.search(asked[:1], candidates=k), 1),
        "a_two_stages_of_2": seconds(lambda: two.search(asked, candidates=k), 1) / 2,
        "a_pooled": seconds(lambda: of_pooled.search(asked[:1], candidates=k), 1),
        "c_first_stage": seconds(lambda: two.search(asked[:1], candidates=0), 5),
    }
    clock = time.process_time()
    two.search(asked[:1], candidates=everything)
    times["b_everything"] = (time.process_time() - clock) / everything * count
    clock = time.process_time()
    again.search(asked[:1], candidates=k)
    times["d_not_cached"] = time.process_time() - clock
    return {
        "seconds_a_query": {what: round(spent, 4) for what, spent in times.items()},
        "queries_a_second": {what: round(1 / spent, 4) for what, spent in times.items()},
        "b_over_a_latency": round(times["b_everything"] / times["a_two_stages"], 1),
        "b_over_a_throughput": round(times["b_everything"] / times["a_two_stages_of_2"], 1),
        "d_over_a": round(times["d_not_cached"] / times["a_two_stages"], 2),
        "d_over_a_pooled": round(times["d_not_cached"] / times["a_pooled"], 2),
        "bytes_a_picture": round(indexes[None].size() / count),
        "bytes_a_picture_pooled": round(indexes[pooled].size() / count),
    }


def random_predictor(name: str) -> Predictor:
    config = RunConfig.of(name, "base", "scenes")
    tokenizer = Tokenizer.train(QUERIES * 20)
    torch.manual_seed(0)
    system = systems.find(name)(config.model, tokenizer.vocabulary)
    return Predictor(system.eval(), tokenizer, ("en", "zh"), config.model)


def random_index(predictor: Predictor, folder: Path, count: int, budget: int | None) -> Index:
    """A record of drawn vectors and tokens, as large as a real one."""
    system, config = predictor.system, predictor.config
    side, width, embed = config.image.side, config.image.width, config.embed
    tokens = (side // config.image.patch) ** 2 + 1
    generator = torch.Generator().manual_seed(0)
    sample = Encoded(torch.zeros(1, embed), states={"last": torch.zeros(1, tokens, width)})
    layout = Layout.of(system.index_fields, sample, "float16", budget)
    about = {"run": "", "weights": "", "system": "", "languages": ["en", "zh"], "side": side, "width": embed}
    about |= {"pooled": True, "layout": layout.to_json(), "sizes": {}, "bytes": 2 * tokens * width}
    record = IndexRecord.create(folder, about, schema_of(layout, embed, budget == 0))
    jpeg = encode_jpeg(torch.randint(0, 256, (3, side, side), dtype=torch.uint8, generator=generator))
    for start in range(0, count, 200):
        rows = min(200, count - start)
        states = torch.randn(rows, tokens, width, generator=generator) if layout.parts else torch.empty(rows, 1, 1)
        parts = layout.write(Encoded(None, states={"last": states}))
        names = [f"{start + k}" for k in range(rows)]
        columns = dict.fromkeys(("id", "hash", "image", "digest"), names) | {"texts": ["{}"] * rows}
        columns |= {"thumbnail": [jpeg] * rows, "pixels": [jpeg] * rows}
        columns["vector"] = vector_column(F.normalize(torch.randn(rows, embed, generator=generator), dim=1))
        columns |= {part_field(name): data for name, data in parts.items()}
        schema = record.table.schema
        record.append(pa.table({name: columns[name] for name in schema.names}, schema=schema))
    index = Index(record)
    index.__dict__ |= {"loaded": predictor, "run_fit": index.fit}  # there is no run to load
    return index


# ---- a million vectors


def clustered(count: int, width: int) -> torch.Tensor:
    """[count, width] unit vectors around a thousand centres, which is nearer to real ones than no centres."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(1000, width, generator=generator)
    chosen = torch.randint(1000, (count,), generator=generator)
    out = torch.empty(count, width)
    for start in range(0, count, 65536):
        part = chosen[start : start + 65536]
        out[start : start + len(part)] = F.normalize(
            centres[part] + 0.8 * torch.randn(len(part), width, generator=generator), dim=1
        )
    return out


def million(options, folder: Path) -> dict:
    count = options.pictures or 1_000_000
    vectors = clustered(count, options.width)
    generator = torch.Generator().manual_seed(1)
    picked = torch.randint(count, (100,), generator=generator)
    queries = F.normalize(vectors[picked] + 0.05 * torch.randn(100, vectors.shape[1], generator=generator), dim=1)
    truth = torch.cat([nearest.exact(vectors, part, 10)[0] for part in queries.split(20)])
    measured = {"vectors": count, "width": vectors.shape[1], "queries": len(queries)}
    if options.milvus:
        return measured | {"milvus": in_milvus(vectors, queries, truth, folder)}
    record, written = lance_record(vectors, folder / "lance")
    size = folder_size(folder / "lance")
    clock = time.monotonic()
    vectors_held = record.snapshot(vectors=True).vectors
    assert vectors_held is not None
    nearest.exact(vectors_held, queries[:1], 10)
    measured["open_to_first_answer_seconds"] = round(time.monotonic() - clock, 2)
    measured["exact_torch"] = engine(written, size, queries, truth, lambda q: nearest.exact(vectors_held, q, 10)[0])
    measured["faiss_exact"] = in_faiss(vectors, queries, truth)
    clock = time.monotonic()
    settings = nearest.make_lance_index(record)
    built = time.monotonic() - clock
    plain = record.snapshot(vectors=False)

    def by_lance(asked):
        return [nearest.approximate(plain, query, 10, settings["probes"], None)[0] for query in asked]

    measured["lance_index"] = engine(built, folder_size(folder / "lance") - size, queries, truth, by_lance)
    return measured | {"lance_told": settings}


def engine(built: float, size: int | None, queries, truth, search) -> dict:
    results = [near.tolist() for near in search(queries)]
    hits = [len(set(near) & set(right.tolist())) / 10 for near, right in zip(results, truth, strict=True)]
    alone, many = [], []
    for query in queries[:20]:
        clock = time.monotonic()
        search(query[None])
        alone.append(time.monotonic() - clock)
    for _ in range(3):
        clock = time.monotonic()
        search(queries[:64])
        many.append(time.monotonic() - clock)
    return {
        "build_seconds": round(built, 1),
        "megabytes": None if size is None else round(size / 2**20),
        "recall_at_10": round(100 * float(np.mean(hits)), 2),
        "ms_one_query": round(1000 * float(np.median(alone)), 2),
        "ms_64_queries": round(1000 * min(many), 1),
    }


def lance_record(vectors: torch.Tensor, folder: Path) -> tuple[IndexRecord, float]:
    """A record of the vectors alone, ids "0", "1", ...; and the seconds it took."""
    layout = Layout((), "float16", None)
    about = {"width": vectors.shape[1], "layout": layout.to_json(), "bytes": 4 * vectors.shape[1]}
    clock = time.monotonic()
    record = IndexRecord.create(folder, about, schema_of(layout, vectors.shape[1], False))
    for start in range(0, len(vectors), 50_000):
        part = vectors[start : start + 50_000]
        names = [str(start + k) for k in range(len(part))]
        columns: dict = dict.fromkeys(("id", "hash", "image", "texts", "digest"), names)
        columns |= {"thumbnail": [b""] * len(part), "vector": vector_column(part)}
        schema = record.table.schema
        record.append(pa.table({name: columns[name] for name in schema.names}, schema=schema))
    record.tidy()
    return record, time.monotonic() - clock


def in_faiss(vectors: torch.Tensor, queries, truth) -> dict:
    """faiss's exact index, in a process of its own: its threads and torch's are not the same."""
    import faiss

    faiss.omp_set_num_threads(1)
    clock = time.monotonic()
    flat = faiss.IndexFlatIP(vectors.shape[1])
    flat.add(vectors.numpy())
    built = time.monotonic() - clock
    return engine(built, 4 * vectors.numel(), queries, truth, lambda q: torch.from_numpy(flat.search(q.numpy(), 10)[1]))


def in_milvus(vectors: torch.Tensor, queries, truth, folder: Path) -> dict:
    """The server of the PyPI package `milvus`, in its own environment, through the same code as `--milvus URL`."""
    from tests.search.test_milvus import SERVER
    from tuwen.search.milvus import Milvus

    python = os.environ["TUWEN_MILVUS_PYTHON"]
    record, _ = lance_record(vectors, folder / "lance")
    server = subprocess.Popen(
        [python, "-c", SERVER, str(folder / "milvus")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        url = f"http://127.0.0.1:{server.stdout.readline().strip()}"
        milvus = Milvus(url, "million", vectors.shape[1])
        clock = time.monotonic()
        milvus.sync(record)
        milvus.client.flush("million")
        while milvus.client.describe_index("million", "vector").get("pending_index_rows", 0):
            time.sleep(1)
        built = time.monotonic() - clock
        record.index_ids()
        snapshot = record.snapshot(vectors=False)

        def search(asked):
            return [near for near, _ in milvus.nearest(snapshot, asked, 10, None, {})]

        return engine(built, folder_size(folder / "milvus"), queries, truth, search)
    finally:
        assert server.stdin is not None
        server.stdin.close()
        server.wait(120)


def folder_size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    main()
