"""`tuwen eval RUN --suite SUITE`: a list of tasks, measured as far as their corpora are there."""

from typing import Any

from tuwen.cli.output import only_json, print_json, print_line, print_table


def run_suite_of(args) -> None:
    from tuwen.benchmark.measure import measure_task
    from tuwen.benchmark.suites import HEADS, read_suite, run_suite, table_of, unmeasured, write_suite_page

    suite = read_suite(args.suite)

    def measured(location: str, split: str, task: str, options: dict[str, Any]) -> dict[str, Any]:
        if args.limit is not None:
            options["limit"] = args.limit
        return measure_task(args.run_folder, location, split, task, options)

    with only_json(args.json):
        result = {"run": str(args.run_folder), **run_suite(suite, args.data, measured)}
        if args.limit is not None:
            result["note"] = f"at most {args.limit} pictures a set: no figure to compare with others'"
        page = write_suite_page(result, args.page) if args.page else None
    if args.json:
        print_json(result)
        return
    print_table(f"{args.run_folder} on suite {suite.name}: {suite.what}", HEADS, table_of(result))
    for line in (*unmeasured(result), *filter(None, (result.get("note"), page and str(page)))):
        print_line(str(line))
