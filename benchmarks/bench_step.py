"""The kernels of a decode step's plugins on a GPU: their numbers against torch, then their time and torch's.

    python benchmarks/bench_step.py libmetagen_plugins.so

Needs torch with CUDA and the library (docs/engines.md, Plugins); TensorRT takes no part. Products are timed `cold`:
going round as many matrices as do not fit the L2 cache, since a step reads every weight once. Attention likewise goes
round caches, float32 ones for the plugin and half ones for torch. GB/s counts the matrices, or the cache read and
written. Every time is the median of seven CUDA graphs.
"""

from __future__ import annotations

import argparse
import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from bench_grid_sample_3d import measure_us
from torch.nn import functional

_COLD_BYTES = 400_000_000  # well beyond any L2 cache
_EPSILON = 1e-5


@dataclass(frozen=True, kw_only=True)
class Model:
    """Sizes of a decoder's layer."""

    name: str
    width: int
    heads: int
    key_heads: int
    size: int
    mlp: int
    words: int
    slots: int = 1024


MODELS = (
    Model(name="text_llm_tiny", width=512, heads=8, key_heads=2, size=64, mlp=1408, words=32000),
    Model(name="Llama 3.2 1B", width=2048, heads=32, key_heads=8, size=64, mlp=8192, words=128256),
    Model(name="Llama 3 8B", width=4096, heads=32, key_heads=8, size=128, mlp=14336, words=128256),
)


@dataclass(frozen=True, kw_only=True)
class Product:
    """One StepLinear: what it multiplies, and what stands around it."""

    rows: int
    depth: int
    columns: tuple[int, ...]
    gate: bool = False
    transposed: bool = False
    norm: bool = False
    residual: bool = False

    @property
    def nbytes(self) -> int:
        """Of its matrices in float16."""
        return 2 * self.depth * sum(self.columns)


def list_products(model: Model, rows: int) -> dict[str, Product]:
    """The four products of a layer, and that with the words at the end."""
    queries, keys = model.heads * model.size, model.key_heads * model.size
    return {
        "q, k, v": Product(rows=rows, depth=model.width, columns=(queries, keys, keys), norm=True),
        "out": Product(rows=rows, depth=queries, columns=(model.width,), residual=True),
        "gate, up": Product(rows=rows, depth=model.width, columns=(model.mlp, model.mlp), gate=True, norm=True),
        "down": Product(rows=rows, depth=model.mlp, columns=(model.width,), residual=True),
        "head": Product(rows=rows, depth=model.width, columns=(model.words,), norm=True, transposed=True),
    }


class Linear:
    """Tensors of one product, and two ways to run it."""

    def __init__(self, product: Product) -> None:
        def draw(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, device="cuda").half()

        self.product = product
        self.x, self.norm = draw(product.rows, product.depth), draw(product.depth)
        shapes = [(n, product.depth) if product.transposed else (product.depth, n) for n in product.columns]
        self.weights = [draw(*shape) / product.depth**0.5 for shape in shapes]
        self.residual = draw(product.rows, product.columns[0])
        self.outs = [torch.empty(product.rows, n, device="cuda", dtype=torch.half) for n in product.columns]

    def run_plugin(self, library: ctypes.CDLL, vectors: int = 0) -> list[torch.Tensor]:
        """Enqueue the kernel on torch's stream."""
        p = self.product
        sizes = (ctypes.c_int32 * 6)(p.rows, p.depth, len(p.columns), *p.columns)
        outs = self.outs[:1] if p.gate else self.outs
        pointers = (ctypes.c_void_p * 12)()
        for first, tensors in ((0, [self.x]), (1, self.weights), (9, outs)):
            for index, tensor in enumerate(tensors):
                pointers[first + index] = tensor.data_ptr()
        if p.norm:
            pointers[4] = self.norm.data_ptr()
        if p.residual:
            pointers[8] = self.residual.data_ptr()
        options, stream = (
            (ctypes.c_int32 * 4)(p.gate, 1, p.transposed, vectors),
            torch.cuda.current_stream().cuda_stream,
        )
        epsilon = ctypes.c_float(_EPSILON)
        assert library.metagenStepLinear(sizes, options, epsilon, pointers, ctypes.c_void_p(stream)) == 0
        return outs

    def run_torch(self, dtype: torch.dtype = torch.half) -> list[torch.Tensor]:
        """The same by torch's own operators."""
        p, x = self.product, self.x.to(dtype)
        if p.norm:
            x = functional.rms_norm(x, x.shape[-1:], self.norm.to(dtype), _EPSILON)
        found = [x @ (weight.T if p.transposed else weight).to(dtype) for weight in self.weights]
        if p.gate:
            return [functional.silu(found[0]) * found[1]]
        return [found[0] + self.residual.to(dtype)] if p.residual else found


class Attention:
    """Tensors of one attention over a cache that is full but for a slot, and two ways to run it."""

    def __init__(self, library: ctypes.CDLL, model: Model, rows: int, start: int) -> None:
        def draw(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, device="cuda")

        self.model, self.rows = model, rows
        self.q = draw(rows, model.heads, model.size).half()
        self.k, self.v = (draw(rows, model.key_heads, model.size).half() for _ in range(2))
        self.past = [draw(rows, model.key_heads, model.slots, model.size) for _ in range(2)]
        self.half_past = [past.half() for past in self.past]
        self.present = [torch.empty_like(past) for past in self.past]
        self.start = torch.full((rows,), start, device="cuda", dtype=torch.int32)
        angles = draw(rows, model.size // 2)
        self.cosine, self.sine, self.out = angles.cos(), angles.sin(), torch.empty_like(self.q)
        self.sizes = (ctypes.c_int32 * 5)(
            rows, model.key_heads, model.heads // model.key_heads, model.slots, model.size
        )
        library.metagenStepAttentionWorkspace.restype = ctypes.c_int64
        self.parts = torch.empty(library.metagenStepAttentionWorkspace(self.sizes), device="cuda", dtype=torch.uint8)

    @property
    def nbytes(self) -> int:
        """Of both caches, read and written."""
        return 4 * self.past[0].nbytes

    def run_plugin(self, library: ctypes.CDLL) -> list[torch.Tensor]:
        """Enqueue both kernels on torch's stream."""
        tensors = (self.q, self.k, self.v, *self.past, self.start, self.cosine, self.sine, self.out, *self.present)
        pointers = (ctypes.c_void_p * 12)(*(tensor.data_ptr() for tensor in (*tensors, self.parts)))
        options, factors = (ctypes.c_int32 * 3)(0, 1, 0), (ctypes.c_float * 2)(self.model.size**-0.5, 0)
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        assert library.metagenStepAttention(self.sizes, options, factors, pointers, stream) == 0
        return [self.out, *self.present]

    def run_torch(self, dtype: torch.dtype = torch.half) -> list[torch.Tensor]:
        """The same by torch's own operators, the cache of this type."""
        cosine, sine = self.cosine.to(dtype)[:, None], self.sine.to(dtype)[:, None]

        def turn(x: torch.Tensor) -> torch.Tensor:
            first, second = x.to(dtype).chunk(2, -1)
            return torch.cat([first * cosine - second * sine, second * cosine + first * sine], -1)

        new = (turn(self.k), self.v.to(dtype))
        slots = torch.arange(self.model.slots, device="cuda")
        here = (slots == self.start[:, None])[:, None, :, None]
        pasts = self.half_past if dtype == torch.half else [past.to(dtype) for past in self.past]
        keys, values = (torch.where(here, one[:, :, None], past) for one, past in zip(new, pasts, strict=True))
        seen = (slots <= self.start[:, None])[:, None, None]
        out = functional.scaled_dot_product_attention(
            turn(self.q)[:, :, None], keys, values, attn_mask=seen, enable_gqa=True
        )
        return [out[:, :, 0], keys, values]


def compare(library: ctypes.CDLL) -> None:
    """Largest differences from torch in float64, over |value| + rms; one float16 rounding is 4.9e-4 of |value|."""
    worst: dict[str, float] = {}

    def note(name: str, got: list[torch.Tensor], wanted: list[torch.Tensor]) -> None:
        for one, other in zip(got, wanted, strict=True):
            error = float(((one.double() - other).abs() / (other.abs() + other.square().mean().sqrt())).max())
            worst[name] = max(worst.get(name, 0.0), error)

    for rows in (1, 2, 3, 8, 11):
        for name, product in list_products(MODELS[0], rows).items():
            linear = Linear(product)
            note(name, linear.run_plugin(library), linear.run_torch(torch.double))
        for start in (0, 500, 1023, 5000):
            attention = Attention(library, MODELS[0], rows, start)
            note("attention", attention.run_plugin(library), attention.run_torch(torch.double))
    print(
        "largest difference from torch in float64 / (|value| + rms):",
        {name: f"{error:.1e}" for name, error in worst.items()},
    )
    assert max(worst.values()) < 6e-4, worst


def time_cold(
    make: Callable[[], Linear | Attention], nbytes: int, ways: dict[str, str | int], library: ctypes.CDLL
) -> str:
    """One row's cells: microseconds each way, and the GB/s of the plugin's best."""
    made = [make() for _ in range(min(max(2, _COLD_BYTES // nbytes), 200))]
    times = []
    for way in ways.values():
        if way == "torch":
            calls = [one.run_torch for one in made]
        elif isinstance(way, int) and isinstance(made[0], Linear):
            calls = [partial(one.run_plugin, library, way) for one in made]  # type: ignore[call-arg]
        else:
            calls = [partial(one.run_plugin, library) for one in made]
        times.append(measure_us(calls))
    cells = " | ".join(f"{time:.2f}" for time in times)
    return f"{cells} | {times[-1] / times[0]:.2f}x | {nbytes / times[0] / 1e3:.0f} |"


def main() -> None:
    """Print the comparison, then one row a kernel, model and number of rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", help="libmetagen_plugins.so")
    library = ctypes.CDLL(parser.parse_args().library)
    print(torch.cuda.get_device_name(), "torch", torch.__version__)
    torch.manual_seed(0)
    compare(library)
    print("| | rows | plugin us | 1 vector | 2 | 4 | torch us | torch / plugin | GB/s |")
    print("|---|---|---|---|---|---|---|---|---|")
    ways: dict[str, str | int] = {"plugin": 0, "1": 1, "2": 2, "4": 4, "torch": "torch"}
    for model in MODELS:
        for rows in (1, 8):
            for name, product in list_products(model, rows).items():
                cells = time_cold(partial(Linear, product), product.nbytes, ways, library)
                print(f"| {model.name}: {name} | {rows} | {cells}", flush=True)
            make = partial(Attention, library, model, rows, model.slots - 1)
            cells = time_cold(make, make().nbytes, {"plugin": 0, "torch": "torch"}, library)
            first, rest = cells.split(" | ", 1)
            print(f"| {model.name}: attention | {rows} | {first} | | | | {rest}", flush=True)
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
