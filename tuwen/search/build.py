"""Building an index, or bringing one up to date: only what is new or changed is embedded."""

import contextlib
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from dataclasses import asdict
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tuwen import model as models
from tuwen.data.batch import Images
from tuwen.data.private import own_only
from tuwen.errors import UserError, quoted
from tuwen.predictor import vectors
from tuwen.search import nearest
from tuwen.search.codes import KINDS, Code
from tuwen.search.index import Index, weights_mark
from tuwen.search.ingest import BAD_ROW, BY, Built, Ingest, schema_of
from tuwen.search.loss import LossProbe
from tuwen.search.parts import Layout
from tuwen.search.pictures import CorpusPictures, Picture, open_pictures
from tuwen.search.record import IndexRecord
from tuwen.search.stamp import Request
from tuwen.speech import readable, spoken

THUMBNAIL_BYTES = 9_000  # of a photograph, for the estimate before building


def build_index(
    run: str | PathLike,
    pictures: str | PathLike | Iterable[Picture],
    out: str | PathLike,
    *,
    split: str | None = None,
    prefix: str = "",
    tokens: str | None = None,
    token_budget: int | None = None,
    by: str | None = None,
    prune: bool = False,
    exact: int = 1_000_000,
    first_bytes: int | None = None,
    first_code: str | None = None,
    milvus: str | None = None,
    token: str | None = None,
    batch_size: int = 64,
    device: str = "cpu",
    progress: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> Index:
    """Puts pictures into the index at `out`, made if there is none; the answer's `built` says what was done.

    A picture whose id is there with other content takes its place; one whose content is there is not put in again.

    pictures: a folder, pair table, shards, any other corpus's location, or `Picture`s. split: of a corpus, one alone.
    prefix: set before ids. tokens: "float32", "float16" (default) or "int8", how parts for re-ranking are kept.
    token_budget: most tokens a picture that are kept, pooled where it has more; 0: none, the k that are re-ranked are
    encoded again for each query; None: all. by: what an entry is found by: its "picture" (default), its "title" (the
    mean of its texts' vectors), or "both" (the mean of these two). prune: take out pictures that are not among the
    given, unless some of these cannot be read. exact: most pictures whose vectors are searched exactly in memory;
    beyond, by Lance's own index. first_bytes: search codes of so many bytes a picture first, and re-score the nearest
    by whole vectors; 0: no codes; None: as the index is. first_code: "int8" (default) or "binary". milvus: URL of a
    server to hold the vectors instead, with its token. say: is told lines worth reading (sizes, losses). tokens,
    token_budget, by and milvus are settled when the index is made.

    Raises:
        UserError: no such run or pictures; the index is of another run, or otherwise; another process is writing to it.
    """
    began = time.time()
    source = open_pictures(pictures, split, prefix, progress) if isinstance(pictures, str | PathLike) else pictures
    opened = IndexRecord.open(out)
    about, schema = (opened.about, None) if opened else _plan(run, device, tokens, token_budget, by, milvus)
    code = _code(about, first_bytes, first_code)
    record = opened or IndexRecord.create(out, about, schema)
    index = Index(record, run, device, token)
    _mark_private(record, source, out)
    _check_settings(index, tokens, token_budget, by, milvus)
    probe = LossProbe(lambda: index.predictor, index.layout)
    _settle(index, record, record.code if first_bytes is None else code)
    say(_size_line(index, len(source) if isinstance(source, Sized) else None))
    counts, broken, skipped = _take_all(index, record, source, batch_size, probe, prune, progress, say)
    loss = finish_index(index, record, exact, probe, say)
    index.built = Built(counts, broken, skipped, len(index), index.size(), time.time() - began, loss)
    settings = {"split": split, "prefix": prefix, "prune": prune, "exact": exact, "tokens": tokens, "by": by}
    settings |= {"token_budget": token_budget, "first_bytes": first_bytes, "first_code": first_code, "milvus": None}
    if isinstance(source, CorpusPictures) and index.milvus is None:
        Request(run, str(pictures), out, settings).keep(asdict(index.built), source.folders, began)
    return index


def _mark_private(record: IndexRecord, source: Any, out: str | PathLike) -> None:
    """An index of a private corpus says so, and is readable by its owner alone."""
    if isinstance(source, CorpusPictures) and source.private:
        own_only(Path(out))
        if not record.about.get("private"):
            record.tell({"private": True})


def _plan(
    run: str | PathLike,
    device: str,
    tokens: str | None,
    budget: int | None,
    by: str | None,
    milvus: str | None,
) -> tuple[dict, Any]:
    """What a new index says about itself, and the columns of its table."""
    predictor = models.load(run, device).predictor
    system, side = predictor.system, predictor.fit.side
    blank = torch.zeros(3, side, side, dtype=torch.uint8)
    sample = predictor.pictures([Images(predictor.pixels(blank)[None])])
    fields = system.index_fields if system.matches() or system.can("scores") else ()
    layout = Layout.of(fields, sample, tokens or "float16", budget)
    matrix = vectors(sample)
    width = 0 if matrix is None else matrix.shape[1]
    if by not in (None, BY[0]):
        if by not in BY:
            raise UserError(f"entries are found by {', '.join(BY[:-1])} or {BY[-1]}, not {quoted(by, 60)}")
        if not width or system.can("scores"):
            raise system.lacks(f"be found by {by}", "it has not one vector a picture and one a text")
    keep_pixels = budget == 0
    sizes = {"vector": 4 * width, **layout.size(sample), "thumbnail": THUMBNAIL_BYTES}
    sizes["picture"] = side * side // 2 if keep_pixels else 0
    about = {
        "run": str(Path(run).resolve()),
        "weights": weights_mark(run),
        "system": predictor.name,
        "languages": list(predictor.languages),
        "fit": asdict(predictor.fit),
        "width": width,
        "by": by or BY[0],
        "pooled": sample.pooled is not None,
        "layout": layout.to_json(),
        "sizes": sizes,
        "bytes": sum(sizes.values()),
    }
    return about | _at_milvus(milvus, about), schema_of(layout, width, keep_pixels)


def _at_milvus(url: str | None, about: dict) -> dict:
    """Where the vectors will be, for `about`; a collection of its own for every index."""
    if url is None:
        return {}
    if not about["width"]:
        raise UserError(f"system {about['system']} has no first-stage vectors to put into Milvus")
    return {"milvus": {"url": url, "collection": f"tuwen_{uuid.uuid4().hex}"}}


def _code(about: Mapping[str, Any], count: int | None, kind: str | None) -> Code | None:
    """The form of codes that is asked for, None for none.

    Raises:
        UserError: the index's vectors have no such codes.
    """
    if count is None and kind is not None:
        raise UserError(f"first-stage codes of kind {kind}: how many bytes? Say --first-bytes too")
    if not count:
        return None
    if "milvus" in about:
        raise UserError("codes of few bytes are searched in memory, Milvus has whole vectors; give one or the other")
    if not about["width"]:
        raise UserError(f"system {about['system']} has no first-stage vectors to make codes of")
    code = Code(kind or KINDS[0], count)
    code.check(about["width"])
    return code


def _settle(index: Index, record: IndexRecord, code: Code | None) -> None:
    """Gives the pictures that are there codes of that form, or takes codes out; later ones get them as they come."""
    if record.code == code:
        return
    with record.writing():
        sizes = {name: size for name, size in record.about["sizes"].items() if name != "code"}
        sizes |= {"code": code.bytes} if code else {}
        codes = asdict(code) if code else {}
        record.tell({"codes": codes, "sizes": sizes, "bytes": sum(sizes.values())})  # first: the column is what counts
        record.set_code(code)
    index.refresh()


def finish_index(
    index: Index, record: IndexRecord, exact: int, probe: LossProbe, say: Callable[[str], None], anew: bool = False
) -> dict[str, float]:
    """After the last commit: the first stage's own store is brought up to date, files are joined, losses are measured.

    anew: all vectors are new ones.
    """
    with contextlib.suppress(UserError), record.writing():  # if another is at it already, that one will tidy up
        record.tidy()
    if index.milvus is not None:
        with record.writing():
            index.milvus.sync(record)
            record.index_ids()  # Milvus answers with ids
    elif record.code is not None:
        _measure_codes(index, record, anew, say)
    elif index.about["width"] and record.table.count_rows() > exact:
        known = record.about.get("lance")
        if anew or known is None or record.table.count_rows() > 2 * known["rows"]:
            made = nearest.make_lance_index(record)
            record.tell({"lance": made})
            share, probes = made["recall"], made["probes"]
            say(f"Lance's index: {share:.1%} of the ten nearest are found, looking into {probes} partitions")
    index.refresh()
    if index.about["run"] != str(index.run.resolve()):  # the same weights in another place
        record.tell({"run": str(index.run.resolve())})
    if loss := probe.result(index):
        record.tell({"loss": loss})
        say(probe.line())
    return loss


def _measure_codes(index: Index, record: IndexRecord, anew: bool, say: Callable[[str], None]) -> None:
    """How many candidates by code are looked at: measured anew where there are twice as many pictures as then."""
    code, rows = record.code, record.table.count_rows()
    if code is None or not rows or not (anew or rows > 2 * record.about.get("codes", {}).get("rows", 0)):
        return
    index.refresh()

    def encode(texts: Sequence[str]) -> Tensor:
        matrix = vectors(index.predictor.texts(texts))
        assert matrix is not None
        return matrix

    measured = nearest.measured_depth(index.snapshot, encode)
    record.tell({"codes": asdict(code) | measured})
    say(
        f"{code.kind} codes of {code.bytes} bytes: {measured['recall']:.1%} of the ten nearest by whole vectors are "
        f"among the {measured['depth']:,} that are re-scored by these, asked with {measured['by']}"
    )
    if measured["recall"] < nearest.RECALL:
        say("more bytes, the other kind of code (--first-code), or a run trained with model.nested may keep more")


def _check_settings(index: Index, tokens: str | None, budget: int | None, by: str | None, milvus: str | None) -> None:
    if milvus is not None and milvus != index.about.get("milvus", {}).get("url"):
        raise UserError(f"{index.path}: keeps its vectors elsewhere than at {milvus}; choose another --out")
    layout = index.layout
    if tokens not in (None, layout.precision):
        raise UserError(f"{index.path}: keeps tokens as {layout.precision}, not {tokens}; choose another --out")
    if by not in (None, own_by := index.about.get("by", BY[0])):
        raise UserError(f"{index.path}: its entries are found by {own_by}, not {quoted(by, 60)}; choose another --out")
    if budget not in (None, layout.budget):
        own = "all" if layout.budget is None else layout.budget
        raise UserError(f"{index.path}: keeps {own} tokens a picture, not {budget}; choose another --out")
    index.check_fit()


def _size_line(index: Index, count: int | None) -> str:
    sizes = {name: size for name, size in index.about["sizes"].items() if size}
    each = f"about {index.about['bytes'] / 1024:.1f} KB a picture"
    each += " (" + ", ".join(f"{name} {size / 1024:.1f}" for name, size in sizes.items()) + ")"
    return each if count is None else f"{count:,} pictures, {each}: {readable(index.about['bytes'] * count)} in all"


def _take_all(
    index: Index,
    record: IndexRecord,
    source: Iterable,
    batch_size: int,
    probe: LossProbe,
    prune: bool,
    progress: bool,
    say: Callable[[str], None],
) -> tuple[dict[str, int], list[dict[str, str]], dict[str, int]]:
    """Takes the pictures in and, with `prune`, others out: (counts, bad rows, files skipped)."""
    counts, broken, ingest = take_in(index, record, source, batch_size, probe, progress)
    skipped, faults = (source.skipped, source.faults()) if isinstance(source, CorpusPictures) else ({}, [])
    if prune and "unreadable" in skipped:
        say(f"nothing pruned: {skipped['unreadable']:,} files or folders cannot be read, and may hold what would go")
    elif prune and 2 * len(broken) > sum(counts.values()):
        say(f"nothing pruned: {len(broken):,} of {sum(counts.values()):,} rows are broken; mend them first")
    elif prune and _prune(record, ingest, counts):
        again, _, _ = take_in(index, record, source, batch_size, probe, progress)
        counts["added"] = counts.get("added", 0) + again.get("added", 0)
    if ingest.no_columns:
        names = ", ".join(sorted(ingest.no_columns))
        say(f"not kept: {names}: neither text, number, true or false, nor list of texts")
    odd = [fault for fault in broken if fault["reason"].startswith(BAD_ROW)]  # first: their pictures are sound
    return counts, odd + faults + [fault for fault in broken if fault not in odd], skipped


def take_in(
    index: Index, record: IndexRecord, source: Iterable, batch_size: int, probe: LossProbe, progress: bool
) -> tuple[dict[str, int], list[dict[str, str]], Ingest]:
    """Embeds what is new, changed, or has another fit: (counts by what became of them, bad rows, the run of it)."""
    counts: Counter[str] = Counter()
    broken = []
    with record.writing(), _bar(progress) as bar:
        ingest = Ingest(record, probe.load, index.run_fit, index.layout, batch_size, probe.watch)
        task = bar.add_task(spoken("pictures"), total=len(source) if isinstance(source, Sized) else None)
        for outcomes in ingest.run(source):
            counts.update(outcome.state for outcome in outcomes)
            broken += [
                {"id": outcome.id, "reason": outcome.reason} for outcome in outcomes if outcome.state == "broken"
            ]
            bar.update(task, advance=len(outcomes))
    return dict(counts), broken, ingest


def _prune(record: IndexRecord, ingest: Ingest, counts: dict[str, int]) -> bool:
    """Takes out what this run's pictures did not show; whether one of it has a copy there that must now go in."""
    gone = [name for name in ingest.stored if name not in ingest.seen]
    with record.writing():
        record.delete(gone)
    counts["removed"] = len(gone)
    return any(name in ingest.alias for name in gone)


def _bar(shown: bool):
    from rich import progress
    from rich.console import Console

    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeRemainingColumn(elapsed_when_finished=True),
    )
    return progress.Progress(*columns, console=Console(stderr=True), disable=not (shown and sys.stderr.isatty()))
