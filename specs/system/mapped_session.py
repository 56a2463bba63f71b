"""An ONNX Runtime session that leaves a model's weights in their files: what is larger than memory still runs.

    weights.float16.data --mapped--> [W] --Cast--> f32 --MatMul-->   one widened weight at a time, pages given back

By default ONNX Runtime folds the Casts of narrow weights and packs weights when it loads: a model of 3 GB in float16
took 5.3 GB and 35 s to load, and 0.5 s and 1.1 GB (its largest tensor in float32) in a session like this (measured:
16 layers of 2048 channels, vocabulary 128256; ONNX Runtime 1.31, 2 cores). A run takes about four times as long: this
is for checks and calibration, not for serving. The graph runs as it is written, without ONNX Runtime's rewrites: nodes
that are ready run in the order of their numbers, and what a rewrite puts in has a number after all Casts. One such
node early in a model of 32 layers had every weight widened before it: 21 GB instead of 2.

Whoever asks must have `onnxruntime`; nothing here imports it before.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from specs.system.pages import drop_pages, list_file_mappings

#: Models with this much in weight files get such a session.
MAPPED_BYTES = 1 << 29
_PAUSE_S = 0.02
_FOLDER_KEY = "session.model_external_initializers_file_folder_path"


def has_large_weights(path: Path) -> bool:
    """Whether the weight files beside an ONNX file call for a mapped session."""
    return sum(file.stat().st_size for file in path.parent.glob("*.data")) >= MAPPED_BYTES


def make_mapped_session(path: Path, options: Any, *, providers: Sequence[str], model_bytes: bytes | None = None) -> Any:
    """A session over the ONNX file, or over `model_bytes` in its place, whose `run` gives pages back while it goes.

    Args:
        path: weights are in its folder.
        options: SessionOptions; changed here. For `model_bytes` they name that folder already.

    Raises:
        whatever ONNX Runtime raises.
    """
    import onnxruntime

    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED  # the default runs every Cast first
    options.enable_cpu_mem_arena = False  # it would keep the largest of everything
    options.enable_mem_pattern = False
    options.add_session_config_entry("session.disable_prepacking", "1")
    if model_bytes is None:
        options.add_session_config_entry(_FOLDER_KEY, str(path.parent))

    class MappedSession(onnxruntime.InferenceSession):  # type: ignore[misc]  # onnxruntime has no types
        def run(self, *args: Any, **kwargs: Any) -> Any:
            done = threading.Event()
            dropper = threading.Thread(target=_drop_until, args=(done, path.parent), daemon=True)
            dropper.start()
            try:
                return super().run(*args, **kwargs)
            finally:
                done.set()
                dropper.join()

    model = _inline_functions(path.read_bytes() if model_bytes is None else model_bytes)
    return MappedSession(model, options, providers=list(providers))


def _inline_functions(model_bytes: bytes) -> bytes:
    """Without functions: ONNX Runtime would run what it inlines after all Casts that stand beside it."""
    try:
        import onnx
        import onnx.inliner
    except ImportError:  # right there too, only larger
        return model_bytes
    model = onnx.load_model_from_string(model_bytes)
    if not model.functions:
        return model_bytes
    inlined: bytes = onnx.inliner.inline_local_functions(model).SerializeToString()
    return inlined


def _drop_until(done: threading.Event, folder: Path) -> None:
    """Pages that ONNX Runtime reads are mapped privately but never written to: nothing is lost."""
    while not done.wait(_PAUSE_S):
        for start, end in list_file_mappings(folder):
            drop_pages(start, end - start)
