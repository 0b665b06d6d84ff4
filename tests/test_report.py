import math
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lt_lightning.analysis import report
from lt_lightning.records import Record, write_records


def record(round: int, arm: str = "ticket", **values: float | None) -> Record:
    about = {"round": round, "arm": arm, "seed": 0, "density": 0.8**round, "steps": 100, "seconds": 1.0}
    return about | {"early_stop_step": 60 + round, "test/acc": 0.98 - 0.001 * round} | values


def eleven_rounds() -> list[Record]:
    arms = [(n, arm) for n in range(11) for arm in ("ticket", "reinit") if n or arm == "ticket"]
    return [record(n, arm) for n, arm in arms]


def draw(folder: Path, rows: list[Record]) -> Path:
    write_records(folder / "records.csv", rows)
    return report.draw(folder)


def axes_of(rows: list[Record]) -> list:
    return report._figure(rows, "title").axes


def test_writes_one_picture_beside_the_records(tmp_path: Path) -> None:
    path = draw(tmp_path, eleven_rounds())

    assert path == tmp_path / "report.png"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["records.csv", "report.png"]
    with Image.open(path) as image:
        assert image.size == (1400, 620)
        assert "Software" not in image.info
        assert len(image.convert("RGB").getcolors(1 << 20)) > 20


def test_the_same_records_give_the_same_bytes(tmp_path: Path) -> None:
    first = draw(tmp_path, eleven_rounds()).read_bytes()
    (tmp_path / "report.png").unlink()
    assert report.draw(tmp_path).read_bytes() == first


def test_panels_show_every_arm_and_the_dense_level() -> None:
    accuracy, stop = axes_of(eleven_rounds())

    ticket, reinit, dense = accuracy.get_lines()
    assert [line.get_label() for line in accuracy.get_lines()] == ["ticket", "reinit", "dense"]
    assert list(ticket.get_xdata()) == pytest.approx([0.8**n for n in range(11)])
    assert list(ticket.get_ydata()) == pytest.approx([98 - 0.1 * n for n in range(11)])
    assert list(reinit.get_xdata()) == pytest.approx([0.8**n for n in range(1, 11)])
    assert list(dense.get_ydata()) == pytest.approx([98, 98])
    assert list(stop.get_lines()[0].get_ydata()) == [60 + n for n in range(11)]
    assert accuracy.get_ylabel() == "test/acc at the end (%)"
    assert stop.get_ylabel() == "early stop (step)"


def test_an_untrained_round_0_is_not_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list = []
    monkeypatch.setattr(report, "save", lambda path, make: figures.append(make()))
    (tmp_path / "config.yaml").write_text("lottery:\n  dense: false\n")
    draw(tmp_path, eleven_rounds()[:3])
    ticket, reinit = figures[0].axes[0].get_lines()
    assert (ticket.get_label(), reinit.get_label()) == ("ticket", "reinit")
    assert list(ticket.get_xdata()) == [0.8]


def test_dense_is_at_the_left_and_labels_are_percent() -> None:
    axes = axes_of(eleven_rounds())[0]

    left, right = axes.get_xlim()
    assert left > 1.0 > 0.8**10 > right > 0
    assert axes.get_xscale() == "log"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["100", "64", "41", "26.2", "16.8", "10.7"]


def test_one_row_is_enough(tmp_path: Path) -> None:
    assert draw(tmp_path, [record(0)]).stat().st_size > 1000


def test_without_an_early_stop_its_panel_is_left_out() -> None:
    assert len(axes_of([record(0, early_stop_step=None), record(1, early_stop_step=None)])) == 1


def test_missing_values_and_nan_leave_a_gap() -> None:
    rows = [record(0), record(1, **{"test/acc": None}), record(2, **{"test/acc": math.nan}), record(3)]
    values = list(axes_of(rows)[0].get_lines()[0].get_ydata())
    assert [math.isnan(value) for value in values] == [False, True, True, False]


@pytest.mark.parametrize(
    ("columns", "chosen"),
    [
        ({"test/acc": 0.9, "val/acc": 0.8}, "test/acc"),
        ({"test/acc": None, "val/acc": 0.8}, "val/acc"),
        ({"test/acc": math.nan, "val/acc": 0.8}, "val/acc"),
        ({"train/loss": 1.0, "top5_acc": 0.8, "early_stop_val_acc": 0.8}, "top5_acc"),
        ({"train/loss": 1.0, "val/loss": 0.8}, "val/loss"),
        ({"perplexity": 12.0}, "perplexity"),
        ({}, None),
    ],
)
def test_metric(columns: dict[str, float | None], chosen: str | None) -> None:
    assert report.metric([{"round": 0, "arm": "ticket", "density": 1.0, **columns}]) == chosen


def test_a_loss_is_not_shown_in_percent() -> None:
    row = record(0, **{"val/loss": 0.5})
    del row["test/acc"]
    axes = axes_of([row])[0]
    assert axes.get_ylabel() == "val/loss at the end"
    assert list(axes.get_lines()[0].get_ydata()) == [0.5]


def test_says_so_where_no_metric_was_logged() -> None:
    row = record(0)
    del row["test/acc"]
    assert [text.get_text() for text in axes_of([row])[0].texts] == ["no metric was logged"]


def test_markers_and_colours_repeat_late() -> None:
    rows = [record(0)] + [record(1, f"control{n}") for n in range(12)]
    lines = axes_of(rows)[0].get_lines()[:13]
    assert len({(line.get_color(), line.get_marker()) for line in lines}) == 13


def test_refuses_records_without_a_row(tmp_path: Path) -> None:
    write_records(tmp_path / "records.csv", [])
    with pytest.raises(ValueError, match=r"records\.csv holds no row, expected one per finished round"):
        report.draw(tmp_path)


def test_a_pdf_embeds_its_fonts_as_truetype(tmp_path: Path) -> None:
    draw(tmp_path, eleven_rounds())
    written = report.draw(tmp_path, tmp_path / "report.pdf").read_bytes()
    assert written.startswith(b"%PDF-")
    assert b"/FontFile2" in written
    assert b"/Type3" not in written


def test_an_svg_has_its_text_as_paths(tmp_path: Path) -> None:
    draw(tmp_path, eleven_rounds())
    written = report.draw(tmp_path, tmp_path / "report.svg").read_text()
    assert "<path" in written
    assert "<text" not in written


@pytest.mark.parametrize("kind", report.FORMATS)
def test_the_same_records_give_the_same_bytes_in_every_format(tmp_path: Path, kind: str) -> None:
    draw(tmp_path, eleven_rounds())
    first, second = (report.draw(tmp_path, tmp_path / f"{name}.{kind}").read_bytes() for name in "ab")
    assert first == second


def test_refuses_another_format(tmp_path: Path) -> None:
    draw(tmp_path, [record(0)])
    with pytest.raises(ValueError, match=r"report\.jpg ends with '\.jpg', expected one of \.png, \.pdf, \.svg\."):
        report.draw(tmp_path, tmp_path / "report.jpg")


def seen(colour: str, kind: str) -> np.ndarray:
    """A colour as people with a kind of colour vision see it, in CIELAB.

    Source: Machado et al. 2009, table 1, severity 1; the matrices work on linear RGB.
    """
    matrices = {
        "any": np.eye(3),
        "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
        "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
    }
    srgb = np.array([int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)])
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    linear = np.clip(np.array(matrices[kind]) @ linear, 0, 1)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = np.cbrt(to_xyz @ linear / np.array([0.9505, 1.0, 1.089]))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("kind", ["any", "protan", "deutan", "tritan"])
def test_colours_are_told_apart_with_every_kind_of_colour_vision(kind: str) -> None:
    lab = [seen(colour, kind) for colour in report.COLOURS]
    assert min(np.linalg.norm(a - b) for a, b in combinations(lab, 2)) > 10  # 2.3 is just noticeable
