"""The files that make a folder with T5's encoder one of `sentence-transformers`.

    model = SentenceTransformer(folder)
    model.encode(["parse a date string"])  # unit vectors [1, embed_dim]

The chain is encoder, state of the first token `<s>` (or the mean of all, as the network pools),
projection as a dense module, unit length: what CodeT5+ 110M embedding computes. Names and keys are
those that version 2 introduced and later ones still read.
"""

from typing import Any

from codet5p_jax.interop.tables import Table, dense
from codet5p_jax.models.configs import ModelConfig

ARCHITECTURE = "sentence_transformers"
MODULES = "modules.json"
DENSE_FOLDER = "2_Dense"
DENSE_TABLE: Table = dense("projection", "linear")

_MODULES = (("", "Transformer"), ("1_Pooling", "Pooling"), (DENSE_FOLDER, "Dense"))
_NORMALIZE = ("3_Normalize", "Normalize")
# T5's positions are relative, so nothing in a network bounds this.
_MAX_LENGTH = 512


def files(config: ModelConfig) -> dict[str, Any]:
    """Content of the JSON files by name, beside those of the encoder.

    Raises:
      ValueError: the network has no projection.
    """
    if config.embed_dim is None:
        raise ValueError(
            f"{ARCHITECTURE} needs the projection of the contrastive objective, which the network "
            "lacks (embed_dim is None); --arch=t5_encoder writes the encoder alone"
        )
    modules = [
        {
            "idx": i,
            "name": str(i),
            "path": path,
            "type": f"sentence_transformers.models.{name}",
        }
        for i, (path, name) in enumerate((*_MODULES, _NORMALIZE))
    ]
    width = config.encoder.d_model
    return {
        MODULES: modules,
        "config_sentence_transformers.json": {"similarity_fn_name": "cosine"},
        "sentence_bert_config.json": {"max_seq_length": _MAX_LENGTH, "do_lower_case": False},
        "1_Pooling/config.json": {
            "word_embedding_dimension": width,
            "pooling_mode_cls_token": config.pooling == "first",
            "pooling_mode_mean_tokens": config.pooling == "mean",
        },
        f"{DENSE_FOLDER}/config.json": {
            "in_features": width,
            "out_features": config.embed_dim,
            "bias": True,
            "activation_function": "torch.nn.modules.linear.Identity",
        },
        "3_Normalize/config.json": {},
    }
