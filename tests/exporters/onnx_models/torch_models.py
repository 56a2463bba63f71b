"""ONNX files as torch's exporters write them, the one of today and the one before it."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Mapping
from pathlib import Path


def _make_torch_cnn() -> tuple[object, tuple[object, ...]]:
    import torch
    from torch import nn

    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=8, padding=1),
        nn.GroupNorm(2, 8),
        nn.SiLU(),
        nn.Upsample(scale_factor=2, mode="bilinear"),
        nn.ConvTranspose2d(8, 4, 2, stride=2),
        nn.InstanceNorm2d(4, affine=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 10),
    ).eval()
    return net, (torch.randn(2, 3, 12, 12),)


def _make_torch_encoder() -> tuple[object, tuple[object, ...]]:
    import torch
    from torch import nn

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(50, 16)
            self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.1)
            self.head = nn.Linear(16, 5)

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            hidden = self.layer(self.embed(input_ids), src_key_padding_mask=attention_mask == 0)
            return self.head(hidden.mean(1))

    torch.manual_seed(0)
    ids = torch.randint(0, 50, (2, 7))
    return Encoder().eval(), (ids, torch.ones(2, 7, dtype=torch.int64))


def _make_torch_rnn() -> tuple[object, tuple[object, ...]]:
    import torch
    from torch import nn

    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(6, 8, num_layers=2, bidirectional=True, batch_first=True)
            self.gru = nn.GRU(16, 4, batch_first=True)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            hidden, _ = self.lstm(x)
            out, last = self.gru(hidden)
            return out, last

    torch.manual_seed(0)
    return Recurrent().eval(), (torch.randn(2, 5, 6),)


def _export_legacy(
    path: Path, model: object, arguments: tuple[object, ...], axes: Mapping[str, Mapping[int, str]], **options: object
) -> None:
    import torch

    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(model, arguments, str(path), dynamo=False, dynamic_axes=axes, **options)  # type: ignore[arg-type]


def _export_dynamo(path: Path, model: object, arguments: tuple[object, ...], **options: object) -> None:
    import torch

    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(model, arguments, str(path), dynamo=True, verbose=False, **options)  # type: ignore[arg-type]


def torch_legacy_cnn(path: Path) -> None:
    model, arguments = _make_torch_cnn()
    names: dict[str, object] = {"input_names": ["image"], "output_names": ["logits"]}
    _export_legacy(path, model, arguments, {"image": {0: "batch"}, "logits": {0: "batch"}}, opset_version=13, **names)


def torch_legacy_unnamed(path: Path) -> None:
    """No names given: the exporter numbers everything."""
    model, arguments = _make_torch_cnn()
    _export_legacy(path, model, arguments, {})


def torch_legacy_rnn(path: Path) -> None:
    model, arguments = _make_torch_rnn()
    _export_legacy(path, model, arguments, {"x": {0: "batch", 1: "time"}}, input_names=["x"], output_names=["out", "h"])


def torch_legacy_encoder(path: Path) -> None:
    model, arguments = _make_torch_encoder()
    axes = {"input_ids": {0: "batch", 1: "sequence"}, "attention_mask": {0: "batch", 1: "sequence"}}
    _export_legacy(path, model, arguments, axes, input_names=list(axes), output_names=["logits"], opset_version=14)


def torch_dynamo_cnn(path: Path) -> None:
    model, arguments = _make_torch_cnn()
    _export_dynamo(path, model, arguments, dynamic_shapes=({0: "batch"},))


def torch_dynamo_encoder(path: Path) -> None:
    import torch

    model, arguments = _make_torch_encoder()
    shape = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    _export_dynamo(path, model, arguments, dynamic_shapes=(shape, shape))


def torch_dynamo_rnn(path: Path) -> None:
    model, arguments = _make_torch_rnn()
    _export_dynamo(path, model, arguments)
