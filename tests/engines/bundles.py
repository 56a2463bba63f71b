"""A small real transformer as a bundle: torch is the oracle, ONNX files are written by hand, with room for mutants.

Two pre-norm layers with causal attention (a custom op with a function body in the portable graph) and exact GELU, then
a head. Outputs: `logits` [batch, CLASSES] of the last token, and `features` [batch, TOKENS, WIDTH].
Shapes: B batch, T tokens, H heads, D head dim, C channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from specs.bundle import Graph, IoTensor, Manifest, TypedGraph
from specs.bundle.files import index_files, write_manifest

WIDTH, HEADS, TOKENS, CLASSES, LAYERS = 32, 4, 6, 10, 2
HEAD_DIM = WIDTH // HEADS
SCALE = HEAD_DIM**-0.5
#: What the op's schema demands of a node; checked wherever a test has registered it.
ATTENTION_ATTRIBUTES = {"scale": SCALE, "causal": 1, "window": 0, "groups": 1}
INPUTS = (IoTensor(name="tokens", dtype="float32", shape=("batch", TOKENS, WIDTH)),)
OUTPUTS = (
    IoTensor(name="logits", dtype="float32", shape=("batch", CLASSES)),
    IoTensor(name="features", dtype="float32", shape=("batch", TOKENS, WIDTH)),
)


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """What is wrong with a graph; the default is nothing."""

    scale: float = SCALE
    tanh_gelu: bool = False
    drop_mask: bool = False
    permute_heads: bool = False
    zero_point: int = 0
    double_logits: bool = False
    swap_outputs: bool = False
    nan: bool = False


def make_weights(seed: int = 0) -> dict[str, np.ndarray]:
    """Seeded weights of the usual sizes."""
    rng = np.random.default_rng(seed)

    def draw(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32)

    weights = {"head": draw(WIDTH, CLASSES)}
    for i in range(LAYERS):
        for name in ("q", "k", "v", "o"):
            weights[f"{i}.{name}"] = draw(WIDTH, WIDTH)
        weights |= {f"{i}.up": draw(WIDTH, 4 * WIDTH), f"{i}.down": draw(4 * WIDTH, WIDTH)}
        for norm in ("norm1", "norm2"):
            weights[f"{i}.{norm}.scale"] = 1 + draw(WIDTH) * 0.1
            weights[f"{i}.{norm}.bias"] = draw(WIDTH) * 0.1
    return weights


def run_torch(weights: Mapping[str, np.ndarray], tokens: np.ndarray, dtype: torch.dtype) -> dict[str, np.ndarray]:
    """The oracle."""
    w = {name: torch.from_numpy(value).to(dtype) for name, value in weights.items()}
    x = torch.from_numpy(tokens).to(dtype)
    for i in range(LAYERS):
        n = torch.nn.functional.layer_norm(x, (WIDTH,), w[f"{i}.norm1.scale"], w[f"{i}.norm1.bias"], 1e-6)
        q, k, v = ((n @ w[f"{i}.{p}"]).unflatten(-1, (HEADS, HEAD_DIM)).transpose(1, 2) for p in "qkv")
        scores = q @ k.transpose(-1, -2) * SCALE
        scores = scores.masked_fill(torch.ones(TOKENS, TOKENS, dtype=torch.bool).triu(1), -torch.inf)
        x = x + (scores.softmax(-1) @ v).transpose(1, 2).flatten(-2) @ w[f"{i}.o"]
        n = torch.nn.functional.layer_norm(x, (WIDTH,), w[f"{i}.norm2.scale"], w[f"{i}.norm2.bias"], 1e-6)
        x = x + torch.nn.functional.gelu(n @ w[f"{i}.up"]) @ w[f"{i}.down"]
    return {"logits": (x[:, -1] @ w["head"]).float().numpy(), "features": x.float().numpy()}


@dataclass
class _Writer:
    """Collects nodes and weights of one graph in one float type."""

    weights: Mapping[str, np.ndarray]
    dtype: type
    mutant: Mutant
    ranges: Mapping[str, float] | None  # tensor -> largest magnitude: int8 when given
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    stored: dict[str, np.ndarray] = field(default_factory=dict)

    def add(self, op: str, inputs: list[str], output: str, module: str = "", **attributes: object) -> str:
        node = helper.make_node(op, inputs, [output], name=f"node_{output}", **attributes)
        if module:
            entry = node.metadata_props.add()
            entry.key, entry.value = "pkg.torch.onnx.name_scopes", str(["", module, output])
        self.nodes.append(node)
        return output

    def store(self, name: str, value: np.ndarray) -> str:
        self.stored[name] = value
        return name

    def product(self, a: str, weight: str, output: str, module: str) -> str:
        value = self.weights[weight]
        if self.ranges is None:
            return self.add("MatMul", [a, self.store(weight, value.astype(self.dtype))], output, module)
        scale = np.asarray(self.ranges[a] / 127, self.dtype)
        zero = self.store(f"{output}.zero", np.asarray(self.mutant.zero_point, np.int8))
        self.store(f"{output}.scale", scale)
        self.add("QuantizeLinear", [a, f"{output}.scale", zero], f"{output}.q")
        zero_back = self.store(f"{output}.zero_back", np.asarray(0, np.int8))
        self.add("DequantizeLinear", [f"{output}.q", f"{output}.scale", zero_back], f"{output}.dq")
        scales = (np.abs(value).max(axis=0) / 127).astype(self.dtype)
        self.store(f"{weight}.scale", scales)
        self.store(weight, np.clip(np.rint(value / scales.astype(np.float32)), -127, 127).astype(np.int8))
        self.add("DequantizeLinear", [weight, f"{weight}.scale"], f"{weight}.dq", axis=1)
        return self.add("MatMul", [f"{output}.dq", f"{weight}.dq"], output, module)

    def constant(self, name: str, value: object) -> str:
        array = np.asarray(value)
        return self.store(name, array.astype(self.dtype) if array.dtype.kind == "f" else array)

    def heads(self, x: str, output: str) -> str:
        self.add("Reshape", [x, self.constant("split", [0, 0, HEADS, HEAD_DIM])], f"{output}.split")
        return self.add("Transpose", [f"{output}.split"], output, perm=[0, 2, 1, 3])

    def norm(self, x: str, name: str) -> str:
        parts = [self.constant(f"{name}.{part}", self.weights[f"{name}.{part}"]) for part in ("scale", "bias")]
        return self.add("LayerNormalization", [x, *parts], name, f"layers.{name}", axis=-1, epsilon=1e-6)

    def gelu(self, x: str, output: str) -> str:
        """Exact: x (1 + erf(x / sqrt 2)) / 2. The mutant's tanh form differs by at most 4.73e-4."""
        half, one = self.constant("half", 0.5), self.constant("one", 1.0)
        if self.mutant.tanh_gelu:
            self.add("Mul", [x, x], f"{output}.square", "layers.mlp")
            self.add("Mul", [f"{output}.square", x], f"{output}.cube")
            self.add("Mul", [f"{output}.cube", self.constant("cubic", 0.044715)], f"{output}.term")
            self.add("Add", [x, f"{output}.term"], f"{output}.sum")
            root = self.constant("root", np.sqrt(2 / np.pi))
            self.add("Mul", [f"{output}.sum", root], f"{output}.inner", "layers.mlp")
            self.add("Tanh", [f"{output}.inner"], f"{output}.erf")
        else:
            self.add("Mul", [x, self.constant("root", np.sqrt(0.5))], f"{output}.inner")
            self.add("Erf", [f"{output}.inner"], f"{output}.erf")
        self.add("Add", [f"{output}.erf", one], f"{output}.gate")
        self.add("Mul", [f"{output}.gate", half], f"{output}.halved")
        return self.add("Mul", [x, f"{output}.halved"], output, "layers.mlp")


def _attention_nodes(writer: _Writer, q: str, k: str, v: str, output: str) -> None:
    mask = np.triu(np.full((TOKENS, TOKENS), -1e4, np.float32), 1) * (0 if writer.mutant.drop_mask else 1)
    writer.add("Mul", [q, writer.constant("attention.scale", writer.mutant.scale)], f"{output}.scaled")
    writer.add("Transpose", [k], f"{output}.keys", perm=[0, 1, 3, 2])
    writer.add("MatMul", [f"{output}.scaled", f"{output}.keys"], f"{output}.scores")
    writer.add("Add", [f"{output}.scores", writer.constant("mask", mask)], f"{output}.masked")
    writer.add("Softmax", [f"{output}.masked"], f"{output}.weights", axis=-1)
    writer.add("MatMul", [f"{output}.weights", v], output, "layers.attention")


def _attention_function() -> onnx.FunctionProto:
    writer = _Writer(weights={}, dtype=np.float32, mutant=Mutant(), ranges=None)
    _attention_nodes(writer, "q", "k", "v", "y")
    constants = [
        helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value))
        for name, value in writer.stored.items()
    ]
    return helper.make_function(
        "metagen",
        "MetagenAttention",
        ["q", "k", "v"],
        ["y"],
        [*constants, *writer.nodes],
        [helper.make_opsetid("", 18)],
        attributes=list(ATTENTION_ATTRIBUTES),
    )


def make_model(
    weights: Mapping[str, np.ndarray],
    *,
    precision: str = "fp32",
    portable: bool = False,
    mutant: Mutant | None = None,
    ranges: Mapping[str, float] | None = None,
) -> onnx.ModelProto:
    """The block in one precision; `portable` keeps attention as a custom op with a body, int8 needs `ranges`."""
    mutant = mutant or Mutant()
    dtype = np.float16 if precision == "fp16" else np.float32
    writer = _Writer(weights=weights, dtype=dtype, mutant=mutant, ranges=ranges if precision == "int8" else None)
    kind = TensorProto.FLOAT16 if dtype is np.float16 else TensorProto.FLOAT
    x = writer.add("Cast", ["tokens"], "x", to=kind)
    for i in range(LAYERS):
        n = writer.norm(x, f"{i}.norm1")
        q, k, v = (
            writer.heads(writer.product(n, f"{i}.{p}", f"{i}.{p}_flat", f"layers.{i}.{p}"), f"{i}.{p}s") for p in "qkv"
        )
        if mutant.permute_heads:
            q = writer.add("Gather", [q, writer.constant("order", np.roll(np.arange(HEADS), 1))], f"{q}.rolled", axis=1)
        if portable:
            node = helper.make_node(
                "MetagenAttention",
                [q, k, v],
                [f"{i}.mixed"],
                name=f"{i}.attention",
                domain="metagen",
                **ATTENTION_ATTRIBUTES,
            )
            writer.nodes.append(node)
        else:
            _attention_nodes(writer, q, k, v, f"{i}.mixed")
        writer.add("Transpose", [f"{i}.mixed"], f"{i}.merge", perm=[0, 2, 1, 3])
        writer.add("Reshape", [f"{i}.merge", writer.constant("join", [0, 0, WIDTH])], f"{i}.merged")
        x = writer.add("Add", [x, writer.product(f"{i}.merged", f"{i}.o", f"{i}.out", f"layers.{i}.o")], f"{i}.x1")
        n = writer.norm(x, f"{i}.norm2")
        up = writer.gelu(writer.product(n, f"{i}.up", f"{i}.wide", f"layers.{i}.up"), f"{i}.gelu")
        x = writer.add("Add", [x, writer.product(up, f"{i}.down", f"{i}.narrow", f"layers.{i}.down")], f"{i}.x2")
    writer.add("Gather", [x, writer.constant("last", TOKENS - 1)], "last_token", axis=1)
    logits = writer.product("last_token", "head", "raw_logits", "head")
    if mutant.double_logits:
        logits = writer.add("Add", [logits, logits], "doubled")
    if mutant.nan:
        logits = writer.add("Div", [logits, writer.constant("nothing", 0.0)], "divided")
        logits = writer.add("Sub", [logits, logits], "not_a_number")
    writer.add("Cast", [logits], "logits", to=TensorProto.FLOAT)
    writer.add("Cast", [x], "features", to=TensorProto.FLOAT)
    return _finish(writer, portable=portable, swap=mutant.swap_outputs, opset=19 if precision == "fp16" else 18)


def _finish(writer: _Writer, *, portable: bool, swap: bool, opset: int) -> onnx.ModelProto:
    def describe(tensor: IoTensor) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(tensor.name, TensorProto.FLOAT, tensor.shape)

    outputs = [describe(t) for t in (reversed(OUTPUTS) if swap else OUTPUTS)]
    weights = [numpy_helper.from_array(value, name) for name, value in writer.stored.items()]
    graph = helper.make_graph(writer.nodes, "block", [describe(t) for t in INPUTS], outputs, weights)
    opsets = [helper.make_opsetid("", opset)]
    model = helper.make_model(
        graph,
        opset_imports=[*opsets, helper.make_opsetid("metagen", 1)] if portable else opsets,
        functions=[_attention_function()] if portable else [],
        ir_version=10,
    )
    onnx.checker.check_model(model)
    return model


def measure_magnitudes(weights: Mapping[str, np.ndarray], tokens: np.ndarray) -> dict[str, float]:
    """Largest magnitude of every tensor, from ONNX Runtime with everything marked as an output."""
    import onnxruntime

    model = make_model(weights)
    names = [name for node in model.graph.node for name in node.output]
    known = {output.name for output in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in known)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    values = session.run(names, {"tokens": tokens})
    return {name: float(np.abs(value).max()) for name, value in zip(names, values, strict=True)}


def write_bundle(
    folder: Path, typed: Mapping[tuple[str, str], onnx.ModelProto], *, seed: int = 0, labels: bool = False
) -> Manifest:
    """Write the bundle with the typed graphs given by (target, precision); golden data and noise floor from torch."""
    weights = make_weights()
    tokens = np.random.default_rng(seed).standard_normal((2, TOKENS, WIDTH)).astype(np.float32)
    golden = run_torch(weights, tokens, torch.float32)
    exact = run_torch(weights, tokens, torch.float64)
    (folder / "block").mkdir(parents=True)
    onnx.save(make_model(weights, portable=True), folder / "block/model.onnx")
    np.savez(
        folder / "block/model.golden.npz",
        **{"input:tokens": tokens, **{f"output:{name}": value for name, value in golden.items()}},
    )
    entries = []
    for (target, precision), model in typed.items():
        file = f"block/model.{target}-{precision}.onnx"
        save_external(model, folder / file)
        lowering = "onnxruntime" if target == "cpu" else "tensorrt-11"
        opset = model.opset_import[0].version
        entries.append(TypedGraph(target=target, precision=precision, lowering=lowering, opset=opset, file=file))
    graph = Graph(
        name="block",
        component="block",
        file="block/model.onnx",
        golden="block/model.golden.npz",
        inputs=INPUTS,
        outputs=OUTPUTS,
        noise_floor={name: float(np.abs(golden[name] - exact[name]).max()) for name in golden},
        evaluation=_write_evaluation(folder, weights) if labels else None,
        typed=tuple(entries),
    )
    manifest = Manifest(
        name="block",
        spec_digest="0" * 64,
        created_by={},
        dims={"batch": (1, 2, 8)},
        pipeline={"kind": "tensors", "graph": "block"},
        graphs=(graph,),
    )
    manifest = replace(manifest, files=index_files(folder))
    write_manifest(folder, manifest)
    return manifest


def save_external(model: onnx.ModelProto, path: Path) -> None:
    """Save with the large tensors beside the file, as exporters do."""
    onnx.save(model, path, save_as_external_data=True, location=f"{path.stem}.data", size_threshold=1024)


def _write_evaluation(folder: Path, weights: Mapping[str, np.ndarray]) -> str:
    """Labelled data that fp32 gets right, with a margin, on nine samples of ten; 101 is no multiple of the batch."""
    rng = np.random.default_rng(5)
    tokens = rng.standard_normal((400, TOKENS, WIDTH)).astype(np.float32)
    logits = run_torch(weights, tokens, torch.float32)["logits"]
    ordered = np.sort(logits, axis=-1)
    tokens = tokens[ordered[:, -1] - ordered[:, -2] > 0.5][:101]
    labels = run_torch(weights, tokens, torch.float32)["logits"].argmax(-1)
    labels[::10] = (labels[::10] + 1) % CLASSES
    file = "block/model.evaluation.npz"
    np.savez(folder / file, **{"input:tokens": tokens, "labels": labels})
    return file
