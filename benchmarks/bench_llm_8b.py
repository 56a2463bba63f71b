"""Export of a 16 GB language model, its memory, and one forward in ONNX Runtime compared with torch layer by layer.

    export   metagen-deploy export SPEC, in a process of its own; its peak and that of the process that checks
    compare  the portable prefill graph with every layer's output marked, weights mapped, against torch's layers

Needs disk for the weights twice (bundle and scratch file) and a few GB of memory. What it wrote is deleted.

    python benchmarks/bench_llm_8b.py [--spec text_llm_8b] [--target h200] [--folder DIR]
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from _memory import run_measured

_LAYER = re.compile(r"^decoder\.layers\.(\d+)$")


def run_torch(spec_name: str, scratch: Path, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Each layer's output [B, T, C] and the logits, in float32, by the spec's own seed."""
    import torch

    from exporters.stored_parameters import streaming_parameters
    from specs.handlers import get_handler
    from specs.load import load_spec

    spec = load_spec(spec_name)
    graph = next(g for g in get_handler(spec).build(spec, scratch=scratch) if g.file_stem == "prefill")
    kept: dict[str, np.ndarray] = {}
    for name, layer in graph.module.named_modules():
        if found := _LAYER.match(name):
            layer.register_forward_hook(
                lambda _, __, out, number=found[1]: kept.update({f"layer {number}": out[0].numpy()})
            )
    with torch.inference_mode(), streaming_parameters(graph.module):
        kept["logits"] = graph.module(*(torch.from_numpy(feed[t.name]) for t in graph.inputs))[0].numpy()
    return kept


def run_onnx(path: Path, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same from the portable graph, in a session that leaves weights in their file."""
    import onnx
    import onnxruntime

    from specs.system.mapped_session import make_mapped_session

    model: Any = onnx.load(str(path), load_external_data=False)
    marked = {"logits": "logits"}
    for node in model.graph.node:  # the last node that belongs to the layer itself adds its residual
        module = next((p.value for p in node.metadata_props if p.key == "metagen.module"), "")
        if found := _LAYER.match(module):
            marked[f"layer {found[1]}"] = node.output[0]
    present = {output.name for output in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in marked.values() if name not in present)
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
    session = make_mapped_session(
        path, options, providers=["CPUExecutionProvider"], model_bytes=model.SerializeToString()
    )
    return dict(zip(marked, session.run(list(marked.values()), feed), strict=True))


def compare(spec: str, bundle: Path) -> None:
    """Print the worst error of every layer, as max |y - r| / rms(r)."""
    graph = bundle / "decoder" / "prefill.onnx"
    with np.load(graph.with_name("prefill.golden.npz")) as golden:
        feed = {name.removeprefix("input:"): golden[name] for name in golden.files if name.startswith("input:")}
    started = time.perf_counter()
    got = run_onnx(graph, feed)
    seconds, started = time.perf_counter() - started, time.perf_counter()
    wanted = run_torch(spec, bundle, feed)
    print(
        f"tokens {feed['token_ids'].shape}: ONNX Runtime {seconds:.0f} s, torch {time.perf_counter() - started:.0f} s"
    )
    errors = {
        name: float(np.abs(got[name] - wanted[name]).max() / np.sqrt(np.mean(np.square(wanted[name]))))
        for name in sorted(wanted, key=lambda name: (name == "logits", len(name), name))
    }
    print("\n".join(f"  {name:9s} {error:.2e}" for name, error in errors.items()))
    print(f"worst of {len(errors)}: {max(errors.values()):.2e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spec", default="text_llm_8b")
    parser.add_argument("--target", default="h200")
    parser.add_argument("--precision", default="fp16")
    parser.add_argument("--folder", type=Path, help="where the bundle is written, and deleted again")
    parser.add_argument("--compare", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.compare:
        compare(arguments.spec, arguments.compare)
        return
    folder = Path(tempfile.mkdtemp(dir=arguments.folder))
    try:
        bundle = folder / "llm.bundle"
        choice = ["--target", arguments.target, "--precision", arguments.precision]
        export = [sys.executable, "-m", "metagen_deploy", "export", arguments.spec, "-o", str(bundle), *choice]
        own = [sys.executable, __file__, "--spec", arguments.spec, "--compare", str(bundle)]
        for title, command in (("export", export), ("compare", own)):
            usage = run_measured(command)
            print(f"{title}: {usage.seconds:.0f} s, exit status {usage.status}")
            for process, (resident, private) in usage.peaks.items():
                print(f"  {resident:6.0f} MB VmHWM, {private:6.0f} MB RssAnon  {process[-60:]}")
            print(usage.output, flush=True)
            if usage.status:
                raise SystemExit(usage.status)
        sizes = {file.name: file.stat().st_size / 1e9 for file in (bundle / "decoder").glob("*.data")}
        print(", ".join(f"{name} {size:.2f} GB" for name, size in sizes.items()))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
