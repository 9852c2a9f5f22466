"""`tuwen claim`: what papers say, put to the test."""

from pathlib import Path
from typing import Any

from tuwen.cli.output import only_json, print_json, print_line, print_table
from tuwen.cli.parser import add_command
from tuwen.speech import chosen_language, spoken

EXAMPLES = """\
  tuwen claim                                   which claims there are
  tuwen claim tokenflow-flow --out runs/claims
  tuwen claim --all --results benchmarks/results/claims"""


def add_to(commands) -> None:
    command = add_command(commands, "claim", run, "put a paper's claim to the test", EXAMPLES)
    command.add_argument("names", metavar="NAME", nargs="*", help="a claim, or a .yaml file; none: list them")
    command.add_argument("--all", action="store_true", help="every claim there is, one after the other")
    command.add_argument(
        "--out", metavar="DIR", type=Path, default=Path("runs/claims"), help="folder of folders; finished runs are kept"
    )
    command.add_argument("--results", metavar="DIR", type=Path, help="write NAME.json of each into this folder too")
    command.add_argument("--json", action="store_true", help="print one JSON object")


def run(args) -> None:
    from tuwen.benchmark.claim import check_claim, claim_names, read_claim
    from tuwen.outputs import check_free

    if args.all and args.names:
        args.parser.error("give names or --all, not both")
    names = claim_names() if args.all else args.names
    if not names:
        return show(args, {name: read_claim(name) for name in claim_names()})
    claims = {name: read_claim(name) for name in names}
    for name, claim in claims.items():  # all before any runs
        check_claim(name, claim)
        if args.results:
            check_free(result_file(args, name), '"card"')
    with only_json(args.json):
        results = [tested(args, name, claim) for name, claim in claims.items()]
    if args.json:
        print_json({"claims": results})


def show(args, claims: dict[str, Any]) -> None:
    """The claims there are."""
    if args.json:
        from tuwen.config import to_dict

        print_json({"claims": [{"name": name, **to_dict(claim)} for name, claim in claims.items()]})
        return
    rows = [(name, claim.card, claim.claim[chosen_language()], f"{claim.minutes:g}") for name, claim in claims.items()]
    print_table("", ("name", "card", "claim", "minutes"), rows)


def tested(args, name: str, claim) -> dict[str, Any]:
    """One claim run and told."""
    import json

    from tuwen.benchmark.claim import run_claim
    from tuwen.run import write

    print_line(f"{name}: {claim.claim[chosen_language()]} (about {claim.minutes:g} minutes)")
    result = run_claim(name, args.out / Path(name).stem)
    print_line(verdict_line(result))
    if args.results:
        args.results.mkdir(parents=True, exist_ok=True)
        write(result_file(args, name), json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    return result


def result_file(args, name: str) -> Path:
    """Where `--results` puts a claim's result."""
    return args.results / f"{Path(name).stem}.json"


def verdict_line(result: dict[str, Any]) -> str:
    """The verdict in a line: word, difference with its interval, why."""
    from tuwen.benchmark.claim import decimals

    places = 1 + decimals(result["least"])
    ends = [f"{end:+.{places}f}" for end in result["interval"] or ()]
    interval = spoken(" to ").join(ends) or spoken("no interval")
    figures = spoken(f"{result['difference']:+.{places}f} ({interval}, of {result['covers']})")
    return f"{result['name']}: {spoken(result['verdict'])}: {figures}; {spoken(result['why'])}"
