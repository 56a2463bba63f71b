"""Every bad spec fails with the right words, in full, at the right line: one line of a good one is changed."""

from __future__ import annotations

import pytest

from specs.components import COMPONENTS
from specs.errors import CalibrationError, MetagenError, SpecError, TargetError, WeightsError
from specs.parsing.parse import parse_spec
from tests.specs.small_specs import GOOD, require_refusal

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
        "  allowed: a variant overrides sizes: the graph keeps its outputs and layers' kinds\n"
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
        "inputs: [image]",
        "inputs: [image, image]",
        SpecError,
        "modality.inputs names 'image' twice\n  where:   my.yaml:2\n  fix:     keep one of the two",
        id="modality-twice",
    ),
    pytest.param(
        "name: reader",
        "name: reader\ncalibration: {samples: 100000000}",
        SpecError,
        "calibration.samples cannot be the number 100000000\n"
        "  where:   my.yaml:2\n"
        "  allowed: 65536 or less (how many samples to use at most; 64 to 512 are usual)\n"
        "  fix:     correct calibration.samples",
        id="samples-without-end",
    ),
]


@pytest.mark.parametrize(("old", "new", "kind", "text"), BAD)
def test_bad_spec_says_what_where_and_what_to_do(old: str, new: str, kind: type[MetagenError], text: str) -> None:
    require_refusal(old, new, kind, text)


def test_a_variant_of_a_spec_without_any() -> None:
    with pytest.raises(SpecError) as caught:
        parse_spec(GOOD.partition("variants:")[0], source="my.yaml", variant="tiny")
    assert str(caught.value) == (
        "'reader' has no variant 'tiny'\n"
        "  where:   my.yaml:1\n"
        "  allowed: no variant: this spec has none\n"
        "  fix:     leave the variant out"
    )
