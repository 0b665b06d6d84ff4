"""Which configurations are the same, and how a run directory keeps its own."""

import json

import pytest
import yaml

from lt_lightning.disk.configuration import claim, compare, fingerprint, flatten

CONFIG = {
    "data": {"name": "digits", "path": "/here", "num_workers": 0},
    "trainer": {"max_steps": 100, "accelerator": "cpu", "strategy": {"name": "auto"}, "callbacks": []},
    "logger": {"project": "mine"},
    "lottery": {"rounds": 3, "controls": [], "seed": 0},
    "prune": {"rounds": 3},
}


def altered(key, value):
    """The configuration with another value at a dotted key."""
    tree = json.loads(json.dumps(CONFIG))
    *parents, leaf = key.split(".")
    inner = tree
    for parent in parents:
        inner = inner.setdefault(parent, {})
    inner[leaf] = value
    return tree


NEUTRAL = [
    ("data.path", "/there"),
    ("data.num_workers", 4),
    ("num_workers", 4),
    ("prune.dry_run", True),
    ("prune.every", "5 steps"),
    ("prune.sparse", "auto"),
    ("prune.steps_per_batch", 20),
    ("prune.keep_last", True),
    ("trainer.accelerator", "gpu"),
    ("trainer.devices", 8),
    ("trainer.num_nodes", 2),
    ("trainer.strategy", "ddp"),
    ("trainer.strategy.name", "fsdp"),
    ("trainer.enable_progress_bar", False),
    ("trainer.fast_dev_run", True),
    ("trainer.log_every_n_steps", 1),
    ("trainer.profiler", "simple"),
    ("logger.project", "yours"),
    ("logger", None),
    ("launcher.partition", "gpu"),
    ("lottery.rounds", 9),
    ("lottery.controls", ["reinit"]),
    ("prune.rounds", 9),
    ("prune.controls", ["reinit"]),
]
DECISIVE = [
    ("data.name", "mnist"),
    ("trainer.max_steps", 101),
    ("trainer.precision", "16-mixed"),
    ("trainer.callbacks", [1]),
    ("lottery.seed", 1),
    ("lottery.rewind_step", "3 steps"),
    ("model.width", 3),
]


@pytest.mark.parametrize(("key", "value"), NEUTRAL)
def test_what_cannot_change_a_result_does_not_matter(key, value):
    assert compare(CONFIG, altered(key, value)) == []
    assert compare(altered(key, value), CONFIG) == []
    assert fingerprint(altered(key, value)) == fingerprint(CONFIG)


@pytest.mark.parametrize(("key", "value"), DECISIVE)
def test_what_can_change_a_result_is_shown(key, value):
    there = flatten(CONFIG).get(key, "not set")
    assert compare(CONFIG, altered(key, value)) == [f"{key}: {there} there, {value} now"]
    assert compare(altered(key, value), CONFIG) == [f"{key}: {value} there, {there} now"]
    assert fingerprint(altered(key, value)) != fingerprint(CONFIG)


def test_none_differs_from_not_set():
    assert compare({"a": None}, {}) == ["a: None there, not set now"]


def test_flattening_keeps_lists_and_empty_mappings():
    assert flatten({"a": {"b": {"c": 1}, "d": {}}, "e": [{"f": 2}], 3: None}) == {
        "a.b.c": 1,
        "a.d": {},
        "e": [{"f": 2}],
        "3": None,
    }


def test_a_fingerprint_is_16_digits_whatever_the_order_of_the_keys():
    assert fingerprint({"a": 1, "b": {"c": 2, "d": 3}}) == fingerprint({"b": {"d": 3, "c": 2}, "a": 1})
    assert fingerprint({"a": 1, "b": {"c": 2, "d": 3}}) == "f493194fdc4deeae"


def test_a_directory_is_claimed_by_the_first_configuration(tmp_path):
    path = tmp_path / "run" / "config.yaml"
    claim(path, CONFIG)
    assert yaml.safe_load(path.read_text()) == CONFIG
    grown = altered("lottery.rounds", 9)
    claim(path, grown)
    assert yaml.safe_load(path.read_text()) == grown


def test_what_was_computed_keeps_its_configuration_where_nothing_that_counts_differs(tmp_path):
    path = tmp_path / "config.yaml"
    claim(path, CONFIG)
    (tmp_path / "round-00").mkdir()
    (tmp_path / "round-00" / "done").touch()
    claim(path, CONFIG | {"logger": "csv", "threads": 3})
    assert yaml.safe_load(path.read_text()) == CONFIG
    claim(path, altered("lottery.rounds", 12))
    assert yaml.safe_load(path.read_text()) == altered("lottery.rounds", 12)


def test_another_configuration_takes_over_while_nothing_was_computed(tmp_path):
    claim(tmp_path / "config.yaml", CONFIG)
    other = altered("trainer.max_steps", 5)
    claim(tmp_path / "config.yaml", other)
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == other


def test_another_configuration_is_refused_with_all_that_differs_and_the_stored_one_stays(tmp_path):
    claim(tmp_path / "config.yaml", CONFIG)
    (tmp_path / "points").mkdir()
    (tmp_path / "points" / "step-0.ckpt").touch()
    other = altered("trainer.max_steps", 5) | {"seed": 3, "logger": "csv"}
    with pytest.raises(ValueError, match="another configuration") as error:
        claim(tmp_path / "config.yaml", other)
    assert str(error.value) == (
        f"{tmp_path} holds results of another configuration:\n"
        "  trainer.max_steps: 100 there, 5 now\n"
        "  seed: not set there, 3 now\n"
        "Choose another directory, or remove this one if its results are not needed."
    )
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == CONFIG


@pytest.mark.parametrize(
    "value", [1e-05, 1e16, 0.1, "1e-5", "no", "2020-01-01", "ä: [", None, True, [1, [2.5, "x"]], {}]
)
def test_a_value_equals_itself_after_it_was_stored(tmp_path, value):
    for _ in range(2):
        claim(tmp_path / "config.yaml", {"x": value})
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == {"x": value}
