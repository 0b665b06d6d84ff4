"""What is installed: declared dependencies, the files of the wheel, and the configs seen from a project elsewhere."""

import ast
import json
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions
from importlib.metadata import distributions as installed
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from sampling import few

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TOOLS = {"ruff", "mypy", "build", "hatchling", "pytest-xdist", "jsonargparse"}
"""Parts of the test extra that are run, plugged in, or imported by `lightning.pytorch.cli`, and not by us."""

# A project of somebody else, with a config directory of its own.
APP = """
import json

import hydra
from hydra.utils import instantiate
from omegaconf import OmegaConf

import lt_lightning
from lt_lightning import lottery


@hydra.main(version_base="1.3", config_path="settings", config_name="mine")
def main(cfg):
    prune = instantiate(cfg.prune)
    assert prune.func is lottery
    told = {"file": lt_lightning.__file__, "criterion": prune.keywords["criterion"].func.__name__}
    print(json.dumps(told | {"prune": OmegaConf.to_container(cfg.prune, resolve=True)}))


main()
"""
SETTINGS = """
defaults:
  - prune: iterative
  - override prune/criterion: movement
  - override hydra/job_logging: disabled
  - _self_
prune:
  rounds: 3
hydra:
  searchpath: [pkg://lt_lightning.conf]
  run: {dir: .}
  output_subdir: null
"""


EXTRAS = ("tensorboard", "mlflow", "slurm", "joblib", "hub", "export", "docs")
"""What the test extra takes with it."""


def run(*command, **options):
    """What a command says, or its error."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def python(*arguments, cwd, path=None):
    """Run the interpreter of the tests outside of the working tree, with or without another folder on its path."""
    elsewhere = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return run(sys.executable, *arguments, cwd=cwd, env=elsewhere | ({"PYTHONPATH": str(path)} if path else {}))


def requirements(*extras):
    """Requirements of the project and of some of its extras, by canonical name."""
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in PROJECT["optional-dependencies"][extra])]
    return {canonicalize_name(Requirement(line).name): Requirement(line) for line in lines}


def pins(path):
    """Versions that a constraints file asks for, by canonical name."""
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines), "exact versions only, no local ones"
    return {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}


def imported(*folders):
    """Distributions that the Python files import, and whether that is done by the package or by the tests."""
    files = [file for folder in folders for file in ([folder] if folder.is_file() else folder.rglob("*.py"))]
    trees = [node for file in files for node in ast.walk(ast.parse(file.read_text()))]
    modules = {name.name for node in trees if isinstance(node, ast.Import) for name in node.names}
    modules |= {node.module for node in trees if isinstance(node, ast.ImportFrom) and node.module and not node.level}
    ours = {"lt_lightning", "train", *(file.stem for file in (ROOT / "tests").glob("*.py"))}
    tops = {module.split(".")[0] for module in modules} - set(sys.stdlib_module_names) - ours
    return {module: {canonicalize_name(name) for name in packages_distributions()[module]} for module in tops}


def configs():
    """The files of conf/, relative to it."""
    return {path.relative_to(ROOT / "conf").as_posix() for path in (ROOT / "conf").rglob("*.yaml")}


@pytest.fixture(scope="module")
def distributions(tmp_path_factory):
    """The sdist, and the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    return next(folder.glob("*.tar.gz")), next(folder.glob("*.whl"))


@pytest.fixture
def app(tmp_path):
    """Somebody's project; the name of its program."""
    (tmp_path / "settings").mkdir()
    (tmp_path / "settings" / "mine.yaml").write_text(SETTINGS)
    (tmp_path / "app.py").write_text(APP)
    return tmp_path


def composes(app, home, path=None):
    """The app finds the package in `home` and composes its own values with those of the package."""
    told = json.loads(python("app.py", cwd=app, path=path))
    assert Path(told["file"]).parent == home
    assert told["criterion"] == "movement"
    prune = told["prune"]
    assert prune["rounds"] == 3
    assert prune["schedule"] == {
        "_target_": "lt_lightning.schedules.geometric",
        "_convert_": "all",
        "fraction": 0.2,
        "density": None,
        "rounds": None,
    }
    assert prune["criterion"]["_target_"] == "lt_lightning.criteria.movement"
    assert prune["rewind"]["_target_"] == "lt_lightning.rewinds.to_point"
    assert sorted(file.name for file in app.iterdir()) == ["app.py", "settings"], "left something behind"


@pytest.mark.slow
def test_every_import_of_the_package_is_a_declared_dependency():
    declared = set(requirements()) | set(requirements(*EXTRAS))
    for module, names in imported(ROOT / "lt_lightning", ROOT / "train.py").items():
        assert names & declared, f"{module} ({names}) is imported: add it to dependencies in pyproject.toml"


@pytest.mark.slow
def test_every_import_of_the_tests_is_a_declared_dependency():
    declared = set(requirements("test", *EXTRAS))
    for module, names in imported(ROOT / "tests").items():
        assert names & declared, f"{module} ({names}) is imported: add it to the test extra in pyproject.toml"


@pytest.mark.slow
def test_nothing_is_declared_in_vain():
    used = set().union(*imported(ROOT / "lt_lightning", ROOT / "train.py").values())
    assert set(requirements()) <= used
    tested = set().union(*imported(ROOT / "tests").values())
    assert set(requirements("test")) - {"lt-lightning"} <= used | tested | TOOLS


def test_constraints_pin_what_is_declared():
    pinned = pins(ROOT / "constraints.txt")
    for name, requirement in requirements("test", *EXTRAS).items():
        assert name == "lt-lightning" or requirement.specifier.contains(pinned[name]), name


def test_constraints_pin_exactly_what_comes_along():
    pinned = pins(ROOT / "constraints.txt")
    here = {canonicalize_name(found.name): Version(found.version).public for found in installed()}
    if any(here.get(name) != Version(version).public for name, version in pinned.items()):
        pytest.skip("not the environment that constraints.txt describes")
    declared = requirements("test", *EXTRAS)
    reached, todo = set(), [(name, need.extras) for name, need in declared.items() if name != "lt-lightning"]
    while todo:
        name, extras = todo.pop()
        if (name, frozenset(extras)) not in reached:
            reached.add((name, frozenset(extras)))
            below = [need for need in map(Requirement, distribution(name).requires or []) if _applies(need, extras)]
            todo += [(canonicalize_name(need.name), need.extras) for need in below]
    assert {name for name, _ in reached} == set(pinned)


def _applies(need, extras):
    return need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in (extras or {""}))


def test_lower_bounds_are_those_of_the_project():
    lowest = pins(ROOT / "tests" / "lower-bounds.txt")
    for name, requirement in requirements("test", *EXTRAS).items():
        if name in {"torch", "lt-lightning"}:
            continue
        (bound,) = (part for part in requirement.specifier if part.operator in {">=", "=="})
        assert Version(lowest[name]) == Version(bound.version), f"{name}: {lowest[name]} was tested, not {bound}"


@pytest.mark.parametrize("command", few(["ruff check", "ruff format --check", "mypy"], 0, 1))
def test_style_and_types(command):
    run(sys.executable, "-m", *command.split(), cwd=ROOT)


@pytest.mark.slow
def test_editable_install_serves_configs_to_a_project_elsewhere(app):
    try:
        told = json.loads(distribution("lt-lightning").read_text("direct_url.json") or "{}")
    except PackageNotFoundError:
        pytest.skip('not installed; README.md: pip install -c constraints.txt -e ".[test]"')
    assert told["dir_info"]["editable"], "these tests want an editable install"
    composes(app, ROOT / "lt_lightning")


@pytest.mark.slow
def test_wheel_holds_the_package_and_nothing_else(distributions):
    source, wheel = distributions
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        assert not any(info.external_attr >> 16 & 0o170000 == 0o120000 for info in archive.infolist()), "a link"
    packages = ("lt_lightning", "hydra_plugins")
    modules = {path.relative_to(ROOT).as_posix() for name in packages for path in (ROOT / name).rglob("*.py")}
    data = {"lt_lightning/py.typed", "lt_lightning/data/digits.npz", "lt_lightning/conf/__init__.py"}
    parts = ("README.md", "page.css", "page.html", "page.js", "plotly-LICENSE", "plotly-cartesian.min.js")
    data |= {f"lt_lightning/analysis/page/{name}" for name in parts}
    assert names == modules | data | {f"lt_lightning/conf/{name}" for name in configs()}
    with tarfile.open(source) as archive:
        kept = {member.name.split("/", 1)[1] for member in archive if member.isfile()}
        assert not [member.name for member in archive if member.issym() or member.islnk()]
    tests = {path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").glob("*.*")}
    root = {"train.py", "README.md", "CHANGELOG.md", "LICENSE", "constraints.txt", "pyproject.toml"}
    root |= {"examples/load_ticket.py", "docs/ticket_file.md"}
    assert names | tests | root | {f"conf/{name}" for name in configs()} <= kept


@pytest.mark.slow
def test_wheel_of_the_working_tree_equals_the_one_of_the_sdist(distributions, tmp_path):
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, ROOT, cwd=tmp_path)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as ours, zipfile.ZipFile(distributions[1]) as theirs:
        assert {name: ours.read(name) for name in ours.namelist()} == {
            name: theirs.read(name) for name in theirs.namelist()
        }


@pytest.mark.slow
def test_installed_wheel_serves_configs_to_a_project_elsewhere(distributions, app, tmp_path_factory):
    home = tmp_path_factory.mktemp("installed")
    run(sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", home, distributions[1])
    composes(app, home / "lt_lightning", path=home)
