"""What the columns of a table mean: names in English and Chinese, lists in cells, further names by `renames`."""

import ast
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuwen.data.corpora.faults import RowError, one_line
from tuwen.data.private import UNSAID, hides
from tuwen.errors import UserError, quoted

# the first of these that a table has is meant; the others stay ordinary columns
IMAGE = ("image", "image_path", "filepath", "file_path", "path", "filename", "file_name", "file", "img")
TEXT = ("text", "texts", "caption", "captions", "title", "sentence", "description")
LANGUAGE = ("language", "lang")
# headers as Chinese shops export them; others, as 价格 and 类目, stay columns under their own names
CHINESE = {
    **dict.fromkeys(("图片", "商品图片", "主图", "图像", "照片", "图片路径", "图片文件", "图片名称"), "image"),
    **dict.fromkeys(("文件", "文件名"), "filename"),
    **dict.fromkeys(("标题", "商品标题", "商品名称", "商品名", "品名", "名称"), "title"),
    **dict.fromkeys(("文本", "文字", "文案"), "text"),
    **dict.fromkeys(("描述", "商品描述", "简介"), "description"),
    **dict.fromkeys(("编号", "商品编号", "商品id", "货号"), "id"),
    **dict.fromkeys(("标签", "商品标签", "关键词"), "tags"),
    "语言": "language",
    "数据划分": "split",
}

_LONGEST_LIST = 100_000  # characters
_ITEM = re.compile(r"""'(?:[^'\\]|\\.)*+'|"(?:[^"\\]|\\.)*+\"""")
_LIST = re.compile(rf"\[\s*+(?:{_ITEM.pattern})(?:(?:\s*+,\s*+|\s++)(?:{_ITEM.pattern}))*+\s*+,?\s*+\]", re.DOTALL)
_BETWEEN_TAGS = re.compile(r"[,，、;；|]")
KEYS = ("id", "image", "texts", "split", "image_id")
_NUMBERED_TEXT = re.compile(r"(?:text|caption|title|sentence)s?[_-]?\d+")
_TEXT_OF_LANGUAGE = re.compile(r"(?:text|texts|caption|captions|title)[_-]([a-z]{2,3}(?:[-_][a-z0-9]{1,8})*)")


@dataclass(frozen=True)
class Columns:
    """Which column of a CSV, TSV or Parquet table means what; None where there is none."""

    image: str
    text: str | None
    texts: Mapping[str, str]  # language to column
    language: str | None
    numbered: tuple[str, ...] = ()  # caption_0, caption_1, ...
    wordless: bool = False

    @property
    def used(self) -> frozenset[str | None]:
        """The columns that `row` asks for."""
        return frozenset((self.image, self.text, *self.texts.values(), self.language, *self.numbered))

    def row(self, cells: dict[str, Any], line: int) -> dict[str, Any]:
        """The cells in the form of a line of pairs.jsonl."""
        row = dict(cells)
        image = row.pop(self.image)
        languages: dict[str, Any] = {language: row.pop(column) for language, column in self.texts.items()}
        texts: Any = {language: text for language, text in languages.items() if text not in (None, "")}
        named = row.pop(self.language) if self.language else None
        if self.text is not None or self.numbered:
            numbered = [row.pop(name) for name in self.numbered]
            texts = row.pop(self.text) if self.text else [text for text in numbered if text not in (None, "")] or None
            texts = {named: texts} if named and texts else texts
        listed = {k: several(text) for k, text in texts.items()} if isinstance(texts, dict) else several(texts)
        texts = {k: text for k, text in listed.items() if text} if isinstance(listed, dict) else listed
        if texts in (None, "", {}) and not self.wordless:
            raise RowError("empty text", "no text; write one or remove the row")
        for key in ("split", "image_id"):
            row[key] = None if row.get(key) in (None, "") else row[key]
        if isinstance(row.get("tags"), str):
            row["tags"] = _tags(row["tags"])
        return row | {"id": row.get("id", line), "image": image, "texts": texts}


def table_columns(names: list[str], file: Path, wordless: bool = False, private: bool = False) -> Columns:
    """What the columns mean. private: names may be those of a table without a header, of a private corpus.

    Raises:
        UserError: no column for the picture, none for texts unless wordless, or a name given twice.
    """
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise UserError(
            one_line(f"{file}:1: column {UNSAID if hides(private) else repr(twice[0])} stands twice; rename one")
        )
    image, text, language = (next((n for n in kind if n in names), None) for kind in (IMAGE, TEXT, LANGUAGE))
    texts = {match[1]: name for name in names if (match := _TEXT_OF_LANGUAGE.fullmatch(name))}
    if texts:
        text = None
    shown = UNSAID if hides(private) else ", ".join(names)
    if image is None:
        raise UserError(
            one_line(f"{file}:1: no column for the picture among {shown}; name it image, or give --columns YOURS=image")
        )
    numbered = tuple(name for name in names if _NUMBERED_TEXT.fullmatch(name)) if text is None and not texts else ()
    if text is None and not texts and not numbered and not wordless:
        raise UserError(
            one_line(
                f"{file}:1: no column for texts among {shown}; name it text, text_en, or give --columns YOURS=text"
            )
        )
    return Columns(image, text, texts, language, numbered, wordless)


def several(text: Any) -> Any:
    """The texts of a cell that is a list as Python, numpy or JSON writes it ("['a dog', 'a cat']"); else the cell."""
    if isinstance(text, str) and text.strip() == "[]":
        return None
    if not isinstance(text, str) or len(text) > _LONGEST_LIST or not _LIST.fullmatch(text.strip()):
        return text
    try:
        return [ast.literal_eval(item[0]) for item in _ITEM.finditer(text)]
    except (ValueError, SyntaxError):  # an escape that Python does not know
        return text


def column_names(names: Sequence[str], renames: Mapping[str, str] | None = None) -> list[str]:
    """Columns without white space around; those with a meaning of their own as they are called here, however written.

    renames: further names for columns (`--columns 主图=image`). Where two would be called alike, the later stays.
    """
    plain = [renames[name.strip()] if renames and name.strip() in renames else name.strip() for name in names]
    called = [_own_name(name) for name in plain]
    taken = {name for name in called if name in plain}
    for place, (name, meant) in enumerate(zip(plain, called, strict=True)):
        if name != meant and meant in taken and name.lower() != meant:
            called[place] = name
        taken.add(meant)
    return called


def _own_name(name: str) -> str:
    lowered = name.lower()
    if lowered in CHINESE:
        return CHINESE[lowered]
    known = lowered in (*KEYS, *IMAGE, *TEXT, *LANGUAGE) or _TEXT_OF_LANGUAGE.fullmatch(lowered)
    return lowered if known else name


def _tags(cell: str) -> list[str]:
    """A list in a cell, as "促销,包邮" or as Python or JSON writes it."""
    listed = several(cell) if cell.strip().startswith("[") else None
    parts = listed if isinstance(listed, list) else _BETWEEN_TAGS.split(cell)
    return list(dict.fromkeys(tag.strip() for tag in parts if tag.strip()))


def parse_renames(words: Sequence[str]) -> dict[str, str]:
    """{"图片": "image"} of "图片=image".

    Raises:
        UserError: a word of another form.
    """
    renames = {}
    for word in words:
        column, sign, name = (part.strip() for part in word.partition("="))
        if not (sign and column and name) or set(":,=") & set(column + name):
            raise UserError(f"--columns {quoted(word)}: write COLUMN=NAME, as 图片=image (without : , or = in either)")
        renames[column] = name
    return renames
