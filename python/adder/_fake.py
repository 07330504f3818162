"""For torch.compile and torch.export: the device of results where cu_seqlens lies on the CPU beside tensors of a GPU, as
it always does. PyTorch's own rule refuses tensors of two devices, and has no public way to say otherwise."""

from __future__ import annotations

from typing import Any

import torch
from torch._ops import OpOverload
from torch._subclasses.fake_impls import register_op_impl
from torch._subclasses.fake_tensor import FakeTensorMode, in_kernel_invocation_manager
from torch.utils import _pytree


def _packed_operators() -> list[OpOverload]:
    names = [name.split("::")[1] for name in torch._C._dispatch_get_all_op_names() if name.startswith("adder::")]
    operators = [getattr(torch.ops.adder, name).default for name in names]
    return [op for op in operators if any(argument.name == "cu_seqlens" for argument in op._schema.arguments)]


@register_op_impl(_packed_operators())
def on_the_first_tensors_device(mode: FakeTensorMode, op: OpOverload, *args: Any, **kwargs: Any) -> Any:
    named = {argument.name: value for argument, value in zip(op._schema.arguments, args)} | kwargs
    device = next(value.device for value in named.values() if isinstance(value, torch.Tensor))
    offsets = named.get("cu_seqlens")
    if offsets is None or offsets.device == device:
        return NotImplemented
    with in_kernel_invocation_manager(mode):
        results = op(*args, **kwargs)
    return _pytree.tree_map_only(
        torch.Tensor, lambda result: mode.fake_tensor_converter.from_meta_and_device(mode, result, device), results)
