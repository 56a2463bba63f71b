"""Lists of token ids in a manifest: from 0 to the vocabulary's last, whole numbers alone."""

from __future__ import annotations

import pytest

from engines.runtime.fields import take_ids, take_strings
from specs.errors import BundleError


def test_every_id_of_a_vocabulary_is_taken() -> None:
    assert take_ids({"ids": [0, 5, 9]}, "ids", below=10) == (0, 5, 9)
    assert take_ids({}, "ids", below=10) == ()


@pytest.mark.parametrize("values", [[10], [-1], [0, 1.0], [True], ["1"], [None]])
def test_anything_else_is_refused(values: list[object]) -> None:
    with pytest.raises(BundleError) as caught:
        take_ids({"ids": values}, "ids", below=10)
    assert (caught.value.problem, caught.value.allowed) == (
        "manifest: pipeline.ids must be a list of token ids",
        "0..9",
    )


def test_a_list_of_strings_holds_strings_alone() -> None:
    assert take_strings({"names": ["a", "b"]}, "names") == ("a", "b") and take_strings({}, "names") == ()
    with pytest.raises(BundleError, match="pipeline.names must be a list of strings"):
        take_strings({"names": ["a", 1]}, "names")
