"""What PyTorch computes from an exported folder, to compare with. Imports torch when called."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np

from codet5p_jax.interop import hf_config
from codet5p_jax.interop.causal_families import FAMILIES


def available() -> bool:
    """Whether torch and transformers are installed."""
    return all(importlib.util.find_spec(name) for name in ("torch", "transformers"))


def outputs(
    folder: Path, arch: str, tokens: np.ndarray, segments: np.ndarray, targets: np.ndarray
) -> dict[str, np.ndarray]:
    """Outputs by name of a model read by `transformers` at fp32, run by code of this project.

    Args:
      folder: a Hugging Face folder.
      arch: one of `hf_config.ARCHITECTURES`.
      tokens, segments: int32 [B, S], what the encoder reads; segment 0 is padding. A decoder alone
        reads none of it.
      targets: int32 [B, T], what the decoder reads, without padding.
    """
    import torch
    import transformers

    name = hf_config.ARCHITECTURES[arch][1]
    if hf_config.load_config(folder).get("model_type") == "mt5":
        name = f"M{name}"
    # Never the file in the folder, which may be anyone's.
    own = hf_config.MODELING.get(arch)
    library = transformers if own is None else _modeling_file(own.file)
    model = getattr(library, name).from_pretrained(folder, dtype=torch.float32).eval()
    ids, mask, decoder_ids = (torch.tensor(x.astype(np.int64)) for x in (tokens, segments, targets))
    with torch.no_grad():
        if arch in FAMILIES:
            return {"logits": model(decoder_ids).logits.numpy()}
        out = {"encoder states": model.encoder(input_ids=ids, attention_mask=mask)[0]}
        if arch == "codet5p_embedding":
            out["embeddings"] = model(ids, mask)
        if arch == "codet5p_bimodal":
            out["embeddings"] = model.embed(ids, mask)
            out["matching logits"] = model.match(ids, decoder_ids, mask)
        if arch not in hf_config.ENCODERS:
            out["logits"] = model(
                input_ids=ids, attention_mask=mask, decoder_input_ids=decoder_ids
            ).logits
    return {name: value.numpy() for name, value in out.items()}


def _modeling_file(name: str) -> Any:
    """A modelling file of ours, as a module outside the package, as it is for its users."""
    path = Path(__file__).with_name(name)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module
