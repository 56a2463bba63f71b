"""The process that holds a TensorRT compiler: `python -m engines.backends.trt.worker REQUEST.json`.

A parser may abort its process and a build may take all memory, so neither happens in the tool's own. One request, one
build: parse -> profile -> build -> write. Events go to standard output, a JSON object a line, flushed:

    {"event": "progress", "message": ..., "fraction": ...}
    {"event": "log", "severity": "WARNING" | "ERROR", "text": ...}
    {"event": "failed", "stage": ..., "problem": ..., "errno": ...,
     "nodes": [{"index", "name", "op", "stack", "reason"}]}
    {"event": "done", ...}                                                             see `_build`

Everything else that a library prints goes to standard error. When the reader is gone the build is cancelled.
Imports the standard library and the compiler named in the request, nothing else of this project but its own floor.
"""

from __future__ import annotations

import ctypes
import faulthandler
import json
import os
import sys
import time
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any, TextIO

from engines import plugins
from engines.backends.trt.network import measure_network
from engines.backends.trt.versions import Decisions, decide, read_names
from specs.errors import MetagenError

_PROGRESS_INTERVAL_S = 0.1
#: Source of kernels -> its libraries, by CUDA's generation, and a function that only the real ones have.
_TACTIC_LIBRARIES = {
    "CUBLAS": (("libcublas.so.12", "libcublas.so.11"), "cublasCreate_v2"),
    "CUBLAS_LT": (("libcublasLt.so.12", "libcublasLt.so.11"), "cublasLtCreate"),
    "CUDNN": (("libcudnn.so.8",), "cudnnCreate"),
}


class _Failure(Exception):
    """Ends the work with a `failed` event."""

    def __init__(self, stage: str, problem: str, nodes: list[dict[str, Any]] | None = None, number: int = 0) -> None:
        super().__init__(problem)
        self.event = {"event": "failed", "stage": stage, "problem": problem, "nodes": nodes or [], "errno": number}


class _Events:
    """Writes events; `gone` is true once nobody reads them."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self.gone = stream, False

    def send(self, event: dict[str, Any]) -> None:
        try:
            self._stream.write(json.dumps(event) + "\n")
            self._stream.flush()
        except (BrokenPipeError, ValueError):
            self.gone = True


def main() -> None:
    """Read the request named on the command line and work it off; the exit status is 0 for done, 1 for failed."""
    faulthandler.enable()  # a crash then says where, on standard error
    warnings.simplefilter("ignore")  # the bindings warn of their own deprecated names
    events = _Events(os.fdopen(os.dup(1), "w", encoding="utf-8"))
    os.dup2(2, 1)  # what the compiler prints must not end up among the events
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    try:
        done = _build(import_module(request["module"]), request, events)
    except _Failure as failure:
        events.send(failure.event)
        raise SystemExit(1) from None
    except OSError as error:
        events.send(_Failure("write", str(error), number=error.errno or 0).event)
        raise SystemExit(1) from None
    events.send({"event": "done", **done})


def _build(trt: Any, request: dict[str, Any], events: _Events) -> dict[str, Any]:
    start = time.perf_counter()
    decisions = decide(request["module"], read_names(trt), request["precision"])
    if decisions.missing_flags:
        raise _Failure("setup", f"this version has no builder flag {', '.join(decisions.missing_flags)}")
    logger = _make_logger(trt, events)
    builder = _start_builder(trt, logger)
    _load_plugins(trt, request["plugins"])
    network = builder.create_network(_pack(trt.NetworkDefinitionCreationFlag, decisions.network_flags))
    events.send({"event": "progress", "message": "parsing the graph", "fraction": 0.0})
    _parse(trt, network, logger, request["model"])
    notes = [*_mark_attention(trt, network), *_note_narrowed(network, request["wide_tensors"])]
    usual = request["profiles"][0].values() if request["profiles"] else ()
    unknown = max((size for shapes in usual for size in shapes[1]), default=1)
    shares = measure_network(trt, network, unknown) if decisions.strongly_typed else None
    config = _configure(trt, builder, network, decisions, request)
    notes += _limit_tactics(trt, config)
    cache = _load_timing_cache(config, decisions, request["timing_cache"])
    monitor = _make_monitor(trt, events)
    if monitor is not None:
        config.progress_monitor = monitor
    else:
        events.send(
            {"event": "progress", "message": "compiling; this version does not say how far it is", "fraction": None}
        )
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise _Failure("build", "the compiler built no engine")
    events.send({"event": "progress", "message": "writing the engine", "fraction": 1.0})
    _write(Path(request["output"]), memoryview(plan))
    if cache:
        _write(Path(request["timing_cache"]), memoryview(config.get_timing_cache().serialize()))
    return {
        "version": trt.__version__,
        "seconds": time.perf_counter() - start,
        "bytes": plan.nbytes,
        "layers": network.num_layers,
        "shares": shares,
        "notes": notes,
    }


def _make_logger(trt: Any, events: _Events) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]  # the base is known only here
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, text: str) -> None:
            if severity <= trt.ILogger.Severity.WARNING:
                name = "WARNING" if severity == trt.ILogger.Severity.WARNING else "ERROR"
                events.send({"event": "log", "severity": name, "text": text})

    return Logger()


def _start_builder(trt: Any, logger: Any) -> Any:
    try:
        builder = trt.Builder(logger)
    except TypeError:  # what the bindings make of a null pointer
        builder = None
    if builder is None:
        raise _Failure("setup", "the compiler did not start: is there a GPU and its driver?")
    return builder


def _load_plugins(trt: Any, libraries: list[str]) -> None:
    try:
        plugins.load_libraries(trt, [Path(library) for library in libraries])
    except MetagenError as error:
        raise _Failure("setup", " ".join(str(error).split())) from None


def _make_monitor(trt: Any, events: _Events) -> Any:
    """Turns the compiler's nested phases into one rising fraction; None before 9.1, which has no monitor."""
    if getattr(trt, "IProgressMonitor", None) is None:
        return None

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # the base is known only here
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.phases: dict[str, list[Any]] = {}  # name -> [parent, steps, steps done]
            self.shown, self.next_s = 0.0, 0.0

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            self.phases[name] = [parent, max(steps, 1), 0]
            self._show(name)

        def step_complete(self, name: str, step: int) -> bool:
            if name in self.phases:
                self.phases[name][2] = step + 1
            self._show(name)
            return not events.gone

        def phase_finish(self, name: str) -> None:
            self.phases.pop(name, None)

        def _show(self, name: str) -> None:
            if time.monotonic() < self.next_s:
                return
            self.next_s = time.monotonic() + _PROGRESS_INTERVAL_S
            inside, at = 0.0, name
            while at in self.phases:
                parent, steps, done = self.phases[at]
                inside, at = min((done + inside) / steps, 1.0), parent
            self.shown = max(self.shown, inside)
            events.send({"event": "progress", "message": name.lower(), "fraction": self.shown})

    return Monitor()


def _parse(trt: Any, network: Any, logger: Any, model: str) -> None:
    parser = trt.OnnxParser(network, logger)
    parsed = parser.parse_from_file(model)
    errors = [parser.get_error(i) for i in range(parser.num_errors)]
    if not parsed or errors:
        problem = errors[0].desc() if errors else "the parser gave no reason"
        raise _Failure("parse", problem, [_describe_error(error) for error in errors])
    if not network.num_outputs:
        raise _Failure("parse", "the graph has no outputs")


def _describe_error(error: Any) -> dict[str, Any]:
    """One parser error; before 10.0 it knows the node's index alone."""

    def read(name: str) -> Any:
        return getattr(error, name)() if hasattr(error, name) else ""

    stack = error.local_function_stack() if hasattr(error, "local_function_stack") else []
    return {
        "index": error.node(),
        "name": read("node_name"),
        "op": read("node_operator"),
        "stack": list(stack or []),
        "reason": error.desc(),
    }


def _mark_attention(trt: Any, network: Any) -> list[str]:
    """Let attention without a fused kernel be decomposed instead of refused; fp32, which never has one, is noted."""
    marked = plain = 0
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type.name == "ATTENTION_INPUT":
            layer.__class__ = trt.IAttentionInputLayer
            layer.attention.decomposable = True
            marked += 1
            plain += layer.get_input(0).dtype == trt.DataType.FLOAT
    return [f"{plain} of {marked} attention layers are fp32, which has no fused kernel: decomposed"] if plain else []


def _configure(trt: Any, builder: Any, network: Any, decisions: Decisions, request: dict[str, Any]) -> Any:
    config = builder.create_builder_config()
    for flag in decisions.builder_flags:
        config.set_flag(getattr(trt.BuilderFlag, flag))
    if request["workspace_bytes"]:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, request["workspace_bytes"])
    if request["optimization_level"] is not None:
        config.builder_optimization_level = request["optimization_level"]
    _share_profiles(trt, config)
    if decisions.ahead_of_time:
        _set_capabilities(trt, config, request["compute_capabilities"])
    else:
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if not decisions.strongly_typed:
        _keep_fp32(trt, network, set(request["keep_fp32"]))
    for shapes_of in request["profiles"]:
        profile = builder.create_optimization_profile()
        for name, shapes in shapes_of.items():
            profile.set_shape(name, *shapes)
        if config.add_optimization_profile(profile) < 0:
            raise _Failure("setup", "the compiler refused the optimisation profile")
    return config


def _share_profiles(trt: Any, config: Any) -> None:
    """Let several execution contexts use one optimisation profile; every version but 8.6 does so by itself.

    The runtime keeps a context for each shape that it has captured.
    """
    feature = getattr(getattr(trt, "PreviewFeature", None), "PROFILE_SHARING_0806", None)
    if feature is not None:
        config.set_preview_feature(feature, True)


def _limit_tactics(trt: Any, config: Any) -> list[str]:
    """Switch off the sources of kernels whose libraries are not on this machine; 8.6 would fail on the first of them.

    A library that loads without the function it is known by is a stand-in: other libraries only link to it.
    """
    if not hasattr(config, "get_tactic_sources"):
        return []
    sources, missing = config.get_tactic_sources(), []
    for name, (libraries, function) in _TACTIC_LIBRARIES.items():
        source = getattr(trt.TacticSource, name, None)
        if source is None or not sources >> int(source) & 1 or _find_function(libraries, function):
            continue
        sources &= ~(1 << int(source))
        missing.append(name)
    if not missing:
        return []
    if not config.set_tactic_sources(sources):
        raise _Failure("setup", f"the compiler needs the libraries of {', '.join(missing)}, which are not here")
    return [f"kernels of {', '.join(missing)} are left out: their libraries are not on this machine"]


def _find_function(libraries: tuple[str, ...], function: str) -> bool:
    for library in libraries:
        try:
            if hasattr(ctypes.CDLL(library), function):
                return True
        except OSError:
            continue
    return False


def _set_capabilities(trt: Any, config: Any, capabilities: list[str]) -> None:
    config.num_compute_capabilities = len(capabilities)
    for index, capability in enumerate(capabilities):
        known = getattr(trt.ComputeCapability, "SM" + capability.replace(".", ""), None)
        if known is None or not config.set_compute_capability(known, index):
            raise _Failure("setup", f"this version cannot compile for compute capability {capability}")


def _keep_fp32(trt: Any, network: Any, names: set[str]) -> None:
    """Without strong typing the graph's own types are advice; the nodes kept in fp32 are made a constraint.

    A layer that gives integers or booleans has no precision to constrain, and a cast none but its own.
    """
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.name not in names or layer.type.name in ("CAST", "CONSTANT", "SHAPE"):
            continue
        floats = [i for i in range(layer.num_outputs) if layer.get_output(i).dtype in (trt.float32, trt.float16)]
        if floats:
            layer.precision = trt.float32
        for output in floats:
            layer.set_output_type(output, trt.float32)


def _note_narrowed(network: Any, wide: list[str]) -> list[str]:
    """What a compiler without int64 makes of the graph's int64 inputs and outputs."""
    tensors = [network.get_input(i) for i in range(network.num_inputs)]
    tensors += [network.get_output(i) for i in range(network.num_outputs)]
    narrowed = [tensor.name for tensor in tensors if tensor.name in wide and tensor.dtype.name == "INT32"]
    return [f"this compiler has no int64: {', '.join(narrowed)} are int32 in the engine"] if narrowed else []


def _load_timing_cache(config: Any, decisions: Decisions, path: str | None) -> bool:
    if path is None or not decisions.timing_cache:
        return False
    stored = Path(path).read_bytes() if Path(path).is_file() else b""
    cache = config.create_timing_cache(stored)
    if cache is None or not config.set_timing_cache(cache, False):
        config.set_timing_cache(config.create_timing_cache(b""), False)  # another version's or device's: start anew
    return True


def _pack(kind: Any, names: tuple[str, ...]) -> int:
    return sum(1 << int(getattr(kind, name)) for name in names)


def _write(path: Path, content: memoryview) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


if __name__ == "__main__":
    main()
