"""What YAML allows and a spec does not, or what is no YAML at all: refused at its line."""

from __future__ import annotations

import pytest

from specs.document import MAX_KEYS, MAX_VALUES, parse_document
from specs.errors import MetagenError, SpecError
from tests.specs.small_specs import require_refusal

#: what is replaced, by what, the kind of error, and its whole text
BAD = [
    pytest.param(
        "num_heads: 3",
        "num_heads: 3\n    num_heads: 4",
        SpecError,
        "the key 'num_heads' is written twice\n"
        "  where:   my.yaml:12\n"
        "  got:     first on line 11\n"
        "  fix:     keep one of the two",
        id="key-twice",
    ),
    pytest.param(
        "num_heads: 3",
        "num_heads: [3",
        SpecError,
        "this is not YAML\n"
        "  where:   my.yaml:12\n"
        "  got:     expected ',' or ']', but got ':', while parsing a flow sequence\n"
        "  fix:     correct the syntax on or just above this line; indent with spaces, quote text that holds ': ' or"
        " '#'",
        id="syntax",
    ),
    pytest.param(
        "num_heads: 3",
        "num_heads: !!python/object/apply:os.system [ls]",
        SpecError,
        "tags are not taken: 'tag:yaml.org,2002:python/object/apply:os.system'\n"
        "  where:   my.yaml:11\n"
        "  fix:     remove the tag; values are plain YAML",
        id="tag",
    ),
    pytest.param(
        "name: reader",
        "name: &n reader\ndescription: *n",
        SpecError,
        "anchors and aliases are not taken: 'n'\n  where:   my.yaml:1\n  fix:     write the value out where it is used",
        id="alias",
    ),
    pytest.param(
        "name: reader",
        "name: reader\nparity: {max_abs: .inf}",
        SpecError,
        "a number must be finite\n  where:   my.yaml:2\n  got:     .inf\n  fix:     write the number that is meant",
        id="infinity",
    ),
    pytest.param(
        "name: reader",
        'name: "\\ud83d"',
        SpecError,
        "a text holds half of a surrogate pair, which is no character\n"
        "  where:   my.yaml:1\n"
        "  fix:     write the character itself, or its one escape \\UXXXXXXXX",
        id="half-a-character",
    ),
    pytest.param(
        "name: reader",
        "---\nname: other\n---\nname: reader",
        SpecError,
        "this file holds more than one YAML document\n"
        "  where:   my.yaml:3\n"
        "  allowed: one spec a file\n"
        "  fix:     remove everything from the line '---' on, or move it to a file of its own",
        id="two-documents",
    ),
]


@pytest.mark.parametrize(("old", "new", "kind", "text"), BAD)
def test_text_that_is_no_document(old: str, new: str, kind: type[MetagenError], text: str) -> None:
    require_refusal(old, new, kind, text)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("".join(f"key_{i}: {i}\n" for i in range(60_000)), "this mapping has more than 1000 keys"),
        (
            "name: x\ncomponents:\n" + "".join(f"  c{i}: {{kind: vision.vit}}\n" for i in range(30_000)),
            "this mapping has more than 1000 keys",
        ),
        (f"labels: [{', '.join('1' * 200_000)}]", "this holds more than 50000 keys and values"),
        (f"a: [{', '.join(['[1, 2]'] * 100_000)}]", "this holds more than 50000 keys and values"),
    ],
    ids=["keys", "components", "items", "lists"],
)
def test_nonsense_of_a_megabyte_is_refused_before_it_is_read(text: str, problem: str) -> None:
    """The reader stops where a spec must have ended; by that it takes a part of the time, whatever the machine."""
    with pytest.raises(SpecError) as caught:
        parse_document(text, source="my.yaml")
    assert caught.value.problem == problem
    assert caught.value.where is not None and caught.value.where.startswith("my.yaml:")


def test_as_many_keys_and_values_as_are_allowed_are_read() -> None:
    keys = "".join(f"k{i}: {i}\n" for i in range(MAX_KEYS))
    assert len(parse_document(keys, source="my.yaml").data) == MAX_KEYS
    room = MAX_VALUES - 3  # the mapping, its key, the list
    names = parse_document(f"labels: [{', '.join('1' * room)}]", source="my.yaml").data["labels"]
    assert len(names) == room
    with pytest.raises(SpecError, match="more than 50000"):
        parse_document(f"labels: [{', '.join('1' * (room + 1))}]", source="my.yaml")
