"""What diffusers calls the two attentions of a transformer's layer, as patterns for `rename_all`."""

from __future__ import annotations

#: ours -> theirs: attention1 is over the picture, attention2 over the text.
ATTENTION_WORDS = (
    (r"\.attention([12])\.query", r".attn\1.to_q"),
    (r"\.attention([12])\.key", r".attn\1.to_k"),
    (r"\.attention([12])\.value", r".attn\1.to_v"),
    (r"\.attention([12])\.out\.", r".attn\1.to_out.0."),
)
