"""What no test without a GPU proves of a TensorRT session: arrays on the GPU, streams, graphs, bad input, a full GPU.

    python check_tensorrt_session.py BUNDLE [LARGER_BUNDLE]     with fp16 engines of this machine, batches 1..8 at least

torch and cupy are used where they are installed. One line a check, `BAD` where it fails; status 1 when one does. The
second bundle is one that is to be refused by a GPU that is full. Takes about ten seconds.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import importlib.util
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from engines.runtime import DeviceArray, Session, load
from engines.runtime.device.cuda import CudaStream
from engines.runtime.executors.tensorrt import TensorRTEngine
from engines.runtime.executors.tensorrt_contexts import MOST_CONTEXTS
from engines.runtime.preflight import Candidate
from specs.bundle import EngineFile
from specs.bundle.files import read_manifest, write_manifest
from specs.errors import MetagenError

Arrays = dict[int, "np.ndarray[Any, Any]"]


class Checks:
    """Prints one line a check and counts those that fail."""

    def __init__(self) -> None:
        self.failed = 0

    def check(self, name: str, ok: bool, *said: object) -> None:
        self.failed += not ok
        print("ok  " if ok else "BAD ", name, *said, flush=True)

    def refuse(self, name: str, call: Callable[[], object], words: str = "") -> None:
        """`call` must end in an error of ours that holds `words`."""
        try:
            self.check(name, False, "no error, but", type(call()).__name__)
        except MetagenError as error:
            self.check(name, words in str(error), f"{type(error).__name__}:", " | ".join(str(error).split("\n")))
        except Exception as error:  # noqa: BLE001 - a foreign error is what this looks for
            self.check(name, False, type(error).__name__, error)


class Case:
    """An open session with one input and one output, its batches, and what the first, plain run of each gave."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.session = load(folder, backend="tensorrt", precision="fp16")
        (self.graph,) = self.session.graphs.values()
        self.engine: TensorRTEngine = self.graph._view.__self__  # type: ignore[union-attr]
        self.input, self.output = self.graph.graph.inputs[0].name, self.graph.graph.outputs[0].name
        self.sizes = [size for size in self.graph.graph.inputs[0].shape if isinstance(size, int)]
        self.largest = self.graph.dims["batch"][2]
        random = np.random.default_rng(0)
        self.images: Arrays = {b: random.random((b, *self.sizes), np.float32) for b in (*range(1, 9), self.largest)}
        self.wanted: Arrays = {batch: self.run(image) for batch, image in self.images.items()}

    def run(self, image: object) -> Any:
        return self.session.run({self.input: image})[self.output]

    def is_right(self, result: Any, batch: int) -> bool:
        """Equal to the bit."""
        return np.array_equal(result.to_numpy() if isinstance(result, DeviceArray) else result, self.wanted[batch])


class OnDevice:
    """An array on the GPU that speaks __cuda_array_interface__ alone; `shift` bytes behind an aligned address."""

    def __init__(self, stream: CudaStream, value: np.ndarray[Any, Any], *, shift: int = 0, **changes: Any) -> None:
        value = np.ascontiguousarray(value)
        address = stream.allocate(value.nbytes + shift) + shift
        stream.copy_in(address, value.ctypes.data, value.nbytes)
        stream.synchronize()
        self.__cuda_array_interface__ = {
            "version": 3, "shape": value.shape, "typestr": value.dtype.str, "data": (address, False), **changes,
        }  # fmt: skip


def measure_free_bytes(stream: CudaStream) -> int:
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    assert stream._driver.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total)) == 0
    return free.value


def check_calls(checks: Checks, case: Case, stream: CudaStream) -> None:
    """Graphs, steady memory, and every kind of array that needs no other library."""
    shapes = (8, 1, 3, case.largest)
    right = [case.is_right(case.run(case.images[batch]), batch) for _ in range(3) for batch in shapes]
    kept = case.engine.num_graphs
    checks.check("several shapes keep their graphs", all(right) and kept >= 4, kept, case.engine.capture_refusal)
    right = [case.is_right(case.run(image), batch) for _ in range(3) for batch, image in case.images.items()]
    checks.check("more shapes than graphs", all(right) and case.engine.num_graphs <= MOST_CONTEXTS)
    image = OnDevice(stream, case.images[8])
    outputs = [case.run(image) for _ in range(12)]
    checks.check("outputs on the GPU that are kept", all(case.is_right(output, 8) for output in outputs), outputs[0])
    outputs.clear()
    for name, value in (("host", case.images[8]), ("GPU", image)):
        case.run(value)
        free = measure_free_bytes(stream)
        for _ in range(300):
            result = case.run(value)
        steady = measure_free_bytes(stream) == free
        checks.check(f"300 calls on the {name} take no memory of the GPU", steady and case.is_right(result, 8))
    shifted = OnDevice(stream, case.images[3], shift=16)
    checks.check("an address that is off by 16 bytes", case.is_right(case.run(shifted), 3))
    pinned = case.graph.allocate_inputs({"batch": 8})
    pinned[case.input][:] = case.images[8]
    checks.check("pinned inputs", all(case.is_right(case.session.run(pinned)[case.output], 8) for _ in range(3)))
    del pinned
    gc.collect()
    turned = np.ascontiguousarray(case.images[8].transpose(3, 2, 1, 0)).transpose(3, 2, 1, 0)
    checks.check("not contiguous on the host", case.is_right(case.run(turned), 8))
    wrong: list[int] = []

    def work(batch: int) -> None:
        wrong.extend(batch for _ in range(40) if not case.is_right(case.run(case.images[batch]), batch))

    threads = [threading.Thread(target=work, args=(batch,)) for batch in shapes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    checks.check("four threads, four shapes", not wrong, wrong)


def check_bad_arrays(checks: Checks, case: Case, stream: CudaStream) -> None:
    """What the graph, the engine or the runtime does not take."""
    one, run = case.images[1], case.run
    beyond = np.zeros((case.largest + 1, *case.sizes), np.float32)
    checks.refuse("dtype", lambda: run(one.astype(np.float64)), "wrong dtype")
    checks.refuse("rank", lambda: run(one[0]), "wrong rank")
    checks.refuse("size", lambda: run(one[..., :-1]), "wrong size")
    checks.refuse("batch", lambda: run(beyond), "wrong size")
    direct = case.engine.execute
    checks.refuse("batch, asked of the engine", lambda: direct([case.output], {case.input: beyond}), "does not take")
    checks.refuse("dtype on the GPU", lambda: run(OnDevice(stream, one.astype(np.float16))), "wrong dtype")
    checks.refuse("rank on the GPU", lambda: run(OnDevice(stream, one[0])), "wrong rank")
    checks.refuse("strides on the GPU", lambda: run(OnDevice(stream, one, strides=(4,) * one.ndim)), "strides")
    checks.check("the session is usable", case.is_right(case.run(case.images[8]), 8))


def check_bad_engines(checks: Checks, case: Case) -> None:
    """Engine files that are damaged, of another GPU or version, or without their plugin."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(shutil.copytree(case.folder, Path(temporary) / "b.bundle"))
        manifest = read_manifest(folder)
        engine = next(e for e in manifest.graphs[0].engines if e.backend == "tensorrt" and e.precision == "fp16")
        plan = (folder / engine.file).read_bytes()

        def open_bundle(**options: Any) -> Session:
            return load(folder, backend="tensorrt", precision="fp16", **options)

        def change(plan: bytes, place: int) -> bytes:
            return plan[:place] + bytes([plan[place] ^ 0xFF]) + plan[place + 1 :]

        (folder / engine.file).write_bytes(plan[: len(plan) // 2])
        checks.refuse("truncated", open_bundle, "truncated or changed")
        (folder / engine.file).write_bytes(change(plan, len(plan) // 2))
        checks.refuse("one byte changed", open_bundle, engine.file.rpartition("/")[2])
        (folder / engine.file).write_bytes(change(plan, 40))
        checks.refuse("one byte of the header, not verified", lambda: open_bundle(verify=False), "refused the engine")
        candidate = Candidate(file=engine.file, backend="tensorrt", precision="fp16")
        for name, content in (("half of it", plan[: len(plan) // 2]), ("nothing", b""), ("text", b"hello" * 100)):
            (folder / engine.file).write_bytes(content)
            checks.refuse(
                f"{name}, handed to TensorRT",
                lambda: TensorRTEngine(folder / engine.file, case.graph.graph, candidate, plugins=()),
                "refused the engine",
            )
        (folder / engine.file).write_bytes(plan)

        def rewrite(**changes: Any) -> None:
            def alter(engines: tuple[EngineFile, ...]) -> tuple[EngineFile, ...]:
                return tuple(replace(one, **changes) for one in engines)

            write_manifest(
                folder, replace(manifest, graphs=tuple(replace(g, engines=alter(g.engines)) for g in manifest.graphs))
            )

        rewrite(compute_capability="8.7")
        checks.refuse("of another GPU", open_bundle, "built for compute capability 8.7")
        rewrite(backend_version="10.3.0")
        checks.refuse("of another version", open_bundle, "10.3.0")
        rewrite(plugins={"MetagenGridSample3D": "0" * 64})
        checks.refuse("without its plugin", open_bundle, "MetagenGridSample3D")
        rewrite(shares_profiles=False)
        with open_bundle() as session:
            right = [case.is_right(session.run({case.input: case.images[b]})[case.output], b) for b in (8, 8, 1, 8, 8)]
            checks.check("one context, one graph", all(right))


def check_full_gpu(checks: Checks, case: Case, stream: CudaStream, larger: Path | None) -> None:
    """Nearly all memory is taken, then given back."""
    image, taken, step = OnDevice(stream, case.images[8]), [], 1 << 36
    case.run(image)
    while step >= 1 << 21:
        try:
            taken.append(stream.allocate(step))
        except MetagenError:
            step >>= 1
    checks.check("runs on a full GPU", case.is_right(case.run(case.images[8]), 8), measure_free_bytes(stream), "left")

    def keep_outputs() -> None:
        kept = []
        while True:
            kept.append(case.run(image))

    checks.refuse("outputs are kept until the GPU is full", keep_outputs, "the GPU is full")
    gc.collect()
    if larger is not None:
        checks.refuse("a larger engine", lambda: load(larger, backend="tensorrt", precision="fp16"))
    checks.check("the session is usable", case.is_right(case.run(image), 8))
    for address in taken:
        stream.free(address)
    with load(case.folder, backend="tensorrt", precision="fp16") as session:
        result = session.run({case.input: case.images[8]})[case.output]
        checks.check("a session more fits again", bool(np.allclose(result, case.wanted[8], atol=1e-2, rtol=1e-2)))


def check_torch(checks: Checks, case: Case, torch: Any) -> None:
    """Tensors in and out; the producer's stream, with a kernel of 3 ms before the input is written."""
    image, run = torch.from_numpy(case.images[8]).cuda(), case.run
    for _ in range(4):
        output = run(image)
    tensor, other = torch.from_dlpack(output), torch.as_tensor(output, device="cuda")
    same_place = tensor.data_ptr() == other.data_ptr() == output._block.address
    checks.check("torch in, torch out, no copy", same_place and case.is_right(tensor.cpu().numpy(), 8))
    del output, tensor
    run(image), run(image)
    checks.check("a tensor keeps its memory", case.is_right(other.cpu().numpy(), 8))
    turned = image.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
    checks.refuse("a tensor that needs a gradient", lambda: run(image.clone().requires_grad_()), "gradient")
    checks.refuse("a tensor that is not contiguous", lambda: run(turned), "contiguous")
    checks.refuse("a tensor of the host", lambda: run(torch.from_numpy(case.images[8])), "no numpy array")
    checks.refuse("a half tensor", lambda: run(image.half()), "wrong dtype")
    checks.refuse("a bfloat16 tensor", lambda: run(image.bfloat16()), "numpy does not have")
    side, default = torch.cuda.Stream(), torch.cuda.default_stream()

    def write_late(stream: Any, source: Any) -> Any:
        tensor = torch.zeros_like(image)
        stream.synchronize()
        torch.cuda._sleep(6_000_000)
        return tensor.copy_(source)

    for name, stream in (("another stream", side), ("the default stream", default)):
        with torch.cuda.stream(stream):
            right = [case.is_right(run(write_late(stream, image)), 8) for _ in range(10)]
        checks.check(f"a producer on {name} is waited for", all(right), right.count(False))
    with torch.cuda.stream(side):
        tensor = write_late(side, image)
        interface = {**tensor.__cuda_array_interface__, "version": 3, "stream": side.cuda_stream}
        checks.check("the interface's stream is waited for", case.is_right(run(Interface(interface)), 8))
        tensor = write_late(side, image)
        raced = run(Interface(tensor.__cuda_array_interface__)).to_numpy()
        checks.check("(without a stream it is not: the checks above can fail)", not case.is_right(raced, 8))
        side.synchronize()
    for name, stream in (("a stream of torch", side), ("torch's default stream", default)):
        check_users_stream(checks, case, torch, name, stream)


class Interface:
    """A bare __cuda_array_interface__."""

    def __init__(self, interface: dict[str, Any]) -> None:
        self.__cuda_array_interface__ = interface


def check_users_stream(checks: Checks, case: Case, torch: Any, name: str, stream: Any) -> None:
    """A session on the user's stream returns early and stays in its order."""
    image, other = torch.from_numpy(case.images[8]).cuda(), torch.cuda.Stream()
    with load(case.folder, backend="tensorrt", precision="fp16", stream=stream.cuda_stream) as session:

        def run(value: Any) -> Any:
            return session.run({case.input: value})[case.output]

        wanted = run(case.images[8])
        with torch.cuda.stream(stream):
            for _ in range(4):
                run(image)
            stream.synchronize()
            torch.cuda._sleep(40_000_000)
            start = time.perf_counter()
            tensor = torch.from_dlpack(run(image))
            seconds = time.perf_counter() - start
            doubled = (tensor * 2).cpu().numpy()
        checks.check(f"{name}: returns without waiting", seconds < 5e-3, f"{seconds * 1e6:.0f} us")
        checks.check(f"{name}: in its order", np.array_equal(doubled, 2 * wanted))
        with torch.cuda.stream(stream):
            torch.cuda._sleep(10_000_000)
            output = run(image)
        with torch.cuda.stream(other):
            late = torch.from_dlpack(output).clone()
        other.synchronize()
        checks.check(f"{name}: a consumer on another stream waits", np.array_equal(late.cpu().numpy(), wanted))
        with torch.cuda.stream(stream):
            outputs = [run(image if index % 2 else image.flip(0).contiguous()) for index in range(6)]
        right = [np.array_equal(output.to_numpy(), wanted) for output in outputs[1::2]]
        checks.check(f"{name}: six in flight, and to_numpy waits", all(right))


def check_cupy(checks: Checks, case: Case, cupy: Any) -> None:
    image = cupy.asarray(case.images[8])
    taken = [cupy.asnumpy(take(case.run(image))) for take in (cupy.from_dlpack, cupy.asarray) for _ in range(3)]
    checks.check("cupy in, cupy out", all(case.is_right(value, 8) for value in taken))
    with cupy.cuda.Stream(non_blocking=True):
        result = cupy.asnumpy(cupy.from_dlpack(case.run(image)))
    checks.check("cupy on a stream of its own", case.is_right(result, 8))


def main() -> int:
    checks, stream, case = Checks(), CudaStream(), Case(Path(sys.argv[1]))
    print("Python", sys.version.split()[0])
    print(case.session.describe())
    check_calls(checks, case, stream)
    check_bad_arrays(checks, case, stream)
    check_bad_engines(checks, case)
    check_full_gpu(checks, case, stream, Path(sys.argv[2]) if len(sys.argv) > 2 else None)
    for name, check in (("torch", check_torch), ("cupy", check_cupy)):
        if importlib.util.find_spec(name):
            check(checks, case, importlib.import_module(name))
    kept = case.run(OnDevice(stream, case.images[8]))
    case.session.close()
    checks.check("an output outlives its session", case.is_right(kept, 8))
    checks.refuse("a closed session", lambda: case.run(case.images[8]), "closed")
    print(f"{checks.failed} BAD" if checks.failed else "all right")
    return checks.failed > 0


if __name__ == "__main__":
    sys.exit(main())
