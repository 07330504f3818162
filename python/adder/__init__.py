"""Selective state-space models (arXiv 2312.00752) on PyTorch, CPU and GPU.

`adder.ops` has the operators, `adder.Mamba` and `adder.MambaLM` the modules, `adder.compat` the functions of the
packages mamba_ssm and causal_conv1d.
"""

from . import _library

library = _library.load()
"""The path of the operator library, or None where another part of the program had loaded it."""

from . import _fake, ops  # noqa: E402, F401
from .block import Mamba, MambaOptions, MambaState  # noqa: E402
from .generation import GeneratedRow  # noqa: E402
from .language_model import LMState, Loss, MambaLM, MambaLMOptions  # noqa: E402

__version__ = "0.1.0"
__all__ = ["GeneratedRow", "LMState", "Loss", "Mamba", "MambaLM", "MambaLMOptions", "MambaOptions", "MambaState",
           "__version__", "library", "ops"]
