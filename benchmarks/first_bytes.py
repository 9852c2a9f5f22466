"""What a first stage of few bytes loses and saves. Writes benchmarks/results/first_bytes.json, a section a part.

    python benchmarks/first_bytes.py recall --run nested=RUN plain=RUN    # scenes embedded by each run
    python benchmarks/first_bytes.py million --run nested=RUN             # time and size at a million vectors
    python benchmarks/first_bytes.py stages --run albef=RUN               # an index of a system with a second stage

recall: captions asked over scenes that training never showed. "r10": share of captions with a picture they are true of
among ten; "kept10": share of the ten nearest by whole vectors that are among the ten; by codes alone, and when
the nearest `--depth` by code are re-scored by whole vectors. Codes are made of the vectors as they are, and of the same
turned into the directions of their greatest spread (PCA, of their second moment, fitted on these pictures).
million: as many embedded scenes as --pictures says, and around them, with noise, vectors that are drawn: what is
measured there is how much codes keep of whole vectors, time and size, and not how good the vectors are.
stages: the whole search through an index with and without codes: recall of captions, milliseconds of a query.
Milliseconds are of the process's time on one core, the median of single queries, so that what else the machine does
counts little.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import Tensor

import tuwen
from tuwen.data.corpus import Caption, Corpus, text_id
from tuwen.data.open import open_corpus
from tuwen.predictor import Predictor, vectors
from tuwen.search import nearest
from tuwen.search.build import build_index
from tuwen.search.codes import Code, shortlists
from tuwen.search.columns import vector_column
from tuwen.search.ingest import schema_of
from tuwen.search.parts import Layout
from tuwen.search.query import Query, Searcher
from tuwen.search.record import IndexRecord

RESULT = Path(__file__).parent / "results" / "first_bytes.json"
SCENES = "scenes:side=64,things=24,objects=3,whole=true,count={}"
FORMS = [Code("int8", 16), Code("int8", 32), Code("int8", 64), Code("binary", 8), Code("binary", 16)]
TIMED = 20  # queries


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("recall", "million", "stages"))
    named = "runs trained on such scenes, each with what to call it"
    parser.add_argument("--run", nargs="+", metavar="NAME=RUN", required=True, help=named)
    parser.add_argument("--corpus", default=SCENES, help="scenes; {} stands for how many")
    parser.add_argument("--pictures", type=int, default=20_000, help="scenes embedded (stages: indexed)")
    parser.add_argument("--vectors", type=int, default=1_000_000, help="million: how many in all, most of them drawn")
    parser.add_argument("--queries", type=int, default=200, help="captions asked")
    parser.add_argument("--depth", type=int, default=256, help="nearest by code that whole vectors re-score")
    parser.add_argument("--candidates", type=int, default=32, help="stages: re-ranked by the second stage")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    parts: dict[str, Callable] = {"recall": recall, "million": million, "stages": stages}
    for name, _, run in (given.partition("=") for given in options.run):
        with tempfile.TemporaryDirectory() as folder:
            figures = parts[options.part](options, Path(run), Path(folder))
        results = json.loads(options.out.read_text()) if options.out.exists() else {}
        command = " ".join(["python", *sys.argv])
        about = {"hardware": hardware(), "command": command, "threads": 1, "run": described(Path(run))}
        results[f"{options.part} {name}"] = about | figures
        options.out.write_text(json.dumps(results, indent=1) + "\n")
        print(json.dumps(figures, indent=1))


def hardware() -> dict:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in lines if "model name" in line), "")
    packages = {name: version(name) for name in ("torch", "pylance", "numpy")}
    return {"processor": model, "cores": os.cpu_count(), "python": platform.python_version(), **packages}


def described(run: Path) -> dict:
    """What the run was."""
    config = tuwen.load(run).predictor.config
    about = json.loads((run / "provenance.json").read_text())
    return {"command": about.get("command"), "embed": config.embed, "nested": list(config.nested)}


def forms(width: int) -> list[Code]:
    """Those that vectors of `width` numbers have."""
    fitting = [code for code in FORMS if code.bytes <= (width if code.kind == "int8" else width // 8)]
    return list(dict.fromkeys([*fitting, Code("int8", width)]))


# ---- scenes


def scenes(options) -> Corpus:
    return open_corpus(options.corpus.format(options.pictures), "test")


def asked(corpus: Corpus, count: int) -> tuple[list[str], list[set[int]]]:
    """English captions of scenes spread over the corpus, and the rows of all scenes each is true of."""
    captions = {}
    for row in np.linspace(0, len(corpus) - 1, count).round().astype(int).tolist():
        text = corpus.record(row).texts["en"][0]
        captions.setdefault(text, Caption(text, "en", text_id(text), row, 0))
    relevance = corpus.relevance(range(len(corpus)), list(captions.values()))
    return list(captions), [set(relevance.images_of(place).tolist()) for place in range(len(captions))]


def embedded(predictor: Predictor, corpus: Corpus) -> tuple[Tensor, np.ndarray]:
    """([N, D] vectors of the scenes, [N] their rows)."""
    parts, rows = [], []
    with predictor.evaluating():
        for images, read, _ in predictor.read(corpus, range(len(corpus)), 64):
            parts.append(vectors(predictor.pictures([images])))
            rows += read
    return torch.cat(parts), np.array(rows)


# ---- recall


def recall(options, run: Path, folder: Path) -> dict:
    predictor, corpus = tuwen.load(run).predictor, scenes(options)
    pictures, rows = embedded(predictor, corpus)
    texts, right = asked(corpus, options.queries)
    queries = vectors(predictor.texts(texts))
    truth = nearest.exact(pictures, queries, 10)[0].numpy()
    width = pictures.shape[1]
    turned = torch.linalg.eigh((pictures.T @ pictures).double()).eigenvectors.flip(1).float()

    def figures(near: Sequence[np.ndarray]) -> dict:
        hits = [bool(own & set(rows[places].tolist())) for places, own in zip(near, right, strict=True)]
        kept = [len(set(places.tolist()) & set(best.tolist())) / 10 for places, best in zip(near, truth, strict=True)]
        return {"r10": round(100 * float(np.mean(hits)), 1), "kept10": round(100 * float(np.mean(kept)), 1)}

    table = [{"bytes": 4 * width, "vectors": "whole, float32", "alone": figures(truth)}]
    for turn, turning in (("as trained", torch.eye(width)), ("PCA", turned)):
        for code in forms(width):
            keys, wanted = code.pack(pictures @ turning), code.pack(queries @ turning)
            alone = shortlists(keys, wanted, 10)
            short = shortlists(keys, wanted, options.depth)
            again = [
                places[nearest.exact(pictures[places], query[None], 10)[0][0].numpy()]
                for places, query in zip(short, queries, strict=True)
            ]
            row = {"bytes": code.bytes, "vectors": f"{turn}, {code.kind}", "alone": figures(alone)}
            table.append(row | {"rescored": figures(again)})
    mean = float(np.mean([len(own) for own in right]))
    return {"corpus": corpus.name, "pictures": len(pictures), "queries": len(texts), "right_pictures_a_query": mean} | {
        "depth": options.depth,
        "table": table,
    }


# ---- a million


def million(options, run: Path, folder: Path) -> dict:
    predictor, corpus = tuwen.load(run).predictor, scenes(options)
    real, _ = embedded(predictor, corpus)
    texts, _ = asked(corpus, options.queries)
    queries = vectors(predictor.texts(texts))
    every = around(real, options.vectors)
    truth = nearest.exact(every, queries, 10)[0].numpy()
    whole = {"bytes": 4 * every.shape[1], "code": "whole, float32", "ms": milliseconds(queries, exactly(every))}
    record = recorded(every, folder / "index")
    bare = folder_size(folder / "index")
    table = [whole | {"megabytes_in_memory": megabytes(every.numel() * 4), "kept10": 100.0}]
    for code in forms(every.shape[1]):
        record.set_code(code)
        record.tidy()
        snapshot = record.snapshot(vectors=True)
        shown = snapshot.codes

        def by_code(query: Tensor, code=code, shown=shown) -> list[np.ndarray]:
            return shortlists(shown, code.pack(query), 10)

        def by_both(query: Tensor, snapshot=snapshot) -> list[np.ndarray]:
            pairs = nearest.by_codes(snapshot, query, 10, options.depth)
            return [places.numpy() for places, _ in pairs]

        row = {"bytes": code.bytes, "code": code.kind, "megabytes_in_memory": megabytes(shown.numel())}
        row["megabytes_on_disk_more"] = megabytes(folder_size(folder / "index") - bare)
        for name, search in (("alone", by_code), ("rescored", by_both)):
            kept = [len(set(a.tolist()) & set(b.tolist())) / 10 for a, b in zip(search(queries), truth, strict=True)]
            row[name] = {"kept10": round(100 * float(np.mean(kept)), 1), "ms": milliseconds(queries, search)}
        table.append(row)
    drawn = {"vectors": len(every), "of_scenes": len(real), "drawn_around_them": len(every) - len(real)}
    return drawn | {"depth": options.depth, "megabytes_on_disk_without_codes": megabytes(bare), "table": table}


def around(real: Tensor, count: int) -> Tensor:
    """[count, D] unit vectors: the real ones, and real ones with noise of half the distance to their neighbours."""
    generator = torch.Generator().manual_seed(0)
    sample = real[torch.randperm(len(real), generator=generator)[:1000]]
    close = (sample @ real.T).topk(2, dim=1).values[:, 1]
    spread = float((2 - 2 * close).clamp(min=1e-6).sqrt().mean()) / 2
    every = torch.empty(count, real.shape[1])
    every[: len(real)] = real[:count]
    for start in range(len(real), count, 65536):
        rows = torch.randint(len(real), (min(65536, count - start),), generator=generator)
        noise = torch.randn(len(rows), real.shape[1], generator=generator) * spread / real.shape[1] ** 0.5
        every[start : start + len(rows)] = F.normalize(real[rows] + noise, dim=1)
    return every


def recorded(every: Tensor, folder: Path) -> IndexRecord:
    """A record of the vectors and nothing else."""
    layout = Layout((), "float16", None)
    about = {"width": every.shape[1], "layout": layout.to_json(), "bytes": 4 * every.shape[1]}
    record = IndexRecord.create(folder, about, schema_of(layout, every.shape[1], False))
    for start in range(0, len(every), 50_000):
        part = every[start : start + 50_000]
        names = [str(start + k) for k in range(len(part))]
        columns: dict = dict.fromkeys(("id", "hash", "image", "texts", "digest"), names)
        columns |= {"thumbnail": [b""] * len(part), "vector": vector_column(part)}
        schema = record.table.schema
        record.append(pa.table({name: columns[name] for name in schema.names}, schema=schema))
    record.tidy()
    return record


def exactly(every: Tensor) -> Callable[[Tensor], list[np.ndarray]]:
    return lambda query: list(nearest.exact(every, query, 10)[0].numpy())


def milliseconds(queries: Tensor, search: Callable[[Tensor], object]) -> float:
    """Median of single queries."""
    search(queries[:1])
    times = []
    for query in queries[:TIMED]:
        clock = time.process_time()
        search(query[None])
        times.append(1000 * (time.process_time() - clock))
    return round(float(np.median(times)), 2)


def megabytes(size: int) -> float:
    return round(size / 2**20, 1)


def folder_size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


# ---- both stages through an index


def stages(options, run: Path, folder: Path) -> dict:
    corpus = scenes(options)
    texts, right = asked(corpus, options.queries)
    names = [{corpus.record(row).id for row in own} for own in right]
    location, table = options.corpus.format(options.pictures), []
    for code in (None, *forms(tuwen.load(run).predictor.config.embed)):
        form = {"first_bytes": code.bytes, "first_code": code.kind} if code else {"first_bytes": 0}
        index = build_index(run, location, folder / "index", split="test", progress=True, **form)
        searcher = Searcher(index)
        row = {"bytes": code.bytes if code else 4 * index.about["width"], "code": code.kind if code else "whole"}
        row |= {"megabytes": megabytes(index.size()), "depth": index.depth if code else None}
        for stage, candidates in (("first", 0), ("both", options.candidates)):
            answers, times = [], []
            for text in texts:
                clock = time.process_time()
                answers += searcher.search([Query(text)], top=10, candidates=candidates)
                times.append(1000 * (time.process_time() - clock))
            hits = {
                top: [best(answer, top) & own != set() for answer, own in zip(answers, names, strict=True)]
                for top in (1, 10)
            }
            row[stage] = {f"r{top}": round(100 * float(np.mean(own)), 1) for top, own in hits.items()}
            row[stage]["ms"] = round(float(np.median(times)), 1)
        table.append(row)
    rule = searcher.predictor.score_rule()
    return {"pictures": len(index), "queries": len(texts), "candidates": options.candidates, "score": rule} | {
        "reranks": searcher.reranks,
        "table": table,
    }


def best(answer, top: int) -> set[str]:
    return {result.id for result in answer.results[:top]}


if __name__ == "__main__":
    main()
