"""Greedy decoding by a bundle's engines against torch in float32, token by token. Exit status 1 where they differ.

Two interpreters may share the work, since TensorRT and torch need not be in one environment. They meet in a file:

    python benchmarks/greedy_tokens.py torch BUNDLE TOKENS.npz         torch, float32, on the CPU
    python benchmarks/greedy_tokens.py engines BUNDLE TOKENS.npz       TensorRT, fp16; or --backend onnxruntime

Three prompts of different lengths are decoded together and one by one, so that every row of a batch is seen.
A difference where torch itself hardly prefers one token (a margin below a hundredth of the logits' spread) is shown
and is no failure; what follows it is not compared.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

SEED, STEPS, LENGTHS = 11, 48, (7, 23, 64)
#: Of the spread of the logits: below it, half precision may prefer the other token.
TIE = 1e-2
Array = np.ndarray[Any, np.dtype[Any]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("torch", "engines"))
    parser.add_argument("bundle", type=Path)
    parser.add_argument("tokens", type=Path)
    parser.add_argument("--cache", type=int, default=1024, help="slots")
    parser.add_argument("--backend", default="tensorrt")
    parser.add_argument("--precision")
    arguments = parser.parse_args()
    if arguments.what == "torch":
        decode_with_torch(arguments.bundle, arguments.tokens, arguments.cache)
    elif not decode_with_engines(arguments):
        sys.exit(1)


def decode_with_torch(bundle: Path, output: Path, slots: int) -> None:
    """Writes ids [B, T], lengths [B], tokens [B, STEPS] and margins [B, STEPS] of the best over the second logit."""
    import torch

    from specs.handlers import get_handler
    from specs.load import load_spec

    spec = load_spec(bundle / "spec.yaml")
    modules = {built.name.rpartition(".")[2]: built.module.eval() for built in get_handler(spec).build(spec)}
    random, lengths = np.random.default_rng(SEED), np.array(LENGTHS)
    ids = random.integers(1, 500, (len(LENGTHS), max(LENGTHS)))
    ids[np.arange(max(LENGTHS)) >= lengths[:, None]] = 0
    tokens, margins = [], []
    with torch.inference_mode():
        logits, *cache = modules["prefill"](torch.from_numpy(ids), torch.from_numpy(lengths))
        cache = [torch.nn.functional.pad(c, (0, 0, 0, slots - c.shape[2])) for c in cache]
        for step in range(STEPS):
            best = logits.topk(2).values
            margins.append(((best[:, 0] - best[:, 1]) / logits.std()).numpy())
            tokens.append(logits.argmax(-1).numpy())
            at = torch.from_numpy(lengths + step)
            logits, *cache = modules["decode"](torch.from_numpy(tokens[-1])[:, None], at, *cache)
    np.savez(output, ids=ids, lengths=lengths, slots=slots, tokens=np.stack(tokens, 1), margins=np.stack(margins, 1))


def decode_with_engines(arguments: argparse.Namespace) -> bool:
    """Compare and print a line a batch; True where every token is torch's."""
    from engines.runtime import load

    wanted, right = np.load(arguments.tokens), True
    with load(arguments.bundle, backend=arguments.backend, precision=arguments.precision) as session:
        print(session.describe(), flush=True)
        graphs = {name.rpartition(".")[2]: graph for name, graph in session.graphs.items()}
        for rows in ([0, 1, 2], [0], [1], [2]):
            start = time.perf_counter()
            got = _decode(graphs, wanted["ids"][rows], wanted["lengths"][rows], int(wanted["slots"]))
            step_ms = 1e3 * (time.perf_counter() - start) / STEPS
            for row, found in zip(rows, got, strict=True):
                right &= _compare(row, len(rows), found, wanted["tokens"][row], wanted["margins"][row])
            where = "on the GPU" if graphs["decode"].takes_device_arrays else "on the host"
            print(
                f"batch {len(rows)}: {step_ms:.2f} ms a step on average, prefill included, caches {where}", flush=True
            )
    return right


def _decode(graphs: dict[str, Any], ids: Array, lengths: Array, slots: int) -> Array:
    out = graphs["prefill"].run({"token_ids": ids, "lengths": lengths})
    room = [(0, 0), (0, 0), (0, slots - ids.shape[1]), (0, 0)]
    cache = {f"past_{name}": np.pad(value, room) for name, value in out.items() if name != "logits"}
    kept = [name for name in out if name != "logits"]
    tokens = []
    for step in range(STEPS):
        tokens.append(out["logits"].argmax(-1))
        feed = {"token_ids": tokens[-1][:, None], "lengths": lengths + step, **cache}
        out = graphs["decode"].run(feed, keep=kept)
        cache = {f"past_{name}": value for name, value in out.items() if name != "logits"}
    return np.stack(tokens, 1)


def _compare(row: int, batch: int, found: Array, wanted: Array, margins: Array) -> bool:
    same = found == wanted
    first = len(same) if same.all() else int(np.argmin(same))
    tied = first < len(same) and margins[first] < TIE
    print(
        f"row {row} of batch {batch}: {first} of {len(same)} tokens equal"
        + (f"; torch's margin there is {margins[first]:.4f} of the spread" if first < len(same) else ""),
        flush=True,
    )
    return first == len(same) or bool(tied)


if __name__ == "__main__":
    main()
