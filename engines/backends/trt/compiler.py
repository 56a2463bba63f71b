"""Drive the compiler process from the tool's side: start, listen, translate what it said, leave nothing behind.

Shared by `tensorrt_rtx` and `tensorrt`; the other side is `worker`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from engines.backends.base import CompileRequest, CompileResult
from engines.backends.trt.refusals import clean_words, find_limit, find_remedy, locate, word_remarks
from engines.backends.trt.static_graph import find_static, write_static
from engines.backends.trt.versions import find_opsets
from engines.onnx_files.read import read_onnx
from engines.onnx_files.records import Node, OnnxFile
from specs.errors import BuildError, GraphError, MetagenError, OutputError
from specs.progress import Progress
from specs.report import PrecisionShares
from specs.system.child_process import ROOT, make_environment
from specs.system.disk import translate_os_errors, word_os_error

_TAIL_LINES = 12
_MAX_NODES_NAMED = 8
#: An engine of this many times its half weights holds them as float32; below this size, code is most of an engine.
_WIDENED, _WORTH_BYTES = 1.5, 4 << 20

#: The parser of 8.6 repeats each node's text, and its own lines, before it says what is wrong.
_NOISE = (
    "catchCudaError",
    "ModelImporter.cpp:14",
    "--- Begin node",
    "--- End node",
    "\nop_type: ",
    "While parsing node",
)


@dataclass
class _Heard:
    """What the worker said."""

    done: dict[str, Any] | None = None
    failed: dict[str, Any] | None = None
    warnings: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


def compile_graph(
    request: CompileRequest, *, module: str, title: str, version: str, gpu: str, progress: Progress
) -> CompileResult:
    """Compile `request.model` to `request.output` in a process of its own.

    Raises:
        GraphError: the file is no ONNX file. BuildError: the compiler refused or died. OutputError: the disk.
    """
    assert request.output is not None
    graph = read_onnx(request.model)
    _check_opset(graph, find_opsets(module, version), f"{title} {version}")
    name = f"{title} {version}"
    shapes = find_static(request.profile, request.wide_profile)
    beside = request.model.with_name(f".{request.model.name}.{os.getpid()}.static")
    with (
        translate_os_errors(request.output),
        write_static(request.model, shapes, beside) as model,
        tempfile.TemporaryDirectory(prefix="metagen-build-") as scratch,
    ):
        asked = replace(request, model=model, profile=() if shapes else request.profile)
        heard, status, tail = _run_worker(_to_json(asked, module, graph), Path(scratch), progress)
    if heard.done is None:
        raise _translate(name, graph, request.output, heard, status, tail)
    done = heard.done
    shares = PrecisionShares(**done["shares"]) if done["shares"] else None
    said = (*heard.warnings, *_drop_noise(heard.errors))  # errors too: 8.6 calls a timing cache that it drops one
    return CompileResult(
        backend_version=done["version"],
        seconds=done["seconds"],
        bytes=done["bytes"],
        layers=done["layers"],
        shares=shares,
        gpu=gpu,
        notes=(
            *done["notes"],
            *(() if shares or request.wide_profile else note_widened(request.precision, graph, done["bytes"])),
            *(f"compiler: {text}" for text in word_remarks(said)),
        ),
    )


def note_widened(precision: str, graph: OnnxFile, engine_bytes: int) -> tuple[str, ...]:
    """The note of an engine that holds its half weights as float32: without strong typing, types are advice.

    8.6 does so where that is faster, for a decode step of one token for instance.
    """
    weight_bytes = sum(weight.nbytes for weight in graph.walk_weights())
    if precision != "fp16" or weight_bytes < _WORTH_BYTES or engine_bytes < _WIDENED * weight_bytes:
        return ()
    sizes = f"{engine_bytes / 1e6:.0f} MB for {weight_bytes / 1e6:.0f} MB of weights"
    return (f"the compiler chose float32 kernels for most of it: the engine holds {sizes}",)


def _to_json(request: CompileRequest, module: str, graph: OnnxFile) -> dict[str, Any]:
    assert request.output is not None
    interface = (*graph.graph.inputs, *graph.graph.outputs)
    return {
        "module": module,
        "model": str(request.model.resolve()),
        "output": str(request.output.resolve()),
        "precision": request.precision,
        "profiles": [
            {p.name: [list(p.minimum), list(p.optimum), list(p.maximum)] for p in profile}
            for profile in (request.profile, request.wide_profile)
            if profile
        ],
        "compute_capabilities": list(request.compute_capabilities),
        "keep_fp32": list(request.keep_fp32),
        "wide_tensors": [tensor.name for tensor in interface if tensor.dtype == "int64"],
        "workspace_bytes": request.workspace_bytes,
        "plugins": [str(library.resolve()) for library in request.plugins],
        "timing_cache": str(request.timing_cache.resolve()) if request.timing_cache else None,
        "optimization_level": request.optimization_level,
    }


def _check_opset(graph: OnnxFile, opsets: tuple[int, int], compiler: str) -> None:
    low, high = opsets
    if not low <= graph.opset <= high:
        raise GraphError(
            f"{compiler} does not read this graph's opset",
            where=str(graph.path),
            got=f"opset {graph.opset}",
            allowed=f"opset {low} to {high}",
            fix="export it again for this target, or convert it: onnx.version_converter.convert_version",
        )


def _run_worker(request: dict[str, Any], scratch: Path, progress: Progress) -> tuple[_Heard, int, list[str]]:
    """Run one worker to its end; it is killed when this is left by an exception (Ctrl-C included)."""
    path = scratch / "request.json"
    path.write_text(json.dumps(request), encoding="utf-8")
    heard = _Heard()
    with (scratch / "stderr").open("w+b") as stderr:
        worker = subprocess.Popen(
            [sys.executable, "-m", "engines.backends.trt.worker", str(path)],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr, cwd=ROOT, env=make_environment(),
        )  # fmt: skip
        try:
            assert worker.stdout is not None
            for line in worker.stdout:
                _listen(line, heard, progress)
            status = worker.wait()
        finally:
            if worker.poll() is None:
                worker.kill()
                worker.wait()
            assert worker.stdout is not None
            worker.stdout.close()
            if heard.done is None:
                output = Path(request["output"])
                output.with_name(f"{output.name}.{worker.pid}.tmp").unlink(missing_ok=True)
        stderr.seek(0)
        lines = stderr.read().decode("utf-8", "replace").splitlines()
        tail = [line for line in lines if line.strip() and not line.startswith("Extension modules")][-_TAIL_LINES:]
    return heard, status, tail


def _listen(line: bytes, heard: _Heard, progress: Progress) -> None:
    try:
        event = json.loads(line)
    except ValueError:
        return  # the last line of a worker that was killed
    kind = event["event"]
    if kind == "progress":
        progress(event["message"], event["fraction"])
    elif kind == "log":
        (heard.warnings if event["severity"] == "WARNING" else heard.errors).append(event["text"].strip())
    elif kind == "failed":
        heard.failed = event
    elif kind == "done":
        heard.done = event


def _translate(
    compiler: str, graph: OnnxFile, output: Path, heard: _Heard, status: int, tail: list[str]
) -> MetagenError:
    said = _drop_noise(heard.errors)
    if heard.failed is None:
        ended = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        return BuildError(
            f"{compiler} {ended} while compiling",
            where=str(graph.path),
            got="\n           ".join([*said, *tail][-_TAIL_LINES:]) or "it said nothing",
            fix=find_remedy(" ".join([*said, *tail, *heard.warnings]))
            or "see its last lines above; a smaller graph shows the culprit",
        )
    failed = heard.failed
    if failed["errno"]:
        refused = OSError(failed["errno"], failed["problem"])
        return word_os_error(refused, output) or OutputError(
            "the engine could not be written",
            where=str(output),
            got=failed["problem"],
            fix="check the path and the room on its disk",
        )
    nodes = [n for n in failed["nodes"] if n["op"] or n["index"] >= 0]
    broken = [line for line in tail if "DCHECK" in line]  # what the fusing compiler of 8.6 writes past the logger
    words = " ".join([failed["problem"], *said, *broken])
    default = "change the node in the model, or use another backend: metagen-deploy build --backend onnxruntime"
    if failed["stage"] == "parse" and nodes:
        ops = ", ".join(sorted({_name_op(n, graph) for n in nodes}))
        return BuildError(
            f"{compiler} refuses {len(nodes)} node{'s' * (len(nodes) > 1)} of this graph: {ops}",
            where=_list_nodes(nodes, graph),
            got=_shorten(failed["problem"] if len(failed["problem"]) > 8 else "an operator it has no importer for"),
            fix=find_remedy(words) or default,
        )
    return BuildError(
        f"{compiler} could not {'read' if failed['stage'] == 'parse' else 'build'} this graph",
        where=f"{graph.path}: {place}" if (place := locate(words, graph)) else str(graph.path),
        got=_shorten("; ".join(clean_words(said) or [failed["problem"]])),
        allowed=find_limit(words),
        fix=find_remedy(words) or find_remedy(" ".join(heard.warnings)) or default,
    )


def _drop_noise(errors: list[str]) -> list[str]:
    return [text for text in errors if not any(noise in text for noise in _NOISE)]


def _shorten(text: str) -> str:
    text = text.split("[checkMacros.cpp", maxsplit=1)[0]  # from there on: that this machine has no CUDA driver
    flat = " ".join(text.replace("creator && ", "").split())
    return flat if len(flat) <= 600 else flat[:597] + "..."


def _find_node(said: dict[str, Any], graph: OnnxFile) -> Node | None:
    for node in graph.walk_nodes():
        if said["name"] and node.name == said["name"]:
            return node
    index = said["index"]
    inside = not said["name"] and 0 <= index < len(graph.graph.nodes)
    return graph.graph.nodes[index] if inside else None


def _name_op(said: dict[str, Any], graph: OnnxFile) -> str:
    node = _find_node(said, graph)
    return node.op_type if node else said["op"] or "an unnamed operator"


def _list_nodes(nodes: list[dict[str, Any]], graph: OnnxFile) -> str:
    return "\n           ".join(_describe_nodes(nodes, graph))


def _describe_nodes(nodes: list[dict[str, Any]], graph: OnnxFile) -> Iterator[str]:
    for said in nodes[:_MAX_NODES_NAMED]:
        node = _find_node(said, graph)
        name = said["name"] or (node.name if node else "") or f"node {said['index']}"
        inside = f", in the function of {' > '.join(said['stack'])}" if said["stack"] else ""
        module = f", module {node.module_path}" if node and node.module_path else ""
        yield f"{name} ({_name_op(said, graph)}){inside}{module}"
    if len(nodes) > _MAX_NODES_NAMED:
        yield f"and {len(nodes) - _MAX_NODES_NAMED} more"
