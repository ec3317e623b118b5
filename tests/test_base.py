"""The base modules: errors, atomic files, progress."""

from __future__ import annotations

import errno
import inspect
import io
import json
import sys

import pytest

from vlascope import errors, files
from vlascope.progress import progress

ALL_ERRORS = [
    value
    for value in vars(errors).values()
    if inspect.isclass(value)
    and issubclass(value, errors.VlascopeError)
    and value is not errors.VlascopeError
]


@pytest.mark.parametrize("kind", ALL_ERRORS, ids=lambda kind: kind.__name__)
def test_every_error_is_also_a_builtin_that_callers_catch(kind):
    builtins = [base for base in kind.__mro__ if base.__module__ == "builtins"]
    assert set(builtins) - {BaseException, Exception, object}
    assert str(kind("what happened")) == "what happened"  # KeyError alone would add quotes
    assert kind.__doc__


def test_nearest_text_names_what_is_close_and_nothing_else():
    choices = ["vision.3", "language.3", "projector"]
    assert errors.nearest_text("vison.3", choices).startswith(" Nearest: 'vision.3'")
    assert errors.nearest_text("qqqq", choices) == ""


def test_missing_extra_says_what_to_type():
    error = errors.missing_extra("pybullet", extra="sim", needed_for="the simulator")
    assert isinstance(error, ImportError)
    assert "pip install 'vlascope[sim]'" in str(error)


def test_write_atomic_leaves_the_old_file_when_writing_fails(tmp_path):
    path = files.write_text(tmp_path / "new" / "a.txt", "old")

    def half(handle):
        handle.write(b"ne")
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        files.write_atomic(path, half)
    assert path.read_text() == "old"
    assert [entry.name for entry in path.parent.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.ENOTDIR])
def test_refusals_of_the_system_become_storage_errors(tmp_path, number):
    with pytest.raises(errors.StorageError, match="cannot write 'place'") as caught:
        with files.storage_errors("place"):
            raise OSError(number, "no")
    assert isinstance(caught.value.__cause__, OSError)


def test_other_system_errors_are_not_hidden():
    with pytest.raises(OSError, match="loop") as caught:
        with files.storage_errors("place"):
            raise OSError(errno.ELOOP, "loop")
    assert not isinstance(caught.value, errors.StorageError)


def test_a_file_where_a_folder_should_be_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(errors.StorageError, match="-o"):
        files.write_text(tmp_path / "file" / "b.txt", "x")


def test_json_round_trip_and_nan_is_refused(tmp_path):
    value = {"naïve": [1, 2.5, None], "b": True}
    assert files.read_json(files.write_json(tmp_path / "v.json", value)) == value
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(tmp_path / "n.json", float("nan"))
    assert not (tmp_path / "n.json").exists()


def test_content_hash_ignores_key_order_and_sees_values():
    assert files.content_hash({"a": 1, "b": [2]}) == files.content_hash({"b": [2], "a": 1})
    assert files.content_hash({"a": 1}) != files.content_hash({"a": 1.5})
    assert len(files.content_hash({}, length=7)) == 7


def test_file_hash_is_sha256(tmp_path):
    path = files.write_bytes(tmp_path / "x", b"abc")
    assert files.file_hash(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_progress_yields_everything_and_is_silent_when_quiet(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("VLASCOPE_PROGRESS", "1")
    assert list(progress(range(5), desc="things", quiet=True)) == [0, 1, 2, 3, 4]
    assert stream.getvalue() == ""
    assert list(progress(range(3), desc="things")) == [0, 1, 2]


def test_json_files_end_with_a_newline(tmp_path):
    text = files.write_json(tmp_path / "v.json", {"a": 1}).read_text()
    assert text.endswith("}\n")
    assert json.loads(text) == {"a": 1}


def test_a_folder_takes_its_place_only_when_it_is_whole(tmp_path):
    out = tmp_path / "made" / "here"
    with pytest.raises(RuntimeError, match="half way"), files.new_folder(out) as work:
        (work / "half").write_text("x")
        raise RuntimeError("half way")
    assert list((tmp_path / "made").iterdir()) == []
    out.mkdir()  # an empty folder is in nobody's way
    with files.new_folder(out) as work:
        (work / "whole").write_text("1")
        assert not any(out.iterdir())
    assert {p.name for p in out.iterdir()} == {"whole", files.MADE_NAME}
    with pytest.raises(errors.StorageError, match="--force"), files.new_folder(out):
        raise AssertionError("the block must not run")
    with pytest.raises(KeyboardInterrupt), files.new_folder(out, force=True):
        raise KeyboardInterrupt
    assert (out / "whole").read_text() == "1"
    with files.new_folder(out, force=True) as work:
        (work / "other").write_text("2")
    assert {p.name for p in out.iterdir()} == {"other", files.MADE_NAME}
    assert len(list((tmp_path / "made").iterdir())) == 1


def test_force_replaces_nothing_that_somebody_else_made(tmp_path, monkeypatch):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("years of work")
    plain = tmp_path / "mk.py"
    plain.write_text("print()")
    made = tmp_path / "data" / "made"
    with files.new_folder(made):
        pass
    monkeypatch.chdir(made)
    for out, apart, said in (
        (mine, (), "was not written by vlascope"),
        (plain, (), "was not written by vlascope"),
        (made, (), "holds the folder you are in"),
        (tmp_path, (), "holds the folder you are in"),
        (".", (), "holds the folder you are in"),
    ):
        with pytest.raises(errors.StorageError, match=said), files.new_folder(out, force=True, apart=apart):
            raise AssertionError("the block must not run")
    monkeypatch.chdir(mine)
    for source in (made, made / "x.mp4"):
        with pytest.raises(errors.StorageError, match="made from"):
            with files.new_folder(made, force=True, apart=[source]):
                raise AssertionError("the block must not run")
    assert (mine / "thesis.tex").read_text() == "years of work" and plain.read_text() == "print()"
    link = tmp_path / "link"
    link.symlink_to(made)
    with files.new_folder(link, force=True) as work:
        (work / "new").write_text("1")
    assert link.is_symlink() and (made / "new").exists()
