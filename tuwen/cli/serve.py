"""`tuwen serve` and `tuwen key`: an index as a service with a page, and who may use it."""

import sys
from pathlib import Path

from tuwen.cli.output import print_line
from tuwen.cli.parser import add_command, positive, whole
from tuwen.cli.search import add_opening, open_index
from tuwen.errors import UserError

SERVE = """\
  tuwen serve goods.index --no-keys
  tuwen serve goods.index --keys keys.txt --host 0.0.0.0 --port 8080
  tuwen serve goods.index --keys keys.txt --budget-ms 300 --queue 64"""
KEY = """\
  tuwen key keys.txt shop
  tuwen key keys.txt importer --scope write"""


def add_to(commands) -> None:
    _add_serve(commands)
    key = add_command(commands, "key", run_key, "make an API key for `tuwen serve`, and print it this once", KEY)
    key.add_argument("file", metavar="FILE", type=Path, help="of keys; it holds their digests, not the keys")
    key.add_argument("name", metavar="NAME", help="who uses it; stands in the log")
    scopes = "read: search; write: also add and delete pictures (default read)"
    key.add_argument("--scope", choices=("read", "write"), default="read", help=scopes)


def _add_serve(commands) -> None:
    serve = add_command(commands, "serve", run_serve, "serve an index over HTTP, with a page to search it", SERVE)
    serve.add_argument("index", metavar="INDEX", help="made by `tuwen index`")
    keys = serve.add_mutually_exclusive_group(required=True)
    keys.add_argument("--keys", metavar="FILE", type=Path, help="of API keys, made by `tuwen key`")
    keys.add_argument("--no-keys", action="store_true", help="on loopback alone: all on this machine may do anything")
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1)")
    serve.add_argument("--port", type=int, default=8000, help="port to listen on; 0: a free one (default 8000)")
    add_opening(serve)
    serve.add_argument("--candidates", metavar="K", type=whole, help="pictures a search re-ranks (default 64)")
    serve.add_argument("--budget-ms", metavar="MS", type=positive, help="time of a search, its wait included")
    serve.add_argument("--batch", metavar="N", type=positive, help="searches done together (default 16)")
    serve.add_argument("--queue", metavar="N", type=positive, help="searches that may wait; beyond, 429 (default 128)")
    serve.add_argument("--max-text", metavar="N", type=positive, help="characters of a text (default 1000)")
    serve.add_argument("--max-upload-mb", metavar="MB", type=positive, help="of a form with pictures (default 20)")
    serve.add_argument("--max-megapixels", metavar="MP", type=positive, help="of a picture (default 50)")
    serve.add_argument("--log-queries", action="store_true", help="write the texts of queries into the log")


def run_key(args) -> None:
    from tuwen.search.service.keys import create

    print(create(args.file, args.name, args.scope))


def run_serve(args) -> None:
    """Checks all that can be wrong before anything heavy is loaded."""
    from tuwen.search.service.keys import ApiKeys
    from tuwen.search.service.settings import refuse_open_service

    if args.no_keys:
        refuse_open_service(args.host)
    keys = None if args.no_keys else ApiKeys.read(args.keys)
    try:
        from tuwen.search.service import run
    except ImportError as error:
        raise UserError(f"the service needs {error.name}: pip install 'tuwen[search]'") from None
    settings = service_settings(args)
    with run.bind(settings) as listening:
        searcher = _searcher(args)
        print_line(f"{run.url_of(listening)}  {len(searcher.index):,} pictures; Ctrl-C stops")
        run.run_service(searcher, settings, keys, listening)


def service_settings(args):
    """The service's settings: what the command line gives, the rest by default."""
    from tuwen.search.service.settings import RequestLimits, Settings

    limits = {
        "text": args.max_text,
        "upload": args.max_upload_mb and args.max_upload_mb * 2**20,
        "pixels": args.max_megapixels and args.max_megapixels * 10**6,
    }
    names = ("host", "port", "candidates", "budget_ms", "batch", "queue", "log_queries")
    given = {name: value for name in names if (value := getattr(args, name)) is not None}
    return Settings(
        **given, limits=RequestLimits(**{name: value for name, value in limits.items() if value is not None})
    )


def _searcher(args):
    """The searcher of an index, after a first search, so that the first request finds everything loaded."""
    _progress(f"opening the index {args.index}")
    from tuwen.search.query import Query, Searcher

    index = open_index(args)
    _progress(f"loading the run {index.run}")
    searcher = Searcher(index)
    _progress("searching once, so that all is loaded")
    searcher.search([Query(text="?")], top=1)
    return searcher


def _progress(line: str) -> None:
    """What takes so long, to whoever watches; where nobody does, standard error is the log, a JSON object a line."""
    if sys.stderr.isatty():
        print_line(line, sys.stderr)
