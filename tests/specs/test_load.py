"""Every shipped spec loads, and what is no spec at all fails at its line; `test_bad_specs.py` spoils single lines."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specs.components import COMPONENTS
from specs.document import dump_document, parse_document
from specs.errors import CalibrationError, MetagenError, SpecError, TargetError, WeightsError
from specs.families import FAMILIES
from specs.graphs import list_graphs
from specs.load import dump_spec, load_spec, override_spec
from specs.parsing.json_schema import make_json_schema
from specs.parsing.parse import parse_spec
from specs.schema import Dim, Spec
from specs.sources import list_zoo
from tests.specs.small_specs import DECODER, GOOD

KINDS = ", ".join(sorted(COMPONENTS))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "this file is empty"),
        ("# nothing\n", "this file is empty"),
        ("- 1\n", "a spec is a mapping of keys to values, and this is a list"),
        ("just text", "a spec is a mapping of keys to values, and this is the text 'just text'"),
        ("1: 2", "a key must be text, and this is the number 1"),
        ("[" * 4000, "this is nested more than 32 levels deep"),
        ("{a: " * 4000, "this is nested more than 32 levels deep"),
        ("a: \x00", "this file holds a character that YAML does not allow"),
        ('a: "\\UFFFFFFFF"', "this is not YAML"),
        ("\tname: x", "this is not YAML"),
        ("a: " + "x" * 1_000_001, "this text is too large to be a spec: over 1000000 bytes"),
        ("name: x\n", "'modality' is missing"),
    ],
)
def test_text_that_is_no_spec(text: str, problem: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_spec(text, source="my.yaml")
    assert caught.value.problem == problem
    assert caught.value.where is not None
    assert caught.value.where.startswith("my.yaml")


def test_components_that_make_no_model() -> None:
    text = GOOD.partition("dims:")[0] + "  fusion: {kind: fusion.late, projection_size: 8}\n"
    with pytest.raises(SpecError) as caught:
        parse_spec(text, source="my.yaml")
    assert str(caught.value).startswith(
        "no model is made of these components: fusion.late, vision.vit\n  where:   my.yaml:4\n  allowed: "
    )
    assert "a text decoder (text.decoder" in str(caught.value.allowed)
    assert all(family.title in str(caught.value.allowed) for family in FAMILIES)
    assert caught.value.fix == "add, remove or change components until they are one of these"


def test_cache_must_hold_the_longest_prompt() -> None:
    dims = "dims:\n  tokens: {min: 1, opt: 8, max: 64}\n  cache:\n    min: 8\n    opt: 16\n    max: 32\n"
    with pytest.raises(SpecError) as caught:
        parse_spec(DECODER + dims, source="my.yaml")
    assert str(caught.value) == (
        "dims.cache.max 32 is smaller than dims.tokens.max 64\n"
        "  where:   my.yaml:11\n"
        "  allowed: a cache that holds at least the longest prompt\n"
        "  fix:     raise dims.cache.max, or lower dims.tokens.max"
    )


def test_absent_dims_get_defaults() -> None:
    assert set(parse_spec(DECODER, source="my.yaml").dims) == {"batch", "tokens", "cache"}


def test_variant_overrides_sizes_and_dims() -> None:
    tiny = parse_spec(GOOD, source="my.yaml", variant="tiny")
    assert tiny.variant == "tiny"
    assert tiny.components["classifier"].model_dump()["hidden_size"] == 12
    assert tiny.dims["batch"] == Dim(min=1, opt=2, max=4)
    full = parse_spec(GOOD, source="my.yaml")
    assert full.variant is None
    assert full.components["classifier"].model_dump()["hidden_size"] == 96


def test_unknown_variant_and_unknown_spec() -> None:
    with pytest.raises(SpecError) as caught:
        load_spec("image_vit_base:tny")
    assert str(caught.value) == (
        "'image_vit_base' has no variant 'tny'\n"
        "  where:   zoo:image_vit_base.yaml:18\n"
        "  allowed: raw, tiny (did you mean 'tiny'?)\n"
        "  fix:     use one of these, or leave the variant out"
    )
    with pytest.raises(SpecError) as caught:
        load_spec("image_vit_bas")
    assert str(caught.value) == (
        "there is no spec called 'image_vit_bas'\n"
        f"  allowed: {', '.join(list_zoo())} (did you mean 'image_vit_base'?)\n"
        "  fix:     use one of these, or the path of a YAML file"
    )
    with pytest.raises(SpecError, match="two variants are asked for"):
        load_spec("image_vit_base:tiny", variant="huge")


def test_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="there is no file"):
        load_spec(tmp_path / "absent.yaml")
    with pytest.raises(SpecError, match="this folder is no checkpoint"):
        load_spec(tmp_path)
    path = tmp_path / "latin.yaml"
    path.write_bytes(b"name: caf\xe9\n")
    with pytest.raises(SpecError) as caught:
        load_spec(path)
    assert str(caught.value) == (
        f"this file is not UTF-8 text\n  where:   {path}\n  got:     byte 0xe9 at offset 9\n"
        "  fix:     give a spec's YAML file, saved as UTF-8"
    )
    path.write_bytes(b"#" * 2_000_000)
    with pytest.raises(SpecError, match="too large to be a spec"):
        load_spec(path)


def test_paths_are_relative_to_the_spec(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_text(GOOD.replace("name: reader", "name: reader\ncalibration: {source: data/a.npz}"))
    with pytest.raises(CalibrationError) as caught:
        load_spec(path)
    assert str(caught.value) == (
        "the file that calibration.source names does not exist\n"
        f"  where:   {tmp_path / 'data' / 'a.npz'}\n"
        "  got:     data/a.npz\n"
        "  fix:     correct calibration.source; it is relative to the spec's own folder"
    )
    (tmp_path / "data").mkdir()
    np.savez(tmp_path / "data" / "a.npz", image=np.zeros(1))
    spec = load_spec(f"{path}:tiny")
    assert spec.calibration.source == str(tmp_path / "data" / "a.npz")
    assert str(tmp_path) not in dump_spec(spec)
    with pytest.raises(SpecError, match="leaves the folder of the shipped specs"):
        path.write_text(GOOD.replace("name: reader", "name: reader\nweights: {source: 'zoo:../../x.safetensors'}"))
        load_spec(path)


def test_command_line_overrides_are_checked_too(tmp_path: Path) -> None:
    spec = load_spec("text_llm_tiny:tiny")
    dims = {"batch": Dim(min=1, opt=2, max=3)}
    changed = override_spec(spec, targets=("h200",), dims=dims)
    assert (changed.targets, changed.dims) == (("h200",), {**spec.dims, **dims})
    with pytest.raises(SpecError) as caught:
        override_spec(spec, dims={"tokens": Dim(min=1, opt=2, max=128)})
    assert str(caught.value) == (
        "dims.cache.max 64 is smaller than dims.tokens.max 128\n"
        "  where:   the command line\n"
        "  allowed: a cache that holds at least the longest prompt\n"
        "  fix:     raise dims.cache.max, or lower dims.tokens.max"
    )
    with pytest.raises(SpecError, match="has no dim 'tokns'"):
        override_spec(spec, dims={"tokns": Dim(min=1, opt=1, max=1)})
    with pytest.raises(TargetError, match="unknown target 'h20'"):
        override_spec(spec, targets=("h20",))
    with pytest.raises(WeightsError, match="are pickles"):
        override_spec(spec, weights=tmp_path / "model.bin")
    with pytest.raises(WeightsError, match="does not exist"):
        override_spec(spec, weights=tmp_path / "model.safetensors")


def test_objective_that_the_field_does_not_recommend_is_accepted() -> None:
    spec = parse_spec(GOOD.replace("objective: classification", "objective: diffusion"), source="my.yaml")
    assert spec.list_objective_advice() == ("classification",)


def test_custom_modality_is_accepted() -> None:
    assert parse_spec(GOOD.replace("[image]", "[thermal_camera]"), source="x").modality.inputs == ("thermal_camera",)


@pytest.mark.parametrize("name", list_zoo())
def test_zoo_loads_and_survives_a_round_trip(name: str) -> None:
    sources = [name] if name == "image_vit_digits" else [name, f"{name}:tiny"]
    for source in sources:
        spec = load_spec(source)
        text = dump_spec(spec)
        assert str(Path.home()) not in text
        assert "/" not in spec.weights.source or "zoo:weights/" in text
        again = parse_spec(text, source="spec.yaml")
        assert dump_spec(again) == text
        assert (
            again.model_copy(
                update={"weights": spec.weights, "calibration": spec.calibration, "evaluation": spec.evaluation}
            )
            == spec
        )
        assert {d for graph in list_graphs(spec) for t in graph.inputs for d in t.shape if isinstance(d, str)} <= set(
            spec.dims
        )


def test_dumped_zoo_spec_loads_equal_from_anywhere(tmp_path: Path) -> None:
    spec = load_spec("image_vit_digits")
    (tmp_path / "spec.yaml").write_text(dump_spec(spec))
    assert load_spec(tmp_path / "spec.yaml") == spec


TEXT = st.text(st.characters(blacklist_categories=("Cs", "Cc")), max_size=30)
LEAF = (
    st.none() | st.booleans() | st.integers(-(10**17), 10**17) | st.floats(allow_nan=False, allow_infinity=False) | TEXT
)


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(
        TEXT,
        st.recursive(
            LEAF, lambda inner: st.lists(inner, max_size=4).map(tuple) | st.dictionaries(TEXT, inner, max_size=4)
        ),
    )
)
def test_what_is_dumped_is_parsed_back(data: dict[str, object]) -> None:
    if data:
        assert parse_document(dump_document(data), source="x").data == data


@settings(max_examples=60, deadline=None)
@given(
    description=TEXT,
    heads=st.integers(1, 8),
    width=st.integers(1, 8),
    seed=st.integers(0, 2**40),
    batch=st.lists(st.integers(1, 64), min_size=3, max_size=3).map(sorted),
    precision=st.sampled_from(["fp32", "fp16", "bf16", "int8"]),
    eps=st.floats(1e-12, 0.1),
)
def test_spec_survives_a_round_trip(
    description: str, heads: int, width: int, seed: int, batch: list[int], precision: str, eps: float
) -> None:
    data = parse_document(GOOD, source="x").data
    classifier = {
        **data["components"]["classifier"],
        "num_heads": heads,
        "hidden_size": heads * width,
        "layer_norm_eps": eps,
    }
    data |= {"components": {"classifier": classifier}, "description": description, "weights": {"seed": seed}}
    data |= {
        "dims": {"batch": dict(zip(("min", "opt", "max"), batch, strict=True))},
        "precision": {"default": precision},
    }
    del data["variants"]
    spec = parse_spec(dump_document(data), source="x")
    assert parse_spec(dump_spec(spec), source="x") == spec


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_damaged_spec_never_fails_in_another_way(data: st.DataObject) -> None:
    """Delete, repeat or replace pieces of a good spec: the result loads, or is refused by a MetagenError."""
    text = data.draw(st.sampled_from([GOOD, DECODER]))
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(text)))
        end = data.draw(st.integers(start, min(len(text), start + 12)))
        text = (
            text[:start]
            + data.draw(
                st.sampled_from(["", "[", "}", ": ", "-1", "0", "null", "\n", "'", "é", "1e9", "&a ", text[end:start]])
            )
            + text[end:]
        )
    try:
        assert isinstance(parse_spec(text, source="my.yaml"), Spec)
    except MetagenError as error:
        assert error.where  # noqa: PT017


def test_json_schema_describes_the_zoo() -> None:
    schema = make_json_schema()
    json.dumps(schema)
    kinds = schema["$defs"]["AnyComponent"]["discriminator"]["mapping"]
    assert sorted(kinds) == KINDS.split(", ")
    assert "variants" in schema["properties"]
    assert schema["additionalProperties"] is False
    for reference in _list_references(schema):
        assert reference.removeprefix("#/$defs/") in schema["$defs"]


def test_json_schema_lets_variants_set_all_but_structure() -> None:
    schema = make_json_schema()
    override = schema["$defs"][
        schema["properties"]["variants"]["additionalProperties"]["additionalProperties"]["$ref"][8:]
    ]
    found = [set(option["properties"]) for option in override["anyOf"]]
    for kind in COMPONENTS.values():
        assert set(kind.model_fields) - set(kind.STRUCTURE) in found
        assert not any("kind" in option for option in found)


def _list_references(value: object) -> list[str]:
    if isinstance(value, dict):
        own = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
        return own + [r for v in value.values() for r in _list_references(v)]
    return [r for v in value for r in _list_references(v)] if isinstance(value, list) else []


def test_loading_needs_no_torch(environment: dict[str, str]) -> None:
    code = (
        "import sys, specs.load, specs.targets, specs.graphs;"
        "s = specs.load.load_spec('multimodal_clip'); specs.graphs.list_graphs(s);"
        "assert not {'torch', 'onnx', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
