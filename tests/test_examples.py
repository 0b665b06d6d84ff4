"""The examples, on a real run: they must not need the package that they are examples for."""

import ast
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import app
import numpy as np
import pytest
import torch

from lt_lightning import load_ticket
from lt_lightning.__main__ import main
from lt_lightning.records import read_records

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "load_ticket.py"
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


@pytest.fixture(scope="module")
def example():
    sys.path.insert(0, str(EXAMPLE.parent))
    yield import_module("load_ticket")
    sys.path.remove(str(EXAMPLE.parent))


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
