"""`report.html`: all that a run or a study has found, in one file that asks for nothing from elsewhere.

The charts are drawn by plotly.js, whose copy lies beside this module; see README.md there. The same run directory
gives the same bytes.
"""

import csv
import html
import io
import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lt_lightning.analysis import contents
from lt_lightning.disk.atomic import write_text
from lt_lightning.records import finite

NAME = "report.html"

QUICK = 150e6
"""Bytes of masks and weights that can be looked at in about a second, after every run."""

_HERE = Path(__file__).parent
_SHOWN = (
    *("csv", "lines", "dense", "metrics", "fractions", "chosen", "groups", "curves"),
    *("layers", "pixels", "overlap", "movement"),
)
"""What charts show, of all that was gathered."""

_MOST_ROWS = 500
_MOST_CONFIGURATIONS = 24
_MOST_COMMANDS = 100


def write(directory: str | os.PathLike[str], path: Path | None = None, most_bytes: float = math.inf) -> Path:
    """Write the page of a run, or of all runs below a directory, and return its path.

    Args:
        directory: a run directory, or one with runs below it.
        path: where to; ``report.html`` in the directory if None.
        most_bytes: see `contents.gather`.

    Raises:
        NotADirectoryError: there is no such directory.
        ValueError: no round has finished yet.

    Example:
        ```python
        from lt_lightning.analysis import page

        page.write("runs/mine")
        ```
    """
    path = path or Path(directory, NAME)
    write_text(path, render(contents.gather(directory, most_bytes)))
    return path


def render(gathered: Mapping[str, Any]) -> str:
    """What `contents.gather` returns, as a page."""
    data = json.dumps(finite({key: gathered[key] for key in _SHOWN}), separators=(",", ":"))
    rows = list(csv.reader(io.StringIO(gathered["csv"]["text"])))
    parts = {
        "title": html.escape(gathered["title"]),
        "heading": re.sub(r"(?<=[/,])", "<wbr>", html.escape(gathered["title"])),
        "css": _file("page.css"),
        "summary": _summary(gathered),
        "bands": _bands(gathered),
        "csv_name": html.escape(gathered["csv"]["name"]),
        "count": _count(rows),
        "table": _table(rows),
        "made": _made(gathered),
        "footer": _footer(),
        "data": data.replace("<", "\\u003c"),  # no </script> within
        "plotly": _file("plotly-cartesian.min.js"),
        "js": _file("page.js"),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], _file("page.html"))


def _file(name: str) -> str:
    return (_HERE / name).read_text("utf-8")


def _summary(gathered: Mapping[str, Any]) -> str:
    runs = len(gathered["runs"])
    methods = len(set(gathered["groups"].values()))
    told = [f"{runs} runs, {methods} method{'s' * (methods > 1)}."] if runs > 1 else []
    found = [f'<p class="finding">{html.escape(gathered["finding"])}</p>'] if gathered["finding"] else []
    unfinished = [f"Unfinished: {each}" for each in gathered["unfinished"]]
    notes = [f'<p class="note">{html.escape(note)}</p>' for note in [*unfinished, *gathered["notes"]]]
    return "\n".join([*(f"<p>{line}</p>" for line in told), *found, *notes])


def _bands(gathered: Mapping[str, Any]) -> str:
    seeds = {point[4] for line in gathered["lines"] for points in line["points"].values() for point in points}
    if seeds == {1}:
        return "One seed."
    over = f"{min(seeds)} to {max(seeds)}" if len(seeds) > 1 else f"{max(seeds)}"
    return f"Lines are means over {over} seeds, bands reach from the least to the most."


def _count(rows: Sequence[Sequence[str]]) -> str:
    """Say how many rows there are, and how many are shown."""
    count = len(rows) - 1
    shown = f"the first {_MOST_ROWS} of {count} rows" if count > _MOST_ROWS else f"all {count} rows"
    return f"Numbers here have five digits, the file has all. Shown: {shown}."


def _table(rows: Sequence[Sequence[str]]) -> str:
    header, *body = rows or [[]]
    body = body[:_MOST_ROWS]
    kinds = ["" if all(_number(row[n]) is not None for row in body) else ' class="text"' for n in range(len(header))]
    head = (f'<th scope="col"{kind}>{html.escape(name)}</th>' for name, kind in zip(header, kinds, strict=True))
    lines = ("".join(f"<td{kind}>{_told(each)}</td>" for each, kind in zip(row, kinds, strict=True)) for row in body)
    return (
        f"<table><thead><tr>{''.join(head)}</tr></thead>"
        f"<tbody>{''.join(f'<tr>{line}</tr>' for line in lines)}</tbody></table>"
    )


def _told(value: str) -> str:
    """A number to five digits, a whole one in full, a text as it is."""
    number = _number(value)
    return html.escape(value) if number is None else number


def _number(value: str) -> str | None:
    """What a table says of a number, or of none; None for a text."""
    try:
        return value if value.lstrip("-").isdigit() or not value else f"{float(value):.5g}"
    except ValueError:
        return None


def _made(gathered: Mapping[str, Any]) -> str:
    """Commands, environments and configurations; each once."""
    found = [each for run in gathered["runs"] for each in run["environments"]]
    commands = list(dict.fromkeys(str(each.get("command", "")) for each in found))
    places = {
        json.dumps(place): place for each in found if (place := {k: v for k, v in each.items() if k != "command"})
    }
    firsts: dict[str, Mapping[str, Any]] = {}
    for run in gathered["runs"]:
        firsts.setdefault(gathered["groups"][run["name"]], run)
    return "\n".join(
        [
            "<h3>Command</h3>" if len(commands) < 2 else "<h3>Commands</h3>",
            *(f'<pre class="command" tabindex="0">{html.escape(each)}</pre>' for each in commands[:_MOST_COMMANDS]),
            *_more(len(commands) - _MOST_COMMANDS, "commands"),
            *([] if commands else ["<p>Not noted: there is no environment.json that can be read.</p>"]),
            "<h3>Environment</h3>" if len(places) < 2 else "<h3>Environments</h3>",
            *map(_environment, places.values()),
            *([] if places else ["<p>Not noted.</p>"]),
            "<h3>Configuration</h3>",
            *(_configuration(run) for run in list(firsts.values())[:_MOST_CONFIGURATIONS]),
            *_more(len(firsts) - _MOST_CONFIGURATIONS, "configurations"),
        ]
    )


def _more(count: int, what: str) -> Iterable[str]:
    return [f"<p>{count} more {what} are left out.</p>"] if count > 0 else []


def _environment(place: Mapping[str, Any]) -> str:
    told = (f"<dt>{html.escape(key)}</dt><dd>{html.escape(str(value))}</dd>" for key, value in place.items())
    return f"<dl>{''.join(told)}</dl>"


def _configuration(run: Mapping[str, Any]) -> str:
    text = f'<pre tabindex="0">{html.escape(run["config"])}</pre>'
    return f"<details><summary>config.yaml of {html.escape(run['name'])}</summary>{text}</details>"


def _footer() -> str:
    sources = _file("README.md")
    plotly = re.search(r"plotly\.js\)? ?(?:\([^)]*\) )?(\d+\.\d+\.\d+)", sources)
    assert plotly
    return (
        f"Written by lt_lightning {version('lt-lightning')}; charts by plotly.js {plotly[1]} (MIT). "
        "This file loads nothing from elsewhere."
    )
