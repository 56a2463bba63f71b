"""A text encoder alone: one graph, token ids in, an embedding and the features of every token out."""

from __future__ import annotations

from typing import ClassVar, final

from specs.components import ClipTextComponent, TextEncoderComponent
from specs.errors import SpecError
from specs.families.base import (
    BATCH,
    Components,
    Family,
    GraphSpec,
    Roles,
    make_float,
    make_ids,
    make_lengths,
    make_model_graph,
)
from specs.schema import Dim, Spec


@final
class TextEmbeddingFamily(Family):
    """`text.bert`, `text.t5`, or a text tower of CLIP or SigLIP.

    CLIP's and SigLIP's graphs take no lengths: the end of a text is one of its tokens, or padding is part of the text.
    """

    kind = "text-embedding"
    title = "a text encoder"
    roles: ClassVar = {"encoder": ("text.bert", "text.t5", "text.clip", "text.siglip")}
    dims: ClassVar = {"batch": BATCH, "tokens": Dim(min=1, opt=32, max=64)}
    objectives = ("contrastive", "masked")

    def check(self, spec: Spec, roles: Roles) -> None:
        config = spec.components[roles["encoder"]]
        longest = config.context_length if isinstance(config, ClipTextComponent) else None
        longest = config.longest if isinstance(config, TextEncoderComponent) else longest
        tokens = {**self.dims, **spec.dims}["tokens"]
        if longest is not None and tokens.max > longest:
            raise SpecError(
                f"dims.tokens.max {tokens.max} is more than the encoder has positions for",
                where="dims.tokens.max",
                allowed=f"at most context_length, {longest}",
                fix="lower dims.tokens.max",
            )

    def list_graphs(self, components: Components, roles: Roles) -> tuple[GraphSpec, ...]:
        name = roles["encoder"]
        config = components[name]
        assert isinstance(config, TextEncoderComponent | ClipTextComponent)
        ids = make_ids("token_ids", "batch", "tokens", vocab_size=config.vocab_size)
        tokens = make_float("token_features", "batch", "tokens", config.hidden_size)
        embedding = make_float("embedding", "batch", config.feature_size)
        if isinstance(config, ClipTextComponent):
            return (make_model_graph(name, (ids,), (embedding, tokens)),)
        outputs = (tokens,) if config.pooling == "none" else (embedding, tokens)
        return (make_model_graph(name, (ids, make_lengths()), outputs),)
