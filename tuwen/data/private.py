"""Private corpora, as of patients: their texts, names and paths stand in nothing that was not asked for.

Readers of medicine mark themselves (`Corpus.private`), and `private: true` in a corpus.yaml marks the table or folder
it lies beside. Then faults and errors tell what is wrong and where by number alone, pages show pictures without texts,
and a tokenizer keeps no piece that fewer than `tokenizer.least_reports` reports hold. What is asked for (shards,
predictions, an index) holds what it must, and is marked. `TUWEN_SHOW_PRIVATE=1` shows all of it.
"""

import os
from pathlib import Path

import yaml

from tuwen.errors import UserError, quoted, refused

SHOW = "TUWEN_SHOW_PRIVATE"
UNSAID = f"of a private corpus ({SHOW}=1 shows more)"
MARKS = "corpus.yaml"  # beside a table, or in a folder
TABLES = (".csv", ".gz", ".json", ".jsonl", ".tsv", ".xlsx", ".parquet")  # hold many rows, and no one's name as theirs


def hides(private: bool) -> bool:
    """Whether what is private is to be left unsaid."""
    return private and os.environ.get(SHOW) != "1"


def marked(folder: Path) -> bool:
    """Whether the corpus.yaml of a folder, if there is one, says `private: true`.

    Raises:
        UserError: it says anything else than true or false of `private`, or of anything else.
    """
    path = folder / MARKS
    if not path.is_file():
        return False
    with refused(f"{path}: cannot be read", "write private: true", (OSError, ValueError, yaml.YAMLError)):
        said = yaml.safe_load(path.read_text("utf-8")[:10_000])
    if not isinstance(said, dict) or set(said) != {"private"} or not isinstance(said["private"], bool):
        raise UserError(f"{path}: says {quoted(said, 80)}; write private: true, and nothing else")
    return said["private"]


def own_only(path: Path) -> None:
    """Makes what was asked of a private corpus, a file or a folder, readable by its owner alone."""
    if path.exists():
        path.chmod(0o700 if path.is_dir() else 0o600)
