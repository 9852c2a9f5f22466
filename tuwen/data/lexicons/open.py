"""Where a lexicon comes from: one that comes with data, a folder, or a file of triples."""

import json
from pathlib import Path

from tuwen.data.corpus import normalise
from tuwen.data.given import text_of
from tuwen.data.lexicons.files import read_triples, saved_lexicon
from tuwen.data.lexicons.lexicon import Lexicon, LexiconMaker, language_of_name
from tuwen.data.lexicons.umls import NAMES, read_umls
from tuwen.errors import UserError, quoted, refused

OURS = ("scenes", "findings")
CLASSES = "classes.json"
IS_A = "is a"


def open_lexicon(place: str | Path) -> Lexicon:
    """The lexicon of a place.

    place: "scenes", the things that scenes show and their groups; "findings", of chest X-rays; a folder that `tuwen
    knowledge` or a run wrote, that has UMLS's MRCONSO.RRF, or classes of products (`classes.json`, a list of objects
    with "name" and, of the group above, "coarse": the grocery pack's); or a file of triples.

    Raises:
        UserError: there is none, or it is damaged.
    """
    path = Path(place)
    if str(place) == "scenes":
        return _scenes()
    if str(place) == "findings":
        return read_triples(Path(__file__).with_name("findings.tsv"))
    if path.is_file():
        return read_triples(path)
    if path.is_dir():
        if (lexicon := saved_lexicon(path)) is not None:
            return lexicon
        if (path / NAMES).is_file():
            return read_umls(path)
        if (path / CLASSES).is_file():
            return _classes(path / CLASSES)
    raise UserError(
        f"{quoted(str(place), 120)}: no lexicon; give a file of triples, a folder with lexicon.tsv, {NAMES} or "
        f"{CLASSES}, or one of {', '.join(OURS)}"
    )


def _scenes() -> Lexicon:
    """The things by their names in all languages, and the groups they are in."""
    from tuwen.data.corpora.scenes.things import OTHER_LANGUAGES, THINGS, foreign_name

    groups, maker = read_triples(Path(__file__).with_name("scenes.tsv")), LexiconMaker()
    for name, thing in THINGS.items():
        for language, word in (("en", name), ("en", thing.plural), ("zh", thing.chinese)):
            maker.name(name, word, language)
        for language in OTHER_LANGUAGES:
            maker.name(name, foreign_name(name, language), language)
    for id, names in zip(groups.ids, groups.names, strict=True):
        if id not in THINGS:
            for language, several in names.items():
                maker.name(id, several[0], language)
    for head, kind, tail in groups.edges.tolist():
        maker.edge(groups.ids[head], groups.relations[kind], groups.ids[tail])
    return maker.lexicon("scenes")


def _classes(path: Path) -> Lexicon:
    with refused(f"{path}: not valid JSON", kinds=(ValueError, RecursionError)):
        entries = json.loads(text_of(path))
    maker = LexiconMaker()
    for number, entry in enumerate(entries if isinstance(entries, list) else [None], 1):
        name, group = (entry.get(key, "") for key in ("name", "coarse")) if isinstance(entry, dict) else (None, None)
        if not isinstance(name, str) or not isinstance(group, str) or not normalise(name):
            raise UserError(
                f'{path}, entry {number}: write a list of objects with "name" and "coarse", which are texts'
            )
        name, group = normalise(name), normalise(group)
        maker.name(name, name, language_of_name(name))
        if group and group != name:
            maker.name(group, group, language_of_name(group))
            maker.edge(name, IS_A, group)
    return maker.lexicon(str(path))
