"""The result does not depend on what happened on the way: SIGKILL of the whole process tree, at any instant."""

import random

import pytest
from killing import assert_same_directories, campaign, counted, run_until_killed

from lt_lightning import cubically, keep_weights, settled

pytestmark = [pytest.mark.kill, pytest.mark.slow]

WAYS = {
    "no workers": {},
    "two workers": {"workers": 2},
    "within epochs": {"every": "3 steps", "rewind": keep_weights},
    "within epochs, two workers": {"every": "2 steps", "workers": 2},
    "tightening masks": {"every": "3 steps", "gradual": cubically(), "gradual_every": "2 steps"},
    "several steps at once": {"every": "3 steps", "steps_per_batch": 4},
    "an early end of round 0": {"every": "3 steps", "early_bird": settled(0.9, epochs=1)},
}


@pytest.mark.parametrize("way", WAYS)
def test_a_run_that_is_killed_at_random_instants_ends_with_the_same_bits(tmp_path, way, record_property):
    campaign(tmp_path / "whole", **WAYS[way])
    draws, kills = random.Random(way), []
    for seed in range(3):
        directory, longest = tmp_path / f"killed-{seed}", 0.3
        while killed := run_until_killed(directory, delay=draws.uniform(0.02, longest), done=None, **WAYS[way]):
            kills.append(killed)
            longest *= 1.1  # so that a slow machine comes to an end too
        assert_same_directories(tmp_path / "whole", directory)
    assert len(kills) >= 3
    record_property("table", f"{way}: {len(kills)} kills at random instants: {counted(kills)}")


@pytest.mark.parametrize("way", ["within epochs", "tightening masks"])
def test_a_run_that_is_killed_at_every_file_system_boundary_ends_with_the_same_bits(tmp_path, way, record_property):
    campaign(tmp_path / "whole", **WAYS[way])
    done, kills = set(), []
    while killed := run_until_killed(tmp_path / "killed", done=frozenset(done), **WAYS[way]):
        assert killed.boundary not in done
        done.add(killed.boundary)
        kills.append(killed)
    assert_same_directories(tmp_path / "whole", tmp_path / "killed")
    assert len(kills) >= 200
    record_property("table", f"{way}: {len(kills)} kills at file-system boundaries: {counted(kills)}")
