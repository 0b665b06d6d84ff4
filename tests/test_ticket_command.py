"""`python -m lt_lightning ticket`: on a small run, as people and as programs read it."""

import json
import shutil
import subprocess
import sys
from importlib import import_module

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import Tiny, play
from torch.nn.utils import prune

from lt_lightning import load_ticket
from lt_lightning.__main__ import main
from lt_lightning.disk.checksum import sealed


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory):
    """A run of two rounds, 96 + 36 weights; nothing writes to it."""
    directory = tmp_path_factory.mktemp("run")
    play(directory, rounds=2, rewind_step=2, controls=["random_mask"])
    return directory


def told(capsys, *arguments, code=0):
    """What a command prints, or of one that fails its error."""
    assert main(["ticket", *map(str, arguments)]) == code
    out, err = capsys.readouterr()
    assert (err == "") == (code < 2)
    return err if code == 2 else out


def test_show_tells_densities_round_arm_metrics_and_versions(tiny_run, capsys):
    out = told(capsys, "show", tiny_run / "round-02")
    lines = [line.split() for line in out.splitlines()]
    ticket = load_ticket(tiny_run / "round-02")
    kept = {name: int(mask.sum()) for name, mask in ticket.masks.items()}
    assert ["round", "2,", "ticket"] in lines
    assert "the rewind point; 9 weights and buffers" in out
    assert f"config    {ticket.config}" in out
    assert f"torch {torch.__version__}" in out
    assert f"test/acc {ticket.metrics['test/acc']:.6g}" in out
    assert ["hidden.weight", str(kept["hidden.weight"]), "96", f"{kept['hidden.weight'] / 0.96:.3g}%", "12x8"] in lines
    assert lines[-1][:3] == ["all", "84", "132"]  # 0.64 of 132, rounded


def test_show_for_programs(tiny_run, capsys):
    found = json.loads(told(capsys, "show", tiny_run / "round-01" / "random_mask" / "ticket.safetensors", "--json"))
    assert (found["round"], found["arm"], found["start"], found["kept"], found["total"]) == (
        1,
        "random_mask",
        "point",
        106,
        132,
    )
    assert found["density"] == 106 / 132
    assert [row["layer"] for row in found["layers"]] == ["hidden.weight", "output.weight"]
    assert sum(row["kept"] for row in found["layers"]) == 106
    assert found["layers"][1]["shape"] == [3, 12]
    assert found["metrics"]["steps"] == 15


def test_diff_tells_what_masks_have_in_common_and_by_its_exit_code_whether_they_differ(tiny_run, capsys):
    one, two = tiny_run / "round-01", tiny_run / "round-02"
    found = json.loads(told(capsys, "diff", one, two, "--json", code=1))
    total = found["layers"][-1]
    assert (total["layer"], total["density_a"], total["density_b"]) == ("all", 106 / 132, 84 / 132)
    assert total["jaccard"] == 84 / 106, "round 2 lies within round 1"
    assert 0 < total["chance"] < total["jaccard"]
    assert (found["same_masks"], found["same_start"], found["only"]) == (False, True, {"a": [], "b": []})
    assert "the masks are different, the weights at the start are the same" in told(capsys, "diff", one, two, code=1)
    assert "the masks are the same, the weights at the start are the same" in told(capsys, "diff", one, one)
    dense = json.loads(told(capsys, "diff", tiny_run / "round-00", one, "--json", code=1))["layers"][-1]
    assert dense["jaccard"] == dense["chance"] == pytest.approx(106 / 132), "against all it cannot be otherwise"


@pytest.mark.parametrize("name", ["start.safetensors", "start.pt"])
def test_the_plain_weights_are_those_of_the_start_with_pruned_ones_zero(tiny_run, tmp_path, capsys, name):
    output = tmp_path / name
    assert (
        told(capsys, "export", tiny_run / "round-02", "--to", "state-dict", "--output", output)
        == f"written     {output}\n"
    )
    read = load_file(output) if name.endswith("tensors") else torch.load(output, weights_only=True)
    model, loaded = Tiny(), Tiny()
    loaded.load_state_dict(read)
    load_ticket(tiny_run / "round-02").apply(model)
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key


def test_the_prune_form_of_trained_weights(tiny_run, tmp_path, capsys):
    output, final = tmp_path / "pruned.pt", tiny_run / "round-02" / "final.ckpt"
    told(capsys, "export", tiny_run / "round-02", "--to", "torch-prune", "--weights", final, "--output", output)
    model = Tiny()
    for layer in (model.hidden, model.output):
        prune.identity(layer, "weight")
    model.load_state_dict(torch.load(output, weights_only=True))
    prune.remove(model.hidden, "weight")
    prune.remove(model.output, "weight")
    for key, value in torch.load(final, weights_only=True)["state_dict"].items():
        assert torch.equal(model.state_dict()[key], value), "which are zero under the masks anyway"


def test_a_part_is_exported_without_its_prefix(tiny_run, tmp_path, capsys):
    for more in ([], ["--weights", tiny_run / "round-01" / "final.ckpt"]):
        output = tmp_path / "hidden.safetensors"
        told(
            capsys,
            "export",
            tiny_run / "round-01",
            "--to",
            "state-dict",
            "--prefix",
            "hidden.",
            "--output",
            output,
            *more,
        )
        assert sorted(load_file(output)) == ["bias", "weight"]


def test_masks_are_applied_to_a_checkpoint_and_the_rest_stays(tiny_run, tmp_path, capsys):
    dense, output = tiny_run / "round-00" / "final.ckpt", tmp_path / "sparse.ckpt"
    out = told(capsys, "apply", tiny_run / "round-02", dense, "--output", output)
    assert out == f"48 weights of 2 layers are zero\nwritten     {output}\n"
    before, after = (torch.load(path, weights_only=True) for path in (dense, output))
    assert before.keys() == after.keys()
    assert before["global_step"] == after["global_step"]
    masks = load_ticket(tiny_run / "round-02").masks
    for name, value in before["state_dict"].items():
        assert torch.equal(after["state_dict"][name], value * masks.get(name, torch.ones_like(value))), name
    assert sealed(output), "it has a checksum, as the run's own"
    loaded = Tiny.load_from_checkpoint(output)
    assert (loaded.hidden.weight[~masks["hidden.weight"]] == 0).all()


@pytest.mark.parametrize("kind", ["pt", "safetensors"])
def test_masks_are_applied_to_a_state_dict_of_the_network_alone(tiny_run, tmp_path, capsys, kind):
    weight, source, output = torch.ones(12, 8), tmp_path / f"a.{kind}", tmp_path / f"b.{kind}"
    state = {"weight": weight, "bias": torch.zeros(12)}
    (save_file if kind == "safetensors" else torch.save)(state, source)
    ticket = tiny_run / "round-01"
    found = told(capsys, "apply", ticket, source, "--prefix", "hidden.", "--output", output, "--json")
    mask = load_ticket(ticket).masks["hidden.weight"]
    assert json.loads(found) == {"written": str(output), "layers": 1, "pruned": int((~mask).sum())}
    read = load_file(output) if kind == "safetensors" else torch.load(output, weights_only=True)
    assert torch.equal(read["weight"], mask.float())


class NotWeights:
    pass


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["show", "{run}/round-07"], "No such file or directory: '{run}/round-07'"),
        (["show", "{run}/config.yaml"], "{run}/config.yaml is not a ticket of format 'lt_lightning 2'; it says None."),
        (["show", "hf://user"], "'hf://user' is no address of a ticket on the hub: write hf://user/repo, "),
        (
            ["diff", "{run}/round-01", "{tmp}/other"],
            "the masks have no layer in common: hidden.weight, output.weight and w",
        ),
        (
            ["export", "{run}/round-01", "--to", "state-dict", "--output", "{tmp}/x.npz"],
            "the name must end with .safetensors",
        ),
        (
            ["export", "{run}/round-01", "--to", "state-dict", "--output", "{tmp}/x.pt", "--model", "a:b"],
            "--model is for --to onnx; leave it out.",
        ),
        (
            ["export", "{tmp}/other", "--to", "state-dict", "--output", "{tmp}/x.pt"],
            "holds no weights, since its round starts from a model drawn anew: give those of a checkpoint, with --w",
        ),
        (
            ["export", "{run}/round-01", "--to", "onnx", "--output", "{tmp}/x.onnx"],
            "{run}/config.yaml does not tell how to make the model: say so with --model MODULE:FUNCTION.",
        ),
        (
            ["export", "{run}/round-01", "--to", "onnx", "--output", "{tmp}/x.onnx", "--model", "tiny"],
            "--model tiny: expected MODULE:FUNCTION, such as my_project:make_model.",
        ),
        (
            ["export", "{run}/round-01", "--to", "onnx", "--output", "{tmp}/x.onnx", "--model", "tiny:Large"],
            "--model tiny:Large: module 'tiny' has no attribute 'Large'; expected a function that can be imported",
        ),
        (
            ["export", "{run}/round-01", "--to", "onnx", "--output", "{tmp}/x.onnx", "--model", "tiny:Tiny"],
            "the model has no example_input_array: say what its input is, such as --input 1,3,32,32.",
        ),
        (
            [
                *["export", "{run}/round-01", "--to", "onnx", "--output", "{tmp}/x.onnx", "--model", "tiny:Tiny"],
                "--input",
                "a",
            ],
            "--input a: expected sizes, such as 1,3,32,32 or 1,64:int64.",
        ),
        (["apply", "{run}/round-01", "{tmp}/objects.pt", "--output", "{tmp}/x.pt"], "cannot be read as weights alone"),
        (
            ["apply", "{run}/round-01", "{tmp}/list.pt", "--output", "{tmp}/x.pt"],
            "list.pt holds a list, expected a checkpoint",
        ),
        (["apply", "{run}/round-01", "{tmp}/none.pt", "--output", "{tmp}/x.pt"], "No such file or directory"),
        (
            ["apply", "{run}/round-01", "{run}", "--output", "{tmp}/x.pt"],
            "is a checkpoint in parts, of a sharded strategy",
        ),
        (
            ["apply", "{run}/round-01", "{tmp}/w.pt", "--output", "{tmp}/x.pt"],
            "hidden.weight: no such weight; there are w",
        ),
        (
            ["apply", "{run}/round-01", "{tmp}/w.pt", "--output", "{tmp}/x.safetensors"],
            "are of different kinds: let both end with .safetensors, or neither.",
        ),
    ],
)
def test_what_is_missing_or_does_not_fit_is_said_with_exit_code_2(tiny_run, tmp_path, capsys, arguments, said):
    from lt_lightning import TicketFile

    TicketFile({"w": torch.tensor([True])}, start="fresh").write(tmp_path / "other")
    torch.save({"w": torch.ones(1)}, tmp_path / "w.pt")
    torch.save({"w": NotWeights()}, tmp_path / "objects.pt")
    torch.save([1], tmp_path / "list.pt")
    places = {"run": tiny_run, "tmp": tmp_path}
    assert said.format(**places) in told(capsys, *(each.format(**places) for each in arguments), code=2)
    assert not list(tmp_path.glob("*x.*")), "nothing is written"


def test_a_damaged_ticket_is_refused(tiny_run, tmp_path, capsys):
    content = bytearray((tiny_run / "round-01" / "ticket.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "t").write_bytes(content)
    assert "is damaged: it does not hold what was written" in told(capsys, "show", tmp_path / "t", code=2)


@pytest.mark.parametrize("action", ["", "show", "diff", "export", "apply"])
def test_help_has_examples(capsys, action):
    with pytest.raises(SystemExit) as exit:
        main(["ticket", *([action] if action else []), "--help"])
    assert exit.value.code == 0
    assert f"examples:\n  python -m lt_lightning ticket {action or 'show'} " in capsys.readouterr().out


def test_a_wrong_call_has_exit_code_2_too(capsys):
    for arguments in ([], ["look", "x"], ["export", "x", "--to", "numpy", "--output", "y"], ["apply", "x", "y"]):
        with pytest.raises(SystemExit) as exit:
            main(["ticket", *arguments])
        assert exit.value.code == 2


@pytest.mark.filterwarnings("ignore")
def test_a_model_of_the_current_directory_becomes_onnx(tiny_run, tmp_path, capsys, monkeypatch):
    pytest.importorskip("onnx", reason='needs onnx: pip install "lt-lightning[export]"')
    pytest.importorskip("onnxscript", reason='needs onnxscript: pip install "lt-lightning[export]"')
    ReferenceEvaluator = import_module("onnx.reference").ReferenceEvaluator
    monkeypatch.chdir(tmp_path)
    (tmp_path / "someones_project.py").write_text("from tiny import Tiny as make\n")
    final = tiny_run / "round-02" / "final.ckpt"
    shutil.copy(final, "weights.ckpt")
    options = ["--model", "someones_project:make", "--input", "1,8", "--weights", "weights.ckpt", "--output", "x.onnx"]
    told(capsys, "export", tiny_run / "round-02", "--to", "onnx", *options)
    x = torch.randn(3, 8)
    (found,) = ReferenceEvaluator("x.onnx").run(None, {ReferenceEvaluator("x.onnx").input_names[0]: x.numpy()})
    expected = Tiny.load_from_checkpoint("weights.ckpt").eval()(x)
    torch.testing.assert_close(torch.from_numpy(found), expected.detach(), rtol=1e-4, atol=1e-5)
    (tmp_path / "with_example.py").write_text(
        "import torch\nfrom tiny import Tiny\n"
        "def make():\n  model = Tiny()\n  model.example_input_array = torch.zeros(1, 8)\n  return model\n"
    )
    told(capsys, "export", tiny_run / "round-02", "--to", "onnx", "--model", "with_example:make", "--output", "y.onnx")


def test_without_what_onnx_needs_it_says_what_to_install(tiny_run, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    options = ["--model", "tiny:Tiny", "--input", "1,8", "--output", tmp_path / "x.onnx"]
    assert 'pip install "lt-lightning[export]"' in told(
        capsys, "export", tiny_run / "round-02", "--to", "onnx", *options, code=2
    )


@pytest.mark.slow
def test_the_program_itself(tiny_run):
    command = [sys.executable, "-m", "lt_lightning", "ticket", "diff", tiny_run / "round-01", tiny_run / "round-02"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.startswith("layer ")
