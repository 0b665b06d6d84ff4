"""What README.md says runs."""

import re
from pathlib import Path

import lightning as L
import pytest
from app import CONF, composed
from lightning.pytorch.cli import LightningCLI
from tiny import STEPS_PER_EPOCH, Tiny, loaders
from torch import nn

from lt_lightning import lottery
from lt_lightning.analysis import page
from lt_lightning.analysis.report import draw
from lt_lightning.controls import _OURS
from lt_lightning.prunable import find_prunable
from lt_lightning.records import read_records

TEXT = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


class Data(L.LightningDataModule):
    def train_dataloader(self):
        return loaders()[0]

    def val_dataloader(self):
        return loaders()[1]

    test_dataloader = val_dataloader


def test_the_code_runs_as_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"L": L, "make_model": Tiny, "MyModule": Tiny, "datamodule": Data(), "cfg": composed()}
    four, two_more, _, application, _, _, use, extend = BLOCKS
    exec(four.replace("max_epochs=20", "max_epochs=2") + two_more, names)
    rows = read_records(Path("runs/mine/records.csv"))
    assert [row["round"] for row in rows] == list(range(11))
    assert all(row["test/acc"] is not None and row["early_stop_test_acc"] is not None for row in rows)
    exec(use, names)
    assert set(names["ticket"].masks) == {"hidden.weight", "output.weight"}
    for name, mask in names["ticket"].masks.items():
        assert not names["model"].get_parameter(name)[~mask].any()
        assert names["fresh"].get_buffer(f"{name}_mask").bool().equal(mask)
    assert names["ticket"].metrics["test/acc"] == rows[3]["test/acc"]
    assert draw("runs/mine").exists()
    assert page.write("runs/mine").exists()
    exec(re.sub(r"^(lottery\(.*\))$", r"next(\1)", extend, flags=re.MULTILINE), names)
    assert "large_throughout" in Path("runs/large_throughout/config.yaml").read_text()
    with pytest.raises(RuntimeError, match="round-00 was not trained"):  # its body is left out
        exec("from hydra.utils import instantiate\n" + application, names)


def test_the_ways_to_choose_what_is_pruned():
    layers = {"hidden1": nn.Linear(40, 40), "embedding": nn.Embedding(4, 40), "head": nn.Linear(40, 4)}
    found = {}
    for line in re.findall(r"^prunable=.*", BLOCKS[5], re.MULTILINE):
        exec("from lt_lightning import layer_weights\n" + line, names := {})
        found[line.split(" ")[0]] = set(find_prunable(nn.ModuleDict(layers), names["prunable"]))
    assert found == {
        'prunable=["hidden*.weight"]': {"hidden1.weight"},
        'prunable=["!*head*"]': {"hidden1.weight"},
        'prunable=["+embedding.weight"]': {"hidden1.weight", "embedding.weight", "head.weight"},
        "prunable=lambda": {"hidden1.weight"},
    }


def test_the_loop_of_a_command_line_runs_as_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quiet = [f"--trainer.{key}=false" for key in ("logger", "enable_progress_bar", "enable_model_summary")]
    callbacks = ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val/loss"]
    options = ["--trainer.max_epochs=2", "--trainer.accelerator=cpu", "--optimizer=SGD", "--optimizer.lr=0.1"]
    monkeypatch.setattr("sys.argv", ["program", *quiet, *options, *callbacks])
    names = {"LightningCLI": LightningCLI, "lottery": lottery, "MyModule": Tiny, "MyData": Data}
    exec(BLOCKS[2], names)
    fits = [row["steps"] for row in read_records(Path("runs/cli/records.csv"))]
    assert fits == [2 * STEPS_PER_EPOCH] * 4
    assert [type(each).__name__ for each in names["trainer"].callbacks][:2] == ["EarlyStopping", "SaveConfigCallback"]
    assert names["trainer"].optimizers[0].param_groups[0]["lr"] == 0.1
    Path("runs/cli/round-03/done").unlink()
    exec(BLOCKS[2], names)  # as if it had been interrupted: the stored command line does not stand in the way


def test_the_choices_of_the_table_are_the_configurations():
    for group in ("prune", "prune/criterion", "prune/scope", "prune/schedule", "prune/rewind", "model", "data"):
        row = re.search(rf"^\| `{group}` \| (.*) \|$", TEXT, re.MULTILINE)[1]
        files = {path.stem for path in (Path(__file__).parents[1] / "conf" / group).glob("*.yaml")}
        assert files <= set(re.findall(r"`([\w]+)`", row)), group
    experiments = {path.stem for path in (Path(__file__).parents[1] / "conf" / "experiment").glob("*.yaml")}
    table = re.search(r"^\| experiment \| of \|\n\|---\|---\|\n(.*?)\n\n", TEXT, re.MULTILINE | re.DOTALL)[1]
    assert experiments == set(re.findall(r"`(\w+)`", table))
    assert set(re.findall(r"`(\w+)` \*", table)) == {
        name for name in experiments if "sweeper" in (CONF / "experiment" / f"{name}.yaml").read_text()
    }


def test_the_table_of_controls_is_complete():
    table = re.search(r"^\| control \| changes \| to \|\n(.*?)\n\n", TEXT, re.MULTILINE | re.DOTALL)[1]
    assert re.findall(r"^\| `(\w+)", table, re.MULTILINE) == list(_OURS)


def test_the_tests_that_the_page_on_exactness_names_exist():
    root = Path(__file__).parents[1]
    page = (root / "docs" / "exactness.md").read_text()
    named = re.findall(r"`(?:tests/)?(test_\w+\.py)(?:::(\w+))?`", page)
    assert len(named) > 25
    for file, function in named:
        assert f"def {function or 'test_'}" in (root / "tests" / file).read_text(), (file, function)
