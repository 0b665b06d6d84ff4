"""Imports point down, and the core stands on its own."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
from sampling import few

import lt_lightning

ROOT = Path(lt_lightning.__file__).parent

ROOMS = ("disk", "fit", "exchange", "cli")
"""Packages whose modules have a floor each."""

FLOORS = (
    {
        "changes",
        "disk.atomic",
        "disk.checksum",
        "disk.plain_pickle",
        "disk.redact",
        "exchange.hub",
        "fit.csr",
        "fit.epoch_metrics",
        "fit.learning_rates",
        "fit.moments",
        "fit.monitor",
        "parametrized",
        "processes",
        "require",
        "seeding",
        "sharded",
        "twins",
    },
    {
        "disk.configuration",
        "disk.environment",
        "disk.liveness",
        "disk.lock",
        "disk.parts",
        "fit.beside",
        "fit.hooks",
        "fit.interruption",
        "fit.position",
        "fit.replaced",
        "layers",
        "masks",
        "records",
        "rewinds",
        "strategies",
    },
    {
        "controls",
        "criteria",
        "disk.rundir",
        "early_bird",
        "exchange.apply",
        "exchange.export",
        "fit.early_stop",
        "fit.facts",
        "fit.frozen",
        "fit.gradient_use",
        "fit.lazy",
        "fit.probe",
        "fit.pulse",
        "gradual",
        "prunable",
        "schedules",
        "scopes",
        "stopping",
    },
    {
        "at_init",
        "disk.checkpoints",
        "disk.loading",
        "exchange.ticketfile",
        "fit.chunks",
        "fit.enforcement",
        "fit.guard",
        "fit.tested",
        "fit.tuning",
        "plan",
        "sparse",
    },
    {"exchange.publish", "fit.drawn", "fit.measurements", "fit.points", "fit.same_fit", "fit.start", "identity"},
    {"fit.saving", "integrity", "pruning"},
    {"rehearsal", "sharing", "tightening"},
    {"preview", "ticket"},
    {"fresh"},
    {"unchanged"},
    {"lottery"},
    {"transfer"},
    {"__init__"},
)
"""The core, from the ground up: a module imports from lower floors only."""

SIDE = {"models": 2, "data": 2}
"""Packages beside the core, and the floor they stand on: they import from lower ones, and neither from the other."""

TOP = (
    "wording",
    "cli.naming",
    "cli.refusals",
    "cli.preflight",
    "disk.runs",
    "cli.progress",
    "cli.jobs",
    "cli.sweeps",
    "replicates",
    "analysis",
    "loggers",
    "cli.status",
    "conf",
    "ticket_command",
    "__main__",
)
"""What is built on the core; each imports from what comes before it here."""

FOREIGN = {"hydra", "omegaconf", "submitit", "wandb", "matplotlib", "datasets", "rich", "tensorboard"}
"""What the core does without."""

WHERE = "tests/test_layers.py: give it a place in FLOORS, SIDE or TOP"


def height():
    """Module or package → its floor."""
    core = {name: floor for floor, names in enumerate(FLOORS) for name in names}
    return core | SIDE | {name: len(FLOORS) + n for n, name in enumerate(TOP)}


def units(root=ROOT):
    """Module or package → its files."""
    found = {path.stem: [path] for path in root.glob("*.py")}
    found |= {f"{room}.{path.stem}": [path] for room in ROOMS for path in (root / room).glob("[!_]*.py")}
    packages = [path for path in root.iterdir() if path.is_dir() and path.name not in ("__pycache__", *ROOMS)]
    return found | {path.name: sorted(path.rglob("*.py")) for path in packages}


def imported(text, package=()):
    """The dotted names that a source text imports, wherever in it; `package` is what its dots are relative to."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def ours(name, known):
    """The module or package of ours that a dotted name lies in; None if it is not ours."""
    top, *rest = name.split(".")
    if top != "lt_lightning":
        return None
    return next((unit for unit in (".".join(rest[:2]), *rest[:1]) if unit in known), "__init__")


def imports_of(unit):
    for path in units()[unit]:
        package = ("lt_lightning", *path.relative_to(ROOT).parts[:-1])
        for name in imported(path.read_text(), package):
            yield path.relative_to(ROOT).as_posix(), name


def unplaced(found):
    """A message if a module has no floor."""
    missing = sorted(set(found) - set(height()))
    return f"{', '.join(missing)} has no floor. {WHERE}." if missing else ""


def test_every_module_has_a_floor():
    assert unplaced(units()) == ""


def test_no_floor_is_kept_for_a_module_that_is_gone():
    assert sorted(set(height()) - set(units()) - {"conf"}) == []


def test_a_new_module_is_told_where_to_add_its_floor():
    assert unplaced([*height(), "quantized"]) == (
        "quantized has no floor. tests/test_layers.py: give it a place in FLOORS, SIDE or TOP."
    )


@pytest.mark.parametrize("unit", [unit for unit in units() if unit in height()])
def test_imports_point_down(unit):
    floors = height()
    wrong = [
        f"lt_lightning/{file} imports {name}, which is on floor {floors[target]}; itself it is on {floors[unit]}"
        for file, name in imports_of(unit)
        if (target := ours(name, floors)) not in (None, unit) and floors[target] >= floors[unit]
    ]
    assert wrong == []


@pytest.mark.parametrize("unit", sorted(set().union(*FLOORS)))
def test_the_core_imports_nothing_built_on_it_and_nothing_that_it_can_do_without(unit):
    names = [name for _, name in imports_of(unit)]
    assert [name for name in names if ours(name, height()) in {*SIDE, *TOP}] == []
    assert [name for name in names if name.split(".")[0] in FOREIGN] == []


def test_imports_are_found_wherever_they_are_written():
    text = (
        "import a.b\nfrom c import d, e\ndef f():\n  from lt_lightning import ticket\n"
        "  from .x import y\n  from .. import z"
    )
    found = list(imported(text, ("lt_lightning", "models")))
    assert found == ["a.b", "c.d", "c.e", "lt_lightning.ticket", "lt_lightning.models.x.y", "lt_lightning.z"]
    assert [ours(name, height()) for name in found[3:]] == ["ticket", "models", "__init__"]
    assert [ours(name, height()) for name in ("lt_lightning", "lt_lightning.lottery.Model", "torch.nn")] == [
        "__init__", "lottery", None,
    ]  # fmt: skip


def test_importing_the_package_loads_nothing_that_lightning_has_not_loaded():
    program = (
        "import sys, lightning.pytorch, lightning.fabric\n"
        "before = set(sys.modules)\n"
        "import lt_lightning\n"
        "print(sorted(name[13:] for name in sys.modules if name.startswith('lt_lightning.')))\n"
        "lt_lightning.lottery\n"
        f"print(sorted({{name.split('.')[0] for name in set(sys.modules) - before}} & {FOREIGN!r}))\n"
        "print(sorted({'hydra', 'wandb', 'datasets'} & set(sys.modules)))\n"
        "print(sorted(name[13:] for name in sys.modules if name.startswith('lt_lightning.')))\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT.parent)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True)
    at_once, foreign, never, loaded = done.stdout.splitlines()
    assert (at_once, foreign, never) == ("[]", "[]", "[]")
    on_demand = {"__init__", "at_init", "exchange.export", "exchange.publish", "transfer"}
    assert loaded == str(sorted((set().union(*FLOORS) - on_demand) | {"disk", "fit", "exchange"}))


@pytest.mark.slow
@pytest.mark.parametrize(
    "before",
    few(
        [
            "",
            "import lt_lightning.lottery",
            "import lt_lightning.ticket",
            "from lt_lightning.lottery import lottery as first",
            "import importlib; importlib.import_module('lt_lightning.lottery')",
            "from lt_lightning import *",
            "import lt_lightning; lt_lightning.lottery; import lt_lightning.lottery as again",
        ],
        1,
    ),
)
def test_lottery_is_the_function_whatever_was_imported_before(before):
    program = (
        f"{before}\n"
        "from lt_lightning import lottery\n"
        "from lt_lightning.lottery import Model\n"
        "import lt_lightning, inspect\n"
        "print(inspect.isgeneratorfunction(lottery), inspect.isfunction(lottery), lt_lightning.lottery is lottery)\n"
    )
    assert fresh(program) == "False True True"


@pytest.mark.slow
def test_public_names_are_all_there_and_others_are_not():
    assert (
        fresh("import lt_lightning as l; print(set(l.__all__) <= set(dir(l)), hasattr(l, 'nothing'))") == "True False"
    )
    assert fresh("import lt_lightning as l; print(l.schedules.geometric is l.geometric)") == "True"
    assert fresh("from lt_lightning import plan; print(plan.__name__)") == "lt_lightning.plan"
    assert all(getattr(lt_lightning, name) for name in lt_lightning.__all__)


@pytest.mark.parametrize("command", ["", "status", "summary", "report", "analyse", "ticket"])
def test_the_commands_import_neither_torch_nor_lightning(command, tmp_path):
    program = (
        "import sys\nfrom lt_lightning.__main__ import main\n"
        f"arguments = ['{command}', {str(tmp_path)!r}] if '{command}' else []\n"
        "import contextlib, io\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):\n"
        "  with contextlib.suppress(SystemExit): main(arguments)\n"
        "print(sorted({'torch', 'lightning', 'pandas', 'rich', 'hydra', 'omegaconf'} & set(sys.modules)))\n"
    )
    assert fresh(program) == "[]"


def fresh(program):
    """What a program prints in a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(ROOT.parent)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True)
    return done.stdout.strip()
