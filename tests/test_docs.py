"""README.md and the pages of docs/: code runs, configurations compose, tables are complete, the site builds."""

import importlib
import io
import re
import shlex
import subprocess
import sys
import tomllib
import types
from contextlib import redirect_stdout
from itertools import product
from pathlib import Path

import cluster
import lightning as L
import matplotlib
import pytest
import torch
import yaml
from app import CONF, composed
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import instantiate
from tiny import Tiny, loaders

import lt_lightning
from lt_lightning import __main__ as command_line
from lt_lightning.cli.naming import register
from lt_lightning.controls import _OURS
from lt_lightning.records import read_records

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = {path.stem: path.read_text() for path in sorted(DOCS.glob("*.md"))}
BLOCK = re.compile(r"^```(\S*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Data(L.LightningDataModule):
    def train_dataloader(self):
        return loaders()[0]

    def val_dataloader(self):
        return loaders()[1]

    test_dataloader = val_dataloader


def blocks(text, *languages):
    """The blocks of code in one of these languages."""
    return [code for language, code in BLOCK.findall(text) if language in languages]


# Python


LEFT_TO_OTHERS = {"ticket_file": "tests/test_examples.py runs it on a real run"}
"""Pages whose Python another test runs."""


@pytest.fixture
def names(tmp_path, monkeypatch):
    """What the pages take for given: a project of a reader's own, and files of others."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["program", *OPTIONS_OF_THE_COMMAND_LINE])
    matplotlib.use("agg")
    state = {name: value.detach() for name, value in Tiny().state_dict().items()}
    Path("level").mkdir()
    torch.save({name: (state[name] > 0).int() for name in ("hidden.weight", "output.weight")}, "level/mask.pth")
    torch.save(state, "level/model_ep0_it0.pth")
    # A module, so that functions which a page defines can be found and compared, as those of a program are.
    page = types.ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", page)
    given = {"L": L, "make_model": Tiny, "MyModule": Tiny, "MyData": Data, "datamodule": Data(), "level": Path("level")}
    page.__dict__.update(given)
    return page.__dict__


OPTIONS_OF_THE_COMMAND_LINE = [
    *(f"--trainer.{key}=false" for key in ("logger", "enable_progress_bar", "enable_model_summary")),
    *("--trainer.max_epochs=2", "--trainer.accelerator=cpu", "--optimizer=SGD", "--optimizer.lr=0.1"),
]


def quiet(code):
    """The code with short fits, and without bars."""
    options = "accelerator='cpu', enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False, "
    options += "" if "logger=" in code else "logger=False, "
    code = (
        re.sub(r"max_epochs=(20|10)\b", "max_epochs=2", code)
        .replace("rounds=10", "rounds=2")
        .replace(', accelerator="cpu"', "")
    )
    return re.sub(r"L\.Trainer\(\s*", lambda found: found[0] + options, code)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", [name for name, text in PAGES.items() if blocks(text, "python")])
def test_the_python_of_a_page_runs_from_top_to_bottom(page, names):
    if page in LEFT_TO_OTHERS:
        return
    with redirect_stdout(io.StringIO()):
        for code in blocks(PAGES[page], "python"):
            exec(compile(quiet(code), f"docs/{page}.md", "exec"), names)


def test_the_application_of_the_pages_runs(names, tmp_path):
    page = PAGES["own_project"]
    (application,) = [code for code in blocks(page, "python") if "def main(cfg)" in code]
    (settings,) = blocks(page, "yaml")
    cfg = application_config(tmp_path, settings, "prune.rounds=1")
    exec(quiet("from lt_lightning import lottery\n" + application.replace("with job(__file__)", "if True")), names)
    names["main"].__wrapped__(cfg)
    assert [path.name for path in sorted(Path("runs/app").glob("round-*"))] == ["round-00", "round-01"]


# YAML


def application_config(folder, text, *overrides):
    """The composition of a configuration in a folder of its own."""
    (folder / "conf").mkdir(exist_ok=True)
    (folder / "conf" / "config.yaml").write_text(text)
    with initialize_config_dir(str(folder / "conf"), version_base="1.3"):
        return compose("config", list(overrides))


@pytest.mark.parametrize(
    ("page", "text"), [pytest.param(name, code, id=name) for name in PAGES for code in blocks(PAGES[name], "yaml")]
)
def test_the_yaml_of_a_page_composes(page, text, tmp_path, monkeypatch):
    if "defaults:" in text:
        cfg = application_config(tmp_path, text)
        settings = yaml.safe_load(text)
        assert cfg.prune.rounds == settings.get("prune", {}).get("rounds", 12)
        if "controls" in settings.get("prune", {}):
            assert [
                control.keywords if callable(control) else control for control in instantiate(cfg.prune.controls)
            ] == [
                "reinit",
                {"sigma": 0.5},
            ]
        return
    monkeypatch.syspath_prepend(ROOT / "examples")
    first, *_ = text.splitlines()
    path, override = re.fullmatch(r"# (conf/\S+)\.yaml: python app.py (\S+)", first).groups()
    assert path == "conf/" + override.replace("=", "/")
    assert instantiate(yaml.safe_load(text)).func.__name__ == Path(path).name


# Commands


def lines(text):
    """The commands of the blocks of a page, without comments; continued lines are one."""
    for code in [*blocks(text, "bash"), *filter(is_of_commands, blocks(text, ""))]:
        code = re.sub(r"[ \t]*\\\n\s*", " ", code)
        if code.startswith("#!"):
            continue  # a script, checked as a whole
        for line in code.splitlines():
            if shlex.split(line, comments=True):
                yield shlex.split(line, comments=True)


def is_of_commands(code):
    return code.startswith(("python ", "pip "))


def parts(words):
    """The commands of a line that are joined by &&."""
    found = [[]]
    for word in words:
        found.append([]) if word == "&&" else found[-1].append(word)
    return found


EVERYTHING = PAGES | {"README": (ROOT / "README.md").read_text()}
COMMANDS = {
    " ".join(command): command for text in EVERYTHING.values() for words in lines(text) for command in parts(words)
}


def test_commands_are_found():
    assert len(COMMANDS) > 60
    assert {page for page, text in EVERYTHING.items() if list(lines(text))} >= {"start", "slurm", "look", "results"}


@pytest.mark.slow
@pytest.mark.parametrize("words", [pytest.param(words, id=text) for text, words in COMMANDS.items()])
def test_a_command_is_one_that_there_is(words, monkeypatch):
    while re.match(r"\w+=", words[0]):
        words = words[1:]
    program, *arguments = words
    if program == "python" and arguments[0] == "train.py":
        composes(arguments[1:])
    elif program == "python" and arguments[:2] == ["-m", "lt_lightning"]:
        parses(arguments[2:], monkeypatch)
    elif program == "python" and arguments[0] == "-m":
        assert (ROOT / arguments[1]).is_dir()
    elif program == "python":
        assert (ROOT / arguments[0]).exists()
    elif program == "pip":
        extras = re.findall(r"\[([\w,]+)\]", " ".join(arguments))
        known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert {name for group in extras for name in group.split(",")} <= {*known, "signatures"}
    else:
        assert program in {"pytest", "sphinx-build"}, f"nothing here knows how to check {program}"


def composes(arguments):
    """A command of train.py: its configuration is there, for every job of a sweep or the first few."""
    overrides = [each for each in arguments if not each.startswith("--")]
    assert {each for each in arguments if each.startswith("--")} <= {"--multirun", "--help"}
    needs = {"launcher=ray": "hydra_ray_launcher", "hparams_search=optuna": "hydra_optuna_sweeper"}
    for choice, plugin in needs.items():
        if choice in overrides:
            pytest.importorskip(f"hydra_plugins.{plugin}", reason=f"{choice} needs an extra that the test extra lacks")
    register()
    parser = OverridesParser.create()
    sweeps = "--multirun" in arguments
    choices = []
    for override, each in zip(parser.parse_overrides(overrides), overrides, strict=True):
        assert sweeps or not override.is_sweep_override(), f"{each} is a sweep, which wants --multirun"
        values = list(override.sweep_string_iterator()) if override.is_sweep_override() else None
        choices.append([f"{override.get_key_element()}={value}" for value in values] if values else [each])
    for job in list(product(*choices))[:2]:
        cfg = composed(*job)
        assert cfg.prune._target_ in ("lt_lightning.lottery", "lt_lightning.transfer")
        prunes = cfg.prune.get("criterion")
        if prunes and not prunes._target_.startswith("own_criterion"):
            instantiate(cfg.prune)


def parses(arguments, monkeypatch):
    """A command of `python -m lt_lightning`: its parser takes it."""
    heard = []
    for name in ("_status", "_summary", "_report", "_analyse", "_ticket"):
        monkeypatch.setattr(command_line, name, lambda given: heard.append(given) or 0)
    assert command_line.main(arguments) == 0
    assert len(heard) == 1


def test_scripts_for_a_shell_parse():
    scripts = [code for text in EVERYTHING.values() for code in blocks(text, "bash") if code.startswith("#!")]
    assert scripts
    for code in scripts:
        subprocess.run(["bash", "-n"], input=code, text=True, check=True)


def test_every_block_has_a_language_that_a_test_reads():
    languages = {(page, language) for page, text in PAGES.items() for language, _ in BLOCK.findall(text)}
    read = {"python", "bash", "yaml", "text", "{toctree}", "{eval-rst}"}
    assert [(page, language) for page, language in languages if language not in read] == []


PROGRAM = """
import sys, time
import lightning as L
from tiny import Tiny, loaders, trainer
from lt_lightning import lottery

class Slow(L.Callback):
    def on_train_batch_end(self, *_):
        print("a step", flush=True)
        time.sleep(0.2)

for ticket in lottery(Tiny, rounds=1, directory=f"runs/seed={sys.argv[2]}", seed=int(sys.argv[2])):
    trainer(ticket, [Slow()], max_epochs=6).fit(ticket.model, *loaders(), ckpt_path=ticket.ckpt_path)
"""


@pytest.mark.slow
@pytest.mark.slurm
@pytest.mark.skipif(bool(cluster.MISSING), reason=f"not installed: {cluster.MISSING}; see system_packages in .ci/run")
def test_the_batch_script_asks_for_another_start_and_goes_on(tmp_path):
    (script,) = [code for code in blocks(PAGES["slurm"], "bash") if code.startswith("#!")]
    script = script.replace(" --gpus-per-task=1", "").replace("python", sys.executable).replace("0-2", "3")
    (tmp_path / "job.sh").write_text(script)
    (tmp_path / "my_program.py").write_text(PROGRAM)
    records = tmp_path / "runs" / "seed=3" / "records.csv"
    with cluster.slurm(tmp_path / "slurm") as environment:

        def said():
            return "".join(file.read_text() for file in tmp_path.glob("slurm-*.out"))

        command = ["sbatch", "--parsable", "job.sh"]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
        job = done.stdout.strip()
        cluster.wait_for(lambda: "a step" in said())
        subprocess.run(["scancel", "--signal=USR1", f"{job}_3"], env=environment, check=True)
        cluster.wait_for(lambda: records.exists() and len(read_records(records)) == 2, seconds=200)
    steps = [row["steps"] for row in read_records(records)]
    assert steps == [30, 30]
    assert said().count("a step") == 60, "nothing is trained twice"


@pytest.mark.slow
def test_the_first_commands_run(tmp_path):
    commands = [words for words in lines(PAGES["start"]) if words[:2] == ["python", "train.py"]]
    assert len(commands) == 3
    for n, words in enumerate(commands):
        short = ["prune.rounds=1", "trainer.max_epochs=2", "share_dense=false", f"hydra.run.dir={tmp_path / str(n)}"]
        subprocess.run([sys.executable, *words[1:], *short], cwd=ROOT, check=True, capture_output=True)
    assert (tmp_path / "0" / "report.html").exists()
    assert (tmp_path / "0" / "report.png").exists()


# Tables


def rows(text, head):
    """The rows of the table with this head, as lists of cells."""
    table = re.search(rf"^\| {re.escape(head)} \|\n\|[-|]+\|\n((?:\|.*\|\n)+)", text, re.MULTILINE)[1]
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in table.splitlines()]


def test_the_choices_of_the_table_are_the_configurations():
    told = {
        row[0].strip("` "): set(re.findall(r"`([\w]+)`", row[1]))
        for row in rows(PAGES["configurations"], "group | choices")
    }
    groups = {path.parent.relative_to(CONF).as_posix() for path in CONF.rglob("*.yaml")} - {".", "experiment"}
    for group in {each for each in groups if not each.startswith("hydra")}:
        assert {path.stem for path in (CONF / group).glob("*.yaml")} <= told[group], group


def test_the_table_of_experiments_is_complete():
    experiments = {path.stem for path in (CONF / "experiment").glob("*.yaml")}
    table = "\n".join(row[0] for row in rows(PAGES["configurations"], "experiment | of"))
    assert set(re.findall(r"`(\w+)`", table)) == experiments
    assert set(re.findall(r"`(\w+)` \*", table)) == {
        name for name in experiments if "sweeper" in (CONF / "experiment" / f"{name}.yaml").read_text()
    }


def test_the_table_of_controls_is_complete():
    told = [re.match(r"`(\w+)", row[0].strip())[1] for row in rows(PAGES["controls"], "control | changes | to")]
    assert told == list(_OURS)


def test_the_reference_has_every_public_name():
    told = re.findall(r"^\.\. (?:auto\w+:: lt_lightning\.|py:data:: )(\w+)$", PAGES["reference"], re.MULTILINE)
    assert sorted(told) == sorted(lt_lightning.__all__)


def test_the_reference_has_the_names_that_pages_take_from_modules():
    told = re.findall(r"^\.\. auto\w+:: (lt_lightning\.[\w.]+\.\w+)$", PAGES["reference"], re.MULTILINE)
    places = [name.rpartition(".") for name in told]
    assert all(getattr(importlib.import_module(module), name).__doc__ for module, _, name in places)
    code = "\n".join(each for text in EVERYTHING.values() for each in blocks(text, "python"))
    imports = re.findall(r"^from (lt_lightning\.[\w.]+) import (.+)$", code, re.MULTILINE)
    taken = {f"{module}.{name}" for module, names in imports for name in names.split(", ")}
    modules = {"lt_lightning.analysis.page", "lt_lightning.analysis.report", "lt_lightning.analysis.instability"}
    assert taken >= {"lt_lightning.cli.jobs.job", "lt_lightning.analysis.recipe.Recipe", *modules}
    assert taken - modules <= set(told)
    for name in ("page.write", "report.draw", "instability.measure", "instability.summarize"):
        assert f"{name}(" in code
        assert f"lt_lightning.analysis.{name}" in told


def test_the_errors_of_the_table_are_those_that_there_are():
    source = "".join(path.read_text() for path in Path(lt_lightning.__file__).parent.rglob("*.py"))
    told = [row[0].strip('" ') for row in rows(PAGES["own_project"], "it says | because")]
    assert len(told) == 14
    assert [words for words in told if words not in source] == []


def test_the_tests_that_the_page_on_exactness_names_exist():
    named = re.findall(r"`(?:tests/)?(test_\w+\.py)(?:::(\w+))?`", PAGES["exactness"])
    assert len(named) > 25
    for file, function in named:
        assert f"def {function or 'test_'}" in (ROOT / "tests" / file).read_text(), (file, function)


def test_the_examples_that_pages_name_exist():
    named = {name for text in EVERYTHING.values() for name in re.findall(r"examples/[\w/]+(?:\.\w+)?", text)}
    assert named >= {"examples/hydra_app", "examples/gan.py", "examples/notebook.ipynb"}
    assert [name for name in named if not (ROOT / name).exists()] == []


# Pictures and the site


def test_the_pictures_are_what_their_program_draws(monkeypatch):
    monkeypatch.syspath_prepend(DOCS / "pictures")
    draw = importlib.import_module("draw")
    for picture in draw.PICTURES:
        assert (DOCS / "pictures" / f"{picture.__name__}.svg").read_text() == picture()
    shown = re.findall(r"!\[([^]]*)\]\(([^)]+)\)", "\n".join(PAGES.values()))
    assert all(words for words, _ in shown), "every picture has a text for who does not see it"
    assert all((DOCS / path).exists() for _, path in shown)


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("sphinx", reason='needs sphinx: pip install "lt-lightning[docs]"')
    command = [sys.executable, "-m", "sphinx", "-W", "-n", "-q", "-b", "html", DOCS, tmp_path / "site"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    reference = (tmp_path / "site" / "reference.html").read_text()
    assert [name for name in lt_lightning.__all__ if f'id="lt_lightning.{name}"' not in reference] == []
    pages = [path.stem for path in (tmp_path / "site").glob("*.html")]
    assert set(PAGES) <= set(pages)
