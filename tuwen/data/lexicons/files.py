"""Lexicons on disk: a list of names, a file of triples, with what was learnt beside it; where one is opened from.

A triple is a line of three fields apart by tabs: head, relation, tail, as "Gala <tab> is a <tab> apple". The relations
`name` and `name:LANGUAGE` give an entity its names ("apple <tab> name:zh <tab> 苹果"); an entity without them is called
by its id. Lines that begin with # and empty ones are passed over.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from tuwen.data.corpus import normalise
from tuwen.data.given import text_of
from tuwen.data.lexicons.lexicon import Lexicon, LexiconMaker, checked_vectors, language_of_name
from tuwen.errors import UserError, quoted, reason_of

TRIPLES = "lexicon.tsv"
VECTORS = "lexicon.safetensors"
_NAME = "name"


def read_dictionary(path: str | Path) -> tuple[str, ...]:
    """The names in a text file, one a line; empty lines are passed over.

    Raises:
        UserError: no such file, not UTF-8, or no name in it.
    """
    lines = text_of(Path(path)).splitlines()
    names = tuple(dict.fromkeys(name for name in map(normalise, lines) if name))
    if not names:
        raise UserError(f"{path}: no name in it; write one a line")
    return names


def read_triples(path: str | Path) -> Lexicon:
    """The lexicon of a file of triples.

    Raises:
        UserError: no such file, not UTF-8, a line that is no triple, or no entity.
    """
    maker = LexiconMaker()
    for number, line in enumerate(text_of(Path(path)).removeprefix("\ufeff").splitlines(), 1):
        fields = list(map(normalise, line.split("\t")))
        if len(fields) == 1 and (not fields[0] or line.startswith("#")):
            continue
        if len(fields) != 3 or not all(fields):
            raise UserError(
                f"{path}, line {number}: {quoted(line, 80)} is no triple; write head, relation and tail, apart by tabs"
            )
        head, relation, tail = fields
        if relation == _NAME or relation.startswith(f"{_NAME}:"):
            maker.name(head, tail, relation.partition(":")[2] or language_of_name(tail))
        else:
            maker.edge(head, relation, tail)
    return maker.lexicon(str(path))


def save_lexicon(lexicon: Lexicon, folder: str | Path) -> None:
    """Writes `lexicon.tsv`, and `lexicon.safetensors` where there are vectors; `saved_lexicon` gives the same rows."""
    lines = []
    for id, names in zip(lexicon.ids, lexicon.names, strict=True):
        lines += [f"{id}\t{_NAME}:{language}\t{name}" for language, several in names.items() for name in several]
    for head, kind, tail in lexicon.edges.tolist():
        lines.append(f"{lexicon.ids[head]}\t{lexicon.relations[kind]}\t{lexicon.ids[tail]}")
    Path(folder, TRIPLES).write_text("\n".join(lines) + "\n", encoding="utf-8")
    if lexicon.vectors is not None:
        save_file({"vectors": torch.from_numpy(np.ascontiguousarray(lexicon.vectors))}, Path(folder, VECTORS))


def saved_lexicon(folder: str | Path) -> Lexicon | None:
    """The lexicon that `save_lexicon` wrote into a folder; None where it wrote none.

    Raises:
        UserError: a file of it is damaged.
    """
    path = Path(folder, TRIPLES)
    if not path.is_file():
        return None
    lexicon, beside = read_triples(path), Path(folder, VECTORS)
    if not beside.is_file():
        return lexicon
    try:
        vectors = load_file(beside)["vectors"].float().numpy()
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise UserError(f"{beside}: cannot be read ({reason_of(error)}); make it anew with `tuwen knowledge`") from None
    return replace(lexicon, vectors=checked_vectors(vectors, len(lexicon), str(beside)))
