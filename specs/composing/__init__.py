"""[torch] Encoders and fusions as torch modules with seeded weights, for those who compose in Python; and a user's own.

    vision.py   Vision.clip / siglip / vit, VisionTransformer(VisionConfig), PatchEmbedding     pixels -> token features
    audio.py    Audio.whisper / mel_spectrogram / wav2vec, AudioConvStack(AudioConfig)          sound -> token features
    fusion.py   Fusion.cross_attention / gated / perceiver / concat                             features -> features
    extensions.py   encoders and strategies that a user's file registers, so that a spec can name them

The modules are those of `specs.models`, which a spec's components name too: `vision.clip`, `audio.whisper`,
`fusion.perceiver` and so on. An option that a component has is a keyword here; an unknown one is a SpecError.
`metagen_deploy.api` is where a user finds them all.

For inference: the custom ops have no gradients of their own; inside `specs.ops.plain_torch()` torch's operators have.
"""
