"""The network: configurations, parameters, and `CodeT5p`."""

from codet5p_jax.models.codet5p import CodeT5p
from codet5p_jax.models.configs import (
    Lora,
    ModelConfig,
    StackConfig,
    codegen_stack,
    codet5p_codegen,
    t5,
)
from codet5p_jax.models.cross_entropy import TokenLosses
from codet5p_jax.models.params import ParamSpec, abstract_params, init_params, logical_axes

__all__ = [
    "CodeT5p",
    "Lora",
    "ModelConfig",
    "ParamSpec",
    "StackConfig",
    "TokenLosses",
    "abstract_params",
    "codegen_stack",
    "codet5p_codegen",
    "init_params",
    "logical_axes",
    "t5",
]
