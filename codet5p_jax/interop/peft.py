"""Low-rank additions as an adapter in the layout of PEFT: `adapter_config.json` and
`adapter_model.safetensors`, to go with the weights that the additions were trained on.

Of a linear module with weight W [out, in], PEFT computes W + lora_alpha / r · B A with A [r, in]
and B [out, r]. Where a module of theirs holds several projections of ours (queries, keys and
values), their A are stacked, and B has the B of each in its rows and columns: the rank is the sum
of theirs, and so is alpha, so that the product is the same.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from codet5p_jax.files import new_folder
from codet5p_jax.interop import hf_config
from codet5p_jax.interop.causal_families import FAMILIES
from codet5p_jax.interop.changed_weights import LORA_ENDS, MergedLora
from codet5p_jax.interop.safetensors_files import SafetensorsWriter
from codet5p_jax.interop.tables import LAYER, Entry
from codet5p_jax.interop.weights import FLOATS, Weights, cast, table_of
from codet5p_jax.models.configs import Lora

CONFIG = "adapter_config.json"
TENSORS = "adapter_model.safetensors"
_PREFIX = "base_model.model"


def export_adapter(
    folder: Path,
    weights: Weights,
    *,
    arch: str | None = None,
    base: str | None = None,
    dtype: str | None = None,
) -> list[str]:
    """Writes a folder that `peft.PeftModel.from_pretrained(base_model, folder)` reads.

    Args:
      folder: made; appears when it is complete.
      weights: a network with low-rank additions.
      arch: one of `hf_config.ARCHITECTURES`, that of the base model; None: the one with every part
        of the network.
      base: name or path of the base model, as PEFT may load it; None: it is not said.
      dtype: name of the dtype of all tensors; None: each keeps its own.

    Returns:
      The modules that are adapted.

    Raises:
      ValueError: there are no additions, or the network is no such architecture.
      FileExistsError: `folder` exists.
    """
    lora = _additions(weights)
    plain = MergedLora(weights).config
    arch = arch or hf_config.default_architecture(plain)
    if arch in hf_config.COMPOSED:
        raise ValueError(
            f"the network is no base model that there is without it: {arch} has cross-attention of "
            "its own; export it merged, without --adapter"
        )
    hf_config.to_hugging_face(plain, arch, "float32", None)  # or it raises
    table = table_of(hf_config.exported(plain, arch), arch)
    parts: dict[str, list[tuple[Entry, int]]] = {}  # module -> (entry, layer)
    for entry in table:
        if entry.ours + LORA_ENDS[0] in weights.shapes:
            for layer, name in enumerate(entry.names(weights.shapes[entry.ours])):
                parts.setdefault(name.removesuffix(".weight"), []).append((entry, layer))
    tensors: dict[str, np.ndarray] = {}
    for module, own in parts.items():
        for letter, array in zip("AB", _matrices(own, weights, lora.rank), strict=True):
            name = f"{_PREFIX}.{module}.lora_{letter}.weight"
            kind = FLOATS[dtype] if dtype else array.dtype
            tensors[name] = cast(array, kind, name, folder)
    modules = {name.removesuffix(".weight") for e in table for name in e.names(_shape(weights, e))}
    config = {
        "peft_type": "LORA",
        "task_type": _task(arch),
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": _number(lora.alpha),
        "target_modules": _targets(parts, modules),
        **_patterns(parts, lora),
        "fan_in_fan_out": arch in FAMILIES and FAMILIES[arch].conv1d,
        "bias": "none",
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
        "inference_mode": True,
        "auto_mapping": None,
        "revision": None,
    }
    size = sum(array.nbytes for array in tensors.values())
    with new_folder(folder, size) as partial:
        text = json.dumps(config, indent=2, sort_keys=True) + "\n"
        (partial / CONFIG).write_text(text, encoding="utf-8")
        kinds = {name: (array.dtype, array.shape) for name, array in tensors.items()}
        with SafetensorsWriter(partial, kinds, size + 1, single=TENSORS) as writer:
            for name, array in tensors.items():
                writer.write(name, array)
    return sorted(parts)


def _additions(weights: Weights) -> Lora:
    towers = weights.config.encoder, weights.config.decoder
    loras = [tower.lora for tower in towers if tower.lora is not None]
    kinds = {(lora.rank, lora.alpha) for lora in loras}
    if len(kinds) != 1:
        raise ValueError(
            "an adapter has the low-rank additions of a network, and all of one kind; found "
            f"{len(kinds)} kinds: train with Trainable.lora, or export without --adapter"
        )
    return loras[0]


def _shape(weights: Weights, entry: Entry) -> tuple[int, ...]:
    return weights.shapes[entry.ours]


def _matrices(
    parts: list[tuple[Entry, int]], weights: Weights, rank: int
) -> tuple[np.ndarray, np.ndarray]:
    """A [r, in] and B [out, r] of one module, r being `rank` times the number of parts."""
    lows, highs = [], []
    for entry, layer in parts:
        a, b = (np.asarray(weights.read(entry.ours + end)[layer]) for end in LORA_ENDS)
        lows.append(a.reshape(-1, rank).T)
        if entry.piece is None:
            highs.append(b.reshape(rank, -1).T)
            continue
        # A kernel with `rank` inputs, put where the kernel is.
        theirs = np.zeros(entry.their_shape((1, *b.shape)), b.dtype)
        entry.put(b, theirs)
        highs.append(theirs.T if entry.axes.startswith("D ") else theirs)
    return np.concatenate(lows), np.concatenate(highs, axis=1)


def _targets(parts: dict[str, list[tuple[Entry, int]]], modules: set[str]) -> list[str]:
    """Names by which PEFT finds the modules, which are those that end in one of them: the last part
    of each, or as much more as it takes not to find others."""

    def found(names: set[str]) -> set[str]:
        return {m for m in modules if any(m == n or m.endswith(f".{n}") for n in names)}

    last = {module.rpartition(".")[2] for module in parts}
    inside = {_inside(own[0][0]) for own in parts.values()}
    return sorted(next((names for names in (last, inside) if found(names) == set(parts)), parts))


def _inside(entry: Entry) -> str:
    """Name of a module inside its layer: `self_attn.q_proj`."""
    return entry.theirs.partition(f"{LAYER}.")[2].removesuffix(".weight")


def _patterns(parts: dict[str, list[tuple[Entry, int]]], lora: Lora) -> dict[str, Any]:
    """The rank and alpha of modules that hold several projections."""
    several = {_inside(own[0][0]): len(own) for own in parts.values() if len(own) > 1}
    return {
        "rank_pattern": {name: number * lora.rank for name, number in several.items()},
        "alpha_pattern": {name: _number(n * lora.alpha) for name, n in several.items()},
    }


def _number(alpha: float) -> float | int:
    """PEFT declares alpha as an integer."""
    return int(alpha) if alpha == int(alpha) else alpha


def _task(arch: str) -> str:
    if arch in FAMILIES:
        return "CAUSAL_LM"
    return "FEATURE_EXTRACTION" if arch in hf_config.ENCODERS else "SEQ_2_SEQ_LM"
