"""What TensorRT really said, replayed: every refusal names its nodes or its input, its cause and the next step."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

from engines.backends.trt import compiler
from engines.backends.trt.compiler import _Heard, _listen
from engines.backends.trt.refusals import clean_words, locate, word_remarks
from engines.onnx_files.read import read_onnx
from engines.onnx_files.records import OnnxFile
from specs.errors import MetagenError

DATA = Path(__file__).parent / "data" / "tensorrt"
CASES = sorted(path.stem for path in DATA.glob("*.jsonl"))
#: One node that any of the small cases may mean, and inputs of the names that they had.
SMALL = """
<ir_version: 8, opset_import: ["": 17]>
g (float[n,4] x, float[n,4] z, float[n,3,224,224] image) => (float[n,4] y) { [culprit] y = Add (x, z) }
"""
#: The ends of the real decode step and of the real ViT, and a layer between.
FUSED = """
<ir_version: 8, opset_import: ["": 17]>
g (int64[n] token_ids) => (float[n,8] logits) {
    [embed] e = Gather (decoder.token_embedding.weight/float16, token_ids)
    [norm] m = Mul (e, layers.0.attention_norm.weight/float16)
    [down] d = Add (m, e)
    [logits/to_float] logits = Cast <to = 1> (d)
}
"""


def read(text: str, folder: Path, modules: tuple[str, ...] = ("encoder.layers.3",)) -> OnnxFile:
    quoted = (
        text.replace("decoder.token_embedding.weight/float16", "embedding_w")
        .replace("layers.0.attention_norm.weight/float16", "norm_w")
        .replace("logits/to_float", "to_float")
    )
    model = onnx.parser.parse_model(quoted)
    names = {
        "embedding_w": "decoder.token_embedding.weight/float16",
        "norm_w": "layers.0.attention_norm.weight/float16",
    }
    for node, module in zip(model.graph.node, modules * len(model.graph.node), strict=False):
        node.name = "logits/to_float" if node.name == "to_float" else node.name
        for index, name in enumerate(node.input):
            node.input[index] = names.get(name, name)
        entry = node.metadata_props.add()
        entry.key, entry.value = "pkg.torch.onnx.name_scopes", str(["", module, "op"])
    path = folder / "m.onnx"
    onnx.save(model, path)
    return read_onnx(path)


def replay(case: str, graph: OnnxFile) -> MetagenError:
    head, *events = (DATA / f"{case}.jsonl").read_text(encoding="utf-8").splitlines()
    said = json.loads(head)
    heard = _Heard()
    for line in events:
        _listen(line.encode(), heard, lambda message, fraction: None)
    return compiler._translate("TensorRT", graph, Path("e.plan"), heard, said["status"], said["tail"])


@pytest.mark.parametrize("case", CASES)
def test_every_recorded_refusal_ends_in_a_step_of_its_own(case: str, tmp_path: Path) -> None:
    error = replay(case, read(SMALL, tmp_path))
    default = ("change the node in the model", "see its last lines above")
    assert error.fix and not error.fix.startswith(default), f"{case}: {error}"
    assert error.where and error.got and len(str(error)) < 1500


@pytest.mark.parametrize(
    ("case", "where", "words"),
    [
        ("8.6-unknown-op", "culprit (Add), module encoder.layers.3", "give the op a function body"),
        ("8.6-bad-matmul", "culprit (Add), module encoder.layers.3", "check the shapes of the node's inputs"),
        ("8.6-zero-point", "culprit (Add), module encoder.layers.3", "quantise symmetrically"),
        ("8.6-huge-batch", "m.onnx: input 'image'", "no tensor may have 2^31 elements or more"),
        ("8.6-profile-name", "m.onnx: input 'x'", "a dim of this input is dynamic and has no range"),
        ("8.6-profile-static", "m.onnx: input 'x'", "a range was given for an axis that is fixed"),
        ("8.6-two-sizes", "m.onnx", "inputs that share a dim were given different sizes"),
        ("8.6-range-crash", "m.onnx", "the compiler's own parser died"),
        ("8.6-too-large-batch", "m.onnx", "the largest sizes do not fit into memory"),
        ("8.6-missing-data", "m.onnx", "copy the external data beside the ONNX file"),
        ("rtx1.7-profile-rank", "m.onnx: input 'x'", "the ranges are for an input of another rank"),
        ("rtx1.7-profile-order", "m.onnx: input 'x'", "order each range"),
        ("rtx1.7-two-sizes", "m.onnx", "inputs that share a dim were given different sizes"),
        ("rtx1.7-big-constant", "m.onnx", "the largest sizes do not fit into memory"),
    ],
)
def test_a_refusal_names_the_place_and_the_cause(case: str, where: str, words: str, tmp_path: Path) -> None:
    error = replay(case, read(SMALL, tmp_path))
    assert error.where is not None and error.where.endswith(where)
    assert error.fix is not None and words in error.fix


def test_a_fused_part_becomes_its_nodes(tmp_path: Path) -> None:
    graph = read(
        FUSED, tmp_path, ("decoder.embedding", "decoder.layers.0.norm", "decoder.layers.0.mlp.down", "decoder")
    )
    assert str(replay("8.6-no-implementation", graph)) == (
        "TensorRT could not build this graph\n"
        f"  where:   {tmp_path}/m.onnx: 4 nodes fused into one, embed (Gather) to logits/to_float (Cast);"
        " modules decoder.embedding, decoder.layers.0, decoder\n"
        "  got:     Could not find any implementation for node"
        " {ForeignNode[decoder.token_embedding.weight/float16...logits/to_float]}.\n"
        "  fix:     no kernel of this version does this part in this precision and these ranges: build it with one size"
        " a dim (--dim NAME=N:N:N), then in fp32; the one that builds says what is at fault"
    )
    error = replay("8.6-small-workspace", graph)
    assert error.where is not None and "3 nodes fused into one, norm (Mul) to logits/to_float (Cast)" in error.where
    assert error.fix is not None and error.fix.startswith("its kernels need more scratch memory")


def test_a_size_that_the_compiler_lost_has_a_way_out_of_its_own(tmp_path: Path) -> None:
    """It says so past its logger; the mutant is the same refusal without that line."""
    graph = read(FUSED, tmp_path)
    assert "(--dim NAME=N:N:N)" in str(replay("8.6-lost-size", graph)) and "lost a size" in str(
        replay("8.6-lost-size", graph)
    )
    assert "lost a size" not in str(replay("8.6-no-implementation", graph))


def test_ends_that_the_graph_does_not_have_are_shown_as_they_are(tmp_path: Path) -> None:
    words = "node {ForeignNode[gone.weight + (Unnamed Layer* 36) [Shuffle]...lost]}"
    assert locate(words, read(SMALL, tmp_path)) == "the nodes fused between gone.weight and lost"


def test_the_limit_that_was_broken_is_said(tmp_path: Path) -> None:
    assert replay("8.6-huge-batch", read(SMALL, tmp_path)).allowed == "below 14267"


def test_what_is_said_twice_is_shown_once() -> None:
    assert clean_words(
        [
            "4: image: too large.",
            "4: [shapeCompiler.cpp::evaluateShapeChecks::1276] Error Code 4: Internal Error (image: too large.)",
            "IBuilder::build: Error Code 4: API Usage Error (image: too large. In validate at /_src/network.cpp:4048)",
        ]
    ) == ["image: too large.", "image: too large"]


def test_a_timing_cache_that_is_not_taken_back_is_said_once() -> None:
    said = [
        "1: [myelinCache.h::deserializeFromBuffer::52] Error Code 1: Myelin (Myelin error from unknown graph)",
        "4: The timing cache will not be used!",
        "Check verbose logs for the list of affected weights.",
        " - 26 weights are affected by this issue: Detected subnormal FP16 values.",
    ]
    assert word_remarks(said) == [
        "it did not take its own timing cache back: this build takes as long as a first one",
        "- 26 weights are affected by this issue: Detected subnormal FP16 values.",
    ]


def test_an_unknown_refusal_is_found_out(tmp_path: Path) -> None:
    """The mutant: words that no row knows keep the general step, which the test over all cases refuses."""
    heard = _Heard(failed={"stage": "build", "problem": "something new", "nodes": [], "errno": 0})
    error = compiler._translate("TensorRT", read(SMALL, tmp_path), Path("e.plan"), heard, 1, [])
    assert error.fix is not None and error.fix.startswith("change the node in the model")
