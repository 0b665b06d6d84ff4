"""The command line: what `python -m lt_lightning status`, `summary`, `report`, `analyse` and `ticket` do."""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lt_lightning import ticket_command
from lt_lightning.analysis import command
from lt_lightning.cli import status
from lt_lightning.records import finite

_TOP = """\
Each COMMAND has --help with all of it, and --json for programs.

examples:
  python -m lt_lightning status runs                       where every run stands
  python -m lt_lightning summary runs/lth_lenet_study      tables and a picture over seeds
  python -m lt_lightning report runs/mine                  one page: records, curves, masks and weights
  python -m lt_lightning analyse all runs/mine             what masks have in common, how far weights moved
  python -m lt_lightning ticket show runs/mine/round-03    what a ticket file holds

exit codes:
  0    it is done
  1    status: a run has failed or died; ticket diff: the masks differ
  2    something is missing or wrong; the error says what
  130  Ctrl-C
"""
_STATUS = """\
States: running and waiting (a process gives signs of life); done (every fit has its marker); partial (fits are missing
and no process says anything); interrupted (it was asked to end); failed (with the error and what to type); died (its
process is gone from this machine, or on another one nothing was heard of it for three minutes).

The exit code is 1 if any run has failed or died, 2 if DIR is not a directory.

examples:
  python -m lt_lightning status runs
  python -m lt_lightning status runs/lth_lenet_study --watch       every 10 seconds, until Ctrl-C
  python -m lt_lightning status runs --json | jq -r '.[] | select(.state == "failed") | .command'
"""
_SUMMARY = """\
Writes to DIR, or to --output:
  summary.csv, summary.parquet   a row per run, round and arm, with every metric
  aggregated.csv                 mean, min, max and n over seeds, by experiment, method, arm and density
  summary.png                    one metric against density: a line per method and arm, bands over seeds

The folder of a run tells its method, or the one above if its own is that of a seed; the folder above that one tells its
experiment. The exit code is 2 if no run below DIR has finished a round, or DIR is not a directory.

examples:
  python -m lt_lightning summary runs/lth_lenet_study
  python -m lt_lightning summary runs --metric early_stop_test_acc --output report
  python -m lt_lightning summary runs --json | jq '.unfinished'
"""
_REPORT = """\
Writes report.html to DIR, or to --output: one file that asks for nothing from elsewhere, with records, curves, masks
and weights of a run, or of all runs below DIR, which need not be done. The formats png, pdf and svg are pictures for
papers, of the records alone; their fonts are embedded. The exit code is 2 if no run has finished a round, or DIR is not
a directory.

examples:
  python -m lt_lightning report runs/lenet/prune=iterative/seed=0
  python -m lt_lightning report runs/lth_lenet_study --output paper --format html pdf
  python -m lt_lightning report runs/lth_lenet_study --json | jq -r '.written[]'
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: those of the command line if None.

    Returns:
        The exit code.
    """
    style = argparse.RawDescriptionHelpFormatter
    about = "Look at a study, and use the tickets that it found."
    parser = argparse.ArgumentParser("lt_lightning", description=about, epilog=_TOP, formatter_class=style)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    one = commands.add_parser("status", help="where every run stands", epilog=_STATUS, formatter_class=style)
    one.add_argument("directory", metavar="DIR", help="where to look for runs")
    one.add_argument("--watch", metavar="SECONDS", nargs="?", type=float, const=10.0, help="again and again (10)")
    one.add_argument("--json", action="store_true", help="for programs: a list with an object per run")
    one.set_defaults(run=_status)

    two = commands.add_parser("summary", help="tables and a picture over runs", epilog=_SUMMARY, formatter_class=style)
    two.add_argument("directory", metavar="DIR", help="where to look for runs")
    two.add_argument("--metric", metavar="NAME", help="which to print and draw (test/acc, val/acc, or what there is)")
    two.add_argument("--output", metavar="DIR", help="where to write; DIR if left out")
    two.add_argument("--json", action="store_true", help="for programs: the aggregated table, and unfinished runs")
    two.set_defaults(run=_summary)

    three = commands.add_parser("report", help="one page of a run or a study", epilog=_REPORT, formatter_class=style)
    three.add_argument("directory", metavar="DIR", help="a run, or where to look for runs")
    kinds = ("html", "png", "pdf", "svg")
    three.add_argument("--format", nargs="+", choices=kinds, default=["html"], help="html if left out")
    three.add_argument("--output", metavar="DIR", help="where to write; DIR if left out")
    three.add_argument("--json", action="store_true", help="for programs: the files")
    three.set_defaults(run=_report)

    command.add(commands, style)
    commands.choices["analyse"].set_defaults(run=_analyse)
    ticket_command.add(commands, style)
    commands.choices["ticket"].set_defaults(run=_ticket)

    words = sys.argv[1:] if arguments is None else arguments
    if not words:
        parser.print_help(sys.stderr)
        return 2
    given = parser.parse_args(words)
    try:
        return given.run(given)
    except BrokenPipeError:  # as by `| head`
        sys.stderr.close()
        return 0
    except (OSError, ValueError, RuntimeError, ModuleNotFoundError) as error:
        print(f"lt_lightning: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _status(given: argparse.Namespace) -> int:
    while True:
        rows = status.look(given.directory)
        told = _json(rows) if given.json else status.text(rows)
        clear = "\x1b[H\x1b[2J" if given.watch is not None and sys.stdout.isatty() else ""
        print(f"{clear}{told}", flush=True)
        if given.watch is None:
            return int(any(row["state"] in status.BAD for row in rows))
        time.sleep(given.watch)


def _summary(given: argparse.Namespace) -> int:
    from lt_lightning.analysis import comparison, report, summary

    rows, unfinished = summary.collect(given.directory)
    if not rows:
        raise ValueError(f"no run below {given.directory} has finished a round yet.")
    aggregated = summary.aggregate(rows)
    metric = given.metric or report.metric(rows) or "early_stop_step"
    output = Path(given.output or given.directory)
    picture = comparison.draw(output / "summary.png", aggregated, metric)
    summary.write(output, rows, aggregated)
    if given.json:
        print(_json({"metric": metric, "aggregated": aggregated, "unfinished": [vars(each) for each in unfinished]}))
        return 0
    print(summary.text(aggregated, rows, metric), end="\n\n")
    for each in unfinished:
        print(f"unfinished  {each}")
    for name in ("summary.csv", "summary.parquet", "aggregated.csv", picture.name):
        print(f"written     {output / name}")
    return 0


def _report(given: argparse.Namespace) -> int:
    from lt_lightning.analysis import comparison, page, report, summary

    rows, _ = summary.collect(given.directory)
    if not rows:
        raise ValueError(f"no run at or below {given.directory} has finished a round yet.")
    own = {row["run"] for row in rows}
    written = []
    for kind in dict.fromkeys(given.format):
        path = Path(given.output or given.directory, f"report.{kind}")
        if kind == "html":
            page.write(given.directory, path)
        elif len(own) == 1:
            report.draw(Path(given.directory, *own), path)
        else:
            comparison.draw(path, summary.aggregate(rows), report.metric(rows) or "early_stop_step")
        written.append(str(path))
        if not given.json:
            print(f"written     {path}")
    if given.json:
        print(_json({"written": written}))
    return 0


def _analyse(given: argparse.Namespace) -> int:
    found, text = command.run(given)
    print(_json(found) if given.json else text)
    return 0


def _ticket(given: argparse.Namespace) -> int:
    found, text, code = given.act(given)
    print(_json(found) if given.json else text)
    return code


def _json(value: Any) -> str:
    return json.dumps(finite(value), indent=1)


if __name__ == "__main__":
    sys.exit(main())
