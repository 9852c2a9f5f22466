"""Product1M and M5Product: products of a Chinese shop by picture, title and, for evaluation, which product each shows.

Product1M (Zhan et al., arXiv 2107.14572; github.com/zhanxlin/Product1M):
product1m_{train,dev,test,gallery}_ossurl_v2.txt, a line a row, "#####" between item_id, title, two addresses of one
picture, and the products it shows, "#;#" between (train has none; dev and test show several, a product perhaps twice;
the gallery shows one each).

M5Product (Dong et al., arXiv 2109.04275): JSON, as its toolkit reads it (github.com/Xiaodongsuper/M5Product_toolkit):
{item_id: {"title", "pv" ("key#:#value#;#..." of its table), "label", "url"}}, a file a split, called by its name.

Pictures are found by item_id, or by an address that img2dataset fetched. An item may stand in two splits (a query
among its gallery): a row's id is SPLIT-ITEM, and the columns "item" and "products" tell which is which.
"""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from tuwen.data.corpora.asked_set import Entry, named_entries
from tuwen.data.corpora.captions import Folder, Held, checked_caption, split_name
from tuwen.data.corpora.faults import Fault, Faults, RowError
from tuwen.data.corpora.fetched import Fetched
from tuwen.data.corpora.files import CorpusEntry
from tuwen.data.corpora.json_text import field
from tuwen.data.corpora.lines import Lines
from tuwen.data.corpora.published import Format
from tuwen.data.corpora.streamed import Streamed
from tuwen.errors import UserError, quoted

MOST_PRODUCTS = 1000  # of a picture, and attributes of one
LONGEST_NAME = 1000  # characters
SPLITS = ("train", "dev", "test", "gallery")
_M5 = r"(?:.*[_-])?(train|val|valid|dev|test|query|gallery)(?:[_-].*)?\.json"


class Product1M(Streamed):
    def __init__(self, root: Path):
        self.file = self.root = root
        self.folder = Folder(root)
        names = {split: f"product1m_{split}_ossurl_v2.txt" for split in SPLITS}
        there = {split: path for split, name in names.items() if (path := self.folder.annotation(name))}
        if not there:
            raise UserError(f"{root}: no file {names['train']} in it; see `tuwen data list`")
        self.files, self.splits = list(there.values()), [split_name(split) for split in there]

    @cached_property
    def fetched(self) -> Fetched:
        return Fetched(self.folder)

    def entries(self, faults: Faults) -> Iterator[CorpusEntry]:
        for number, path in enumerate(self.files):
            with Lines(path, faults) as lines:
                for text in lines:
                    if not text.strip():
                        continue
                    try:
                        yield self._made(number, text, lines.start, lines.number)
                    except RowError as error:
                        faults.add(Fault(path, lines.number, error.reason, str(error)))

    def entry(self, position: int, line: int) -> CorpusEntry:
        path, offset = self.at(position)
        with Lines(path, Faults("stop"), offset) as lines:
            return self._made(self.files.index(path), next(lines), offset, line)

    def _made(self, number: int, text: str, offset: int, line: int) -> CorpusEntry:
        cells = text.strip().split("#####")
        if len(cells) not in (4, 5):
            raise RowError("broken row", f"{len(cells)} fields; a line has item, title, two addresses and products")
        item, title, *urls = cells[:4]
        if not all(url.startswith(("http://", "https://")) for url in urls):
            raise RowError("broken row", f"{quoted(urls, 120)} are no two addresses")
        item = _item(item)
        columns: dict[str, Any] = {"item": item, "url": urls[0]}
        if len(cells) == 5 and cells[4].strip():
            columns["products"] = _names(cells[4].split("#;#"))
        place = next(filter(None, map(self.fetched.find, urls)), None)
        image, split = place or self.folder.picture(f"{item}.jpg"), self.splits[number]
        texts = {"zh": [checked_caption(title)]}
        place_of_row = self.position(number, offset)
        return CorpusEntry(place_of_row, line, f"{split}-{item}", image, texts, split, columns=columns)


class M5Product(Held):
    def __init__(self, root: Path):
        super().__init__(root)
        self.annotations = [(path, split_name(match[1])) for path, match in self.folder.matching(_M5)]
        if not self.annotations:
            self.needed("train.json", "query.json", "gallery.json")

    @cached_property
    def fetched(self) -> Fetched:
        return Fetched(self.folder)

    def entries(self, faults: Faults) -> Iterator[CorpusEntry]:
        self.rows, self.files = [], []
        for path, split in self.annotations:
            for entry in named_entries(path, split):
                try:
                    yield self._made(entry)
                except RowError as error:
                    faults.add(Fault(path, 0, error.reason, f"item {quoted(entry.name, 60)}: {error}"))

    def _made(self, entry: Entry) -> CorpusEntry:
        item, value = _item(entry.name), entry.value
        texts = {"zh": [checked_caption(field(value, "title", str))]}
        columns: dict[str, Any] = {"item": item}
        if value.get("label") is not None:
            label = field(value, "label", (str, int, list))
            parts = label if isinstance(label, list) else [label]
            if not all(isinstance(part, str | int) for part in parts):
                raise RowError("wrong type", f"label is {quoted(label, 80)}; it is a product's name, or a list of them")
            columns["products"] = _names([str(part) for part in parts])
        if value.get("pv") not in (None, ""):
            columns["attributes"] = _attributes(field(value, "pv", str))
        url = field(value, "url", str) if "url" in value else ""
        image = self.fetched.find(url) or self.folder.picture(f"{item}.jpg")
        name = f"{entry.split}-{item}"
        return self.keep(entry.file, 0, id=name, image=image, texts=texts, split=entry.split, columns=columns)


def _item(text: str) -> str:
    name = text.strip()
    if not name.isascii() or not name.isalnum() or len(name) > 40:
        raise RowError("broken row", f"{quoted(text, 60)} is no item's number")
    return name


def _names(parts: list[str]) -> list[str]:
    """The products a picture shows, in order, one perhaps twice."""
    names = [part.strip() for part in parts]
    wrong = next((name for name in names if not name or len(name) > LONGEST_NAME or not name.isprintable()), None)
    if wrong is not None or len(names) > MOST_PRODUCTS:
        raise RowError("broken row", f"products are short names, at most {MOST_PRODUCTS}, not {quoted(wrong, 60)}")
    return names


def _attributes(text: str) -> dict[str, str]:
    pairs = [part.split("#:#") for part in text.split("#;#") if part.strip()]
    wrong = next((pair for pair in pairs if len(pair) != 2 or not all(map(str.isprintable, pair))), None)
    if wrong is not None or len(pairs) > MOST_PRODUCTS:
        raise RowError("broken row", f"pv is key#:#value#;#key#:#value, not {quoted(wrong or text, 80)}")
    return {key.strip()[:LONGEST_NAME]: value.strip()[:LONGEST_NAME] for key, value in pairs}


FORMATS = (
    Format(
        name="product1m",
        title="Product1M, products by picture and title",
        languages=("zh",),
        needs="product1m_{train,dev,test,gallery}_ossurl_v2.txt; pictures called by item_id, or img2dataset's output",
        ask="github.com/zhanxlin/Product1M",
        licence="research only [from memory], pictures keep their owners' rights",
        records="train 1,132,830 rows, dev 2,673 and test 6,547 of several products, gallery 40,033 of one each",
        read=Product1M,
    ),
    Format(
        name="m5product",
        title="M5Product, products by picture, title and table",
        languages=("zh",),
        needs="{train,val,test,query,gallery}.json (item_id: title, pv, label, url); pictures called by item_id",
        ask="xiaodongsuper.github.io/M5Product_dataset",
        licence="research only, on request; pictures keep their owners' rights",
        records="6,313,067 products",
        read=M5Product,
    ),
)
