"""Small text decoders of transformers, one for each option of their configs, and how they are compared with ours."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import torch
import transformers as hf
from torch import Tensor, nn

from exporters.lower import lower
from exporters.trace import choose_sizes, trace
from specs.handlers import GraphModule, get_handler
from specs.schema import Spec
from tests.checkpoints.compare import compare, enliven, record_tokens

SIZES = {
    "vocab_size": 211,
    "hidden_size": 36,
    "intermediate_size": 52,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 96,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LENGTHS = (23, 9)
STEPS = 6


@dataclasses.dataclass(frozen=True)
class Case:
    """One checkpoint: the library's class, and what its config says beside SIZES."""

    model: str
    options: dict[str, Any]
    lengths: tuple[int, ...] = LENGTHS


def rope(kind: str, **options: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 500.0, **options}}


LLAMA3 = rope("llama3", factor=8.0, low_freq_factor=0.5, high_freq_factor=4.0, original_max_position_embeddings=48)
YARN = rope("yarn", factor=4.0, original_max_position_embeddings=24)
CASES = {
    "Llama": Case("Llama", {}),
    "Llama, 1 kv head, tied": Case("Llama", {"num_key_value_heads": 1, "tie_word_embeddings": True}),
    "Llama, heads of 10, all heads": Case("Llama", {"head_dim": 10, "num_key_value_heads": 6}),
    "Llama, biases": Case("Llama", {"attention_bias": True, "mlp_bias": True}),
    "Llama, relu": Case("Llama", {"hidden_act": "relu", "num_key_value_heads": None}),
    "Llama, exact gelu, eps": Case("Llama", {"hidden_act": "gelu", "rms_norm_eps": 1e-2}),
    "Llama, linear": Case("Llama", rope("linear", factor=3.5)),
    "Llama, dynamic": Case("Llama", rope("dynamic", factor=2.0)),
    "Llama, llama3": Case("Llama", LLAMA3),
    "Llama, yarn": Case("Llama", YARN),
    "Llama, yarn, all options": Case(
        "Llama",
        rope(
            "yarn",
            factor=4.0,
            original_max_position_embeddings=24,
            beta_fast=8.0,
            beta_slow=2.0,
            truncate=False,
            mscale=0.7,
            mscale_all_dim=0.4,
        ),
    ),
    "Llama, 1,900 tokens": Case("Llama", {**LLAMA3, "max_position_embeddings": 4096}, (1900, 1)),
    "Mistral": Case("Mistral", {"sliding_window": 7}),
    "Mistral, no window": Case("Mistral", {"sliding_window": None, "head_dim": 16}),
    "Mistral, window of 1": Case("Mistral", {"sliding_window": 1}),
    "Qwen 2": Case("Qwen2", {"tie_word_embeddings": True}),
    "Qwen 2, windows": Case("Qwen2", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
    "Qwen 3": Case("Qwen3", {"head_dim": 14, **YARN}),
    "Qwen 3, biases, windows": Case(
        "Qwen3",
        {
            "head_dim": 8,
            "attention_bias": True,
            "use_sliding_window": True,
            "sliding_window": 6,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "SmolLM 3": Case("SmolLM3", {"no_rope_layer_interval": 2}),
    "SmolLM 3, windows": Case(
        "SmolLM3", {"no_rope_layers": [1, 0, 1], "use_sliding_window": True, "sliding_window": 5}
    ),
    "Phi 3": Case("Phi3", {"sliding_window": 11}),
    "Phi 3, longrope": Case(
        "Phi3",
        {
            "hidden_size": 48,
            "original_max_position_embeddings": 64,
            **rope(
                "longrope",
                short_factor=[1.0, 1.1, 1.4],
                long_factor=[1.0, 3.0, 9.0],
                partial_rotary_factor=0.75,
            ),
        },
    ),
    "Gemma": Case("Gemma", {"head_dim": 12}),
    "Gemma 2": Case("Gemma2", {"head_dim": 12, "sliding_window": 6, "query_pre_attn_scalar": 20}),
    "Gemma 2, untied, no caps": Case(
        "Gemma2",
        {
            "head_dim": 12,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "tie_word_embeddings": False,
        },
    ),
    "Gemma 2, tight caps": Case(
        "Gemma2", {"head_dim": 12, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0, "sliding_window": 64}
    ),
    "Gemma 3": Case("Gemma3Text", {"head_dim": 12, "sliding_window": 6, "num_hidden_layers": 7}),
    "Gemma 3, scaled": Case(
        "Gemma3Text",
        {
            "head_dim": 12,
            "sliding_window": 6,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 300.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
            },
        },
    ),
    "GPT-2": Case("GPT2", {}),
    "GPT-2, all options": Case(
        "GPT2",
        {
            "n_inner": 40,
            "activation_function": "gelu",
            "scale_attn_by_inverse_layer_idx": True,
            "layer_norm_epsilon": 1e-3,
            "tie_word_embeddings": False,
        },
    ),
    "GPT-NeoX": Case("GPTNeoX", {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.67}}),
    "GPT-NeoX, one after the other": Case(
        "GPTNeoX",
        {
            "use_parallel_residual": False,
            "attention_bias": False,
            "hidden_act": "gelu_fast",
            "tie_word_embeddings": True,
            **rope("linear", factor=2.0, partial_rotary_factor=1.0),
        },
    ),
    "GPT-2, unscaled": Case("GPT2", {"scale_attn_weights": False, "reorder_and_upcast_attn": True}),
}


def make_model(case: Case, *, scale: float = 1.5) -> nn.Module:
    """The library's model, alive: scores are large enough for positions to matter."""
    config = getattr(hf, f"{case.model}Config")(**{**SIZES, **case.options})
    if case.model == "GPT2":
        names = {"n_embd": "hidden_size", "n_layer": "num_hidden_layers", "n_head": "num_attention_heads"}
        sizes = {key: SIZES[name] for key, name in names.items()}
        config = hf.GPT2Config(
            vocab_size=211, n_positions=96, bos_token_id=1, eos_token_id=2, **{**sizes, **case.options}
        )
    name = {"GPT2": "GPT2LMHeadModel"}.get(case.model, f"{case.model.removesuffix('Text')}ForCausalLM")
    model = getattr(hf, name)(config)
    return enliven(model, scale=scale)


def make_prompts(lengths: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(3, SIZES["vocab_size"], (length,), generator=generator) for length in lengths]


def run_library(model: Any, prompts: list[Tensor], steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """Logits in fp32 and fp64 after each prompt and each further token [steps, B, V], and the greedy tokens."""
    wide = copy.deepcopy(model).double()
    fp32, fp64, tokens = [], [], []
    with torch.no_grad():
        rows = list(prompts)
        for _ in range(steps):
            fp32.append(torch.stack([model(row[None]).logits[0, -1] for row in rows]))
            fp64.append(torch.stack([wide(row[None]).logits[0, -1] for row in rows]))
            tokens.append(fp64[-1].argmax(-1))
            rows = [torch.cat([row, token[None]]) for row, token in zip(rows, tokens[-1], strict=True)]
    return torch.stack(fp32), torch.stack(fp64), torch.stack(tokens)


def run_ours(prompts: list[Tensor], steps: int, prefill: Any, decode: Any) -> tuple[np.ndarray, np.ndarray]:
    """The same through a padded prompt and a cache, whose free slots hold what another text left there."""
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    ids = nn.utils.rnn.pad_sequence(prompts, batch_first=True, padding_value=5)
    logits, *cache = prefill(ids, lengths)
    capacity = int(lengths.max()) + steps
    cache = [nn.functional.pad(part, (0, 0, 0, capacity - part.shape[2]), value=3.0) for part in cache]
    found, tokens = [logits], [logits.argmax(-1)]
    for step in range(steps - 1):
        logits, *cache = decode(tokens[-1][:, None], lengths + step, *cache)
        found.append(logits)
        tokens.append(logits.argmax(-1))
    return torch.stack(found).numpy(), torch.stack(tokens).numpy()


def open_onnx(spec: Spec, graph: GraphModule, folder: Path) -> Callable[..., list[Tensor]]:
    """The portable graph in ONNX Runtime, as a function of tensors."""
    inputs = get_handler(spec).make_inputs(spec, graph, sizes=choose_sizes(spec.dims, near=3), seed=0)
    path = folder / f"{graph.file_stem}.onnx"
    ir.save(lower(trace(graph, spec.dims, inputs), graph), path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [tensor.name for tensor in session.get_inputs()]
    return lambda *given: [
        torch.from_numpy(x) for x in session.run(None, {name: x.numpy() for name, x in zip(names, given, strict=True)})
    ]


def check(name: str, stage: str, model: Any, graphs: Any, lengths: tuple[int, ...]) -> None:
    """Logits of prompt and cache against the library's, and the greedy tokens."""
    prompts, steps = make_prompts(lengths), STEPS if max(lengths) < 100 else 2
    fp32, fp64, tokens = run_library(model, prompts, steps)
    with torch.no_grad():
        ours, chosen = run_ours(prompts, steps, *graphs)
    family, _, rest = name.partition(", ")
    compare(family, rest or "plain", stage, "logits", ours, fp32, fp64)
    record_tokens(family, rest or "plain", chosen, tokens.numpy())
