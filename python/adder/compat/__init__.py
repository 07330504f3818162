"""The functions of mamba_ssm and causal_conv1d on Adder's operators, on CPU and GPU, and `install()`, after which
programs that import those packages run on them unchanged. Nothing here needs those packages."""

from .convolution import causal_conv1d_fn, causal_conv1d_update, causal_conv1d_varlen_states
from .installation import install, uninstall
from .modules import Mamba
from .norm import RMSNorm, layer_norm_fn, rms_norm_fn
from .scan import mamba_inner_fn, selective_scan_fn, selective_state_update

__all__ = ["Mamba", "RMSNorm", "causal_conv1d_fn", "causal_conv1d_update", "causal_conv1d_varlen_states", "install",
           "layer_norm_fn", "mamba_inner_fn", "rms_norm_fn", "selective_scan_fn", "selective_state_update", "uninstall"]
