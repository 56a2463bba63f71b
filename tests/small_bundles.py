"""Small real bundles for the runtime's tests: graphs of a few nodes, written with onnx and read by ONNX Runtime."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
from onnx import numpy_helper

from specs.bundle import Graph, IoTensor, Manifest
from specs.bundle.files import index_files, read_manifest, write_manifest

CLASSES, SIDE = 3, 4
VOCAB, WIDTH, HEADS, LAYERS, MAX_CACHE = 300, 8, 2, 2, 96
DTYPES = {1: "float32", 2: "uint8", 6: "int32", 7: "int64", 9: "bool", 10: "float16"}


def make_model(text: str, weights: Mapping[str, np.ndarray]) -> onnx.ModelProto:
    """`text` is the graph in onnx's own notation; weights become initializers."""
    model = onnx.parser.parse_model('<ir_version: 8, opset_import: ["" : 18]>\n' + text)
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in weights.items())
    onnx.checker.check_model(model, full_check=True)
    return model


def read_io(values: Sequence[onnx.ValueInfoProto]) -> tuple[IoTensor, ...]:
    return tuple(
        IoTensor(
            name=value.name,
            dtype=DTYPES[value.type.tensor_type.elem_type],
            shape=tuple(dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim),
        )
        for value in values
    )


def write_bundle(
    folder: Path,
    models: Mapping[str, onnx.ModelProto],
    *,
    pipeline: Mapping[str, Any],
    dims: Mapping[str, tuple[int, int, int]],
    external: bool = False,
) -> Path:
    """A bundle with one component, its portable graphs and (empty) golden files."""
    graphs = []
    for name, model in models.items():
        file = f"part/{name.rpartition('.')[2]}.onnx"
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        if external:
            onnx.save_model(
                model, path, save_as_external_data=True, location=f"{path.stem}.float32.data", size_threshold=200
            )
        else:
            onnx.save_model(model, path)
        golden = file.replace(".onnx", ".golden.npz")
        np.savez(folder / golden)
        graphs.append(
            Graph(
                name=name,
                component="part",
                file=file,
                golden=golden,
                inputs=read_io(model.graph.input),
                outputs=read_io(model.graph.output),
            )
        )
    manifest = Manifest(
        name=folder.name, spec_digest="0" * 64, created_by={}, dims=dims, pipeline=pipeline, graphs=tuple(graphs)
    )
    write_manifest(folder, dataclasses.replace(manifest, files=index_files(folder)))
    return folder


def change_manifest(folder: Path, *, graph: Mapping[str, Any] | None = None, **changes: Any) -> None:
    """Rewrite the manifest with other values and fresh digests; `graph` changes the first graph."""
    manifest = read_manifest(folder)
    if graph:
        changes["graphs"] = (dataclasses.replace(manifest.graphs[0], **graph), *manifest.graphs[1:])
    write_manifest(folder, dataclasses.replace(manifest, **{"files": index_files(folder), **changes}))


def make_classifier(*, bias: float = 0.0) -> onnx.ModelProto:
    """Logits = mean of the left, the middle and the right part of the picture, times 9."""
    weights = np.zeros((SIDE * SIDE, CLASSES), np.float32)
    for pixel in range(SIDE * SIDE):
        weights[pixel, (pixel % SIDE) * CLASSES // SIDE] = 9 / SIDE
    text = f"""
    g (float[batch, 1, {SIDE}, {SIDE}] image) => (float[batch, {CLASSES}] logits) {{
      shape = Constant <value_ints: ints = [0, {SIDE * SIDE}]> ()
      flat = Reshape (image, shape)
      product = MatMul (flat, weights)
      logits = Add (product, bias)
    }}"""
    return make_model(text, {"weights": weights, "bias": np.full(CLASSES, bias, np.float32)})


def write_classifier(folder: Path, **options: Any) -> Path:
    pipeline = {
        "kind": "image-classification",
        "graph": "classifier",
        "image": {"height": SIDE, "width": SIDE, "channels": 1},
        "labels": ["left", "middle", "right"],
    }
    return write_bundle(
        folder, {"classifier": make_classifier()}, pipeline=pipeline, dims={"batch": (1, 2, 4)}, **options
    )


def make_decoder_weights(seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    shapes = {"embedding": (VOCAB, WIDTH), "positions": (MAX_CACHE, WIDTH), "head": (WIDTH, VOCAB)}
    for layer in range(LAYERS):
        shapes |= {f"{kind}{layer}": (WIDTH, WIDTH) for kind in ("wq", "wk", "wv", "wo")}
    return {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def _write_layers(mask: str, cached: bool) -> str:
    lines = []
    for i in range(LAYERS):
        for kind in "qkv":
            lines += [
                f"{kind}f{i} = MatMul (x{i}, w{kind}{i})",
                f"{kind}r{i} = Reshape ({kind}f{i}, split)",
                f"{kind}n{i} = Transpose <perm: ints = [0, 2, 1, 3]> ({kind}r{i})",
            ]
        for kind, name in (("k", "keys"), ("v", "values")):
            if cached:
                lines.append(f"{name}_{i} = Where (here, {kind}n{i}, past_{name}_{i})")
            else:
                lines.append(f"{name}_{i} = Identity ({kind}n{i})")
        lines += [
            f"kt{i} = Transpose <perm: ints = [0, 1, 3, 2]> (keys_{i})",
            f"qs{i} = Mul (qn{i}, scale)",
            f"s{i} = MatMul (qs{i}, kt{i})",
            f"m{i} = Where ({mask}, s{i}, low)",
            f"p{i} = Softmax <axis: int = -1> (m{i})",
            f"o{i} = MatMul (p{i}, values_{i})",
            f"ot{i} = Transpose <perm: ints = [0, 2, 1, 3]> (o{i})",
            f"oj{i} = Reshape (ot{i}, join)",
            f"ow{i} = MatMul (oj{i}, wo{i})",
            f"x{i + 1} = Add (x{i}, ow{i})",
        ]
    return "\n".join(lines)


_CONSTANTS = {
    "split": np.array([0, 0, HEADS, WIDTH // HEADS]),
    "join": np.array([0, 0, WIDTH]),
    "scale": np.float32((WIDTH // HEADS) ** -0.5),
    "low": np.float32(-1e9),
    "zero": np.array(0),
    "one": np.array(1),
    "axis1": np.array([1]),
    "axes123": np.array([1, 2, 3]),
}


def make_prefill(weights: Mapping[str, np.ndarray]) -> onnx.ModelProto:
    cache = ", ".join(
        f"float[batch, {HEADS}, tokens, {WIDTH // HEADS}] {kind}_{i}"
        for i in range(LAYERS)
        for kind in ("keys", "values")
    )
    text = f"""
    g (int64[batch, tokens] token_ids, int64[batch] lengths) => (float[batch, {VOCAB}] logits, {cache}) {{
      shape = Shape (token_ids)
      count = Gather (shape, one)
      places = Range (zero, count, one)
      rows = Unsqueeze (places, axis1)
      causal = GreaterOrEqual (rows, places)
      e = Gather (embedding, token_ids)
      p = Gather (positions, places)
      x0 = Add (e, p)
      {_write_layers("causal", cached=False)}
      last = Sub (lengths, one)
      index = Unsqueeze (last, axis1)
      h = GatherND <batch_dims: int = 1> (x{LAYERS}, index)
      logits = MatMul (h, head)
    }}"""
    return make_model(text, {**weights, **_CONSTANTS})


def make_decode(weights: Mapping[str, np.ndarray]) -> onnx.ModelProto:
    shape = f"float[batch, {HEADS}, cache, {WIDTH // HEADS}]"
    names = [f"{kind}_{i}" for i in range(LAYERS) for kind in ("keys", "values")]
    text = f"""
    g (int64[batch, 1] token_ids, int64[batch] lengths, {", ".join(f"{shape} past_{n}" for n in names)})
      => (float[batch, {VOCAB}] logits, {", ".join(f"{shape} {n}" for n in names)}) {{
      dims = Shape <start: int = 2, end: int = 3> (past_keys_0)
      count = Squeeze (dims)
      slots = Range (zero, count, one)
      column = Unsqueeze (slots, axis1)
      start = Unsqueeze (lengths, axes123)
      here = Equal (column, start)
      seen = LessOrEqual (slots, start)
      e = Gather (embedding, token_ids)
      p = Gather (positions, lengths)
      pu = Unsqueeze (p, axis1)
      x0 = Add (e, pu)
      {_write_layers("seen", cached=True)}
      flat = Squeeze (x{LAYERS}, axis1)
      logits = MatMul (flat, head)
    }}"""
    return make_model(text, {**weights, **_CONSTANTS})


def generate_with_numpy(weights: Mapping[str, np.ndarray], prompt: Sequence[int], new_tokens: int) -> list[int]:
    """Greedy tokens, every step over the whole sequence: the reference without any cache."""
    tokens = list(prompt)
    for _ in range(new_tokens):
        x = weights["embedding"][tokens] + weights["positions"][: len(tokens)]
        for i in range(LAYERS):
            q, k, v = (
                (x @ weights[f"w{kind}{i}"]).reshape(len(tokens), HEADS, -1).transpose(1, 0, 2) for kind in "qkv"
            )
            scores = q @ k.transpose(0, 2, 1) * (WIDTH // HEADS) ** -0.5
            scores = np.where(np.tril(np.ones(scores.shape[1:], bool)), scores, -1e9)
            shares = np.exp(scores - scores.max(-1, keepdims=True))
            mixed = (shares / shares.sum(-1, keepdims=True)) @ v
            x = x + mixed.transpose(1, 0, 2).reshape(len(tokens), WIDTH) @ weights[f"wo{i}"]
        tokens.append(int((x[-1] @ weights["head"]).argmax()))
    return tokens[len(prompt) :]


def write_decoder(folder: Path, weights: Mapping[str, np.ndarray], **changes: Any) -> Path:
    pipeline = {
        "kind": "text-generation",
        "prefill": "decoder.prefill",
        "decode": "decoder.decode",
        "num_layers": LAYERS,
        "tokenizer": {"kind": "bytes"},
        "vocab_size": VOCAB,
        "max_cache": MAX_CACHE,
        **changes,
    }
    models = {"decoder.prefill": make_prefill(weights), "decoder.decode": make_decode(weights)}
    dims = {"batch": (1, 1, 4), "tokens": (1, 16, MAX_CACHE), "cache": (1, 64, MAX_CACHE)}
    return write_bundle(folder, models, pipeline=pipeline, dims=dims, external=True)


def write_raw_classifier(folder: Path, *, steps: Mapping[str, Any] | None = None, fixed: bool = False) -> Path:
    """Logits = the mean of each channel of a raw picture over 25.5, whatever its size; `fixed`: of SIDE by SIDE."""
    sides = f"{SIDE}, {SIDE}" if fixed else "height, width"
    model = make_model(
        f"""
    g (uint8[batch, {sides}, {CLASSES}] pixels) => (float[batch, {CLASSES}] logits) {{
      wide = Cast <to: int = 1> (pixels)
      mean = ReduceMean <keepdims: int = 0> (wide, sides)
      logits = Div (mean, scale)
    }}""",
        {"sides": np.array([1, 2]), "scale": np.array(25.5, np.float32)},
    )
    image = {"height": SIDE, "width": SIDE, "channels": CLASSES, **({"steps": steps} if steps else {})}
    pipeline = {"kind": "image-classification", "graph": "classifier", "image": image, "labels": ["r", "g", "b"]}
    dims = {"batch": (1, 2, 3), **({} if fixed else {"height": (1, 8, 40), "width": (1, 8, 60)})}
    return write_bundle(folder, {"classifier": model}, pipeline=pipeline, dims=dims)


def write_clip(folder: Path) -> Path:
    """Image features: the mean of the left and right half. Text features: how many tokens are 'l' and how many 'r'."""
    image = make_model(
        f"""
    g (float[batch, 1, {SIDE}, {SIDE}] image) => (float[batch, 2] image_features) {{
      shape = Constant <value_ints: ints = [0, {SIDE * SIDE}]> ()
      flat = Reshape (image, shape)
      image_features = MatMul (flat, halves)
    }}""",
        {"halves": np.tile(np.eye(2, dtype=np.float32).repeat(SIDE // 2, axis=0), (SIDE, 1)) / 8},
    )
    text = make_model(
        """
    g (int64[batch, 12] token_ids) => (float[batch, 2] text_features) {
      wide = Unsqueeze (token_ids, axis)
      equal = Equal (wide, letters)
      counts = Cast <to: int = 1> (equal)
      text_features = ReduceSum <keepdims: int = 0> (counts, ones)
    }""",
        {"axis": np.array([2]), "letters": np.array([ord("l"), ord("r")]), "ones": np.array([1])},
    )
    fusion = make_model(
        """
    g (float[batch, 2] image_features, float[batch, 2] text_features) => (float[batch, batch] similarity) {
      turned = Transpose <perm: ints = [1, 0]> (text_features)
      similarity = MatMul (image_features, turned)
    }""",
        {},
    )
    pipeline = {
        "kind": "image-text-similarity",
        "image_encoder": "image_encoder",
        "text_encoder": "text_encoder",
        "fusion": "fusion",
        "image": {"height": SIDE, "width": SIDE, "channels": 1},
        "tokenizer": {"kind": "bytes", "context_length": 12, "end_of_text": 511},
    }
    models = {"image_encoder": image, "text_encoder": text, "fusion": fusion}
    return write_bundle(folder, models, pipeline=pipeline, dims={"batch": (2, 2, 3)})
