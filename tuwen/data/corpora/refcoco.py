"""RefCOCO, RefCOCO+ and RefCOCOg: phrases that name one thing of a picture of COCO (Yu et al., arXiv 1608.00272).

The official refs(unc).p, refs(umd).p (github.com/lichengunc/refer) are pickles, which are never opened. Read are JSON
copies: MDETR's finetune_refcoco_SPLIT.json, `images` [{id, file_name, height, width, caption, original_id}] and
`annotations` [{image_id, bbox: [x, y, width, height]}], an image entry a phrase; or refs(unc).json, the very content of
the pickle, [{ref_id, ann_id, file_name, split, sentences: [{sent_id, sent}]}], beside the official instances.json.
"""

from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from tuwen.data.corpora.asked import Asked, phrase
from tuwen.data.corpora.asked_set import AskedSet, Entry, list_of, short
from tuwen.data.corpora.faults import Fault, Faults, RowError
from tuwen.data.corpora.json_text import field, load_json
from tuwen.data.corpora.published import Format
from tuwen.errors import UserError, quoted

SPLITS = ("train", "val", "testA", "testB", "test")
CONVERT = "python -c \"import json, pickle; json.dump(pickle.load(open('{p}', 'rb')), open('{json}', 'w'))\""


class RefCOCO(AskedSet):
    """stem: refcoco, refcoco+ or refcocog. makers: who split it, in the order they are looked for."""

    def __init__(self, root: Path, stem: str, makers: tuple[str, ...]):
        super().__init__(root)
        found = {split: self.folder.annotation(f"finetune_{stem}_{split}.json") for split in SPLITS}
        self.converted = {split: path for split, path in found.items() if path}
        self.refs = self.folder.annotation(*(f"refs({maker}).json" for maker in makers))
        pickled = [f"refs({maker}).p" for maker in makers]
        if self.converted or self.refs:
            self.instances = None if self.converted else self.needed("instances.json")
        elif path := next((p for name in pickled for p in root.rglob(name)), None):
            line = CONVERT.format(p=path.name, json=path.with_suffix(".json").name)
            raise UserError(f"{path}: a pickle, which can run anything and is never opened; if you trust it: {line}")
        else:
            self.needed(f"finetune_{stem}_train.json", f"refs({makers[0]}).json")

    def read_entries(self, faults: Faults) -> Iterator[Entry]:
        for split, path in self.converted.items():
            content = load_json(path)
            pictures = list_of(path, content, "images")
            boxes = _by_id(path, list_of(path, content, "annotations"), "image_id", faults)
            for number, value in enumerate(pictures, 1):
                name = value.get("id") if isinstance(value, dict) else None
                box = boxes.get(name) if isinstance(name, int | str) else None
                yield Entry(path, 0, f"phrase {number}", split, (value, value, box))
        if self.refs and self.instances:
            content = load_json(self.instances)
            pictures_by_id = _by_id(self.instances, list_of(self.instances, content, "images"), "id", faults)
            boxes = _by_id(self.instances, list_of(self.instances, content, "annotations"), "id", faults)
            for number, value in enumerate(list_of(self.refs, load_json(self.refs)), 1):
                known = value if isinstance(value, dict) else {}
                named = known.get("split") if known.get("split") in SPLITS else None
                picture, box = (
                    by_id.get(number) if isinstance(number, int) and not isinstance(number, bool) else None
                    for by_id, number in ((pictures_by_id, known.get("image_id")), (boxes, known.get("ann_id")))
                )
                yield Entry(self.refs, 0, f"ref {number}", named or "", (value, picture, box))

    def rows_of(self, entry: Entry) -> Iterable[tuple[str, tuple[str, ...], Asked]]:
        value, picture, annotation = entry.value
        if not entry.split:
            raise RowError("no split", f"split {quoted(value.get('split') if isinstance(value, dict) else value, 60)}")
        if annotation is None or picture is None:
            raise RowError("no box", "no annotation of its id; take all files of one release")
        edges = edges_of(field(annotation, "bbox", list), short(picture, "width", int), short(picture, "height", int))
        image = short(picture, "file_name")
        if entry.file != self.refs:
            name = short(value, "id", (int, str))
            columns: dict[str, Any] = {"ref_id": value.get("original_id")} if "original_id" in value else {}
            yield f"{entry.split}-{name}", (image,), phrase(field(value, "caption", str), [edges], "en", **columns)
            return
        number = short(value, "ref_id", int)
        for said in field(value, "sentences", list):
            name = short(said, "sent_id", int)
            yield f"{entry.split}-{name}", (image,), phrase(field(said, "sent", str), [edges], "en", ref_id=number)


def edges_of(box: list[Any], width: int, height: int) -> list[float]:
    """x0, y0, x1, y1 as shares of a picture, from x, y, width, height in its pixels, cut at its edges.

    Raises:
        RowError: not four numbers, or nothing of the box is in the picture.
    """
    numbers = all(isinstance(x, int | float) and not isinstance(x, bool) and abs(x) < 1e9 for x in box)
    if len(box) != 4 or not numbers or not (0 < width < 1e9 and 0 < height < 1e9):
        raise RowError("no box", f"the box {quoted(box, 80)} in {quoted(width, 20)} x {quoted(height, 20)} is none")
    x, y, across, down = box
    edges = (x / width, y / height, (x + across) / width, (y + down) / height)
    return [min(max(float(edge), 0.0), 1.0) for edge in edges]


def _by_id(path: Path, values: list[Any], key: str, faults: Faults) -> dict[Any, dict[str, Any]]:
    known: dict[Any, dict[str, Any]] = {}
    for number, value in enumerate(values, 1):
        try:
            known[short(value, key, (int, str))] = value
        except RowError as error:
            faults.add(Fault(path, 0, error.reason, f"entry {number}: {error}"))
    return known


def _format(name: str, stem: str, title: str, makers: tuple[str, ...], records: str) -> Format:
    return Format(
        name=name,
        title=title,
        languages=("en",),
        needs=f"finetune_{stem}_SPLIT.json, or refs({makers[0]}).json and instances.json; and COCO's train2014/",
        ask="github.com/ashkamath/mdetr (annotations), github.com/lichengunc/refer; pictures at cocodataset.org",
        licence="Apache 2.0, pictures keep their owners' rights",
        records=records,
        read=partial(RefCOCO, stem=stem, makers=makers),
    )


FORMATS = (
    _format("refcoco", "refcoco", "RefCOCO", ("unc",), "142,209 phrases of 50,000 things; val, testA, testB"),
    _format("refcoco-plus", "refcoco+", "RefCOCO+", ("unc",), "141,564 phrases without places; val, testA, testB"),
    _format("refcocog", "refcocog", "RefCOCOg", ("umd", "google"), "95,010 longer phrases; val, test (umd's split)"),
)
