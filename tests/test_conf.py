"""Every configuration composes and instantiates, and every experiment runs a trial."""

import importlib.util
import inspect
import re
import subprocess
import sys

import pytest
import torch
import yaml
from app import CONF, composed, run
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from sampling import few
from tiny import Tiny

from lt_lightning import at_init, criteria, early_bird, gradual, rewinds, schedules, scopes, stopping
from lt_lightning.cli import jobs
from lt_lightning.cli.naming import run_directory
from lt_lightning.exchange.ticketfile import TicketFile
from lt_lightning.models import Classifier
from lt_lightning.schedules import one_shot

EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
CHOICES = [
    (path.parent.relative_to(CONF).as_posix(), path.stem)
    for path in sorted(CONF.rglob("*.yaml"))
    if path.parent not in (CONF, CONF / "experiment")
]
PLUGINS = {"ray": "hydra_ray_launcher", "optuna": "hydra_optuna_sweeper"}
"""Choices that need more than the test extra brings."""


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_every_choice_composes_and_says_how_to_use_it(group, choice):
    if (plugin := PLUGINS.get(choice)) and importlib.util.find_spec(f"hydra_plugins.{plugin}") is None:
        pytest.skip(f"{plugin} is not installed: an extra of pyproject.toml that the test extra leaves out")
    cfg = composed(*[f"prune={group[6:]}"] * (group in ("prune/gradual", "prune/early_bird")), f"{group}={choice}")
    assert cfg.hydra.runtime.choices[group] == choice
    first = (CONF / group / f"{choice}.yaml").read_text().removeprefix("# @package _global_\n").splitlines()[0]
    assert first.startswith("# ")
    assert choice in first


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_says_how_to_run_it_and_where_its_numbers_come_from(experiment):
    text = (CONF / "experiment" / f"{experiment}.yaml").read_text()
    assert text.startswith(f"# @package _global_\n# python train.py experiment={experiment} ")
    assert "arXiv" in text
    assert composed(f"experiment={experiment}").name == experiment


@pytest.mark.slow
def test_a_study_is_several_grids_in_one_sweep(tmp_path):
    command = [sys.executable, "train.py", "--multirun", "study=lth_lenet_study", "seed=0,1", "prune.dry_run=true"]
    options = [
        "data.path=nowhere",
        f"hydra.sweep.dir={tmp_path}",
        "hydra.sweeper.max_batch_size=5",
    ]
    done = subprocess.run([*command, *options], cwd=CONF.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    jobs = re.findall(r"#(\d+) : (seed=\d) .* (prune=\w+) .*?(?:prune\.density=(\S+))?$", done.stdout, re.MULTILINE)
    densities = ["", "0.513", "0.211", "0.087", "0.036", "0.018"]
    expected = [(f"seed={seed}", "prune=one_shot" if d else "prune=iterative", d) for d in densities for seed in (0, 1)]
    assert sorted(job[1:] for job in jobs) == sorted(expected)
    assert [int(job[0]) for job in jobs] == list(range(12))


def test_the_gradual_study_compares_at_equal_density_and_total_steps():
    grids = composed("study=gradual_study").hydra.sweeper.grids
    totals = {}
    for grid in grids:
        given = [f"{key}={value}" for key, value in grid.items() if "," not in str(value)]
        cfg = composed("study=gradual_study", *given)
        settings = {key: cfg.prune.get(key) for key in ("schedule", "density")}
        schedule = instantiate(settings["schedule"]) if settings["schedule"] else one_shot(settings["density"])
        totals[grid["prune"]] = cfg.trainer.max_steps * (cfg.prune.rounds + cfg.prune.dense)
        assert schedule(cfg.prune.rounds) == pytest.approx(0.8**10, rel=1e-3)
        assert cfg.prune.scope._target_ == "lt_lightning.scopes.layerwise"
    assert totals == dict.fromkeys(("gradual", "iterative", "one_shot"), 110_000)


@pytest.mark.parametrize(
    "prune", ["none", "one_shot", "iterative", "late_rewinding", "lr_rewinding", "fine_tune", "gradual"]
)
def test_every_way_to_prune_makes_a_lottery(prune, tmp_path):
    cfg = composed(f"prune={prune}")
    next(instantiate(cfg.prune)(Tiny, directory=tmp_path, seed=0))
    plan = yaml.safe_load((tmp_path / "config.yaml").read_text())["lottery"]
    rewinds = {"lr_rewinding": "keep_weights", "fine_tune": "fine_tune"}
    function = plan["rewind"]["function"] if isinstance(plan["rewind"], dict) else plan["rewind"]
    assert function == f"lt_lightning.rewinds.{rewinds.get(prune, 'to_point')}"
    assert plan["rounds"] == {"none": 0, "one_shot": 1, "gradual": 1}.get(prune, 12)
    assert plan["rewind_step"] == ("1 epochs" if prune == "late_rewinding" else "0 steps")


FAMILIES = {
    "criterion": [criteria, at_init],
    "scope": [scopes],
    "rewind": [rewinds],
    "schedule": [schedules],
    "gradual": [gradual],
    "stop_when": [stopping],
    "early_bird": [early_bird],
}
"""Group of configurations → the modules that hold its functions."""

HELPERS = {
    "keep_best",
    "select",
    "group_by_pattern",
    "apportion",
    "parse_step",
    "rounds_to",
    "planned",
    "require_pruned",
    "emptied",
    "ends",
    "density_at",
    "check",
    "needs_dense",
    "mask_distance",
}
"""Public functions of these modules that belong to no family."""


@pytest.mark.parametrize("group", FAMILIES)
def test_every_function_of_a_family_has_a_configuration_of_its_name(group):
    found = {
        f"{module.__name__}.{name}"
        for module in FAMILIES[group]
        for name, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__ and name not in HELPERS and name[0] != "_"
    }
    parents = [f"prune={group}"] if group in ("gradual", "early_bird") else []
    made = {
        path.stem: composed(*parents, f"prune/{group}={path.stem}") for path in (CONF / "prune" / group).glob("*.yaml")
    }
    assert {cfg.prune[group]._target_ for cfg in made.values()} == found
    for name, cfg in made.items():
        assert cfg.prune[group]._target_.rpartition(".")[2] == name
        assert callable(instantiate(cfg.prune[group]))


def test_the_experiments_have_their_papers_hyperparameters():
    lenet = composed("experiment=lth_lenet_mnist")
    assert (lenet.trainer.max_steps, lenet.data.batch_size, lenet.data.val_size) == (50000, 60, 5000)
    assert (lenet.model.optimizer.lr, lenet.trainer.val_check_interval) == (1.2e-3, 100)
    assert lenet.prune.schedule.fraction == {"*output*": 0.1, "*": 0.2}
    assert lenet.prune.scope._target_ == "lt_lightning.scopes.layerwise"
    steps = {f"lth_conv{n}_cifar10": s for n, s in ((2, 20000), (4, 25000), (6, 30000))}
    assert {name: composed(f"experiment={name}").trainer.max_steps for name in steps} == steps
    fractions = {n: composed(f"experiment=lth_conv{n}_cifar10").prune.schedule.fraction["*conv*"] for n in (2, 4, 6)}
    assert fractions == {2: 0.1, 4: 0.1, 6: 0.15}
    gpt = composed("experiment=lth_gpt_shakespeare")
    network = gpt.model.network
    assert (network.layers, network.heads, network.width, network.context, network.dropout) == (4, 4, 128, 64, 0.0)
    assert (gpt.data.batch_size, gpt.data.val_fraction, gpt.data.vocabulary) == (12, 0.1, 65)
    assert (gpt.trainer.max_steps, gpt.trainer.gradient_clip_val, gpt.prune.rewind_step) == (2000, 1.0, "100 steps")
    rates = gpt.model.optimizer
    assert (rates.lr, list(rates.betas), rates.weight_decay) == (1e-3, [0.9, 0.99], 0.1)
    schedule = gpt.model.scheduler
    assert (schedule.warmup_steps, schedule.steps, schedule.lowest) == (100, 2000, 0.1)
    assert composed("experiment=lth_gpt_shakespeare", "trainer.max_steps=50").model.scheduler.steps == 50
    resnet = composed("experiment=late_rewinding_resnet20")
    assert (resnet.data.batch_size, resnet.trainer.max_steps, resnet.prune.rewind_step) == (128, 30000, "500 steps")
    assert resnet.model.optimizer == {
        "_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4,
    }  # fmt: skip


RATES = {  # lr, milestones, interval, warm-up, max_steps, batch, rounds
    "lth_resnet18_cifar10": (0.1, [20000, 25000], "step", None, 30000, 128, 12),
    "lth_resnet18_low_lr_cifar10": (0.01, [20000, 25000], "step", None, 30000, 128, 12),
    "lth_resnet18_warmup_cifar10": (0.03, [20000, 25000], "step", 20000, 30000, 128, 12),
    "lth_vgg19_cifar10": (0.1, [80, 120], "epoch", None, 112000, 64, 20),
    "lth_vgg19_low_lr_cifar10": (0.01, [80, 120], "epoch", None, 112000, 64, 20),
    "lth_vgg19_warmup_cifar10": (0.1, [56320, 84480], "step", 10000, 112000, 64, 20),
    "lmc_resnet20_cifar10": (0.1, [80, 120], "epoch", None, 160, 128, 12),
    "lmc_vgg16_cifar10": (0.1, [80, 120], "epoch", None, 160, 128, 20),
    "renda_resnet20_cifar10": (0.1, [91, 136], "epoch", None, 182, 128, 10),
    "at_init_resnet20_cifar10": (0.1, [80, 120], "epoch", None, 160, 128, 1),
}
"""Of the deep networks; where there are no steps, epochs."""


@pytest.mark.parametrize("experiment", RATES)
def test_the_deep_networks_have_their_papers_rates(experiment):
    cfg = composed(f"experiment={experiment}")
    length = cfg.trainer.max_steps if cfg.trainer.max_steps > 0 else cfg.trainer.max_epochs
    schedule = cfg.model.scheduler
    assert RATES[experiment] == (
        cfg.model.optimizer.lr, schedule.milestones, cfg.model.scheduler_interval, schedule.get("warmup_steps"), length,
        cfg.data.batch_size, cfg.prune.rounds,
    )  # fmt: skip
    renda = experiment.startswith("renda")
    assert (cfg.model.optimizer.momentum, cfg.model.optimizer.weight_decay) == (0.9, 2e-4 if renda else 1e-4)
    assert "nesterov" not in cfg.model.optimizer
    assert cfg.data.augment._target_ == "lt_lightning.data.flip_crop"
    glorot = cfg.model.network.get("initialize", {}).get("_target_") == "lt_lightning.models.glorot_normal"
    assert glorot == experiment.startswith("lth")
    made = instantiate(cfg.model).configure_optimizers()
    assert made["lr_scheduler"]["interval"] == RATES[experiment][2]
    assert made["optimizer"].param_groups[0]["lr"] == (0.0 if RATES[experiment][3] else RATES[experiment][0])


@pytest.mark.parametrize(("layers", "lr"), [(2, 3e-4), (4, 2e-4), (6, 2e-4)])
def test_dropout_changes_the_rate_and_nothing_else(layers, lr):
    with_dropout, without = (composed(f"experiment=lth_conv{layers}{kind}_cifar10") for kind in ("_dropout", ""))
    assert (with_dropout.model.network.dropout, without.model.network.dropout) == (0.5, 0.0)
    assert with_dropout.model.optimizer.lr == lr
    for part in ("data", "trainer", "prune"):
        assert with_dropout[part] == without[part]


def test_the_comparisons_are_swept_from_their_files():
    swept = {name: composed(f"experiment={name}").hydra.sweeper.params for name in COMPARED}
    assert swept["renda_resnet20_cifar10"] == {"prune": "late_rewinding,lr_rewinding,fine_tune,iterative"}
    criteria = re.split(r",\s*", swept["zhou_lenet_mnist"]["prune/criterion"])
    assert len(criteria) == 13
    assert set(criteria) == {path.stem for path in (CONF / "prune" / "criterion").glob("*.yaml")} - {
        "magnitude", "snip", "grasp", "synflow",
    }  # fmt: skip
    methods = swept["at_init_resnet20_cifar10"]
    assert methods["prune"] == "snip,grasp,synflow,at_init"
    assert [float(each) for each in methods["prune.density"].split(",")] == pytest.approx(
        [0.8**n for n in range(1, 19)], rel=1e-3
    )


COMPARED = {
    "renda_resnet20_cifar10": [
        f"prune={each}" for each in ("late_rewinding", "lr_rewinding", "fine_tune", "iterative")
    ],
    "zhou_lenet_mnist": ["prune/criterion=small_init_small_final", "prune/criterion=magnitude_increase_diff_sign"],
    "at_init_resnet20_cifar10": [f"prune={each}" for each in ("snip", "grasp", "synflow", "at_init")],
}


@pytest.mark.parametrize("experiment", COMPARED)
def test_a_method_of_a_comparison_has_the_last_word(experiment):
    for choice in COMPARED[experiment]:
        group, _, name = choice.partition("=")
        cfg = composed(f"experiment={experiment}", choice)
        assert cfg.hydra.runtime.choices[group] == name
        assert cfg.name == experiment


def test_the_convolutions_of_resnet20_are_pruned_and_nothing_else():
    from lt_lightning.prunable import find_prunable

    cfg = composed("experiment=late_rewinding_resnet20")
    weights = find_prunable(instantiate(cfg.model), cfg.prune.prunable)
    assert sum(weight.numel() for weight in weights.values()) == 270_896 - 2_560 - 640
    assert all(weight.dim() == 4 for weight in weights.values())


def test_attention_and_feed_forward_weights_of_the_gpt_are_pruned_and_nothing_else():
    from lt_lightning.prunable import find_prunable

    cfg = composed("experiment=lth_gpt_shakespeare")
    weights = find_prunable(instantiate(cfg.model), cfg.prune.prunable)
    assert {name.split(".", 3)[-1] for name in weights} == {
        "attention.qkv.weight", "attention.projection.weight", "mlp.hidden.weight", "mlp.projection.weight",
    }  # fmt: skip
    assert sum(weight.numel() for weight in weights.values()) == 4 * 12 * 128**2


HEAVY = "vgg|resnet18|conv[46]|dropout|lmc|renda"
LIGHT = [number for number, name in enumerate(EXPERIMENTS) if not re.search(HEAVY, name)]


@pytest.mark.parametrize("experiment", few([*EXPERIMENTS, None], *LIGHT, -1))
def test_every_experiment_runs_a_trial_that_counts_as_nothing(experiment, images, plays, tmp_path):
    chosen = [f"experiment={experiment}"] if experiment else []
    if experiment and "shakespeare" in experiment:
        chosen += [f"data.path={plays}", f"data.vocabulary={len(set(plays.read_text()))}"]
    elif experiment:
        data = "mnist" if "mnist" in experiment else "cifar10"
        chosen += [f"data.path={images / data}", "data.val_size=100", "data.batch_size=4", "data.eval_batch_size=4"]
    if "transfer" in str(experiment):
        masks = {"network.hidden1.weight": torch.ones(300, 784).tril().bool()}
        TicketFile(masks, {}, 1).write(tmp_path.with_suffix(".safetensors"))
        chosen += [f"prune.path={tmp_path.with_suffix('.safetensors')}"]
    if "vgg" in str(experiment):
        chosen += ["prune.controls=[]"]  # 20M weights take their time
    run(tmp_path, *chosen, "trainer=smoke", "prune.rounds=1")
    assert not (tmp_path / "records.csv").exists()
    assert (tmp_path / "fast_dev_run" / "round-01" / "final.ckpt").exists()


def test_a_trial_of_what_is_done_says_that_nothing_was_tried(tmp_path, capsys):
    for trial, told in ((), 0), (("trainer=smoke",), 1):
        run(tmp_path, "prune.rounds=0", "trainer.max_epochs=1", *trial)
        assert capsys.readouterr().out.count("nothing was tried: all is done in") == told


def test_any_other_module_is_a_model_through_its_target(tmp_path):
    run(tmp_path, "trainer=smoke", "prune.rounds=1", "model._target_=test_conf.Other")
    assert (tmp_path / "fast_dev_run" / "round-01" / "final.ckpt").exists()


class Other(Classifier):
    pass


def test_a_run_directory_may_be_called_like_an_interpolation(tmp_path):
    run(tmp_path / "${x}", "trainer=smoke", "prune.rounds=0", "+model.optimizer.weight_decay=${data.batch_size}")
    assert (tmp_path / "${x}" / "fast_dev_run" / "round-00" / "final.ckpt").exists()
    told = "'+model.optimizer.weight_decay=${data.batch_size}'"
    assert told in jobs.command(__file__)


@pytest.mark.parametrize(
    "controls", ['[reinit,"noise(0.5)"]', "[reinit,{_target_: lt_lightning.controls.noise, sigma: 0.5}]"]
)
def test_a_control_with_a_value_is_configured_by_its_text_or_its_target(controls, tmp_path):
    run(tmp_path, "trainer=smoke", "prune.rounds=1", f"prune.controls={controls}")
    assert (tmp_path / "fast_dev_run" / "round-01" / "noise_0.5" / "start.ckpt").exists()
    assert (tmp_path / "fast_dev_run" / "round-01" / "noise_0.5" / "final.ckpt").exists()


def test_a_density_is_short_for_a_one_shot_schedule(tmp_path):
    cfg = composed("prune=one_shot", "prune.density=0.05")
    next(instantiate(cfg.prune)(Tiny, directory=tmp_path, seed=0))
    plan = yaml.safe_load((tmp_path / "config.yaml").read_text())["lottery"]
    assert plan["schedule"] == {"function": "lt_lightning.schedules._explicit", "densities": [0.05]}
    assert run_directory("default", "one_shot", cfg.hydra.overrides.task, 0) == (
        "default/prune=one_shot,prune.density=0.05/seed=0"
    )


@pytest.mark.parametrize(
    ("given", "schedule", "rounds"),
    [
        (["prune.density=0.05", "prune.rounds=5"], {"function": "_in_rounds", "density": 0.05, "rounds": 5}, 5),
        (["prune.density=0.05"], {"function": "_down_to", "fraction": 0.2, "density": 0.05}, 14),
        (["++prune.density=0.5"], {"function": "_down_to", "fraction": 0.2, "density": 0.5}, 4),
        (
            ["prune.density=0.5", "prune.schedule.fraction=0.1"],
            {"function": "_down_to", "fraction": 0.1, "density": 0.5},
            7,
        ),
        (
            ["prune.density={*output*: 0.1, *: 0.05}", "prune.rounds=5"],
            {"function": "_in_rounds", "density": {"*output*": 0.1, "*": 0.05}, "rounds": 5},
            5,
        ),
        (["prune=one_shot", "prune.rounds=3"], {"function": "_in_rounds", "density": 0.1, "rounds": 3}, 3),
        (["prune.rounds=3"], {"function": "_geometric", "fraction": 0.2}, 3),
        (["prune/schedule=cubic"], {"function": "_cubic", "density": 0.1, "rounds": 12}, 12),
    ],
)
def test_a_density_and_a_number_of_rounds_decide_the_schedule(given, schedule, rounds, tmp_path):
    cfg = composed(*given)
    next(instantiate(cfg.prune)(Tiny, directory=tmp_path, seed=0))
    plan = yaml.safe_load((tmp_path / "config.yaml").read_text())["lottery"]
    assert plan["schedule"] == schedule | {"function": f"lt_lightning.schedules.{schedule['function']}"}
    assert plan["rounds"] == rounds


def test_two_numbers_of_rounds_to_a_density_have_a_directory_each():
    def folder(*overrides):
        cfg = composed(*overrides)
        HydraConfig.instance().set_config(cfg)
        return cfg.hydra.run.dir

    more = ([], ["prune.rounds=5"], ["prune.rounds=6"])
    assert len({folder("prune.density=0.05", *each) for each in more}) == 3
    assert len({folder(*each) for each in more}) == 1


def test_a_density_beside_a_schedule_is_refused(tmp_path):
    cfg = composed("experiment=lth_lenet_mnist", "prune=one_shot", "prune/schedule=geometric")
    with pytest.raises(ValueError, match=r"schedule and density=0.1 are both given.*prune.schedule=null"):
        instantiate(cfg.prune)(Tiny, directory=tmp_path, seed=0)
