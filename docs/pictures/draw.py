"""Draws the pictures of docs/concepts.md, as SVG: `python docs/pictures/draw.py`.

They have no background, and colours that can be read on a light and on a dark page.
"""

import random
from pathlib import Path

INK = "#768390"  # of text and lines on either page
DARK = "#1f2328"  # of text on what is filled
KEPT, GONE, OTHER, PAPER = "#58a6ff", "#c9d1d9", "#f0883e", "#eef1f4"


def line(x1, y1, x2, y2, color=INK, width=1.5, more=""):
    """A line, with `more` attributes."""
    return f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{color}" stroke-width="{width}" {more}/>'


def arrow(path, color=INK):
    """A curve with a head."""
    return f'<path d="{path}" fill="none" stroke="{color}" stroke-width="2" marker-end="url(#head)"/>'


def text(x, y, words, color=INK, size=15, anchor="middle", weight="normal"):
    """Words, centred at a place unless told otherwise."""
    style = f'fill="{color}" font-size="{size}" text-anchor="{anchor}" font-weight="{weight}"'
    return f'<text x="{x}" y="{y}" {style}>{words}</text>'


def square(x, y, side, fill, words=""):
    """A cell of a grid."""
    cell = f'<rect x="{x}" y="{y}" width="{side}" height="{side}" fill="{fill}" stroke="{INK}" stroke-width="1"/>'
    return cell + (text(x + side / 2, y + side / 2 + 5, words, DARK, 13) if words else "")


def grid(x, y, cells, side):
    """Rows of (fill, words)."""
    return "".join(
        square(x + side * column, y + side * row, side, *cell)
        for row, cells_of_row in enumerate(cells)
        for column, cell in enumerate(cells_of_row)
    )


def network(x, y, kept, color, width):
    """A small network of which some connections are there."""
    layers = [[(x + 56 * n, y + 100 * (m + 0.5) / size) for m in range(size)] for n, size in enumerate((3, 4, 3))]
    pairs = [(one, other) for n in (0, 1) for one in layers[n] for other in layers[n + 1]]
    edges = [line(*one, *other, color, width) for n, (one, other) in enumerate(pairs) if n in kept]
    units = [
        f'<circle cx="{a}" cy="{b}" r="7" fill="{PAPER}" stroke="{INK}" stroke-width="1.5"/>'
        for layer in layers
        for a, b in layer
    ]
    return "".join(edges + units)


def loop():
    """Train, prune, rewind, train again."""
    every, kept = set(range(24)), {0, 2, 5, 7, 9, 10, 13, 16, 18, 21, 23}
    stages = [
        ("1  train", "the dense network", every, KEPT, 2),
        ("2  prune", "the smallest weights", kept, KEPT, 3.5),
        ("3  rewind", "the kept weights", kept, OTHER, 2),
        ("4  train again", "the ticket", kept, KEPT, 3.5),
    ]
    parts = []
    for n, (name, what, edges, color, width) in enumerate(stages):
        x = 40 + 195 * n
        parts += [network(x, 20, edges, color, width), text(x + 56, 150, name, size=17, weight="bold")]
        parts += [text(x + 56, 172, what)]
        if n < 3:
            parts.append(arrow(f"M{x + 130},70 L{x + 175},70"))
    parts.append(arrow("M680,185 C680,230 290,230 290,188"))
    parts.append(text(485, 240, "the next round"))
    return svg(790, 250, "The loop of a lottery: train, prune, rewind, train again", parts)


def rewind():
    """Every round starts from the checkpoint of round 0 at step k."""
    parts = [line(330, 20, 330, 262, OTHER, 2, 'stroke-dasharray="5 5"')]
    parts += [text(330, 288, "step k: the rewind point", OTHER, weight="bold"), text(140, 288, "step 0")]
    parts.append(text(680, 288, "the last step"))
    rounds = (("round 0", 140, INK, "dense"), ("round 1", 330, KEPT, "mask 1"), ("round 2", 330, KEPT, "mask 2"))
    for n, (name, start, color, masks) in enumerate(rounds):
        y = 50 + 80 * n
        parts += [text(20, y + 5, name, anchor="start", weight="bold"), arrow(f"M{start},{y} L672,{y}", color)]
        parts += [
            text(690, y + 5, masks, anchor="start"),
            f'<circle cx="{start}" cy="{y}" r="6" fill="{OTHER if n else INK}"/>',
        ]
        if n < 2:
            back = f"C680,{y + 40} 672,{y + 40} 640,{y + 40} L400,{y + 40} C360,{y + 40} 350,{y + 55} 338,{y + 71}"
            parts.append(arrow(f"M680,{y + 8} {back}"))
            parts.append(text(505, y + 34, f"prune to mask {n + 1}, and rewind", size=13))
    parts.append(f'<circle cx="330" cy="50" r="6" fill="{OTHER}"/>')
    return svg(790, 300, "Round 0 saves a checkpoint at step k, and every later round starts from it", parts)


def mask():
    """Weights, the mask that keeps the largest half, and both."""
    weights = [[0.9, -0.1, 0.3, -0.8], [0.2, -0.7, 0.1, 0.6], [-0.5, 0.4, 1.1, -0.2]]
    kept = [[abs(w) >= 0.5 for w in row] for row in weights]
    shown = [
        [(KEPT if k else GONE, f"{w:.1f}") for w, k in zip(*rows, strict=True)]
        for rows in zip(weights, kept, strict=True)
    ]
    bits = [[(KEPT if k else GONE, "1" if k else "0") for k in row] for row in kept]
    both = [
        [(KEPT, f"{w:.1f}") if k else (GONE, "0") for w, k in zip(*rows, strict=True)]
        for rows in zip(weights, kept, strict=True)
    ]
    parts = []
    for n, (name, cells) in enumerate(
        [("weights", shown), ("mask, density 0.5", bits), ("weights under the mask", both)]
    ):
        parts += [grid(40 + 260 * n, 20, cells, 46), text(132 + 260 * n, 184, name, weight="bold")]
    parts += [text(262, 95, "⊙", size=24), text(522, 95, "=", size=24)]
    return svg(790, 200, "A mask keeps the largest weights; the others are zero", parts)


def controls():
    """A ticket beside two of its controls."""
    draws = random.Random(4)
    ours = [True, False, True, True, False, False, True, False, False, True, False, True, False, True, True, False]
    others = draws.sample(ours, len(ours))
    arms = [
        ("ticket", "its early weights, its masks", KEPT, ours),
        ("reinit", "new weights, its masks", OTHER, ours),
        ("random_mask", "its early weights, other masks", KEPT, others),
    ]
    parts = []
    for n, (name, what, color, bits) in enumerate(arms):
        x = 55 + 260 * n
        cells = [[(color if bits[4 * row + column] else PAPER,) for column in range(4)] for row in range(4)]
        parts += [grid(x + 20, 15, cells, 30), text(x + 80, 165, name, size=17, weight="bold"), text(x + 80, 188, what)]
    return svg(790, 200, "A ticket, a control with other weights, a control with other masks", parts)


def svg(width, height, title, parts):
    """A whole file."""
    head = (
        '<marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0,0 L10,5 L0,10 z" fill="{INK}"/></marker>'
    )
    font = "font-family=\"system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif\""
    frame = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" role="img" {font}>'
    return "\n".join([frame, f"<title>{title}</title>", f"<defs>{head}</defs>", *parts, "</svg>"]) + "\n"


PICTURES = (loop, rewind, mask, controls)

if __name__ == "__main__":
    for picture in PICTURES:
        Path(__file__).with_name(f"{picture.__name__}.svg").write_text(picture())
