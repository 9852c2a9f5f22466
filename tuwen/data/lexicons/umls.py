"""UMLS's Rich Release Format, for those who have a licence: MRCONSO.RRF (names) and MRREL.RRF (relations).

Columns by the UMLS reference manual, apart by |: of MRCONSO 0 CUI, 1 LAT (language), 14 STR (name), 16 SUPPRESS; of
MRREL 0 CUI1, 3 REL, 4 CUI2, 7 RELA, 14 SUPPRESS. A relation says what the second concept is to the first: its head is
CUI2. The files are read line by line; what is suppressed is left out.
"""

from collections.abc import Iterator
from pathlib import Path

from tuwen.data.corpus import normalise
from tuwen.data.lexicons.lexicon import LONGEST, Lexicon, LexiconMaker
from tuwen.errors import UserError, quoted, reason_of

NAMES, RELATIONS = "MRCONSO.RRF", "MRREL.RRF"
LANGUAGES = {
    **{"ENG": "en", "CHI": "zh", "JPN": "ja", "KOR": "ko", "GER": "de", "FRE": "fr", "SPA": "es", "ITA": "it"},
    **{"POR": "pt", "RUS": "ru", "TUR": "tr", "DUT": "nl"},
}
_SUPPRESSED = ("O", "E", "Y")


def read_umls(folder: str | Path) -> Lexicon:
    """The concepts of a folder of RRF files, with their names in the languages above; relations among them.

    Raises:
        UserError: no MRCONSO.RRF, or a line of another form.
    """
    maker, known = LexiconMaker(), set()
    for fields in _rows(Path(folder, NAMES), 17):
        language, name = LANGUAGES.get(fields[1]), normalise(fields[14])
        if language and name and len(name) <= LONGEST and fields[16] not in _SUPPRESSED:
            maker.name(fields[0], name, language)
            known.add(fields[0])
    if Path(folder, RELATIONS).is_file():
        for fields in _rows(Path(folder, RELATIONS), 15):
            first, second, relation = fields[0], fields[4], normalise(fields[7] or fields[3])
            if first != second and first in known and second in known and fields[14] not in _SUPPRESSED:
                maker.edge(second, relation, first)
    return maker.lexicon(str(folder))


def _rows(path: Path, least: int) -> Iterator[list[str]]:
    try:
        with path.open(encoding="utf-8", newline="\n") as file:
            for number, line in enumerate(file, 1):
                fields = line.rstrip("\r\n").split("|")
                if len(fields) < least or not fields[0]:
                    raise UserError(f"{path}, line {number}: {quoted(line, 60)} has not the {least} fields of UMLS")
                yield fields
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({reason_of(error)})") from None
