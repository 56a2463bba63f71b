"""Every shipped spec loads; every bad spec fails with the right words, in full, at the right line."""

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
from specs.load import dump_spec, list_zoo, load_spec, make_json_schema, override_spec, parse_spec
from specs.schema import Dim, Spec

GOOD = """\
name: reader
modality: {inputs: [image], outputs: [label]}
objective: classification
components:
  classifier:
    kind: vision.vit
    image_size: 8
    patch_size: 2
    hidden_size: 96
    num_layers: 2
    num_heads: 3
    num_classes: 10
dims:
  batch: {min: 1, opt: 2, max: 8}
variants:
  tiny:
    classifier: {hidden_size: 12}
    dims: {batch: {max: 4}}
"""
DECODER = """\
name: writer
modality: {inputs: [text], outputs: [text]}
objective: autoregressive
components:
  decoder: {kind: text.decoder, vocab_size: 300, hidden_size: 16, num_layers: 1, num_heads: 4, mlp_size: 32}
"""
VIT_KEYS = ", ".join(sorted(COMPONENTS["vision.vit"].model_fields))
KINDS = ", ".join(sorted(COMPONENTS))
TARGETS = (
    "a100, cpu, h100, h200, jetson-agx-orin-64gb, jetson-orin-nano-8gb, jetson-orin-nx-16gb, jetson-thor-t5000, l4,"
    " rtx-3090, rtx-4090, rtx-5090"
)

#: what is replaced, by what, the kind of error, and its whole text
BAD = [
    pytest.param(
        "    hidden_size: 96",
        "    hiden_size: 96",
        SpecError,
        "unknown key 'hiden_size' in components.classifier\n"
        "  where:   my.yaml:9\n"
        f"  allowed: {VIT_KEYS} (did you mean 'hidden_size'?)\n"
        "  fix:     rename the key to one of these, or remove it",
        id="unknown-key",
    ),
    pytest.param(
        "objective:",
        "objectiv:",
        SpecError,
        "unknown key 'objectiv'\n"
        "  where:   my.yaml:3\n"
        "  allowed: architecture, calibration, components, description, dims, evaluation, labels, modality, name,"
        " objective, parity, precision, targets, tokenizers, variant, variants, weights (did you mean 'objective'?)\n"
        "  fix:     rename the key to one of these, or remove it",
        id="unknown-top-key",
    ),
    pytest.param(
        "vision.vit",
        "vision.vitt",
        SpecError,
        "component 'classifier' has the unknown kind 'vision.vitt'\n"
        "  where:   my.yaml:6\n"
        f"  allowed: {KINDS} (did you mean 'vision.vit'?)\n"
        "  fix:     set kind to one of these",
        id="unknown-kind",
    ),
    pytest.param(
        "    kind: vision.vit\n",
        "",
        SpecError,
        "component 'classifier' has no kind\n"
        "  where:   my.yaml:5\n"
        f"  allowed: {KINDS}\n"
        "  fix:     set kind to one of these",
        id="no-kind",
    ),
    pytest.param(
        "name: reader",
        "name: reader\ntargets: [cpu, jetson-orin]",
        TargetError,
        "unknown target 'jetson-orin'\n"
        "  where:   my.yaml:2\n"
        f"  allowed: {TARGETS} (did you mean 'jetson-orin-nx-16gb'?)\n"
        "  fix:     see them all: metagen-deploy targets",
        id="unknown-target",
    ),
    pytest.param(
        "name: reader",
        "name: reader\ntargets: [h200@jp62]",
        TargetError,
        "target 'h200' has no platform 'jp62'\n"
        "  where:   my.yaml:2\n"
        "  allowed: trt10.13, trt10.3, trt11, trt8.6\n"
        "  fix:     write 'h200' for trt10.13, or 'h200@' and one of these",
        id="unknown-platform",
    ),
    pytest.param(
        "name: reader",
        "name: reader\ntargets: [h200, h200@trt10.13]",
        SpecError,
        "target 'h200@trt10.13' is listed twice\n"
        "  where:   my.yaml:2\n"
        "  got:     'h200' is the same machine and platform\n"
        "  fix:     keep one of the two",
        id="target-twice",
    ),
    pytest.param(
        "name: reader",
        "name: reader\nprecision: {default: fp61}",
        SpecError,
        "precision.default cannot be the text 'fp61'\n"
        "  where:   my.yaml:2\n"
        "  allowed: bf16, fp16, fp32, int8 (did you mean 'fp16'?)\n"
        "  fix:     use one of these",
        id="unknown-precision",
    ),
    pytest.param(
        "name: reader",
        "name: reader\nprecision: {default: fp16, classifier: fp8}",
        SpecError,
        "precision 'fp8' is reserved, and not implemented yet\n"
        "  where:   my.yaml:2\n"
        "  allowed: fp32, fp16, bf16, int8\n"
        "  fix:     set precision.classifier to one of these",
        id="reserved-precision",
    ),
    pytest.param(
        "name: reader",
        "name: reader\nprecision: {clasifier: fp16}",
        SpecError,
        "precision names 'clasifier', which is no component\n"
        "  where:   my.yaml:2\n"
        "  allowed: classifier, default (did you mean 'classifier'?)\n"
        "  fix:     use one of these",
        id="precision-of-nothing",
    ),
    pytest.param(
        "name: reader",
        "name: reader\nprecision: fp16",
        SpecError,
        "precision cannot be the text 'fp16'\n"
        "  where:   my.yaml:2\n"
        "  allowed: a mapping (`default`, and exceptions by component)\n"
        "  fix:     write {default: fp16}",
        id="precision-not-a-mapping",
    ),
    pytest.param(
        "min: 1",
        "min: 9",
        SpecError,
        "dims.batch: needs min <= opt <= max, got min 9, opt 2, max 8\n"
        "  where:   my.yaml:14\n"
        "  fix:     change one of the values",
        id="min-over-max",
    ),
    pytest.param(
        "batch: {min: 1",
        "bath: {min: 1",
        SpecError,
        "an image classifier has no dimension 'bath'\n"
        "  where:   my.yaml:14\n"
        "  allowed: batch (did you mean 'batch'?)\n"
        "  fix:     rename it to one of these, or remove it",
        id="unknown-dim",
    ),
    pytest.param(
        "num_heads: 3",
        "num_heads: 5",
        SpecError,
        "components.classifier: num_heads 5 does not divide hidden_size 96; nearest that do: 2, 3, 4, 6, 8\n"
        "  where:   my.yaml:11\n"
        "  fix:     change one of the values",
        id="heads-do-not-divide",
    ),
    pytest.param(
        "    num_heads: 3\n",
        "",
        SpecError,
        "'num_heads' is missing in components.classifier\n  where:   my.yaml:5\n  fix:     add the key 'num_heads'",
        id="missing-key",
    ),
    pytest.param(
        "    num_classes: 10\n",
        "    pooling: none\n    num_classes: 10\n",
        SpecError,
        "components.classifier: num_classes needs pooled features, and pooling is 'none'\n"
        "  where:   my.yaml:13\n"
        "  fix:     change one of the values",
        id="classes-of-nothing",
    ),
    pytest.param(
        "    image_size: 8\n",
        "    image_size: [8, 6, 4]\n",
        SpecError,
        "components.classifier.image_size: needs a whole number from 1, or [height, width], got (8, 6, 4)\n"
        "  where:   my.yaml:7\n"
        "  fix:     change one of the values",
        id="image-of-three-sides",
    ),
    pytest.param(
        "objective: classification",
        "objective: contrastive",
        SpecError,
        "objective 'contrastive' does not describe an image classifier of these components\n"
        "  where:   my.yaml:3\n"
        "  got:     vision.vit\n"
        "  allowed: classification\n"
        "  fix:     change the objective, or the components",
        id="objective-without-component",
    ),
    pytest.param(
        "inputs: [image]",
        "inputs: [text]",
        SpecError,
        "modality.inputs names 'text', and no component reads it\n"
        "  where:   my.yaml:2\n"
        "  got:     vision.vit\n"
        "  allowed: a component whose kind begins with 'text.' or 'blocks.text'\n"
        "  fix:     change the modality, or add the component",
        id="modality-nobody-reads",
    ),
    pytest.param(
        "hidden_size: 96",
        "hidden_size: '96'",
        SpecError,
        "components.classifier.hidden_size cannot be the text '96'\n"
        "  where:   my.yaml:9\n"
        "  allowed: a whole number (width of the residual stream)\n"
        "  fix:     remove the quotes around 96",
        id="text-for-number",
    ),
    pytest.param(
        "hidden_size: 96",
        "hidden_size: true",
        SpecError,
        "components.classifier.hidden_size cannot be true\n"
        "  where:   my.yaml:9\n"
        "  allowed: a whole number (width of the residual stream)\n"
        "  fix:     correct components.classifier.hidden_size",
        id="true-for-number",
    ),
    pytest.param(
        "hidden_size: 96",
        "hidden_size: 3.5",
        SpecError,
        "components.classifier.hidden_size cannot be the number 3.5\n"
        "  where:   my.yaml:9\n"
        "  allowed: a whole number (width of the residual stream)\n"
        "  fix:     correct components.classifier.hidden_size",
        id="fraction-for-number",
    ),
    pytest.param(
        "inputs: [image]",
        "inputs: image",
        SpecError,
        "modality.inputs cannot be the text 'image'\n  where:   my.yaml:2\n  allowed: a list\n  fix:     write [image]",
        id="text-for-list",
    ),
    pytest.param(
        "name: reader",
        "name: reader\nlabels: [a, b]",
        SpecError,
        "there are 2 labels for 10 classes\n"
        "  where:   my.yaml:2\n"
        "  allowed: one label for each class, in the order of the logits, or no 'labels' at all\n"
        "  fix:     correct the list, or num_classes",
        id="labels-for-other-classes",
    ),
    pytest.param(
        "name: reader",
        "name: reader\nweights: {source: model.bin}",
        WeightsError,
        "weights in .bin files are pickles, which can run code, and are not read\n"
        "  where:   my.yaml:2\n"
        "  allowed: .safetensors\n"
        "  fix:     convert once:"
        " safetensors.torch.save_file(torch.load(FILE, weights_only=True), 'model.safetensors')",
        id="pickled-weights",
    ),
    pytest.param(
        "name: reader",
        "name: reader\ncalibration: {source: samples.csv}",
        CalibrationError,
        "calibration.source is not a .npz file: 'samples.csv'\n"
        "  where:   my.yaml:2\n"
        "  allowed: random, the path of a .npz file\n"
        "  fix:     write one: numpy.savez_compressed(FILE, NAME_OF_THE_INPUT=array)",
        id="calibration-csv",
    ),
    pytest.param(
        "  classifier:\n    kind",
        "  dims:\n    kind",
        SpecError,
        "a component cannot be called 'dims'\n"
        "  where:   my.yaml:5\n"
        "  allowed: a name without a dot, other than assets, calibration, default, dims, reports, timing\n"
        "  fix:     rename the component",
        id="reserved-component-name",
    ),
    pytest.param(
        "name: reader",
        "name: reader\narchitecture: cnn",
        SpecError,
        "architecture 'cnn' does not describe 'vision.vit'\n"
        "  where:   my.yaml:2\n"
        "  allowed: transformer, hybrid\n"
        "  fix:     write 'architecture: transformer', or take another kind",
        id="architecture-of-another-kind",
    ),
    pytest.param(
        "name: reader",
        "name: reader\narchitecture: diffusion",
        SpecError,
        "architecture 'diffusion' does not describe an image classifier of these components\n"
        "  where:   my.yaml:2\n"
        "  allowed: transformer, cnn, hybrid\n"
        "  fix:     set it to one of these, or remove the key",
        id="architecture-of-others",
    ),
    pytest.param(
        "    classifier: {hidden_size: 12}",
        "    clasifier: {hidden_size: 12}",
        SpecError,
        "variant 'tiny' names 'clasifier', which is no component\n"
        "  where:   my.yaml:17\n"
        "  allowed: calibration, classifier, dims (did you mean 'classifier'?)\n"
        "  fix:     use one of these",
        id="variant-of-nothing",
    ),
    pytest.param(
        "{hidden_size: 12}",
        "{num_channels: 1}",
        SpecError,
        "variant 'tiny' changes 'num_channels' of classifier, which is structure\n"
        "  where:   my.yaml:17\n"
        "  allowed: a variant overrides sizes: the graph keeps its inputs, outputs and layers' kinds\n"
        "  fix:     write a spec of its own for another structure",
        id="variant-of-structure",
    ),
    pytest.param(
        "{hidden_size: 12}",
        "{hidden_size: 13}",
        SpecError,
        "components.classifier: num_heads 3 does not divide hidden_size 13; nearest that do: 1\n"
        "  where:   my.yaml:17\n"
        "  fix:     change one of the values",
        id="variant-does-not-divide",
    ),
    pytest.param(
        "{hidden_size: 12}",
        "12",
        SpecError,
        "variants.tiny.classifier cannot be the number 12\n"
        "  where:   my.yaml:17\n"
        "  allowed: a mapping\n"
        "  fix:     write variants as NAME: {COMPONENT: {KEY: VALUE}}",
        id="variant-not-a-mapping",
    ),
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
def test_bad_spec_says_what_where_and_what_to_do(old: str, new: str, kind: type[MetagenError], text: str) -> None:
    assert GOOD.count(old) == 1
    with pytest.raises(MetagenError) as caught:
        parse_spec(GOOD.replace(old, new), source="my.yaml")
    assert type(caught.value) is kind
    assert str(caught.value) == text


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
        "  allowed: tiny (did you mean 'tiny'?)\n"
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
