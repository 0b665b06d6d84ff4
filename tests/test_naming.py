"""The name of a run directory: the same for the same command, another for another result."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from lt_lightning.cli.naming import register, run_directory


def told(*overrides, prune="iterative"):
    """What the middle folder says."""
    name, middle, seed = run_directory("default", prune, overrides, 0).split("/")
    assert (name, seed) == ("default", "seed=0")
    return middle


def test_experiment_overrides_and_seed_are_three_folders():
    assert run_directory("lenet", "one_shot", ["model=conv2"], 3) == "lenet/prune=one_shot,model=conv2/seed=3"


@pytest.mark.parametrize(
    "override",
    [
        "data.path=/a/b", "data.num_workers=4", "trainer.accelerator=gpu", "trainer.devices=8", "trainer.num_nodes=2",
        "trainer.strategy=ddp", "+trainer.strategy.name=fsdp", "trainer.enable_progress_bar=false",
        "trainer.fast_dev_run=true", "++trainer.log_every_n_steps=1", "logger=csv", "logger.project=x", "~logger",
        "launcher=slurm", "hparams_search=optuna", "prune.dry_run=true", "prune.rounds=9", "prune.controls=[reinit]",
        "trainer=gpu", "trainer/strategy=ddp", "hydra/launcher=joblib", "hydra.verbose=true", "seed=3",
        "prune=iterative", "name=default", "experiment=lenet",
    ],
)  # fmt: skip
def test_what_cannot_change_a_result_or_is_told_elsewhere_is_left_out(override):
    assert told(override) == "prune=iterative"
    assert told("model=conv2", override, "data=mnist") == "prune=iterative,data=mnist,model=conv2"


@pytest.mark.parametrize(
    "override",
    ["trainer.max_steps=5", "+trainer.precision=16", "prune.rewind_step=5", "~model.norm",
     "data=mnist", "model.act=a-b", "trainer.max_epochs=3", "prune.seed=1"],
)  # fmt: skip
def test_what_can_change_a_result_is_told(override):
    assert told(override) == f"prune=iterative,{override}"


def test_the_number_of_rounds_is_told_where_they_share_out_a_density():
    given = ["prune.rounds=5", "prune.density=0.05"]
    assert (
        run_directory("a", "iterative", given, 0, 0.05) == "a/prune=iterative,prune.density=0.05,prune.rounds=5/seed=0"
    )
    assert run_directory("a", "iterative", ["prune.rounds=5"], 0, None) == "a/prune=iterative/seed=0"


def test_overrides_are_sorted():
    assert told("b=1", "a=2") == "prune=iterative,a=2,b=1"
    assert told("a=2", "b=1") == "prune=iterative,a=2,b=1"


def test_the_choice_of_pruning_comes_first_however_it_was_made():
    assert told("a=2", "prune=one_shot", prune="one_shot") == "prune=one_shot,a=2"


def test_odd_characters_are_replaced_and_hashed():
    assert told("prune/criterion=movement") == "prune=iterative,prune_criterion=movement"
    assert told("prune.rewind_step=100 steps") == "prune=iterative,prune.rewind_step=100_steps"
    assert told("model.path=/a b/c:d", "x='q'") == "prune=iterative,model.path=_a_b_c_d-30e6d88d,x=_q_-fb892bdc"
    assert told("model.widths=[3,4]", "model.lr=1e-3") == "prune=iterative,model.lr=1e-3,model.widths=[3,4]"
    assert run_directory("my lab/net", "one_shot", [], 0) == "my_lab_net-ed1872e4/prune=one_shot/seed=0"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ('prune.prunable=["!*output*"]', 'prune.prunable=["*output*"]'),
        ('prune.prunable=["+a"]', "prune.prunable=[+a]"),
        ("model.path=/a b", "model.path=/a/b"),
        ("model.path=/a/b", "model.path=_a_b"),
        ("prune.rewind_step=100 steps", "prune.rewind_step=100_steps"),
        ("model.width=${x}", "model.width=${y}"),
    ],
)
def test_two_jobs_never_have_one_directory(one, other):
    assert told(one) != told(other)


odd = st.text("ab_ '\"!*/:[],$1", min_size=1, max_size=6)


@given(odd, odd)
def test_other_values_have_other_names(a, b):
    assert (told(f"x={a}") == told(f"x={b}")) == (a == b)
    assert (run_directory(a, "p", [], 0) == run_directory(b, "p", [], 0)) == (a == b)


safe = re.compile(r"[\w.=,+~\[\]-]{1,120}/[\w.=,+~\[\]-]{1,120}/seed=\d+")


@given(st.text(min_size=1), st.text(min_size=1), st.lists(st.text()), st.integers(0, 10**6))
def test_every_name_is_three_short_folders_of_harmless_characters(name, prune, overrides, seed):
    assert safe.fullmatch(run_directory(name, prune, overrides, seed))


keys = st.sampled_from(["model.width", "model.depth", "optimizer.lr", "data.batch_size"])
overrides = st.lists(st.builds("{}={}".format, keys, st.integers(0, 10**30)), max_size=12)


@given(overrides, overrides)
def test_other_overrides_have_another_name_even_where_it_is_cut(a, b):
    assert (told(*a) == told(*b)) == (sorted(a) == sorted(b))


def test_a_long_name_is_cut_and_ends_in_a_hash_of_the_whole():
    long = [f"model.width_{n}=64" for n in range(20)]
    names = [told(*long), told(*long[:-1]), told(*long[:-1], "model.width_19=65")]
    assert [len(name) for name in names] == [120, 120, 120]
    assert len(set(names)) == 3
    assert {name[:111] for name in names} == {("prune=iterative," + ",".join(sorted(long)))[:111]}
    assert all(re.fullmatch("-[0-9a-f]{8}", name[111:120]) for name in names)
    assert told(*long) == told(*long)


def test_the_longest_name_that_is_not_cut():
    fits = "x=" + "1" * (120 - len("prune=iterative,x="))
    assert told(fits) == f"prune=iterative,{fits}"
    assert told(fits + "1") != f"prune=iterative,{fits}1"


def test_hydras_own_list_of_overrides_gives_the_same_name_as_a_plain_one():
    given = ["model=conv2", "model.widths=[1,2]", "seed=1"]
    register()
    tree = OmegaConf.create(
        {"name": "lab", "seed": 1, "task": given, "directory": "${run_directory:${name},iterative,${task},${seed}}"}
    )
    assert tree.directory == run_directory("lab", "iterative", given, 1)
    assert tree.directory == "lab/prune=iterative,model.widths=[1,2],model=conv2/seed=1"
    tree.task = ["model.width=${somewhere.else}"]
    assert tree.directory == run_directory("lab", "iterative", ["model.width=${somewhere.else}"], 1)
    tree.task = given
    tree.seed = 2  # as in a sweep
    assert tree.directory.endswith("/seed=2")
