"""The code of README.md runs as it is written there; `test_docs.py` looks at its commands."""

import re
from pathlib import Path

import lightning as L
from tiny import Tiny, loaders

from lt_lightning.records import read_records

TEXT = (Path(__file__).parents[1] / "README.md").read_text()
CONFIGURATIONS = Path(__file__).parents[1] / "conf" / "experiment"


class Data(L.LightningDataModule):
    def train_dataloader(self):
        return loaders()[0]

    def val_dataloader(self):
        return loaders()[1]

    test_dataloader = val_dataloader


def test_the_code_runs_as_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"L": L, "make_model": Tiny, "datamodule": Data()}
    loop, afterwards = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    exec(loop.replace("max_epochs=20", "max_epochs=2"), names)
    rows = read_records(Path("runs/mine/records.csv"))
    assert [row["round"] for row in rows] == list(range(11))
    assert all(row["test/acc"] is not None for row in rows)
    exec(afterwards, names)
    assert Path("runs/mine/report.html").exists()
    for name, mask in names["ticket"].masks.items():
        assert not names["fresh"].get_parameter(name)[~mask].any()
    assert names["ticket"].metrics["test/acc"] == rows[3]["test/acc"]


def test_the_number_of_experiments_is_right():
    experiments = list(CONFIGURATIONS.glob("*.yaml"))
    papers = {paper for path in experiments for paper in re.findall(r"arXiv (\d{4}\.\d{5})", path.read_text())}
    assert f"{len(experiments)} experiments of {len(papers)} papers" in TEXT.replace("ten", "10")
