"""`python -m lt_lightning ticket`: what a ticket file holds, how two differ, and tickets in other forms.

This module imports no torch before a command runs.
"""

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lt_lightning.wording import percent, table

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lt_lightning.exchange.ticketfile import TicketFile

_EPILOG = """\
PATH is a ticket.safetensors, the directory of a round or control, or an address on the Hugging Face hub such as
hf://user/repo. The exit code is 2 if something is missing or does not fit.

examples:
  python -m lt_lightning ticket show runs/mine/round-03
  python -m lt_lightning ticket diff runs/mine/round-03 runs/other/round-03
  python -m lt_lightning ticket export runs/mine/round-03 --to state-dict --output start.safetensors
  python -m lt_lightning ticket apply runs/mine/round-03 dense.ckpt --output sparse.ckpt
"""
_SHOW = """\
examples:
  python -m lt_lightning ticket show runs/mine/round-03
  python -m lt_lightning ticket show runs/mine/round-03/reinit/ticket.safetensors --json | jq .density
"""
_DIFF = """\
For each layer the density of both masks and their Jaccard index (kept by both over kept by either) beside the one to
expect by chance of masks that keep as many. The exit code is 0 if the masks are the same, 1 if they differ.

examples:
  python -m lt_lightning ticket diff runs/lenet/seed=0/round-03 runs/lenet/seed=1/round-03
  python -m lt_lightning ticket diff runs/mine/round-03 runs/mine/round-03/random_mask --json | jq '.layers[-1]'
"""
_EXPORT = """\
  torch-prune   the state dict of a model that torch.nn.utils.prune has pruned: weight_orig, weight_mask
  state-dict    plain weights, in which the pruned ones are zero
  onnx          the model, with such weights, by torch's exporter: pip install "lt-lightning[export]"

The weights are those that the round starts from, or with --weights those of a checkpoint. A state dict is written for
torch.load (.pt, .pth, .ckpt, .bin) or as safetensors, as F ends. ONNX needs the model: that of the run's config.yaml if
train.py has made it, or --model; and the shape of its input, unless it has an example_input_array. A config.yaml may
name code of lt_lightning, lightning and torch; other code is run with --trust alone.

examples:
  python -m lt_lightning ticket export runs/mine/round-03 --to state-dict --output start.safetensors
  python -m lt_lightning ticket export runs/mine/round-03 --to torch-prune --weights runs/mine/round-03/final.ckpt \\
      --output pruned.pt
  python -m lt_lightning ticket export runs/mine/round-03 --to onnx --weights runs/mine/round-03/final.ckpt \\
      --model my_project:make_model --input 1,3,32,32 --output sparse.onnx
"""
_APPLY = """\
Writes CHECKPOINT with its pruned weights at zero; everything else in it stays as it is. It may be a Lightning
checkpoint, a state dict for torch.load, or a safetensors file; F is of the same kind.

examples:
  python -m lt_lightning ticket apply runs/mine/round-03 runs/mine/round-00/final.ckpt --output sparse.ckpt
  python -m lt_lightning ticket apply hf://user/repo network.safetensors --prefix network. --output sparse.safetensors
"""

FORMS = ("torch-prune", "state-dict", "onnx")
"""What a ticket is exported to."""

Found = tuple[dict[str, Any], str, int]
"""What an action found, for programs and for people, and the exit code."""


def add(commands: Any, style: Any) -> None:
    """Add `ticket` and its actions to the subparsers of the command line."""
    about = "what a ticket file holds; differences, exports, masks applied to a checkpoint"
    parser = commands.add_parser("ticket", help=about, epilog=_EPILOG, formatter_class=style)
    actions = parser.add_subparsers(required=True, metavar="ACTION")

    def action(name: str, about: str, epilog: str, act: Callable[[argparse.Namespace], Found]) -> Any:
        one = actions.add_parser(name, help=about, epilog=epilog, formatter_class=style)
        one.add_argument("path", metavar="PATH", help="a ticket file, the directory of a round, or hf://user/repo")
        one.add_argument("--json", action="store_true", help="for programs")
        one.set_defaults(act=act)
        return one

    action("show", "density by layer, round, arm, metrics, versions", _SHOW, _show)
    diff = action("diff", "densities of two, and what they have in common against chance", _DIFF, _diff)
    diff.add_argument("other", metavar="OTHER", help="another one")
    export = action("export", "weights, masks or model in another form", _EXPORT, _export)
    export.add_argument("--to", choices=FORMS, required=True, help="the form, see below")
    export.add_argument("--weights", metavar="CHECKPOINT", help="whose weights; the ticket's own if left out")
    export.add_argument("--model", metavar="MODULE:FUNCTION", help="for onnx: what makes the model")
    export.add_argument("--trust", action="store_true", help="for onnx: run whatever code the run's config.yaml names")
    export.add_argument("--input", metavar="SHAPE", help="for onnx: as 1,3,32,32, or 1,64:int64 if not of floats")
    apply = action("apply", "masks applied to the weights of a checkpoint", _APPLY, _apply)
    apply.add_argument("checkpoint", metavar="CHECKPOINT", help="whose weights")
    for one in (export, apply):
        one.add_argument("--output", metavar="F", required=True, help="the file to write")
        one.add_argument("--prefix", default="", help="what the ticket's names have in front of those to write")


def _show(given: argparse.Namespace) -> Found:
    from lt_lightning.exchange.ticketfile import load_ticket
    from lt_lightning.masks import density

    ticket = load_ticket(given.path)
    layers: list[dict[str, Any]] = [
        {
            "layer": name,
            "shape": list(mask.shape),
            "kept": int(mask.sum()),
            "total": mask.numel(),
            "density": int(mask.sum()) / mask.numel() if mask.numel() else None,
        }
        for name, mask in ticket.masks.items()
    ]
    kept, total = (sum(row[key] for row in layers) for key in ("kept", "total"))
    about = {key: getattr(ticket, key) for key in ("round", "arm", "start", "config", "metrics", "versions", "tied")}
    counts = {"density": density(ticket.masks), "kept": kept, "total": total, "tensors": len(ticket.state)}
    found = {"path": given.path} | about | counts | {"layers": layers}
    return found, _shown(found), 0


_STARTS = {"point": "the rewind point", "file": "start.ckpt beside it", "fresh": "a fresh model, at step 0"}


def _shown(found: Mapping[str, Any]) -> str:
    rows = [[*_cells(row), "x".join(map(str, row["shape"]))] for row in found["layers"]]
    total = [*_cells({"layer": "all", **found}), ""]
    lines = table(["layer", "kept", "of", "density", "shape"], [*rows, total], ["kept", "of", "density"])
    several = {"metrics": found["metrics"], "versions": found["versions"], "tied": found["tied"]}
    told = {
        "round": f"{found['round']}, {found['arm']}",
        "start": f"{_STARTS.get(found['start'], found['start'])}; {found['tensors']} weights and buffers",
        "config": found["config"] or "-",
        **{name: ", ".join(f"{key} {_number(value)}" for key, value in each.items()) for name, each in several.items()},
    }
    return "\n".join([*(f"{name:10}{text}" for name, text in told.items() if text), "", *lines])


def _cells(row: Mapping[str, Any]) -> list[str]:
    share = "-" if row["density"] is None else percent(row["density"])
    return [row["layer"], f"{row['kept']:,}", f"{row['total']:,}", share]


def _number(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _diff(given: argparse.Namespace) -> Found:
    import torch

    from lt_lightning.analysis import overlap
    from lt_lightning.exchange.ticketfile import load_ticket

    one, other = load_ticket(given.path), load_ticket(given.other)
    rows = overlap.compare(one.masks, other.masks)
    only = {"a": [*(one.masks.keys() - other.masks.keys())], "b": [*(other.masks.keys() - one.masks.keys())]}
    same = not any(only.values()) and all(torch.equal(mask, other.masks[name]) for name, mask in one.masks.items())
    shared = [name for name in one.state if name in other.state]
    start = bool(shared) and one.state.keys() == other.state.keys()
    start = start and all(torch.equal(one.state[name], other.state[name]) for name in shared)
    found = {"a": given.path, "b": given.other, "same_masks": same, "same_start": start, "only": only, "layers": rows}
    cells = [
        [row["layer"], *(percent(row[f"density_{end}"]) for end in "ab"), *(f"{row[key]:.3f}" for key in _INDICES)]
        for row in rows
    ]
    lines = table(["layer", "density", "and ", *_INDICES], cells, ["density", "and ", *_INDICES])
    told = f"the masks are {_alike(same)}, the weights at the start are {_alike(start)}"
    missing = [f"only in {given.path if end == 'a' else given.other}: {name}" for end in only for name in only[end]]
    return found, "\n".join([*lines, "", *missing, told]), int(not same)


_INDICES = ("jaccard", "chance")


def _alike(same: bool) -> str:
    return "the same" if same else "different"


def _export(given: argparse.Namespace) -> Found:
    from lt_lightning.exchange import export
    from lt_lightning.exchange.ticketfile import load_ticket

    ticket, output = load_ticket(given.path), Path(given.output)
    for option in ("model", "input"):
        if given.to != "onnx" and getattr(given, option):
            raise ValueError(f"--{option} is for --to onnx; leave it out.")
    masks, state = _chosen(ticket, given)
    if given.to == "onnx":
        export.to_onnx(*_model_and_input(given, export.masked(state, masks)), output)
    else:
        form = export.masked if given.to == "state-dict" else export.in_prune_form
        export.write_weights(output, form(state, masks))
    return {"written": str(output), "to": given.to}, f"written     {output}", 0


def _chosen(ticket: "TicketFile", given: argparse.Namespace) -> tuple[dict[str, "Tensor"], dict[str, "Tensor"]]:
    """The masks, and the weights that they are for, under the names to write."""
    from lt_lightning.exchange import apply
    from lt_lightning.exchange.ticketfile import tensors_of

    masks = apply.select(ticket.masks_by_name, None, given.prefix)
    if given.weights:
        content = _read(Path(given.weights))
        state = tensors_of(content.get("current_model_state", content.get("state_dict", content)))
        longer = any(name.startswith(given.prefix) for name in state)  # of the module that the ticket is of
        return masks, apply.select(state, None, given.prefix if longer else "")
    if not ticket.state:
        raise ValueError(
            f"{given.path} holds no weights, since its round starts from a model drawn anew: "
            "give those of a checkpoint, with --weights CHECKPOINT."
        )
    return masks, apply.select(ticket.state, None, given.prefix)


def _apply(given: argparse.Namespace) -> Found:
    from lt_lightning.disk import checkpoints
    from lt_lightning.exchange import apply, export
    from lt_lightning.exchange.ticketfile import load_ticket

    masks = apply.select(load_ticket(given.path).masks_by_name, None, given.prefix)
    source, output = Path(given.checkpoint), Path(given.output)
    content = _read(source)
    if (source.suffix == ".safetensors") != (output.suffix == ".safetensors"):
        raise ValueError(f"{source} and {output} are of different kinds: let both end with .safetensors, or neither.")
    states = [key for key in ("state_dict", "current_model_state") if key in content]
    if states:
        content = {**content, **{key: export.masked(content[key], masks) for key in states}}
        checkpoints.write(content, output)
    else:
        content = export.masked(content, masks)
        export.write_weights(output, content)
    pruned = sum(int((~mask).sum()) for mask in masks.values())
    found = {"written": str(output), "layers": len(masks), "pruned": pruned}
    return found, f"{pruned:,} weights of {len(masks)} layers are zero\nwritten     {output}", 0


def _read(path: Path) -> dict[str, Any]:
    """A checkpoint or a state dict, from which no code is run."""
    import torch
    from safetensors.torch import load_file

    if path.is_dir():
        raise ValueError(
            f"{path} is a checkpoint in parts, of a sharded strategy: make a file of it with "
            "python -m torch.distributed.checkpoint.format_utils dcp_to_torch."
        )
    if path.suffix == ".safetensors":
        return dict(load_file(path))
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:
        raise ValueError(
            f"{path} cannot be read as weights alone: {error}\nGive a checkpoint of tensors and plain values, such as "
            "a final.ckpt, or a state dict."
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, expected a checkpoint or a state dict.")
    return content


def _model_and_input(given: argparse.Namespace, state: Mapping[str, "Tensor"]) -> tuple["nn.Module", "Tensor"]:
    """The model with these weights, and an input for it."""
    from lt_lightning.exchange import apply

    model = _made(given.model) if given.model else _of_run(given.path, given.trust)
    apply.apply(model, {}, state, complete=True)
    example: Any = getattr(model, "example_input_array", None) if given.input is None else _input(given.input)
    if example is None:
        raise ValueError("the model has no example_input_array: say what its input is, such as --input 1,3,32,32.")
    return model, example


def _input(text: str) -> "Tensor":
    import torch

    shape, _, kind = text.partition(":")
    try:
        return torch.zeros([int(size) for size in shape.split(",")], dtype=getattr(torch, kind or "float32"))
    except (ValueError, AttributeError, TypeError, RuntimeError) as error:
        raise ValueError(f"--input {text}: expected sizes, such as 1,3,32,32 or 1,64:int64.") from error


def _made(name: str) -> "nn.Module":
    module, _, function = name.partition(":")
    if not (module and function):
        raise ValueError(f"--model {name}: expected MODULE:FUNCTION, such as my_project:make_model.")
    sys.path.insert(0, os.getcwd())
    try:
        return getattr(importlib.import_module(module), function)()
    except (ModuleNotFoundError, AttributeError) as error:
        raise ValueError(f"--model {name}: {error}; expected a function that can be imported from here.") from error
    finally:
        sys.path.remove(os.getcwd())


def _of_run(path: str, trust: bool) -> "nn.Module":
    from lt_lightning.analysis import recipe

    above: Sequence[Path] = Path(path).resolve().parents
    run = next((each for each in [Path(path), *above[:4]] if (each / "config.yaml").exists()), None)
    if run is None:
        raise ValueError(f"{path} does not lie in a run directory: say what makes the model, --model MODULE:FUNCTION.")
    try:
        return recipe.of_run(run, trust=trust, parts=["model"]).make_model()
    except recipe.NotTold as error:
        raise ValueError(
            f"{run / 'config.yaml'} does not tell how to make the model: say so with --model MODULE:FUNCTION."
        ) from error
