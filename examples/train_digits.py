"""Train the shipped digit reader, and write its weights, calibration and held-out data.

    python examples/train_digits.py [FOLDER]

scikit-learn's 1797 handwritten digits (8 by 8 pixels, Alpaydin and Kaynak 1998) are split once, stratified: 1437 to
train on, 360 held out. Every image is moved, turned, scaled and made noisy anew in each epoch; weights are averaged
over the last steps. Same seed, same machine: same weights. Takes minutes on one core.

FOLDER is specs/zoo when absent; it gets weights/image_vit_digits.safetensors and data/digits_*.npz. These hold every
image twice: as float32 for a graph that takes `image`, and as bytes for one that takes `pixels`.
"""

from __future__ import annotations

import copy
import math
import sys
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional

from specs.components import VisionTransformerComponent
from specs.document import parse_document, read_text
from specs.models.vision.vit import VisionTransformer
from specs.ops import plain_torch
from specs.parameters.fill import fill_parameters
from specs.schema import WeightsSpec

SEED = 0
EPOCHS = 130
BATCH = 128
LEARNING_RATE = 2e-3
CALIBRATION_SAMPLES = 256
ZOO = Path(__file__).resolve().parent.parent / "specs" / "zoo"


def load_split() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training images and labels, held-out images and labels; images float32 [N, 1, 8, 8] in [0, 1]."""
    digits = load_digits()
    images = torch.from_numpy(digits.images.astype(np.float32) / 16)[:, None]
    labels = torch.from_numpy(digits.target.astype(np.int64))
    train, held_out = train_test_split(np.arange(len(labels)), test_size=0.2, stratify=digits.target, random_state=SEED)
    return images[train], labels[train], images[held_out], labels[held_out]


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Turn by up to 10 degrees, scale by 10 %, shear, move by up to 0.6 pixel, and add noise."""
    count = len(images)

    def draw(limit: float) -> Tensor:
        return (torch.rand(count, generator=generator) * 2 - 1) * limit

    angle, shear = draw(math.radians(10)), draw(0.1)
    scale_x, scale_y = 1 + draw(0.1), 1 + draw(0.1)
    affine = torch.stack(
        [
            torch.stack([scale_x * angle.cos(), -angle.sin() + shear, draw(0.15)], dim=1),
            torch.stack([angle.sin(), scale_y * angle.cos(), draw(0.15)], dim=1),
        ],
        dim=1,
    )
    grid = functional.affine_grid(affine, list(images.shape), align_corners=False)
    moved = functional.grid_sample(images, grid, align_corners=False)
    return (moved + 0.03 * torch.randn(images.shape, generator=generator)).clamp(0, 1)


def build_model() -> VisionTransformer:
    """The model of the shipped spec with seeded weights."""
    data = parse_document(read_text(ZOO / "image_vit_digits.yaml"), source="image_vit_digits.yaml").data
    with torch.device("meta"):
        model = VisionTransformer(VisionTransformerComponent.model_validate(data["components"]["classifier"]))
    fill_parameters({"classifier": model}, WeightsSpec(seed=SEED), dtype=torch.float32)
    return model.requires_grad_(True)


def train(images: Tensor, labels: Tensor) -> VisionTransformer:
    """AdamW with a warm-up and a cosine, label smoothing, and an average of the weights."""
    model = build_model()
    average = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(SEED)
    steps = EPOCHS * (len(images) // BATCH)
    optimiser = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.05)
    warm_up = steps // 20
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min(1.0, (step + 1) / warm_up) * 0.5 * (1 + math.cos(math.pi * step / steps))
    )
    for epoch in range(EPOCHS):
        order = torch.randperm(len(images), generator=generator)
        for start in range(0, len(images) - BATCH + 1, BATCH):
            chosen = order[start : start + BATCH]
            logits = model(augment(images[chosen], generator))
            loss = functional.cross_entropy(logits, labels[chosen], label_smoothing=0.05)
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            with torch.no_grad():
                for kept, new in zip(average.parameters(), model.parameters(), strict=True):
                    kept.lerp_(new, 0.02)
        if epoch % 10 == 9:
            print(f"epoch {epoch + 1:3d} of {EPOCHS}: loss {loss.item():.3f}", flush=True)
    return average.eval()


def measure_top1(model: VisionTransformer, images: Tensor, labels: Tensor) -> float:
    """Share of images whose largest logit is the label."""
    with torch.no_grad():
        return float((model(images).argmax(1) == labels).float().mean())


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ZOO
    torch.set_num_threads(1)  # a second thread costs more than it brings at this size
    started = time.monotonic()
    images, labels, held_images, held_labels = load_split()
    with plain_torch():  # the custom ops are for inference and have no gradient
        model = train(images, labels)
    print(f"trained on {len(images)} digits in {time.monotonic() - started:.0f} s")
    print(f"held-out top-1 {measure_top1(model, held_images, held_labels):.2%} of {len(held_labels)}")

    (folder / "weights").mkdir(parents=True, exist_ok=True)
    (folder / "data").mkdir(parents=True, exist_ok=True)
    state = {f"classifier.{name}": value.detach().contiguous() for name, value in model.state_dict().items()}
    save_file(state, folder / "weights" / "image_vit_digits.safetensors")
    calibration, held_out = images[:CALIBRATION_SAMPLES].numpy(), held_images.numpy()
    np.savez_compressed(folder / "data" / "digits_calibration.npz", image=calibration, pixels=make_bytes(calibration))
    np.savez_compressed(
        folder / "data" / "digits_heldout.npz",
        image=held_out,
        pixels=make_bytes(held_out),
        labels=held_labels.numpy(),
    )


def make_bytes(images: np.ndarray) -> np.ndarray:
    """[N, 1, 8, 8] in [0, 1] -> raw pixels, uint8 [N, 8, 8, 1]."""
    return np.rint(images.transpose(0, 2, 3, 1) * 255).astype(np.uint8)


if __name__ == "__main__":
    main()
