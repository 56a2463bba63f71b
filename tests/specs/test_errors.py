"""Errors in full: what is shown, what is cut, what a failed import and a misspelt word become."""

from __future__ import annotations

import pickle

import pytest

from specs.errors import InputError, MetagenError, SpecError, name_nearest, translate_import_error

WORDS = [f"word{number:03}" for number in range(400)]


def test_an_error_shows_the_rows_that_it_has() -> None:
    error = SpecError("it is wrong", where="x.yaml:3", got="1", allowed="2", fix="write 2")
    assert str(error) == "it is wrong\n  where:   x.yaml:3\n  got:     1\n  allowed: 2\n  fix:     write 2"
    assert str(InputError("it is wrong", fix="mend it")) == "it is wrong\n  fix:     mend it"


def test_an_error_survives_pickling() -> None:
    error = SpecError("it is wrong", where="x.yaml:3", got="1", allowed="2", fix="write 2")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is SpecError and str(again) == str(error)


def test_long_values_are_cut_and_counted() -> None:
    shown = str(InputError("p", got="x" * 100_000, fix="f"))
    assert len(shown) < 5000
    cut = shown.splitlines()[1].removeprefix("  got:     ")
    kept = cut.index("…")
    assert cut.endswith(f"({100_000 - kept} more characters)")
    assert str(InputError("p", got="x" * kept, fix="f")).splitlines()[1] == "  got:     " + "x" * kept


@pytest.mark.parametrize(
    ("error", "problem", "fix"),
    [
        (
            ModuleNotFoundError("No module named 'onnx'", name="onnx.helper"),
            "exports needs the package 'onnx', which is not installed",
            "pip install 'metagen-deploy[export]'",
        ),
        (
            ImportError("libfoo.so: cannot open", name="onnx.helper"),
            "exports needs the package 'onnx', which is installed and does not import",
            "pip install --upgrade 'metagen-deploy[export]'",
        ),
        (
            ModuleNotFoundError("somewhere"),
            "exports needs a package, which is installed and does not import",
            "pip install --upgrade 'metagen-deploy[export]'",
        ),
        (
            ImportError("somewhere"),
            "exports needs a package, which is installed and does not import",
            "pip install --upgrade 'metagen-deploy[export]'",
        ),
    ],
)
def test_a_failed_import_says_whether_the_package_is_there(error: ImportError, problem: str, fix: str) -> None:
    told = translate_import_error(error, extra="export", needed_for="exports")
    assert (told.problem, told.fix) == (problem, fix)


@pytest.mark.parametrize("name", ["specs.nothing", "exporters", "engines.x", "metagen_deploy"])
def test_a_failure_of_our_own_is_raised_as_it_is(name: str) -> None:
    error = ModuleNotFoundError("ours", name=name)
    with pytest.raises(ModuleNotFoundError) as caught:
        translate_import_error(error, extra="export", needed_for="exports")
    assert caught.value is error


def test_the_nearest_of_few_words_is_named_beside_all() -> None:
    assert name_nearest("imgae", ["image", "batch"]) == "batch, image (did you mean 'image'?)"
    assert name_nearest("zzzzz", ["image", "batch"]) == "batch, image"
    assert name_nearest("x", []) == "nothing"


def test_of_many_words_three_are_named() -> None:
    told = name_nearest("word123x", WORDS)
    assert told.endswith(" and 397 more")
    assert told.split(", ")[0] == "word123"


def test_every_error_is_one_kind() -> None:
    assert issubclass(SpecError, MetagenError) and not issubclass(MetagenError, ValueError)
