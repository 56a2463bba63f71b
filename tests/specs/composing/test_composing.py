"""Composing in Python, exactly as the design document shows it; and what the new parts mean."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from metagen_deploy.api import (
    Audio,
    AudioConfig,
    AudioConvStack,
    Fusion,
    INLDynamics,
    PatchEmbedding,
    Vision,
    VisionConfig,
    VisionTransformer,
)
from specs import ops
from specs.components.fusion.resampling import CrossAttentionComponent, PerceiverComponent
from specs.errors import SpecError
from specs.models.text.dynamics import BOUND

SMALL = {"hidden_size": 24, "num_layers": 2, "num_heads": 3}


def test_vision_gives_one_feature_a_patch() -> None:
    images = torch.rand(2, 3, 32, 32)
    for encoder in (
        Vision.clip(image_size=32, patch_size=16, **SMALL),
        Vision.vit(image_size=32, patch_size=16, **SMALL),
        Vision.siglip(image_size=32, patch_size=14, **SMALL),
        VisionTransformer(
            VisionConfig(image_size=32, patch_size=16, hidden_size=24, num_attention_heads=3, num_layers=2)
        ),
    ):
        features = encoder(images)
        assert features.shape == (2, 4, 24)
        assert features.std() > 0.1
    assert PatchEmbedding(VisionConfig(image_size=32, hidden_size=24))(images).shape == (2, 4, 24)


def test_audio_gives_features() -> None:
    waveform = torch.randn(2, 3200) * 0.1
    mel = Audio.mel_spectrogram(sample_rate=16000, n_mels=80, n_fft=400)(waveform)
    assert mel.shape == (2, 80, 21)
    encoder = Audio.whisper(sample_rate=16000, n_mels=80, source_positions=10, **SMALL)
    assert encoder(mel[:, :, :20]).shape == (2, 10, 24)
    assert encoder.encode_samples(waveform).shape == (2, 10, 24)
    assert AudioConvStack(AudioConfig(hidden_size=24))(mel).shape == (2, 11, 24)
    wav2vec = Audio.wav2vec(16000, position_kernel=8, position_groups=3, conv_sizes=(8,) * 7, **SMALL)
    assert wav2vec(waveform).shape == (2, 9, 24)


def test_fusions_join_features() -> None:
    text, image = torch.randn(2, 7, 24), torch.randn(2, 7, 24)
    assert Fusion.cross_attention(hidden_size=24, num_heads=3)(query=text, key_value=image).shape == text.shape
    assert Fusion.gated(hidden_size=24)(text, image).shape == text.shape
    assert Fusion.concat(hidden_size=24)(text, image).shape == text.shape
    perceiver = Fusion.perceiver(hidden_size=24, num_latents=5, num_layers=2, num_heads=3)
    assert perceiver(image).shape == perceiver(image[:, :3]).shape == (2, 5, 24)


def test_the_documents_multimodal_model_runs() -> None:
    class MultimodalLLM(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vision = Vision.clip(image_size=32, patch_size=16, **SMALL)
            self.audio = Audio.whisper(sample_rate=16000, source_positions=10, **SMALL)
            self.vision_resampler = Fusion.perceiver(hidden_size=24, num_latents=6, num_heads=3)
            self.audio_resampler = Fusion.perceiver(hidden_size=24, num_latents=4, num_heads=3)
            self.embed = nn.Embedding(50, 24)
            self.dynamics = INLDynamics(hidden_size=24, beta_max=2.0)

        def forward(self, text_ids: torch.Tensor, images: torch.Tensor, audio: torch.Tensor) -> torch.Tensor:
            parts = [self.audio_resampler(self.audio(audio)), self.vision_resampler(self.vision(images))]
            hidden, velocity = self.dynamics(torch.cat([*parts, self.embed(text_ids)], dim=1))
            hidden, _ = self.dynamics(hidden, velocity)
            return hidden

    hidden = MultimodalLLM()(torch.randint(0, 50, (2, 3)), torch.rand(2, 3, 32, 32), torch.randn(2, 80, 20))
    assert hidden.shape == (2, 4 + 6 + 3, 24)
    assert torch.isfinite(hidden).all()


def test_seeds_make_the_weights() -> None:
    one, same, other = (Fusion.gated(8, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one.gate.weight, same.gate.weight)
    assert not torch.equal(one.gate.weight, other.gate.weight)


def test_unknown_options_are_errors() -> None:
    with pytest.raises(SpecError) as caught:
        Vision.clip(image_size=32, patch_size=16, hiden_size=24)
    assert str(caught.value).startswith("unknown option 'hiden_size'\n  allowed: ")
    with pytest.raises(SpecError) as caught:
        Fusion.perceiver(hidden_size=24, num_heads=5)
    assert "num_heads 5 does not divide hidden_size 24" in str(caught.value)


def test_cross_attention_shows_what_it_looked_at() -> None:
    torch.manual_seed(0)
    fusion = Fusion.cross_attention(hidden_size=24, num_heads=3, context_size=10, temperature=2.0)
    query, context = torch.randn(2, 5, 24), torch.randn(2, 7, 10)
    with torch.no_grad():
        weights = fusion.compute_weights(query, context)
        _, seen = fusion.read(query, context)
        value = fusion.attention._split_heads(fusion.attention.key_value(seen).chunk(2, dim=-1)[1])
        expected = query + fusion.attention.out((weights @ value).transpose(1, 2).flatten(2))
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, 5))
    torch.testing.assert_close(fusion(query, context), expected)
    sharp = Fusion.cross_attention(hidden_size=24, num_heads=3, context_size=10, temperature=0.1)
    assert sharp.compute_weights(query, context).max() > weights.max(), "a low temperature is sharper"


def test_perceiver_is_flamingos() -> None:
    """One layer by its formula: latents look at the input and at themselves."""
    torch.manual_seed(0)
    perceiver = Fusion.perceiver(hidden_size=24, num_latents=5, num_layers=1, num_heads=3)
    x_BSC = torch.randn(2, 7, 24)
    layer, latents = perceiver.layers[0], perceiver.latent_embedding.expand(2, -1, -1)
    normed = layer.latent_norm(latents)
    q_BND = layer.attention.query(normed)
    k, v = layer.attention.key_value(torch.cat([layer.input_norm(x_BSC), normed], 1)).chunk(2, -1)
    heads = [part.unflatten(2, (3, 8)).transpose(1, 2) for part in (q_BND, k, v)]
    mixed = nn.functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
    latents = latents + layer.attention.out(mixed)
    latents = latents + layer.mlp(layer.mlp_norm(latents))
    torch.testing.assert_close(perceiver(x_BSC), perceiver.output_norm(latents), atol=1e-5, rtol=1e-5)
    with ops.plain_torch():
        torch.testing.assert_close(perceiver(x_BSC), perceiver.output_norm(latents), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("component", "module"),
    [
        (
            {"kind": "fusion.perceiver", "hidden_size": 24, "num_heads": 3, "num_latents": 5, "input_size": 10},
            Fusion.perceiver(24, 5, num_heads=3, input_size=10),
        ),
        (
            {"kind": "fusion.cross_attention", "hidden_size": 24, "num_heads": 3},
            Fusion.cross_attention(24, 3),
        ),
    ],
    ids=["perceiver", "cross_attention"],
)
def test_parameters_are_counted(component: dict[str, object], module: nn.Module) -> None:
    kinds = {"fusion.perceiver": PerceiverComponent, "fusion.cross_attention": CrossAttentionComponent}
    counted = kinds[str(component["kind"])].model_validate(component).count_parameters()
    assert counted == sum(parameter.numel() for parameter in module.parameters())


class TestDynamics:
    """The second-order update, and the bound below which it cannot grow."""

    def test_one_step_is_the_equation(self) -> None:
        dynamics = INLDynamics(6, 1.5, dt=0.5)
        nn.init.normal_(dynamics.mu)
        hidden, velocity = torch.randn(2, 3, 6), torch.randn(2, 3, 6)
        alpha, beta, gate = dynamics.compute_coefficients(hidden, velocity)
        assert 0 < alpha.min() < alpha.max() < 1
        assert 0 < beta.min() < beta.max() < 1.5
        assert 0 < gate.min() < gate.max() < 1
        after, moved = dynamics(hidden, velocity)
        torch.testing.assert_close(moved, alpha * velocity - beta * (hidden - dynamics.mu))
        torch.testing.assert_close(after, hidden + 0.5 * gate * moved)
        rested, _ = dynamics(hidden)
        still, _ = dynamics(hidden, torch.zeros_like(velocity))
        assert torch.equal(rested, still)

    def test_coefficients_below_the_bound_never_grow(self) -> None:
        """Eigenvalues of the held step over a grid of every alpha, beta and gate."""
        alpha, beta, gate = torch.meshgrid(
            *[torch.linspace(1e-3, 1 - 1e-3, 40, dtype=torch.float64)] * 3, indexing="ij"
        )
        for dt in (0.5, 1.0, 2.0):
            beta_max = BOUND / dt
            k, b = dt * gate, beta_max * beta
            step = torch.stack([1 - k * b, k * alpha, -b, alpha], -1).unflatten(-1, (2, 2))
            assert torch.linalg.eigvals(step).abs().max() < 1

    def test_the_bound_is_sharp(self) -> None:
        """Just beyond it some coefficients grow without end."""
        alpha, k, b = 1e-3, 1.0, (BOUND * (1 + 1e-3)) * 1.01
        step = torch.tensor([[1 - k * b, k * alpha], [-b, alpha]], dtype=torch.float64)
        assert torch.linalg.eigvals(step).abs().max() > 1

    def test_a_pull_beyond_the_bound_is_refused(self) -> None:
        INLDynamics(4, 2.0)
        with pytest.raises(ValueError, match=r"at most 2 for every step to be stable, got 2\.2"):
            INLDynamics(4, 2.2)
        with pytest.raises(ValueError, match="above 0"):
            INLDynamics(4, 0.0)

    def test_many_steps_settle(self) -> None:
        """Held coefficients: the state arrives at mu."""
        torch.manual_seed(0)
        dynamics = INLDynamics(6, 2.0)
        nn.init.zeros_(dynamics.controller.weight)
        hidden, velocity = torch.randn(4, 6) * 10, None
        for _ in range(200):
            hidden, velocity = dynamics(hidden, velocity)
        torch.testing.assert_close(hidden, dynamics.mu.expand(4, 6), atol=1e-4, rtol=0)
