"""A Llama checkpoint with random weights on ONNX Runtime: our graphs against what torch.onnx.export and optimum write.

    prompt   logits of a prompt's tokens (ours: of the last one, which is what a host asks for)
    step     one token against a cache of so many; torch.onnx.export of a transformers model has no cache, so its step
             is the whole prompt again

All are FP32 and run in one process, in turn; each contender's largest difference from torch's logits is printed first.

    python benchmarks/bench_checkpoint_inference.py [--size 0.1b|1b] [--optimum-python PATH] [--folder DIR]
"""

from __future__ import annotations

import argparse
import functools
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
import transformers
from _memory import run_measured
from bench_checkpoint_export import make_checkpoint, make_command
from numpy.typing import NDArray

from engines.runtime import load
from metagen_deploy.bench import measure_in_turn

Array = NDArray[Any]
Runner = Callable[[], Array]  # logits [1, vocabulary] of the last token
PROMPTS = (16, 128, 512)  # tokens
CACHES = (128, 1024)  # tokens that went before
_CPU = ["CPUExecutionProvider"]


class Ours:
    """Prefill and decode of a bundle, on the fixed cache that our host loop keeps."""

    def __init__(self, bundle: Path) -> None:
        self.session = load(bundle)

    def make_prompt(self, ids: Array) -> Runner:
        feed = {"token_ids": ids, "lengths": np.array([ids.shape[1]])}
        run = self.session.graphs["decoder.prefill"].run
        return lambda: run(feed, ["logits"])["logits"]

    def make_step(self, ids: Array) -> Runner:
        """The last token of `ids`, the others in the cache."""
        past, graph = ids.shape[1] - 1, self.session.graphs["decoder.decode"]
        prompt = self.session.graphs["decoder.prefill"].run({"token_ids": ids[:, :-1], "lengths": np.array([past])})
        feed = {"token_ids": ids[:, -1:], "lengths": np.array([past])}
        for name, values in prompt.items():
            if name != "logits":
                feed[f"past_{name}"] = np.pad(values, ((0, 0), (0, 0), (0, 64), (0, 0)))
        return lambda: graph.run(feed)["logits"]


class Stock:
    """torch.onnx.export: no cache."""

    def __init__(self, path: Path) -> None:
        self.session = onnxruntime.InferenceSession(path, providers=_CPU)

    def make_prompt(self, ids: Array) -> Runner:
        feed = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        return lambda: self.session.run(None, feed)[0][:, -1]

    make_step = make_prompt


class Optimum:
    """optimum's text-generation-with-past: one graph, the cache grows by concatenation."""

    def __init__(self, path: Path) -> None:
        self.session = onnxruntime.InferenceSession(path, providers=_CPU)
        self.past = [i for i in self.session.get_inputs() if i.name.startswith("past_key_values")]

    def make_feed(self, ids: Array, past: Mapping[str, Array], count: int) -> dict[str, Array]:
        tokens = count + ids.shape[1]
        return {
            "input_ids": ids,
            "attention_mask": np.ones((1, tokens), np.int64),
            "position_ids": np.arange(count, tokens)[None],
            **past,
        }

    def make_prompt(self, ids: Array) -> Runner:
        empty = {i.name: np.zeros((1, i.shape[1], 0, i.shape[3]), np.float32) for i in self.past}
        feed = self.make_feed(ids, empty, 0)
        return lambda: self.session.run(["logits"], feed)[0][:, -1]

    def make_step(self, ids: Array) -> Runner:
        empty = {i.name: np.zeros((1, i.shape[1], 0, i.shape[3]), np.float32) for i in self.past}
        names = [output.name for output in self.session.get_outputs()]
        present = dict(zip(names, self.session.run(None, self.make_feed(ids[:, :-1], empty, 0)), strict=True))
        past = {i.name: present[i.name.replace("past_key_values", "present")] for i in self.past}
        feed = self.make_feed(ids[:, -1:], past, ids.shape[1] - 1)
        return lambda: self.session.run(None, feed)[0][:, -1]


def open_contenders(checkpoint: Path, folder: Path, optimum_python: str) -> dict[str, Any]:
    """Export with each, and open what they wrote."""
    kinds = ["ours", "torch", *(["optimum"] if optimum_python else [])]
    for kind in kinds:
        (folder / kind).mkdir()
        command = make_command(kind, checkpoint, folder / kind, optimum_python, target="cpu")
        usage = run_measured(command)
        if usage.status:
            raise SystemExit(f"{kind} failed: {usage.output.strip()[-1500:]}")
    makers: dict[str, Callable[[], Any]] = {
        "ours": lambda: Ours(folder / "ours" / "x.bundle"),
        "torch": lambda: Stock(folder / "torch" / "m.onnx"),
        "optimum": lambda: Optimum(folder / "optimum" / "model.onnx"),
    }
    return {kind: makers[kind]() for kind in kinds}


@torch.no_grad()
def run_reference(model: Any, ids: Array) -> Array:
    """Logits [1, vocabulary] of the last token, of transformers' model in torch."""
    logits: Array = model(torch.from_numpy(ids)).logits[:, -1].numpy()
    return logits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=["0.1b", "1b"], default="0.1b")
    parser.add_argument("--optimum-python", default="", help="a Python with optimum-onnx; it is left out without one")
    parser.add_argument("--folder", type=Path, help="where everything is written, and deleted again")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=arguments.folder))
    try:
        checkpoint = folder / "checkpoint"
        print(make_checkpoint(arguments.size, "float32", checkpoint), flush=True)
        contenders = open_contenders(checkpoint, folder, arguments.optimum_python)
        model: Any = transformers.LlamaForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
        compare(contenders, model.eval())
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def compare(contenders: Mapping[str, Any], model: Any) -> None:
    """Print one table: milliseconds, how much faster ours is, and how far each is from torch."""
    random = np.random.default_rng(0)
    print("| what | contender | off by | median ms (10th to 90th percentile) | ours is |")
    print("|---|---|---|---|---|")
    cases = [("prompt", tokens) for tokens in PROMPTS] + [("step", cache + 1) for cache in CACHES]
    for what, tokens in cases:
        ids = random.integers(0, 32000, (1, tokens))
        wanted = run_reference(model, ids)
        runners = {name: getattr(contender, f"make_{what}")(ids) for name, contender in contenders.items()}
        runners["torch eager"] = functools.partial(run_reference, model, ids)
        errors = {name: np.abs(run() - wanted).max() for name, run in runners.items()}
        times = {name: np.percentile(runs, (10, 50, 90)) for name, runs in measure_in_turn(runners).items()}
        title = f"{tokens} tokens" if what == "prompt" else f"step after {tokens - 1}"
        for name, (low, median, high) in times.items():
            ratio = median / times["ours"][1]
            print(f"| {title} | {name} | {errors[name]:.1e} | {median:.1f} ({low:.1f} to {high:.1f}) | {ratio:.2f}x |")


if __name__ == "__main__":
    main()
