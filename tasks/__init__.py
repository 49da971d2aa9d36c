"""SeqIO tasks and mixtures of CodeT5+. Importing this package registers all of them and reads no
data; where data and tokenizer are is said in `settings`."""

from codet5p_jax.tasks import (
    codesearchnet,
    finetuning,
    github_code,
    instruct,
    mixtures,
    stdlib,
    translation,
)

__all__ = [
    "codesearchnet",
    "finetuning",
    "github_code",
    "instruct",
    "mixtures",
    "stdlib",
    "translation",
]
