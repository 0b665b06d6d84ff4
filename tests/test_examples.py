"""Every example runs, on its own small data, and shows what its docstring says."""

import ast
import csv
import doctest
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import app
import matplotlib
import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from lt_lightning import load_ticket
from lt_lightning.__main__ import main
from lt_lightning.records import read_records

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
EXAMPLE = EXAMPLES / "load_ticket.py"
NOTEBOOK = EXAMPLES / "notebook.ipynb"
DIGITS = ROOT / "lt_lightning" / "data" / "digits.npz"
PAGE = (ROOT / "docs" / "ticket_file.md").read_text()

# In it neither the package nor Lightning can be imported.
WITHOUT_US = """
import runpy, sys
for name in ("lt_lightning", "lightning", "pytorch_lightning"):
    sys.modules[name] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory):
    """`train.py` on digits: two pruned rounds of three epochs."""
    directory = tmp_path_factory.mktemp("digits") / "run"
    app.run(directory, "prune.rounds=2", "trainer.max_epochs=3", "prune.controls=[]", "share_dense=false")
    return directory


@pytest.fixture(autouse=True)
def _examples_are_found(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)


@pytest.fixture
def example(_examples_are_found):
    return import_module("load_ticket")


@pytest.fixture
def played(_examples_are_found, tmp_path, capsys):
    """What the example of this name prints of its rounds when it is run here, in a temporary directory."""

    def play(name, **arguments):
        import_module(name).main(tmp_path, **arguments)
        said = capsys.readouterr().out
        rounds = re.findall(r"^round (\d+) density (\S+) ([a-zA-Z/ ]+?) ([\d.]+)", said, re.MULTILINE)
        return said, [(int(number), float(density), float(value)) for number, density, _, value in rounds]

    return play


def test_plain_pytorch_reproduces_the_recorded_accuracy_and_trains_the_ticket(digits_run, tmp_path):
    folder = digits_run / "round-02"
    command = [sys.executable, "-c", WITHOUT_US, EXAMPLE, folder, DIGITS]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    told = dict(line.rsplit(" ", 1) for line in done.stdout.splitlines())
    row = read_records(digits_run / "records.csv")[-1]
    assert float(told["density"]) == row["density"]
    assert float(told["test accuracy of the trained network"]) == row["test/acc"], "exactly"
    assert float(told["test accuracy in the record"]) == row["test/acc"]
    assert row["test/acc"] > 0.8
    before, after = (
        float(told[f"test accuracy of the ticket {when}"]) for when in ("before training", "after 5 epochs")
    )
    assert before < 0.85 < after, "the start is one to train from (its masks alone make it better than chance)"


def test_the_example_reads_what_the_package_reads(digits_run, example):
    for folder in sorted(digits_run.glob("round-0*")):
        masks, state = example.load_ticket(folder / "ticket.safetensors")
        ours = load_ticket(folder)
        assert masks.keys() == ours.masks.keys()
        assert all(torch.equal(masks[name], mask) for name, mask in ours.masks.items())
        assert state.keys() == ours.state.keys()
        assert all(torch.equal(state[name], value) for name, value in ours.state.items())


def test_the_example_loads_a_ticket_in_ten_lines_and_imports_nothing_of_ours():
    tree = ast.parse(EXAMPLE.read_text())
    (function,) = (each for each in tree.body if isinstance(each, ast.FunctionDef) and each.name == "load_ticket")
    statements = function.body[1:]  # without the docstring
    assert statements[-1].end_lineno - statements[0].lineno + 1 <= 10
    imported = {n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    imported |= {alias.name for n in ast.walk(tree) if isinstance(n, ast.Import) for alias in n.names}
    assert {name.split(".")[0] for name in imported} - set(sys.stdlib_module_names) == {"numpy", "safetensors", "torch"}


def test_the_documentation_shows_the_example_as_it_is():
    shown = re.search(r"```python\n(def load_ticket.*?)```", PAGE, re.DOTALL)[1]
    assert shown.strip() in EXAMPLE.read_text().replace("  # noqa: SIM118", "")


def test_the_bytes_of_the_documentation_are_those_of_the_file(tmp_path):
    names = {}
    exec(re.search(r"```python\n(import torch\nfrom lt_lightning import TicketFile.*?)```", PAGE, re.DOTALL)[1], names)
    names["ticket"].write(tmp_path / "t")
    content = (tmp_path / "t").read_bytes()
    length = int.from_bytes(content[:8], "little")
    data = content[8 + length :]
    rows = re.findall(r"^\| `(\S+)` \| (\d+) to (\d+) \| `([0-9a-f ]+)` \|", PAGE, re.MULTILINE)
    assert [name for name, *_ in rows] == ["state/w", "mask/w"]
    for _, begin, end, told in rows:
        assert data[int(begin) : int(end)] == bytes.fromhex(told)
    assert len(data) == int(rows[-1][2])
    assert np.unpackbits(np.frombuffer(data[-2:], np.uint8))[:9].tolist() == [1, 0, 1, 1, 0, 0, 0, 0, 1]


@pytest.mark.filterwarnings("ignore")
def test_the_run_itself_tells_the_command_line_how_to_make_the_model(digits_run, tmp_path, example):
    pytest.importorskip("onnx", reason='needs onnx: pip install "lt-lightning[export]"')
    pytest.importorskip("onnxscript", reason='needs onnxscript: pip install "lt-lightning[export]"')
    ReferenceEvaluator = import_module("onnx.reference").ReferenceEvaluator
    folder, output = digits_run / "round-02", tmp_path / "x.onnx"
    options = ["--weights", folder / "final.ckpt", "--input", "1,1,8,8", "--output", output]
    assert main(["ticket", "export", str(folder), "--to", "onnx", *map(str, options)]) == 0
    evaluator = ReferenceEvaluator(str(output))
    _, (images, labels) = example.read_digits(DIGITS)
    (logits,) = evaluator.run(None, {evaluator.input_names[0]: images.numpy()})
    found = float((torch.from_numpy(logits).argmax(1) == labels).float().mean())
    assert found == pytest.approx(read_records(digits_run / "records.csv")[-1]["test/acc"])


# Projects with a lottery in them


def test_the_smallest_project(played, tmp_path):
    _, rounds = played("smallest", rounds=2, epochs=3)
    records = read_records(tmp_path / "records.csv")
    assert rounds == [(n, round(0.8**n, 3), round(records[n]["test/acc"], 4)) for n in range(3)]
    assert min(accuracy for *_, accuracy in rounds) > 0.75
    again, same = played("smallest", rounds=2, epochs=3)
    assert same == rounds
    assert "Trainer.fit" not in again, "every round was done"


def test_the_project_on_pytorch_lightning(played, tmp_path):
    pytest.importorskip("pytorch_lightning", reason="pytorch_lightning is not installed")
    _, rounds = played("pytorch_lightning_project", rounds=1, epochs=14)
    assert [density for _, density, _ in rounds] == [1.0, 0.8]
    records = read_records(tmp_path / "records.csv")
    assert records[1]["val/loss"] < 0.01
    assert [row["steps"] % 16 for row in records] == [0, 0], "EarlyStopping ends a round with an epoch"


def test_the_gan(played, tmp_path):
    _, rounds = played("gan", rounds=1, epochs=12)
    assert [density for _, density, _ in rounds] == [1.0, 0.8]
    assert rounds[1][2] < 0.5, "untrained points lie 0.9 away from the circle"
    masks = load_ticket(tmp_path / "round-01").masks
    assert all(int(mask.sum()) == round(0.8 * mask.numel()) for mask in masks.values()), "each layer for itself"
    trained = torch.load(tmp_path / "round-01" / "final.ckpt", weights_only=True)["state_dict"]
    assert {name.split(".")[0] for name in masks} == {"generator", "discriminator"}
    assert not any(trained[name][~mask].any() for name, mask in masks.items())


def test_the_text_classifier(played, tmp_path):
    pytest.importorskip("transformers", reason="transformers is not installed")
    said, rounds = played("text_classifier", rounds=1, epochs=3)
    assert [density for _, density, _ in rounds] == [1.0, 0.8]
    assert (tmp_path / "points" / "epoch-2.ckpt").exists() or (tmp_path / "rewind.ckpt").exists()
    kept = re.findall(r"^(\S+) keeps (\d+) of (\d+)$", said, re.MULTILINE)
    assert len(kept) == 12, "six weights of each of two layers"
    assert not any(word in name for name, *_ in kept for word in ("embeddings", "LayerNorm", "pooler", "classifier"))
    assert sum(int(count) for _, count, _ in kept) == round(0.8 * sum(int(size) for *_, size in kept))


def test_the_own_criterion(played, tmp_path):
    said, _ = played("own_criterion", epochs=3)
    layers = {
        name: [float(share) for share in shares.split(", ")]
        for name, shares in re.findall(r"^(magnitude|lamp): layers keep ([\d., ]+);", said, re.MULTILINE)
    }
    assert min(layers["lamp"]) > min(layers["magnitude"]), "no layer starves"
    config = (tmp_path / "lamp" / "config.yaml").read_text()
    assert "own_criterion.lamp" in config


def test_a_score_of_lamp_is_as_the_paper_defines_it():
    module = import_module("own_criterion")
    assert doctest.testmod(module) == (0, 3)
    weight = torch.tensor([[0.5, -3.0], [1.0, 2.0]])
    scores = module.lamp(SimpleNamespace(trained={"w": weight}))
    squares = weight.flatten().square().tolist()
    expected = [square / sum(other for other in squares if other >= square) for square in squares]
    assert scores["w"].flatten().tolist() == pytest.approx(expected)


def test_the_hydra_application(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)
    folder = EXAMPLES / "hydra_app"
    overrides = ["prune=late_rewinding", "prune/criterion=movement", "prune.rounds=1", "trainer.max_epochs=2"]
    with initialize_config_dir(str(folder / "conf"), version_base="1.3"):
        own = [*overrides, f"hydra.runtime.output_dir={tmp_path}"]
        cfg = compose("config", own, return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    runpy.run_path(str(folder / "app.py"))["main"](OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"]))
    rounds = re.findall(
        r"^seed 0 round (\d) ticket density (\S+) test accuracy \S+$", capsys.readouterr().out, re.MULTILINE
    )
    assert rounds == [("0", "1.000"), ("1", "0.800")]
    config = (tmp_path / "config.yaml").read_text()
    assert "lt_lightning.criteria.movement" in config
    assert "1 epochs" in config


def cells():
    """The sources of the notebook's code cells."""
    content = json.loads(NOTEBOOK.read_text())
    found = [cell for cell in content["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in found), "commit it without outputs"
    return ["".join(cell["source"]) for cell in found]


def test_the_cells_of_the_notebook(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    matplotlib.use("agg")
    names = {}
    for cell in cells():
        exec(cell.replace("rounds, epochs = 6, 10", "rounds, epochs = 1, 2"), names)
    records = read_records(Path("runs/notebook/records.csv"))
    assert [(row["round"], row["arm"]) for row in records] == [(0, "ticket"), (1, "ticket"), (1, "reinit")]
    total = 64 * 300 + 300 * 100 + 100 * 10
    assert f"{total - round(0.6 * total)} of {total} weights are zero" in capsys.readouterr().out
    names["plt"].close("all")


@pytest.mark.slow
def test_the_notebook_in_a_kernel(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # threads of several tests would wait for one another
    nbclient = pytest.importorskip("nbclient", reason='needs nbclient: pip install "lt-lightning[docs]"')
    pytest.importorskip("ipykernel", reason='needs ipykernel: pip install "lt-lightning[docs]"')
    notebook = import_module("nbformat").read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": tmp_path}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    with open(tmp_path / "runs/notebook/records.csv") as file:
        assert len(list(csv.DictReader(file))) == 13


def commands():
    """(folder, command) of every command in the docstring of an example that asks for no run of another command."""
    for path in sorted({*EXAMPLES.glob("*.py"), *EXAMPLES.glob("*/app.py")} - {EXAMPLE}):
        for line in re.findall(r"^    (python .+)$", ast.get_docstring(ast.parse(path.read_text())), re.MULTILINE):
            folder = ROOT if path.parent == EXAMPLES else path.parent
            yield pytest.param(folder, line, id=line)


@pytest.mark.slow
@pytest.mark.parametrize(("folder", "command"), list(commands()))
def test_the_commands_of_the_examples(folder, command, tmp_path):
    _, program, *arguments = shlex.split(command)
    if program == "train.py":
        arguments += ["trainer=smoke", "share_dense=false", f"hydra.run.dir={tmp_path}"]
    elif program == "app.py":
        arguments += [f"hydra.run.dir={tmp_path / 'run'}", f"hydra.sweep.dir={tmp_path}"]
    else:
        arguments = [str(tmp_path)]
    assert run_in(folder, program, *arguments)
    if program != "train.py":
        assert list(tmp_path.rglob("records.csv"))


def run_in(folder, *arguments):
    """What a program says, with this package and the examples on its path."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(EXAMPLES)])}
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout
