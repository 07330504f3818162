"""The language model of Mamba blocks, as adder/models/mamba_lm.cpp has it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._pytree import _register_namedtuple

from . import ops
from .block import Mamba, MambaOptions, MambaState, linear, uniform_fan_in, uninitialised
from .generation import GeneratedRow, generate


@dataclass(frozen=True)
class MambaLMOptions:
    """The choices of a language model (arXiv 2312.00752, section 4.2 and appendix E.2.1)."""

    d_model: int = 64
    """width of the residual stream"""
    n_layer: int = 2
    """number of blocks"""
    vocab_size: int = 256
    """number of tokens"""
    pad_vocab_size_multiple: int = 8
    """the embedding's rows are padded to a multiple of this"""
    tie_embeddings: bool = True
    """the head is the embedding"""
    norm: str = "rms"
    """"rms" or "layer\""""
    norm_eps: float = 1e-5
    """its epsilon"""
    residual_dropout: float = 0.0
    """share of each block's output that is dropped in training"""
    embedding_dropout: float = 0.0
    """share of the embedding's output that is dropped in training"""
    mixer: MambaOptions = field(default_factory=MambaOptions)
    """the selective SSM block"""

    def __post_init__(self) -> None:
        for name in ("d_model", "n_layer", "vocab_size", "pad_vocab_size_multiple"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"MambaLM: {name} must be a whole number >= 1, got {value!r}")
        if self.norm not in ("rms", "layer"):
            raise ValueError(f'MambaLM: norm must be "rms" or "layer", got {self.norm!r}')

    @property
    def padded_vocab(self) -> int:
        """Rows of the embedding: vocab_size up to the next multiple of pad_vocab_size_multiple."""
        return -(-self.vocab_size // self.pad_vocab_size_multiple) * self.pad_vocab_size_multiple


class LMState(NamedTuple):
    """The recurrent state of all layers for S sequences."""

    layers: tuple[MambaState, ...]
    """first layer first"""

    def detach(self) -> LMState:
        """The same values, through which no gradient goes."""
        return LMState(tuple(layer.detach() for layer in self.layers))

    def clone(self) -> LMState:
        """A copy."""
        return LMState(tuple(layer.clone() for layer in self.layers))

    def select(self, index: Tensor) -> LMState:
        """The sequences `index` (int64), as when some of a batch end or are copied."""
        return LMState(tuple(layer.select(index) for layer in self.layers))


class Loss(NamedTuple):
    """Cross entropies of a batch, float32 (float64)."""

    mean: Tensor
    """() over the targets that count, in nats"""
    each: Tensor
    """(B L), without gradient"""
    predictions: Tensor
    """(B L) int64, the most probable tokens"""
    state: LMState
    """after the last step"""


for _kind in (LMState, Loss):
    _register_namedtuple(_kind, serialized_type_name=f"adder.{_kind.__name__}")
    torch.serialization.add_safe_globals([_kind])


class Norm(nn.Module):
    """RMSNorm or LayerNorm of x + residual."""

    def __init__(self, width: int, kind: str, eps: float) -> None:
        super().__init__()
        self.kind, self.eps = kind, eps
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if kind == "layer" else None

    def forward(self, x: Tensor, residual: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return ops.add_norm(x, residual, self.weight, self.bias, kind=self.kind, eps=self.eps)


class Block(nn.Module):
    """Add, norm, mixer; the residual stream stays float32 (float64)."""

    def __init__(self, options: MambaLMOptions) -> None:
        super().__init__()
        self.norm = Norm(options.d_model, options.norm, options.norm_eps)
        self.mixer = Mamba(options.d_model, options.mixer, n_layer=options.n_layer)
        self.dropout = options.residual_dropout

    def forward(self, x: Tensor, residual: Tensor | None, state: MambaState | None,
                **where: Any) -> tuple[Tensor, Tensor, MambaState]:
        normed, residual = self.norm(x, residual)
        y, after = self.mixer(normed, state, **where)
        return functional.dropout(y, self.dropout, self.training), residual, after


class _Backbone(nn.Module):
    embedding: nn.Embedding

    def __init__(self, options: MambaLMOptions) -> None:
        super().__init__()
        self.embedding = uninitialised(nn.Embedding, options.padded_vocab, options.d_model)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.layers = nn.ModuleList(Block(options) for _ in range(options.n_layer))
        self.norm_f = Norm(options.d_model, options.norm, options.norm_eps)


class MambaLM(nn.Module):
    """A language model: embedding, n_layer pre-norm Mamba blocks, final norm, head (tied to the embedding or not).

    `MambaLM(MambaLMOptions(...))`, or the options by name: `MambaLM(d_model=768, n_layer=24, vocab_size=50277)`.
    state_dict() has the names of the original package's checkpoints, a tied head's too (arXiv 2312.00752, section 3.4).

    Raises:
        ValueError: an option outside its range or choices.
    """

    backbone: _Backbone
    lm_head: nn.Linear

    def __init__(self, options: MambaLMOptions | None = None, **choices: Any) -> None:
        super().__init__()
        self.options = replace(options or MambaLMOptions(), **choices)
        o = self.options
        self.backbone = _Backbone(o)
        self.lm_head = uninitialised(nn.Linear, o.d_model, o.padded_vocab, bias=False)
        if o.tie_embeddings:
            self.lm_head.weight = self.backbone.embedding.weight
        else:
            uniform_fan_in(self.lm_head.weight, o.d_model)

    def hidden(self, ids: Tensor, state: LMState | None = None, *, mask: Tensor | None = None,
               cu_seqlens: Tensor | None = None) -> tuple[Tensor, LMState]:
        """ids (B, L) int64 in [0, vocab_size) to the final norm's output (B, L, d_model) and the state after; arguments
        and errors as forward."""
        self._check(ids, state)
        o = self.options
        x = functional.dropout(self.backbone.embedding(ids), o.embedding_dropout, self.training)
        residual, after = None, []
        for i, block in enumerate(self.backbone.layers):
            x, residual, layer = block(x, residual, state.layers[i] if state else None, mask=mask,
                                       cu_seqlens=cu_seqlens)
            after.append(layer)
        return self.backbone.norm_f(x, residual)[0], LMState(tuple(after))

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., d_model) to (..., vocab_size)."""
        return linear(self.lm_head, hidden)[..., :self.options.vocab_size]

    def forward(self, ids: Tensor, state: LMState | None = None, *, mask: Tensor | None = None,
                cu_seqlens: Tensor | None = None) -> tuple[Tensor, LMState]:
        """The logits of the next token at each step, and the state after, which continues the text in the next call.

        Args:
            ids: (B, L) int64 in [0, vocab_size), any L from 0.
            state: what an earlier call gave back; None: the beginning.
            mask: (B, L) bool; a step that is False is as if it were not there.
            cu_seqlens: (S + 1) int64 on the CPU, B = 1: packed sequences, the state is of S then.

        Returns:
            logits (B, L, vocab_size) and the state.

        Raises:
            ValueError: ids of another type or shape or, on the CPU, outside the vocabulary; a state of another number
                of layers; what the operators refuse.
        """
        h, after = self.hidden(ids, state, mask=mask, cu_seqlens=cu_seqlens)
        return self.logits(h), after

    def loss(self, ids: Tensor, targets: Tensor, state: LMState | None = None, *, mask: Tensor | None = None,
             cu_seqlens: Tensor | None = None) -> Loss:
        """Cross entropy of targets (B, L) int64 in [0, vocab_size), in nats; -100: ignored. The logits of the whole
        batch are never in memory. The other arguments and errors as forward."""
        if targets.shape != ids.shape:
            raise ValueError(
                f"MambaLM: targets must have the shape of ids, {tuple(ids.shape)}, got {tuple(targets.shape)}")
        h, after = self.hidden(ids, state, mask=mask, cu_seqlens=cu_seqlens)
        mean, each, predictions = ops.linear_cross_entropy(h.flatten(0, 1), self.lm_head.weight, targets.flatten(),
                                                           vocab=self.options.vocab_size)
        return Loss(mean, each, predictions, after)

    def generate(self, prompts: Sequence[Sequence[int] | Tensor] | Tensor, **how: Any) -> list[GeneratedRow]:
        """Continues each prompt; adder.generation.generate has the arguments."""
        return generate(self, prompts, **how)

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike) -> MambaLM:
        """The model of a folder of config.json and weights: model.safetensors, pytorch_model.bin, or an index of the
        parts of either, in the form of transformers (mamba, falcon_mamba) or of the original package (mamba_ssm).

        Returns:
            the model on the CPU, in evaluation mode, parameters float32.

        Raises:
            ValueError: what cannot be read or is no such model; missing, surplus and misshapen tensors are one error
                that names each.
            ImportError: the library of models is not there, or one of the system that it needs.
        """
        from .published import load_published

        return load_published(path, cls)

    def save_pretrained(self, path: str | os.PathLike, *, form: str = "transformers",
                        dtype: torch.dtype = torch.float32) -> None:
        """Writes such a folder, whole or not at all.

        Args:
            path: a folder that is not there yet, or is empty.
            form: "transformers": config.json and safetensors, in parts of 5 GB; or "original": pytorch_model.bin.
            dtype: of the large matrices, float32, bfloat16 or float16; the rest is float32.

        Raises:
            ValueError: a folder that is there, a form or dtype that is not, an option that the form has no word for, or
                parameters that are not the model's own, as where modules were wrapped.
            ImportError: as from_pretrained.
        """
        from .published import save_published

        save_published(self, path, form, dtype)

    def _check(self, ids: Tensor, state: LMState | None) -> None:
        o = self.options
        if ids.dim() != 2 or ids.dtype != torch.int64:
            raise ValueError(f"MambaLM: ids must be int64 of shape (B, L), got {ids.dtype} of shape {tuple(ids.shape)}")
        if state is not None and len(state.layers) != o.n_layer:
            raise ValueError(f"MambaLM: a state of {len(state.layers)} layers does not fit a model of {o.n_layer}")
        # A look at a GPU's values would wait for it, one at a graph's ends the graph, vmap has none to look at.
        unseen = torch.compiler.is_compiling() or torch._C._functorch.is_functorch_wrapped_tensor(ids)
        if ids.device.type == "cpu" and ids.numel() and not unseen:
            low, high = (int(end) for end in ids.aminmax())
            if low < 0 or high >= o.vocab_size:
                raise ValueError(f"MambaLM: ids must lie in [0, vocab_size) = [0, {o.vocab_size}), got "
                                 f"{low if low < 0 else high}")
