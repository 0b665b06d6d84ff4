import hashlib
import json
import math
import re
import time
from itertools import pairwise
from pathlib import Path

import pytest
from browser import CHROMIUM, chromium
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageStat
from studies import SMALL, make_run, make_study

from lt_lightning.__main__ import main
from lt_lightning.analysis import contents, fits, layers, movement, page, summary
from lt_lightning.disk import runs
from lt_lightning.records import COLUMNS, read_records, write_records

PARTS = Path(page.__file__).parent


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Two seeds of three rounds."""
    root = tmp_path_factory.mktemp("study") / "lenet"
    make_study(root, seeds=2, rounds=3, points=40)
    return root


@pytest.fixture(scope="module")
def gathered(study):
    return contents.gather(study)


def data_of(text):
    """What the charts of a page show."""
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1])


# What is gathered


def test_lines_are_the_aggregated_records(study, gathered):
    expected = summary.aggregate(summary.collect(study)[0])
    assert [(line["label"], line["arm"]) for line in gathered["lines"]] == [
        (n, n) for n in ("ticket", "random_mask", "reinit")
    ]
    for line in gathered["lines"]:
        for metric in gathered["metrics"]:
            own = [row for row in expected if (row["arm"], row["metric"]) == (line["arm"], metric)]
            assert line["points"][metric] == [
                [row[key] for key in ("density", "mean", "min", "max", "n")] for row in own
            ]
    assert gathered["dense"]["lenet"]["test/acc"] == next(r["mean"] for r in expected if r["metric"] == "test/acc")
    assert gathered["chosen"] == {"accuracy": "test/acc", "loss": "test/loss", "stop": "early_stop_step"}
    assert gathered["fractions"] == ["test/acc", "early_stop_test_acc"]


def test_curves_are_those_of_the_fits(study, gathered):
    curves = gathered["curves"]
    assert curves["metrics"] == ["train/loss", "val/loss", "val/acc"]
    assert len(curves["lines"]) == 3 * sum(len(run.done) for run in runs.find(study)) == 3 * 2 * 10
    for name, round, arm, metric, where, values in curves["lines"]:
        path = Path(runs.marker(str(study / name), round, arm)).with_name("metrics.csv")
        rows = read_records(path)
        assert curves["steps"][where] == [row["step"] for row in rows]
        assert values == pytest.approx([row[metric] for row in rows], rel=6e-4)
    assert gathered["notes"] == []


def test_long_curves_are_thinned_and_the_page_says_so(tmp_path):
    make_run(tmp_path / "seed=0", 0, 1, points=400)
    found = contents.gather(tmp_path / "seed=0")
    assert {len(steps) for steps in found["curves"]["steps"]} == {150}
    assert (found["curves"]["steps"][0][0], found["curves"]["steps"][0][-1]) == (100, 40000)
    assert "6 of 6 curves are thinned: of each, 150 evenly spaced points of those that were logged" in found["notes"][0]


def test_of_too_many_curves_some_are_left_out_and_the_page_says_so(study, monkeypatch):
    monkeypatch.setattr(contents, "MOST_NUMBERS", 3 * 12 * 7)
    found = contents.gather(study)
    assert len(found["curves"]["lines"]) == 3 * 7
    assert found["notes"][0] == "Curves of 13 of 20 fits are left out, those of the last runs."


@given(st.integers(0, 1000), st.integers(2, 50))
def test_thinning_keeps_the_ends_and_the_order(count, most):
    kept = contents.thin(count, most)
    assert len(kept) == min(count, most)
    assert kept == sorted(set(kept))
    assert not count or (kept[0], kept[-1]) == (0, count - 1)


def test_layers_and_pixels_are_those_of_the_masks(study, gathered):
    run = runs.find(study)[1]
    found, pixels = (gathered[key]["prune=iterative/seed=1"] for key in ("layers", "pixels"))
    assert found["names"] == ["hidden", "output", "all layers"]
    assert found["rounds"] == pixels["rounds"] == [0, 1, 2, 3]
    for at, fit in enumerate(fits.of(run, controls=False)):
        masks = fit.masks()
        assert found["densities"][at] == pytest.approx([row["density"] for row in layers.describe(masks)], rel=6e-4)
        assert sum(map(sum, pixels["maps"][at])) == int(masks["hidden.weight"].sum())
        assert [len(pixels["maps"][at]), len(pixels["maps"][at][0])] == [28, 28]


def test_overlap_compares_rounds_controls_and_seeds(gathered):
    lines = {line["kind"]: line["points"] for line in gathered["overlap"]}
    assert sorted(lines) == ["other seeds, same round", "random_mask, same round", "the round before"]
    for _, density, jaccard, _, _, _, count in lines["the round before"]:
        assert density < 1
        assert jaccard == pytest.approx(0.8, abs=0.01)  # nested
        assert count == 2
    assert [point[0] for point in lines["other seeds, same round"]] == [1, 2, 3]
    for _, _, jaccard, low, high, chance, count in lines["other seeds, same round"]:
        assert low == jaccard == high == pytest.approx(chance, abs=0.03)
        assert count == 1


def test_movement_is_that_of_the_analysis(study, gathered):
    run = runs.find(study)[0]
    expected = [row for row in movement.tabulate(run) if row["layer"] == fits.ALL]
    found = gathered["movement"]["prune=iterative/seed=0"]
    assert sorted(found) == ["random_mask, all", "reinit, all", "ticket, kept next", "ticket, pruned next"]
    for name, points in found.items():
        arm, group = name.replace(" next", "").split(", ")
        shift, group = (1, group) if arm == "ticket" else (0, "kept")
        own = [r for r in expected if (r["arm"], r["group"], r["mask_round"] - r["round"]) == (arm, group, shift)]
        for point, row in zip(points, own, strict=True):
            wanted = [row[key] for key in ("round", "density", "moved", "relative", "sign_changes")]
            assert point == pytest.approx(wanted, rel=6e-4)


@pytest.mark.parametrize("is_there", [False, True])
def test_what_cannot_be_read_is_left_out_and_said(tmp_path, is_there):
    run = make_run(tmp_path / "seed=0", 0, 2, points=5)
    (run / "round-01" / "final.ckpt").unlink()
    if is_there:
        (run / "round-01" / "final.ckpt").write_bytes(b"nothing that torch.load reads")
    (run / "round-02" / "metrics.csv").unlink()
    found = contents.gather(run)
    (note,) = found["notes"]
    assert note.startswith(f"Left out: {found['runs'][0]['name']}: the movement of weights. ")
    assert ("UnpicklingError" if is_there else "FileNotFoundError") in note
    assert len(found["layers"]) == 1
    assert len(found["curves"]["lines"]) == 2 * 3


def test_large_masks_and_weights_are_left_to_the_command(study):
    found = contents.gather(study, most_bytes=1000)
    assert found["layers"] == found["movement"] == {}
    (note,) = found["notes"]
    told = "Masks and weights are left out, since their files hold 2 MB"
    assert note == f"{told}: `python -m lt_lightning report DIR` looks at them."


def test_a_round_0_that_was_not_trained_is_no_reference(tmp_path):
    run = make_run(tmp_path / "seed=0", 0, 1, points=5)
    assert contents.gather(run)["dense"]
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("dense: true", "dense: false"))
    found = contents.gather(run)
    assert (found["dense"], found["finding"]) == ({}, None)
    assert [point[0] for line in found["lines"] for point in line["points"]["test/acc"]] == [
        pytest.approx(0.8, abs=1e-3)
    ]
    assert {line[1] for line in found["curves"]["lines"]} == {1}


@pytest.mark.parametrize(
    ("accuracies", "finding"),
    [
        (
            [0.98, 0.99, 0.98, 0.97],
            "The sparsest ticket that reaches it keeps 64% of the weights: 98.00% (ticket, one seed).",
        ),
        ([0.98, 0.97, 0.96, 0.95], "No ticket reaches it."),
        ([0.98, 0.97, None, math.nan], "No ticket reaches it."),
    ],
)
def test_the_finding(tmp_path, accuracies, finding):
    run = make_run(tmp_path / "seed=0", 0, 3, points=5)
    rows = [row | {"test/acc": value} for row, value in zip(read_records(run / "records.csv"), accuracies, strict=True)]
    write_records(run / "records.csv", rows)
    assert contents.gather(run)["finding"] == f"test/acc of the dense network: 98.00%. {finding}"


def test_nothing_finished_is_said(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    assert f"no run at or below {tmp_path} has finished a round yet." in capsys.readouterr().err


# The page


def test_the_csv_of_a_run_is_its_records_byte_for_byte(study, tmp_path):
    run = runs.find(study)[0].path
    data = data_of(page.write(run, tmp_path / "report.html").read_text())
    assert data["csv"]["name"] == "records.csv"
    assert data["csv"]["text"].encode() == Path(run, "records.csv").read_bytes()


def test_the_same_run_gives_the_same_bytes(study, tmp_path):
    first, second = (page.write(study, tmp_path / name).read_bytes() for name in ("a.html", "b.html"))
    assert first == second


def test_names_cannot_end_the_script_or_become_tags(tmp_path):
    run = make_run(tmp_path / "<img src=x>" / "seed=0", 0, 1, points=5)
    write_records(run / "records.csv", [row | {"</script>": 1.0} for row in read_records(run / "records.csv")])
    text = page.write(run).read_text()
    assert "<img" not in text
    assert text.count("</script>") == 3
    assert "</script>" in data_of(text)["metrics"]
    assert "<img src=x>" in data_of(text)["curves"]["lines"][0][0]


def test_the_page_tells_how_it_was_made(study, tmp_path):
    text = page.write(study, tmp_path / "report.html").read_text()
    assert "python train.py seed=0" in text
    assert "python train.py seed=1" in text
    assert text.count("<dt>torch</dt>") == 1  # both runs were made in one environment
    assert "config.yaml of prune=iterative/seed=0" in text
    assert "config.yaml of prune=iterative/seed=1" not in text  # the same method


def test_the_command_writes_every_format(study, tmp_path, capsys):
    assert main(["report", str(study), "--output", str(tmp_path), "--format", "html", "png", "pdf", "svg"]) == 0
    names = ["report.html", "report.png", "report.pdf", "report.svg"]
    assert capsys.readouterr().out.split() == [word for name in names for word in ("written", f"{tmp_path}/{name}")]
    starts = [(tmp_path / name).read_bytes()[:5] for name in names]
    assert starts == [b"<!doc", b"\x89PNG\r", b"%PDF-", b"<?xml"]


def test_the_command_names_its_files_for_programs(study, tmp_path, capsys):
    assert main(["report", str(study), "--output", str(tmp_path), "--format", "html", "svg", "--json"]) == 0
    written = json.loads(capsys.readouterr().out)
    assert written == {"written": [f"{tmp_path}/report.html", f"{tmp_path}/report.svg"]}
    assert sorted(file.name for file in tmp_path.iterdir()) == ["report.html", "report.svg"]


def test_the_copy_of_plotly_is_the_one_that_is_described():
    described = (PARTS / "README.md").read_text()
    content = (PARTS / "plotly-cartesian.min.js").read_bytes()
    assert hashlib.sha256(content).hexdigest() in described
    version = re.search(rb"plotly\.js \(cartesian - minified\) v([\d.]+)", content)[1].decode()
    assert version == "4.1.1"
    assert described.count(version) == 2
    assert "MIT" in (PARTS / "plotly-LICENSE").read_text()


# In a browser

needs_chromium = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: apt-get install chromium"),
]


def browsing(test):
    for mark in needs_chromium:
        test = mark(test)
    return test


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """The study that the page is made for: three seeds, twenty rounds, three arms; and its page."""
    root = tmp_path_factory.mktemp("large") / "lenet"
    make_study(root, seeds=3, rounds=20)
    return root, page.write(root)


@pytest.fixture(scope="module")
def tab():
    with chromium() as opened:
        yield opened


@pytest.fixture
def opened(tab, large):
    tab.open(large[1])
    yield tab
    assert tab.complaints() == []
    assert [url[:60] for url in tab.requests() if not url.startswith(("file:", "data:", "blob:"))] == []


def traces(tab, chart, kind):
    """Name, number of points and visibility of the traces of a kind, of the chart under a heading."""
    found = tab.run(
        f"charts.find((c) => c.heading === {json.dumps(chart)})"
        f".drawing.data.filter((t) => t.meta === {json.dumps(kind)})"
        ".map((t) => [t.name, t.x.filter((x, n) => t.y[n] !== null).length, t.visible])"
    )
    return [tuple(each) for each in found]


@browsing
def test_a_large_study_is_small_and_opens_at_once(tab, large, record_property):
    size = large[1].stat().st_size
    assert size < 3e6
    seconds = []
    for _ in range(4):
        start = time.monotonic()
        tab.open(large[1])
        seconds.append((time.monotonic() - start, tab.worked()))
    told = ", ".join(f"{whole:.2f} ({worked:.2f})" for whole, worked in seconds)
    record_property("table", f"{size / 1e6:.2f} MB; all charts drawn after {told} seconds (of the processor)")
    assert 0 < min(worked for _, worked in seconds) < 1  # the least, to which nothing else on the machine adds


@browsing
def test_every_chart_has_as_many_points_as_the_records_say(opened, large):
    rows = summary.aggregate(summary.collect(large[0])[0])
    for chart, metric in (("Accuracy", "test/acc"), ("Loss", "test/loss"), ("Early stop", "early_stop_step")):
        counts = {
            arm: sum((r["arm"], r["metric"]) == (arm, metric) for r in rows)
            for arm in ("ticket", "random_mask", "reinit")
        }
        assert counts == {"ticket": 21, "random_mask": 20, "reinit": 20}
        assert {name: count for name, count, _ in traces(opened, chart, "line")} == counts
        assert len(traces(opened, chart, "band")) == 3
        assert traces(opened, chart, "dense") == [("dense", 2, True)]
    curves = traces(opened, "By step, with the dense round", "curve")
    assert sorted(curves) == [(n, 150, True) for n in ("dense", "random_mask", "reinit", "ticket") for _ in range(3)]
    assert [count for _, count, _ in traces(opened, "Density of layers", "layer")] == [21, 21, 21]
    assert [count for _, count, _ in traces(opened, "What masks have in common", "overlap")] == [20, 20, 20]
    assert {n: c for n, c, _ in traces(opened, "How far weights moved", "movement")} == {
        "ticket, kept next": 20, "ticket, pruned next": 20, "random_mask, all": 20, "reinit, all": 20,
    }  # fmt: skip
    assert opened.run("document.querySelectorAll('#records tbody tr').length") == 3 * 61


@browsing
def test_the_values_drawn_are_those_of_the_records(opened, large):
    rows = summary.aggregate(summary.collect(large[0])[0])
    own = [r for r in rows if (r["arm"], r["metric"]) == ("reinit", "test/acc")]
    drawn = opened.run(
        "charts[0].drawing.data.filter((t) => t.name === 'reinit' && t.meta === 'line').map((t) => [t.x, t.y])[0]"
    )
    assert drawn[0] == pytest.approx([100 * r["density"] for r in own])
    assert drawn[1] == pytest.approx([100 * r["mean"] for r in own])


@browsing
def test_the_download_is_the_csv_byte_for_byte(opened, large, tmp_path):
    run = runs.find(large[0])[0].path
    opened.send("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    opened.open(page.write(run, tmp_path / "report.html"))
    opened.run("document.getElementById('download').click()")
    end = time.monotonic() + 30
    while not (tmp_path / "records.csv").exists():
        assert time.monotonic() < end
        time.sleep(0.05)
    assert (tmp_path / "records.csv").read_bytes() == Path(run, "records.csv").read_bytes()


@browsing
def test_hovering_tells_the_point(opened):
    x, y = opened.run(
        "(() => { const p = document.querySelectorAll('#chart-0 .scatterlayer .point')[3].getBoundingClientRect();"
        " return [p.x + p.width / 2, p.y + p.height / 2]; })()"
    )
    opened.move(x - 30, y)
    opened.move(x, y)
    opened.wait("document.querySelector('#chart-0 .hoverlayer .hovertext') !== null")
    told = opened.run("document.querySelector('#chart-0 .hoverlayer').textContent")
    assert re.search(r"(ticket|reinit|random_mask)[\d.]+% kept: [\d.]+", told)


@browsing
def test_lines_are_hidden_everywhere_by_a_box_or_in_a_legend(opened):
    shown = "charts.slice(0, 4).map((c) => c.drawing.data.some((t) => t.name === 'reinit' && t.visible === true))"
    assert opened.run(shown) == [True] * 4
    opened.run("document.querySelector('#lines input[value=reinit]').click()")
    assert opened.run(shown) == [False] * 4
    assert opened.run("document.getElementById('told').textContent") == "reinit is hidden"
    x, y = opened.run(
        "(() => { const all = [...document.querySelectorAll('#chart-1 .legend .traces')];"
        " const r = all.find((e) => e.textContent.includes('reinit')).getBoundingClientRect();"
        " return [r.x + r.width / 2, r.y + r.height / 2]; })()"
    )
    opened.click(x, y)
    opened.wait(f"({shown}).every((each) => each)")
    assert opened.run("document.querySelector('#lines input[value=reinit]').checked") is True


@browsing
def test_zoom_and_reset(opened):
    ranges = "['xaxis', 'yaxis'].map((a) => charts[0].drawing._fullLayout[a].range.slice())"
    before = opened.run(ranges)
    opened.run("document.querySelector('[aria-label=\"Zoom in: Accuracy\"]').click()")
    inside = opened.run(ranges)
    for (a, b), (c, d) in zip(before, inside, strict=True):
        assert abs(d - c) == pytest.approx(0.6 * abs(b - a))
    opened.run("document.querySelector('[aria-label=\"Reset zoom: Accuracy\"]').click()")
    for one, other in zip(opened.run(ranges), before, strict=True):
        assert one == pytest.approx(other)


@browsing
def test_the_slider_shows_the_curves_of_a_round_by_keyboard(opened):
    opened.run("document.querySelector('#curves-controls input[type=range]').focus()")
    for _ in range(4):
        opened.key("ArrowRight")
    assert opened.run("document.activeElement.getAttribute('aria-valuetext')") == "round 5"
    assert opened.run("charts[3].made.rows.map((row) => row[2]).filter((n, at, all) => all.indexOf(n) === at)") == [
        0,
        5,
    ]
    opened.run("[...document.querySelectorAll('#curves-controls select')][0].focus()")
    opened.key("End")
    assert opened.run("charts[3].made.columns.at(-1)") == "val/acc"


@browsing
def test_focus_is_seen_and_everything_has_a_name(opened):
    opened.key("Tab")
    assert opened.run("document.activeElement.textContent") == "Skip to the charts"
    assert opened.run("getComputedStyle(document.activeElement).outlineWidth") == "3px"
    nodes = [n for n in opened.send("Accessibility.getFullAXTree")["nodes"] if not n.get("ignored")]
    roles = {}
    for node in nodes:
        roles.setdefault(node["role"]["value"], []).append(node.get("name", {}).get("value", ""))
    assert {"banner", "main", "contentinfo", "navigation"} <= set(roles)
    for role in ("button", "checkbox", "combobox", "slider", "image", "region", "link", "figure"):
        assert roles[role], role
        assert all(roles[role]), f"a {role} without a name"
    drawings = [name for name in roles["image"] if "The table below holds all its numbers." in name]
    assert len(drawings) == 8
    assert any(
        re.search(r"Accuracy\. Lines of test/acc at the end \(%\).* dense: 9\d\.\d+; ticket: ", n) for n in drawings
    )
    levels = opened.run("[...document.querySelectorAll('h1, h2, h3')].map((h) => Number(h.tagName[1]))")
    assert levels[0] == 1 == levels.count(1)
    assert all(b - a <= 1 for a, b in pairwise(levels))


@browsing
def test_every_chart_is_also_a_table(opened):
    opened.run("document.querySelectorAll('figure details').forEach((each) => (each.open = true))")
    opened.wait("[...document.querySelectorAll('figure details table')].length === charts.length")
    rows = opened.run("charts.map((c) => c.body.querySelectorAll('tbody tr').length)")
    assert rows[:3] == [61, 61, 61]
    assert rows[3] == 12 * 150
    assert rows[5] == 28  # a row of pixels each
    assert min(rows) > 0


@browsing
@pytest.mark.parametrize("dark", [False, True])
def test_text_has_contrast_in_light_and_dark(tab, large, dark):
    tab.open(large[1], dark=dark)
    colours = tab.run(
        "['body', 'a[href]', '.kind', 'dt', 'button', '.note', '#chart-0 .xtick text'].map((s) => {"
        " const e = document.querySelector(s), style = getComputedStyle(e); let b = e;"
        " while (b && getComputedStyle(b).backgroundColor === 'rgba(0, 0, 0, 0)') b = b.parentElement;"
        " return [s, s.startsWith('#chart') ? style.fill : style.color, getComputedStyle(b).backgroundColor]; })"
    )
    for place, ink, paper in colours:
        assert contrast(ink, paper) >= 4.5, f"{place}: {ink} on {paper}"
    assert (luminance(colours[0][2]) < 0.1) == dark
    for line in tab.run("charts[0].drawing.data.filter((t) => t.meta === 'line').map((t) => t.line.color)"):
        rgb = ", ".join(str(int(line[at : at + 2], 16)) for at in (1, 3, 5))
        assert contrast(f"rgb({rgb})", colours[0][2]) >= 3, line


def luminance(colour):
    """Of WCAG 2.2."""
    parts = [int(each) / 255 for each in re.findall(r"\d+", colour)[:3]]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    """The ratio of WCAG 2.2."""
    bright, dim = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dim + 0.05)


@browsing
def test_nothing_is_wider_than_a_phone(tab, large):
    tab.open(large[1], width=360, height=740, touch=True)
    assert tab.run("document.documentElement.scrollWidth") <= 360
    assert (
        tab.run("charts.map((c) => c.drawing.querySelector('.main-svg').getBoundingClientRect().right <= innerWidth)")
        == [True] * 8
    )


@browsing
def test_pictures_of_the_page_have_the_size_and_the_scheme_of_their_window(tab, large, tmp_path):
    looks = {"desktop": {}, "phone": {"width": 360, "height": 740, "touch": True}, "dark": {"dark": True}}
    seen = {}
    for name, look in looks.items():
        tab.open(large[1], **look)
        tab.screenshot(tmp_path / f"{name}.png")
        with Image.open(tmp_path / f"{name}.png") as picture:
            seen[name] = picture.size, ImageStat.Stat(picture.convert("L")).mean[0]
            assert len(picture.convert("RGB").getcolors(1 << 21)) > 100, f"{name} is more than a blank"
    assert {name: size for name, (size, _) in seen.items()} == {
        "desktop": (1280, 900), "phone": (360, 740), "dark": (1280, 900),
    }  # fmt: skip
    assert seen["dark"][1] < 80 < 200 < seen["desktop"][1]
    tab.open(large[1], width=360, height=740, touch=True)
    tab.screenshot(tmp_path / "whole.png", whole=True)
    with Image.open(tmp_path / "whole.png") as picture:
        assert picture.size == (360, tab.run("document.documentElement.scrollHeight"))


@browsing
def test_it_prints_light_and_within_the_page(tab, large, tmp_path):
    tab.open(large[1], dark=True)
    tab.print(tmp_path / "report.pdf")
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF-")
    tab.run("print(true)")
    assert tab.run("charts.map((c) => c.drawing._fullLayout.width)") == [620] * 8
    assert tab.run("charts[0].drawing._fullLayout.font.color") == "#1b1f24"
    tab.run("print(false)")
    assert tab.run("charts[0].drawing._fullLayout.font.color") == "#e6e9ec"
    assert tab.complaints() == []


@browsing
def test_methods_differ_by_colour_and_runs_can_be_chosen(tab, tmp_path):
    make_study(tmp_path / "lenet", seeds=1, rounds=2, controls=("reinit",), points=5, methods=2, shapes=SMALL)
    tab.open(page.write(tmp_path / "lenet"))
    found = tab.run(
        "charts[0].drawing.data.filter((t) => t.meta === 'line').map((t) => [t.name, t.line.color, t.marker.symbol])"
    )
    assert len(found) == 4
    assert [found[0][1] == found[1][1], found[0][1] == found[2][1], found[0][2] == found[2][2]] == [True, False, True]
    told = "document.querySelector('#inside-charts figcaption').textContent"
    for name in ("prune=iterative/seed=0", "prune=iterative,lr=1/seed=0"):
        tab.run(
            "{ const list = document.querySelector('#inside-controls select');"
            f" list.value = {json.dumps(name)}; list.dispatchEvent(new Event('change')); }}"
        )
        assert tab.run(told) == f"{name}. "
    assert tab.complaints() == []


@browsing
def test_a_run_of_one_round_without_curves_or_metrics(tab, tmp_path):
    run = make_run(tmp_path / "seed=0", 0, 0, points=1)
    (run / "round-00" / "metrics.csv").unlink()
    rows = [{key: row[key] for key in COLUMNS} for row in read_records(run / "records.csv")]
    write_records(run / "records.csv", [row | {"early_stop_step": None} for row in rows])
    tab.open(page.write(run))
    assert tab.complaints() == []
    assert tab.run("document.getElementById('curves').hidden") is True
