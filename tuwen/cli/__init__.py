"""The command line. Thin: it parses, calls, prints.

Exit status: 0 done; 1 a user's mistake, or faults found by `tuwen data check`; 2 wrong usage; 130 interrupted.
With `--json` standard output carries exactly one JSON object, and everything else goes to standard error.
"""

import errno
import os
import sys
from collections.abc import Sequence

from tuwen import speech
from tuwen.cli import (
    claim,
    compare,
    data,
    evaluate,
    exchange,
    explain,
    generate,
    index,
    knowledge,
    search,
    serve,
    stages,
    systems,
    train,
)
from tuwen.cli.parser import Parser, with_columns
from tuwen.errors import UserError, is_out_of_memory, printable, reason_of

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)  # told by Arrow without the file's name
_LESS = "take smaller batches (in training: --set train.batch_size=N), or a smaller --size"
DESCRIPTION = "Learn from pictures and the texts beside them: published vision-language systems, compared fairly."
EXAMPLES = """\
examples:
  tuwen systems                                        which systems there are
  tuwen data build photos --out data/photos            your folder of pictures and texts, made ready
  tuwen data check data/photos                         what is wrong with it
  tuwen train r2d2 --corpus data/photos --out runs/r2d2 --size small
  tuwen run recipes/nlip.yaml --corpus data/photos --also CLEAN=data/captions --out runs/nlip   several stages
  tuwen eval runs/r2d2 --corpus data/photos --task retrieval
  tuwen explain runs/r2d2 photo.jpg "a red bird" --out words.png   where each word is in a picture
  tuwen compare clip albef r2d2 --corpus scenes --budget steps=500 --seeds 3 --out runs/compare
  tuwen claim albef-teacher                            what a paper says, put to the test
  tuwen index runs/r2d2 photos --out photos.index      pictures made searchable
  tuwen search photos.index "a red bird"
  tuwen generate runs/unix2 cat.jpg --language zh      a caption, by a run with a decoder
  tuwen serve photos.index --no-keys                   the same as a service with a page

`tuwen COMMAND --help` says more."""
RENAMED = {  # words of older versions: those of today
    "weights import": "import",
    "weights export": "export --to hf",
    "export --format": "export --to",
}


def parser() -> Parser:
    """The parser of the whole command line."""
    root = Parser(prog="tuwen", description=DESCRIPTION, epilog=EXAMPLES)
    root.add_argument("--version", action="store_true", help="print the version and stop")
    meant = "language of help and tables (default: by the environment's LANG)"
    root.add_argument(speech.OPTION, choices=speech.LANGUAGES, help=meant)  # `choose_language` has read it before
    commands = root.add_subparsers(dest="command", metavar="COMMAND", title="commands", parser_class=Parser)
    systems.add_to(commands)
    stages.add_kinds(data.add_to(commands))
    groups = (knowledge, train, stages, evaluate, explain, compare, claim, index, search, serve, generate, exchange)
    for group in groups:
        group.add_to(commands)
    return root


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and gives its exit status; mistakes of usage leave by `SystemExit(2)`."""
    root = parser()
    args = root.parse_args(_renamed(speech.choose_language(sys.argv[1:] if argv is None else argv)))
    try:
        status = _run(root, args)
        sys.stdout.flush()
        return status
    except UserError as error:
        return _fail(speech.spoken(str(error)))
    except KeyboardInterrupt:
        _fail(speech.spoken("interrupted"))
        return 130
    except BrokenPipeError:
        # the reader had enough; keep Python from complaining again when it closes the stream
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.filename is None and error.errno not in _FULL:
            raise
        return _fail(str(error.strerror) + (f": {error.filename}" if error.filename is not None else ""))
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return _fail(f"memory ran out ({reason_of(error)}); {_LESS}")


def _renamed(argv: Sequence[str]) -> list[str]:
    """The words of today for those of older versions, which are told in a line."""
    words = list(argv)
    for old, new in RENAMED.items():
        command, word = old.split()
        if words[:1] == [command] and word in words[1:]:
            print("tuwen: " + speech.spoken(f"`tuwen {old}` is called `tuwen {new}` now"), file=sys.stderr)
            place = words.index(word)
            words[0], *words[place : place + 1] = new.split()
    return words


def _run(root: Parser, args) -> int:
    if args.version:
        from importlib.metadata import version

        print(version("tuwen"))
        return 0
    if args.command is None:
        root.print_help()
        return 0
    if getattr(args, "columns", None):
        name = "corpus" if hasattr(args, "corpus") else "pictures"
        setattr(args, name, with_columns(getattr(args, name), args.columns))
    return args.run(args) or 0


def _fail(message: str) -> int:
    print("tuwen: " + printable(" ".join(message.split())), file=sys.stderr)
    return 1
