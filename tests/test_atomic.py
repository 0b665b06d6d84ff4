"""Files are written whole or not at all, and a disk that does not let us says so."""

import os

import pytest

from lt_lightning.disk.atomic import recover, write_bytes, write_text


class Killed(BaseException):
    """What happens at the worst moment."""


def killed(*_, **__):
    raise Killed


def test_a_failure_before_the_rename_leaves_the_old_content_alone(tmp_path, monkeypatch):
    target = tmp_path / "records.csv"
    write_bytes(target, b"old")
    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(Killed):
        write_bytes(target, b"new")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"records.csv": b"old"}


def test_a_failure_while_the_content_is_written_leaves_the_old_content(tmp_path, monkeypatch):
    target = tmp_path / "records.csv"
    write_bytes(target, b"old")
    monkeypatch.setattr(os, "fsync", killed)
    with pytest.raises(Killed):
        write_bytes(target, b"new")
    assert target.read_bytes() == b"old"


def test_what_a_kill_left_behind_is_overwritten(tmp_path):
    (tmp_path / ".a.partial").write_bytes(b"half of a much longer content")
    write_bytes(tmp_path / "a", b"whole")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a", b"whole")]


def test_a_file_is_on_disk_before_it_gets_its_name_and_the_directory_after(tmp_path, monkeypatch):
    happened = []
    replace = os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: happened.append("sync"))
    monkeypatch.setattr(os, "replace", lambda a, b: (happened.append("rename"), replace(a, b)))
    write_bytes(tmp_path / "target", b"new")
    assert happened == ["sync", "rename", "sync"]
    assert (tmp_path / "target").read_bytes() == b"new"


def test_the_same_content_again_leaves_the_file_alone(tmp_path, monkeypatch):
    target = tmp_path / "deep" / "config.yaml"
    write_text(target, "ä: 1\n")
    os.utime(target, ns=(1, 1))
    monkeypatch.setattr(os, "replace", killed)
    write_text(target, "ä: 1\n")
    assert target.stat().st_mtime_ns == 1
    assert target.read_bytes() == "ä: 1\n".encode()


def test_what_a_kill_leaves_half_written_goes_and_what_others_have_staged_stays(tmp_path):
    ours = (".environment.json.partial", ".sparse.json.partial", ".done.partial", ".stopped.0123abcd.partial")
    others = (".notes.txt.partial", "environment.json.partial", ".report.html.partial")
    for name in (*ours, *others):
        (tmp_path / name).write_text("half")
    recover(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(others)
