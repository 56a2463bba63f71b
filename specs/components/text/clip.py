"""The text towers of CLIP and SigLIP."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from specs.components.base import Activation, Activations, Size, TransformerSizes


class ClipTextComponent(TransformerSizes):
    """A text tower with learned positions; its features are those of one token.

    text.clip      causal, quick GELU, eps 1e-5; the end-of-text token (Radford et al. 2021)
    text.siglip    every token sees every other, tanh GELU, eps 1e-6; the last token, which may be padding, through a
                   Linear with a bias (Zhai et al. 2023)
    """

    STRUCTURE: ClassVar[frozenset[str]] = frozenset({"kind", "activation", "end_token"})

    kind: Literal["text.clip", "text.siglip"]
    vocab_size: Size
    context_length: Size = Field(description="tokens a text is padded to")
    activation: Activation = Field(default="quick_gelu", description="gelu_tanh for text.siglip where it is not given")
    end_token: Annotated[int, Field(ge=0)] | None = Field(
        default=None, description="end of text: the first one counts; absent: the largest id of each text (text.clip)"
    )
    projection_size: Size | None = Field(
        default=None, description="width of a Linear at the very end; for text.siglip hidden_size when absent"
    )

    @model_validator(mode="before")
    @classmethod
    def _set_defaults(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        own = {"activation": "gelu_tanh"} if data.get("kind") == "text.siglip" else {"layer_norm_eps": 1e-5}
        return {**own, **data}

    @model_validator(mode="after")
    def _check_end(self) -> ClipTextComponent:
        if self.kind == "text.siglip" and self.end_token is not None:
            raise ValueError("end_token belongs to text.clip: text.siglip takes the last token")
        if self.end_token is not None and self.end_token >= self.vocab_size:
            raise ValueError(f"end_token {self.end_token} is outside the vocabulary of {self.vocab_size}")
        return self

    @property
    def head_size(self) -> int | None:
        """Width of the Linear at the end; None where there is none."""
        return self.projection_size or (self.hidden_size if self.kind == "text.siglip" else None)

    @property
    def feature_size(self) -> int:
        """Width of the embedding."""
        return self.head_size or self.hidden_size

    def count_parameters(self) -> int:
        c, head = self.hidden_size, self.head_size or 0
        projection = head * (c + (1 if self.kind == "text.siglip" else 0))
        tables = (self.vocab_size + self.context_length + 2) * c
        return tables + self.num_layers * self.count_layer_parameters() + projection

    def count_macs(self, tokens: int) -> int:
        return self.num_layers * self.count_layer_macs(self.context_length) + self.hidden_size * (self.head_size or 0)

    def count_table(self) -> int:
        return self.vocab_size * self.hidden_size

    def count_activations(self, sizes: Mapping[str, int]) -> Activations:
        batch = sizes["batch"]
        return Activations(
            layer=self.count_layer_activations(batch, self.context_length), interface=batch * self.context_length
        )
