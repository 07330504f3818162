"""Models as others publish them: folders of config.json and weights, transformers' (mamba, falcon_mamba) or the
original package's (mamba_ssm). The C++ library reads, checks and writes them (adder/models/published.h)."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import _library
from .block import MambaOptions

if TYPE_CHECKING:
    from .language_model import MambaLM, MambaLMOptions

HEAD, EMBEDDING = "lm_head.weight", "backbone.embedding.weight"


def _to_json(options: MambaLMOptions) -> str:
    values = asdict(options)
    values["mixer"]["dt_rank"] = str(options.mixer.dt_rank)
    return json.dumps(values)


def _from_json(text: str) -> MambaLMOptions:
    from .language_model import MambaLMOptions

    values = json.loads(text)
    mixer = values.pop("mixer")
    rank = mixer.pop("dt_rank")
    return MambaLMOptions(**values, mixer=MambaOptions(**mixer, dt_rank=int(rank) if rank.isdigit() else rank))


def load_published(path: str | os.PathLike[str], kind: type[MambaLM]) -> MambaLM:
    """See MambaLM.from_pretrained."""
    _library.load_models()
    options, names, values = torch.ops.adder.read_published(os.fspath(path))
    parameters: dict[str, Tensor] = dict(zip(names, values))
    with torch.device("meta"):
        model = kind(_from_json(options))
    tied = model.options.tie_embeddings
    if tied:
        parameters[HEAD] = parameters[EMBEDDING]
    model.load_state_dict(parameters, assign=True)
    if tied:
        model.lm_head.weight = model.backbone.embedding.weight
    return model.eval()


def save_published(model: MambaLM, path: str | os.PathLike[str], form: str, dtype: torch.dtype) -> None:
    """See MambaLM.save_pretrained."""
    _library.load_models()
    parameters = {name: parameter.detach().cpu() for name, parameter in model.named_parameters()}
    torch.ops.adder.write_published(os.fspath(path), _to_json(model.options), list(parameters),
                                    list(parameters.values()), form=form, dtype=dtype)
