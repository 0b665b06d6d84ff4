"""A dry run: the table of what would be pruned and what not, and nothing else."""

import re

import pytest
import torch
from app import run
from tiny import Tiny
from torch import nn

from lt_lightning import geometric, layerwise, lottery
from lt_lightning.disk.rundir import remove_empty

TABLE = """\
pruned         shape  count  share
hidden.weight  12x8      96  72.7%
output.weight  3x12      36  27.3%

not pruned   shape  count  why
hidden.bias  12        12  bias
norm.weight  12        12  normalisation
norm.bias    12        12  normalisation
output.bias  3          3  bias

132 of 171 parameters may be pruned, in 2 of 6 tensors
"""


def preview(tmp_path, model=Tiny, **arguments):
    return list(lottery(model, directory=tmp_path / "run", dry_run=True, **({"rounds": 2} | arguments)))


def test_the_table_and_nothing_else(tmp_path, capsys):
    assert preview(tmp_path) == []
    assert capsys.readouterr().out == TABLE + "kept: 132 in round 0, 106 in round 1, 84 in round 2\n"
    assert list(tmp_path.iterdir()) == []


def test_the_counts_are_those_of_the_scope_and_the_schedule(tmp_path, capsys):
    preview(tmp_path, rounds=7, scope=layerwise, schedule=geometric({"output*": 0.5, "*": 0.2}))
    last = capsys.readouterr().out.splitlines()[-1]
    counts = [round(96 * 0.8**n) + round(36 * 0.5**n) for n in range(8)]
    assert last == (
        f"kept: {counts[0]} in round 0, {counts[1]} in round 1, {counts[2]} in round 2, {counts[3]} in round 3, ..., "
        f"{counts[7]} in round 7"
    )


def test_large_counts_and_all_reasons_of_patterns(tmp_path, capsys):
    class Wide(Tiny):
        def __init__(self):
            super().__init__()
            self.hidden, self.words = nn.Conv2d(40, 30, 5), nn.Embedding(5, 2)
            self.scale = nn.Parameter(torch.tensor(1.0))

    preview(tmp_path, Wide, rounds=0, prunable=["+words.weight", "!output.*"])
    assert capsys.readouterr().out == (
        "pruned         shape       count  share\n"
        "hidden.weight  30x40x5x5  30,000   100%\n"
        "words.weight   5x2            10  0.0333%\n"
        "\n"
        "not pruned     shape   count  why\n"
        "scale          scalar      1  a parameter of Wide, which is no layer that we know; name it in prunable\n"
        "hidden.bias    30         30  bias\n"
        "norm.weight    12         12  normalisation\n"
        "norm.bias      12         12  normalisation\n"
        'output.weight  3x12       36  left out by "!output.*"\n'
        'output.bias    3           3  left out by "!output.*"\n'
        "\n"
        "30,010 of 30,104 parameters may be pruned, in 2 of 8 tensors\n"
        "kept: 30,010 in round 0\n"
    )


def test_where_nothing_is_prunable_the_table_says_why_before_the_error(tmp_path, capsys):
    with pytest.raises(ValueError, match="nothing is prunable"):
        preview(tmp_path, prunable=lambda *_: False)
    out = capsys.readouterr().out
    assert out.startswith("not pruned ")
    assert "hidden.weight  12x8      96  not accepted by <lambda>\n" in out
    assert out.endswith("\n0 of 171 parameters may be pruned, in 0 of 6 tensors\n")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_work_is_refused_in_a_dry_run_too(tmp_path):
    with pytest.raises(ValueError, match=re.escape("the pattern 'hiden*' matches nothing")):
        preview(tmp_path, schedule=geometric({"hiden*": 0.1, "*": 0.2}))
    with pytest.raises(ValueError, match="rounds=-1 must be a whole number"):
        preview(tmp_path, rounds=-1)


def test_a_model_that_is_made_in_configure_model_is_made_under_the_seed(tmp_path, capsys):
    made = []

    class Late(Tiny):
        def configure_model(self):
            self.late = nn.LazyLinear(2)
            self.example_input_array = torch.zeros(1, 8)
            made.append(torch.rand(1))

        def forward(self, x):
            return self.late(x)

    torch.manual_seed(1)
    before = torch.get_rng_state()
    preview(tmp_path, Late)
    preview(tmp_path, Late)
    assert "late.weight    2x8       16  10.8%\n" in capsys.readouterr().out
    assert made[0] == made[1]
    assert torch.equal(torch.get_rng_state(), before)


def test_a_finished_run_may_be_looked_at_with_other_arguments(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("lottery: {rounds: 3}\n")
    preview(tmp_path, seed=5)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.yaml"]


# From the command line


def test_train_py_prints_the_table_reads_no_data_and_leaves_no_directory(tmp_path, capsys):
    directory = tmp_path / "seed-0"
    directory.mkdir()
    run(directory, "prune.dry_run=true", "data=mnist", "data.path=/nowhere", "prune.rounds=1")
    out = capsys.readouterr().out
    assert out.splitlines()[1] == "network.hidden1.weight  300x784  235,200  88.4%"
    assert out.endswith("kept: 266,200 in round 0, 212,960 in round 1\n")
    assert list(tmp_path.iterdir()) == []


def test_patterns_from_the_command_line(tmp_path, capsys):
    run(tmp_path, "prune.dry_run=true", 'prune.prunable=["+*.bias","!*output*"]')
    out = capsys.readouterr().out
    assert "\nnetwork.hidden2.bias    100         100  0.202%\n" in out
    assert '\nnetwork.output.weight  10x100  1,000  left out by "!*output*"\n' in out


def test_a_command_that_fails_at_once_leaves_no_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    directory = tmp_path / "runs" / "default" / "iterative" / "seed-0"
    directory.mkdir(parents=True)
    with pytest.raises(ValueError, match="must be a whole number"):
        run(directory, "prune.rounds=-1")
    assert [path.name for path in tmp_path.rglob("*")] == ["runs"]


def test_only_empty_directories_are_removed_and_none_above_the_root(tmp_path):
    kept, gone = tmp_path / "runs" / "a" / "kept", tmp_path / "runs" / "a" / "gone"
    for directory in (kept, gone):
        directory.mkdir(parents=True)
    (kept / "file").touch()
    for directory in (kept, gone, gone):
        remove_empty(directory, tmp_path / "runs")
    assert [path.name for path in sorted(tmp_path.rglob("*"))] == ["runs", "a", "kept", "file"]
    elsewhere = tmp_path / "elsewhere" / "below"
    elsewhere.mkdir(parents=True)
    remove_empty(elsewhere, tmp_path / "runs")
    assert (tmp_path / "elsewhere").exists()
    assert not elsewhere.exists()


@pytest.mark.parametrize(
    ("arguments", "counts"),
    [
        ({"density": 0.05, "rounds": 5}, [132, 73, 40, 22, "...", 7]),
        ({"density": 0.3}, [132, 106, 84, 68, "...", 40]),
        ({"density": {"output*": 0.5, "*": 0.1}, "rounds": 3}, [132, 74, 44, 28]),
        ({"density": {"output*": 0.5, "*": 0.1}, "rounds": 1}, [132, 28]),
    ],
)
def test_rounds_to_a_density_keep_the_same_part_each_and_end_at_exactly_its_count(tmp_path, capsys, arguments, counts):
    list(lottery(Tiny, directory=tmp_path, dry_run=True, **arguments))
    told = capsys.readouterr().out.splitlines()[-1].removeprefix("kept: ").split(", ")
    assert [each if each == "..." else int(each.split(" in ")[0]) for each in told] == counts
