"""Numbers as people read them, in tables and bars."""

from collections.abc import Sequence


def percent(density: float) -> str:
    """Write a density with three digits.

    >>> percent(1.0), percent(0.8**11)
    ('100%', '8.59%')
    """
    return f"{100 * density:.3g}%"


def clock(seconds: float) -> str:
    """Write a duration.

    >>> clock(3725.4)
    '1:02:05'
    """
    minutes, whole = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{whole:02d}"


def age(seconds: float) -> str:
    """Write how long ago something was, in its largest unit.

    >>> age(3), age(200), age(9000), age(200_000)
    ('3 s', '3 min', '2 h', '2 d')
    """
    seconds = max(0.0, seconds)  # clocks of two machines differ
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{int(seconds // size)} {unit}"
    return f"{int(seconds)} s"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str] = ()) -> list[str]:
    """Lay out columns, one line per row, the header first.

    Args:
        header: the names of the columns.
        rows: the cells.
        right: the columns that are aligned at the right.

    >>> table(["name", "n"], [["a", "1"], ["bc", "10"]], right=["n"])
    ['name   n', 'a      1', 'bc    10']
    """
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    align = [str.rjust if name in right else str.ljust for name in header]
    lines = [[put(cell, width) for put, cell, width in zip(align, row, widths, strict=True)] for row in [header, *rows]]
    return ["  ".join(line).rstrip() for line in lines]
