"""ONNX Runtime running somebody's file in a process of its own: a crash there is a refusal here.

    parent                                    child: python -m exporters.onnx_models.run_apart MODEL DATA_FOLDER
    running_apart(model)      --starts-->     a session without optimisation
                              <--{"inputs", "outputs"} or {"refused"}
    run(feed, seed=None)      --{"feed", "answers", "seed"}-->    arrays by position, as .npz files
                              <--{} or {"refused"}, or the end of the process

Made-up inputs reach code that nobody tried: a signal shorter than the window made a published model divide by zero in
a kernel, which ends the process without a word. A child that died is started again for the next feed.

`seed` asks for the model with every float32 weight and input moved by one unit in its last place, up or down: what
that changes is what any other order of the same additions may change (Parker's Monte Carlo arithmetic, 1997).
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specs.system.child_process import ROOT, make_environment

Arrays = dict[str, NDArray[Any]]

#: Tensors of fewer elements are sizes, axes and bounds as well as weights: they are not moved.
_LEAST_WEIGHTS = 64
_LAST_PLACE = 2.0**-23  # of a float32, relative: the most that its last place is worth
_LONGEST_WORDS = 300


class RefusedError(Exception):
    """ONNX Runtime does not load the file, or does not take the feed; says why in a line."""


@contextlib.contextmanager
def running_apart(model: Path, folder: Path, *, data_folder: Path) -> Iterator[RunApart]:
    """Start a child, and end it.

    Args:
        model: the file to run.
        folder: where arrays are handed over; exists.
        data_folder: where the model's external data lies.

    Raises:
        RefusedError: ONNX Runtime does not load the file.
    """
    child = RunApart(model, folder, data_folder)
    try:
        child.start()
        yield child
    finally:
        child.stop()


class RunApart:
    """A child that answers feeds one by one (`running_apart`)."""

    def __init__(self, model: Path, folder: Path, data_folder: Path) -> None:
        self._arguments = [str(model.absolute()), str(data_folder.absolute())]
        self._files = {name: str((folder / f"{name}.npz").absolute()) for name in ("feed", "answers")}
        self._child: subprocess.Popen[str] | None = None
        self.inputs: list[str] = []
        self.outputs: dict[str, str] = {}  # name -> type, as ONNX Runtime spells it

    def run(self, feed: Mapping[str, NDArray[Any]], *, seed: int | None = None) -> Arrays:
        """The outputs by name; with a `seed`, of the model and the feed with their last places moved.

        Raises:
            RefusedError: the model does not take the feed, or crashes on it.
        """
        if self._child is None:
            self.start()
        np.savez(self._files["feed"], *(feed[name] for name in self.inputs))
        self._ask({**self._files, "seed": seed})
        with np.load(self._files["answers"]) as arrays:
            return {name: arrays[f"arr_{index}"] for index, name in enumerate(self.outputs)}

    def start(self) -> None:
        """Raises RefusedError where the file is not loaded."""
        self._child = subprocess.Popen(
            [sys.executable, "-m", "exporters.onnx_models.run_apart", *self._arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # native warnings; what matters comes as an answer
            text=True,
            cwd=ROOT,
            env=make_environment(),
        )
        told = self._ask(None)
        self.inputs, self.outputs = told["inputs"], told["outputs"]

    def _ask(self, question: Mapping[str, object] | None) -> dict[str, Any]:
        assert self._child is not None and self._child.stdin is not None and self._child.stdout is not None
        if question is not None:
            self._child.stdin.write(json.dumps(question) + "\n")
            self._child.stdin.flush()
        line = self._child.stdout.readline()
        if not line:
            raise RefusedError(f"ONNX Runtime crashes: {_name_end(self.stop())}")
        answer: dict[str, Any] = json.loads(line)
        if "refused" in answer:
            raise RefusedError(answer["refused"])
        return answer

    def stop(self) -> int:
        """End the child and give its exit status; one that ended by itself keeps its own."""
        child, self._child = self._child, None
        if child is None:
            return 0
        assert child.stdin is not None and child.stdout is not None
        child.stdout.close()
        with contextlib.suppress(BrokenPipeError):
            child.stdin.close()  # it ends when nothing more is asked
        return child.wait()


def _name_end(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    name = signal.Signals(-status).name
    return f"{name} ({signal.strsignal(-status)})"


def spell_ort_error(error: BaseException) -> str:
    """The first line of ONNX Runtime's words, without its prefixes and places in its source."""
    text = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if "Status Message: /onnxruntime_src/" in text:
        before, after = text.split("/onnxruntime_src/", 1)
        text = before + after.split("[ONNXRuntimeError] : ")[-1]
    text = text.removeprefix("[ONNXRuntimeError] : ")
    return text if len(text) <= _LONGEST_WORDS else text[:_LONGEST_WORDS] + "…"


def list_ort_errors() -> tuple[type[Exception], ...]:
    """What ONNX Runtime raises; its exceptions have no common base but Exception."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    own = (value for value in vars(state).values() if isinstance(value, type) and issubclass(value, Exception))
    return (*own, RuntimeError, ValueError)


def _run_child(model: Path, data_folder: Path) -> None:
    """Answer the parent until it closes its end."""
    try:
        sessions = {None: _open(model, data_folder, None)}
    except list_ort_errors() as error:
        _tell(refused=spell_ort_error(error).split(f"{model} failed:")[-1])
        return
    inputs = [value.name for value in sessions[None].get_inputs()]
    _tell(inputs=inputs, outputs={value.name: value.type for value in sessions[None].get_outputs()})
    for line in sys.stdin:
        question = json.loads(line)
        seed = question["seed"]
        with np.load(question["feed"]) as arrays:
            feed = {name: arrays[f"arr_{index}"] for index, name in enumerate(inputs)}
        if seed is not None:
            random = np.random.default_rng(seed)
            feed = {k: move_last_place(v, random) if v.dtype == np.float32 else v for k, v in feed.items()}
        try:
            if seed not in sessions:
                sessions[seed] = _open(model, data_folder, seed)
            answers = sessions[seed].run(None, feed)
        except list_ort_errors() as error:
            _tell(refused=spell_ort_error(error))
        else:
            np.savez(question["answers"], *map(np.asarray, answers))
            _tell()


def _open(model: Path, data_folder: Path, seed: int | None) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(data_folder))
    if seed is not None:
        source: str | bytes = _move(model, data_folder, seed)
    elif model.parent == data_folder:
        source = str(model)  # opened by its name, its external data is found beside it and stays there
    else:
        source = model.read_bytes()
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def _move(model: Path, data_folder: Path, seed: int) -> bytes:
    import onnx

    proto = onnx.load(str(model), load_external_data=False)
    onnx.load_external_data_for_model(proto, str(data_folder))
    move_weights(proto, np.random.default_rng(seed))
    moved: bytes = proto.SerializeToString()
    return moved


def move_weights(proto: Any, random: np.random.Generator) -> None:
    """Move every float32 weight of `proto` (an onnx.ModelProto without external data) by one unit in its last place."""
    from onnx import TensorProto, numpy_helper

    for tensor in _list_tensors(proto.graph):
        if tensor.data_type == TensorProto.FLOAT and np.prod(tensor.dims) >= _LEAST_WEIGHTS:
            moved = move_last_place(numpy_helper.to_array(tensor), random)
            tensor.CopyFrom(numpy_helper.from_array(moved, tensor.name))


def move_last_place(array: NDArray[Any], random: np.random.Generator) -> NDArray[Any]:
    """Every element of a float32 array one unit in its last place up or down."""
    signs = random.choice((-_LAST_PLACE, _LAST_PLACE), array.shape)
    moved: NDArray[Any] = (array.astype(np.float64) * (1 + signs)).astype(np.float32)
    return np.asarray(np.where(np.isfinite(moved), moved, array))


def _list_tensors(graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            for body in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _list_tensors(body)


def _tell(**words: object) -> None:
    sys.stdout.write(json.dumps(words) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    _run_child(Path(sys.argv[1]), Path(sys.argv[2]))
