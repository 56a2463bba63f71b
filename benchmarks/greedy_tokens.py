"""Greedy decoding by a bundle's engines against torch in float32, step by step. Exit status 1 where they differ.

Two interpreters may share the work, since TensorRT and torch need not be in one environment. They meet in a file:

    python benchmarks/greedy_tokens.py torch BUNDLE TOKENS.npz         torch, float32, on the CPU
    python benchmarks/greedy_tokens.py engines BUNDLE TOKENS.npz       TensorRT, fp16; or --backend onnxruntime

Three prompts of different lengths are decoded together and one by one, so that every row of a batch is seen. Every step
continues with torch's token, and its logits are held to the limits of specs/tolerance.py by the noise floor of this
very loop, torch's |float32 - float64|. So a step may prefer another token only where torch's best two are nearer to
each other than the logits may be off; such steps are shown.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

SEED, STEPS, LENGTHS = 11, 48, (7, 23, 64)
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
    """Writes ids [B, T], lengths [B], logits [B, STEPS, V], and the noise floor of every step's logits [B, STEPS]."""
    import torch

    from specs.load import load_spec

    random, lengths = np.random.default_rng(SEED), np.array(LENGTHS)
    ids = random.integers(1, 500, (len(LENGTHS), max(LENGTHS)))
    ids[np.arange(max(LENGTHS)) >= lengths[:, None]] = 0
    spec, prompt = load_spec(bundle / "spec.yaml"), (torch.from_numpy(ids), torch.from_numpy(lengths))
    logits = _decode_modules(spec, prompt, slots, torch.float32)
    exact = _decode_modules(spec, prompt, slots, torch.float64, logits)
    floors = np.abs(logits - exact).max(-1)
    np.savez(output, ids=ids, lengths=lengths, slots=slots, logits=logits, floors=floors)


def _decode_modules(spec: Any, prompt: tuple[Any, Any], slots: int, dtype: Any, wanted: Array | None = None) -> Array:
    """Logits [B, STEPS, V], every step continued with the best token: its own, or that of `wanted`."""
    import torch

    from specs.handlers import get_handler

    modules = {built.name.rpartition(".")[2]: built.module.eval().to(dtype) for built in get_handler(spec).build(spec)}
    steps: list[Array] = []
    with torch.inference_mode():
        logits, *cache = modules["prefill"](*prompt)
        cache = [torch.nn.functional.pad(c, (0, 0, 0, slots - c.shape[2])) for c in cache]
        for step in range(STEPS):
            steps.append(logits.numpy())
            token = torch.from_numpy((steps[-1] if wanted is None else wanted[:, step]).argmax(-1))
            logits, *cache = modules["decode"](token[:, None], prompt[1] + step, *cache)
    return np.stack(steps, 1)


def decode_with_engines(arguments: argparse.Namespace) -> bool:
    """Compare and print a line a row; True where every step is within its limits."""
    from engines.runtime import load

    wanted, right = np.load(arguments.tokens), True
    with load(arguments.bundle, backend=arguments.backend, precision=arguments.precision) as session:
        print(session.describe(), flush=True)
        graphs = {name.rpartition(".")[2]: graph for name, graph in session.graphs.items()}
        precision = graphs["decode"].choice.precision
        for rows in ([0, 1, 2], [0], [1], [2]):
            logits, step_ms = _decode(
                graphs, wanted["ids"][rows], wanted["lengths"][rows], int(wanted["slots"]), wanted["logits"][rows]
            )
            for row, found in zip(rows, logits, strict=True):
                print(f"row {row} of batch {len(rows)}: ", end="")
                right &= _compare(found, wanted["logits"][row], wanted["floors"][row], precision)
            where = "on the GPU" if graphs["decode"].takes_device_arrays else "on the host"
            print(f"batch {len(rows)}: {step_ms:.2f} ms a step (median), caches {where}", flush=True)
    return right


def _decode(graphs: dict[str, Any], ids: Array, lengths: Array, slots: int, wanted: Array) -> tuple[Array, float]:
    """Logits [B, STEPS, V] where every step continues with the best token of `wanted`, and milliseconds a step."""
    out = graphs["prefill"].run({"token_ids": ids, "lengths": lengths})
    room = [(0, 0), (0, 0), (0, slots - ids.shape[1]), (0, 0)]
    cache = {f"past_{name}": np.pad(value, room) for name, value in out.items() if name != "logits"}
    kept = [name for name in out if name != "logits"]
    logits, times = [out["logits"]], []
    for step in range(STEPS - 1):
        feed = {"token_ids": wanted[:, step].argmax(-1)[:, None], "lengths": lengths + step, **cache}
        start = time.perf_counter()
        out = graphs["decode"].run(feed, keep=kept)
        times.append(1e3 * (time.perf_counter() - start))
        cache = {f"past_{name}": value for name, value in out.items() if name != "logits"}
        logits.append(out["logits"])
    return np.stack(logits, 1), float(np.median(times))


def _compare(found: Array, wanted: Array, floors: Array, precision: str) -> bool:
    """Judge and print one row [STEPS, V] with its floors [STEPS]; the first logits are the prompt's."""
    from engines.checking.compare import StageName, judge_difference, measure_difference

    rows = []
    for step in range(STEPS):
        graph = "decode" if step else "prefill"
        where = StageName(graph=graph, stage="", backend="", precision=precision)
        difference = measure_difference("logits", found[step], wanted[step])
        rows.append(judge_difference(where, difference, exact=False, floor=float(floors[step]), parity={}))
    worst = max(rows, key=lambda row: row.needed_relative / row.limit_relative)
    same = found.argmax(-1) == wanted.argmax(-1)
    print(
        f"{same.sum()} of {STEPS} tokens equal, logits off by {worst.needed_relative:.1e} of rms at most "
        f"(limit {worst.limit_relative:.1e})"
    )
    for step in np.flatnonzero(~same).tolist():
        best = np.sort(wanted[step])[-2:]
        rms = rows[step].difference.reference_rms
        print(f"  step {step}: torch's best two are {(best[1] - best[0]) / rms:.1e} of rms apart")
    for step, row in enumerate(rows):
        if not row.passed:
            print(f"  step {step} FAILED: {row.reason}")
    return all(row.passed for row in rows)


if __name__ == "__main__":
    main()
