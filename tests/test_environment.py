import json
import shlex
import sys
from importlib.metadata import version

from tiny import play

from lt_lightning.disk import environment


def test_an_environment_is_noted_once(tmp_path):
    for _ in range(2):
        environment.note(tmp_path, "python train.py seed=1")
    (told,) = environment.read(tmp_path)
    assert told["command"] == "python train.py seed=1"
    assert told["torch"] == version("torch")
    assert told["processes"] == 1
    assert told["cores"] >= 1


def test_a_run_that_went_on_elsewhere_tells_of_both(tmp_path, monkeypatch):
    environment.note(tmp_path, "python train.py")
    monkeypatch.setattr(environment, "_processor", lambda: "another one")
    environment.note(tmp_path, "python train.py")
    first, second = environment.read(tmp_path)
    assert first["processor"] != second["processor"] == "another one"


def test_a_damaged_file_is_made_again(tmp_path):
    for content in ("[", "{}", "[1]"):
        (tmp_path / environment.NAME).write_text(content)
        assert environment.read(tmp_path) == []
    environment.note(tmp_path, "python train.py")
    assert len(json.loads((tmp_path / environment.NAME).read_text())) == 1


def test_a_lottery_in_any_program_notes_it(tmp_path):
    play(tmp_path, rounds=1)
    (told,) = environment.read(tmp_path)
    assert told["command"] == shlex.join(sys.orig_argv)
