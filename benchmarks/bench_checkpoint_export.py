"""Export of a Llama checkpoint with random weights: ours against torch.onnx.export and against optimum-onnx.

    ours      metagen-deploy export FOLDER: prefill and decode, golden data from torch, every stage verified
    torch     torch.onnx.export (dynamo, defaults) of transformers' model: one graph without a cache, nothing verified
    optimum   optimum's main_export, text-generation-with-past, not validated unless --validate is given; it wants
              versions of its own: --optimum-python

Each run is a process of its own, in turn; time is the whole process, memory the VmHWM of its largest process. The
checkpoint is made once, by transformers' own save_pretrained.

    python benchmarks/bench_checkpoint_export.py [--size 0.1b|1b] [--dtype float32] [--rounds 3]
                                                 [--optimum-python PATH] [--validate] [--folder DIR]
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

from _memory import Usage, run_measured

_SIZES = {
    "0.1b": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 2048},
    "1b": {"hidden_size": 2048, "num_hidden_layers": 18, "num_attention_heads": 32, "intermediate_size": 5632},
}

_MAKE = """
import sys, torch, transformers
transformers.utils.logging.disable_progress_bar()
config = transformers.LlamaConfig(vocab_size=32000, num_key_value_heads=4, max_position_embeddings=2048,
                                  tie_word_embeddings=False, **{sizes})
torch.manual_seed(0)
torch.set_default_dtype(torch.{dtype})
model = transformers.LlamaForCausalLM(config)
model.save_pretrained(sys.argv[1])
print(sum(p.numel() for p in model.parameters()) / 1e9, "B parameters")
"""

_TORCH = """
import sys, torch, transformers
transformers.utils.logging.disable_progress_bar()
model = transformers.LlamaForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32).eval()
model.config.use_cache = False
ids = torch.ones(2, 7, dtype=torch.int64)
batch, tokens = torch.export.Dim("batch", max=8), torch.export.Dim("tokens", max=1024)
shapes = {"input_ids": {0: batch, 1: tokens}, "attention_mask": {0: batch, 1: tokens}}
torch.onnx.export(model, kwargs={"input_ids": ids, "attention_mask": torch.ones_like(ids)}, f=sys.argv[2] + "/m.onnx",
                  dynamo=True, dynamic_shapes=shapes, verbose=False)
"""

_OPTIMUM = """
import sys
from optimum.exporters.onnx import main_export
main_export(sys.argv[1], sys.argv[2], task="text-generation-with-past", device="cpu", do_validation={validate})
"""


def make_checkpoint(size: str, dtype: str, folder: Path) -> str:
    """Have transformers save a Llama with random weights. Returns what was made, in words."""
    program = _MAKE.format(sizes=_SIZES[size], dtype=dtype)
    made = run_measured([sys.executable, "-W", "ignore", "-c", program, str(folder)])
    if made.status:
        raise SystemExit(made.output.strip()[-1500:])
    return f"{made.output.strip().splitlines()[-1]} in {dtype}"


def make_command(
    kind: str, checkpoint: Path, out: Path, optimum_python: str, *, target: str = "h200", validate: bool = False
) -> list[str]:
    """The process to measure.

    Args:
        target: ours is made for; any size fits an h200.
        validate: have optimum compare its graph with torch, as its command line does.
    """
    if kind == "ours":
        choice = ["--target", target, "--precision", "fp32"]
        return [sys.executable, "-m", "metagen_deploy", "export", str(checkpoint), "-o", str(out / "x.bundle"), *choice]
    if kind == "torch":
        return [sys.executable, "-W", "ignore", "-c", _TORCH, str(checkpoint), str(out)]
    return [optimum_python, "-W", "ignore", "-c", _OPTIMUM.format(validate=validate), str(checkpoint), str(out)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=_SIZES, default="0.1b")
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], default="float32")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--optimum-python", default="", help="a Python with optimum-onnx; it is left out without one")
    parser.add_argument("--validate", action="store_true", help="optimum checks what it wrote, as its own command does")
    parser.add_argument("--folder", type=Path, help="where everything is written, and deleted again")
    arguments = parser.parse_args()
    kinds = ["ours", "torch", *(["optimum"] if arguments.optimum_python else [])]
    folder = Path(tempfile.mkdtemp(dir=arguments.folder))
    results: dict[str, list[Usage]] = {kind: [] for kind in kinds}
    try:
        checkpoint = folder / "checkpoint"
        print(make_checkpoint(arguments.size, arguments.dtype, checkpoint), flush=True)
        for number in range(arguments.rounds):
            for kind in kinds:
                out = folder / f"{kind}{number}"
                out.mkdir()
                usage = run_measured(
                    make_command(kind, checkpoint, out, arguments.optimum_python, validate=arguments.validate)
                )
                if usage.status:
                    print(f"{kind} failed with status {usage.status}: {usage.output.strip()[-1500:]}", flush=True)
                else:
                    results[kind].append(usage)
                    print(f"  {kind:8s} {usage.seconds:6.1f} s  {usage.peak_mb:6.0f} MB", flush=True)
                shutil.rmtree(out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    medians = {
        kind: (statistics.median(u.seconds for u in runs), statistics.median(u.peak_mb for u in runs))
        for kind, runs in results.items()
        if runs
    }
    for kind, (seconds, megabytes) in medians.items():
        time_ratio, memory_ratio = medians["ours"][0] / seconds, medians["ours"][1] / megabytes
        ratios = f"ours: {time_ratio:.2f}x time, {memory_ratio:.2f}x memory"
        print(f"{kind:8s} {seconds:6.1f} s  {megabytes:6.0f} MB   {ratios}")


if __name__ == "__main__":
    main()
