"""mamba_ssm.Mamba on adder.Mamba."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..block import Mamba as Block
from ..block import MambaState


class Mamba(Block):
    """mamba_ssm.Mamba: its arguments, parameters and forward(hidden_states, inference_params=None).

    The state of decoding lies in inference_params.key_value_memory_dict[layer_idx] as there, and any number of tokens
    may continue from it. use_fast_path is accepted; there is one path.
    """

    def __init__(self, d_model: int, d_state: int = 16, d_conv: int = 4, expand: int = 2, dt_rank: int | str = "auto",
                 dt_min: float = 0.001, dt_max: float = 0.1, dt_init: str = "random", dt_scale: float = 1.0,
                 dt_init_floor: float = 1e-4, conv_bias: bool = True, bias: bool = False, use_fast_path: bool = True,
                 layer_idx: int | None = None, device: Any = None, dtype: torch.dtype | None = None) -> None:
        super().__init__(d_model, d_state=d_state, d_conv=d_conv, expand=expand, dt_rank=dt_rank, dt_min=dt_min,
                         dt_max=dt_max, dt_init=dt_init, dt_scale=dt_scale, dt_init_floor=dt_init_floor,
                         conv_bias=conv_bias, bias=bias)
        self.layer_idx = layer_idx
        self.to(device=device, dtype=dtype)

    def forward(  # type: ignore[override]  # of mamba_ssm's kind
            self, hidden_states: Tensor, inference_params: Any = None) -> Tensor:
        """(batch, seqlen, d_model) to the same. With inference_params the state is read (seqlen_offset > 0) and
        kept."""
        if inference_params is None:
            return super().forward(hidden_states)[0]
        states, before = inference_params.key_value_memory_dict, None
        if self.layer_idx is None:
            raise ValueError("Mamba: layer_idx must be given to decode with inference_params")
        if inference_params.seqlen_offset > 0:
            before = MambaState(*states[self.layer_idx])
        y, states[self.layer_idx] = super().forward(hidden_states, before)
        return y
