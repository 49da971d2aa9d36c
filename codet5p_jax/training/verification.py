"""Whether a folder of others and a model directory are the same network with the same weights."""

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from codet5p_jax.interop import hf_config, sentence_transformers, torch_outputs
from codet5p_jax.interop.changed_weights import MergedLora, ResizedVocabulary
from codet5p_jax.interop.differences import differences
from codet5p_jax.interop.safetensors_files import SafetensorsFolder
from codet5p_jax.interop.t5x import is_t5x, open_t5x
from codet5p_jax.interop.weights import (
    ArrayWeights,
    ForeignWeights,
    Weights,
    nonfinite,
    open_hugging_face,
)
from codet5p_jax.models.codet5p import CodeT5p
from codet5p_jax.models.configs import ModelConfig
from codet5p_jax.models.params import flatten, nested
from codet5p_jax.training.stored_weights import StoredWeights, release_memory


@dataclass(frozen=True)
class Verification:
    """How a folder and a model directory compare.

    Attributes:
      tensors: how many were compared.
      problems: what differs, a line each.
      notes: what the model directory has in addition: parts that the architecture leaves out, and
        added rows of the vocabulary.
      rounded: parameters whose dtypes differ, where that was not to be reported.
    """

    tensors: int
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    rounded: tuple[str, ...]


def verify_weights(
    folder: str | Path,
    model_dir: str | Path,
    *,
    arch: str | None = None,
    step: int | None = None,
    allow_pickle: bool = False,
    ignore_dtype: bool = False,
) -> Verification:
    """Compares the networks, and every parameter of the folder by name, shape, dtype and SHA-256 of
    its bytes.

    Args:
      folder: of Hugging Face, or a T5X checkpoint.
      model_dir: as training or `import_weights` wrote it; may have more parts than the folder's
        architecture, and more rows of the vocabulary. Low-rank additions are merged, as on export.
      arch: one of `hf_config.ARCHITECTURES`; None: what `config.json` says.
      step: of the checkpoint; None: the newest.
      allow_pickle: whether to read `pytorch_model.bin`; needs torch.
      ignore_dtype: where dtypes differ, round the wider one instead of reporting it.

    Raises:
      FileNotFoundError, ValueError: one of the two is not what it should be.
    """
    folder = Path(folder)
    lora = MergedLora(StoredWeights(Path(model_dir), step))
    mine: Weights = lora
    theirs, network = _open(folder, arch, allow_pickle)
    notes = []
    added = mine.config.vocab_size - network.vocab_size
    if added > 0:
        mine = ResizedVocabulary(mine, network.vocab_size)
        notes.append(f"{added:,} rows of the vocabulary are not in {folder}")
    problems = [
        f"{path}: {a!r} there, {b!r} here"
        for path, a, b in differences(network, _part(mine.config, network))
    ]
    left_out = sorted(mine.shapes.keys() - theirs.keys())
    if left_out:
        notes.append(f"{folder} has no place for {', '.join(left_out)}")
    rounded = []
    for path, source in theirs.items():
        if path not in mine.shapes:
            problems.append(f"{path}: not in {model_dir}")
            continue
        if source.shapes[path] != mine.shapes[path]:
            problems.append(f"{path}: shape {source.shapes[path]} there, {mine.shapes[path]} here")
            continue
        kinds = source.dtypes(path) if isinstance(source, ForeignWeights) else [source.dtype(path)]
        wide = None
        if kinds != [mine.dtype(path)]:
            if path in lora.merged:  # an export rounds the sum once
                wide = np.dtype(np.float32)
            names = " and ".join(kind.name for kind in kinds)
            told = f"{path}: {names} there, {mine.dtype(path)} here"
            (rounded if ignore_dtype else problems).append(told)
        array = mine.read(path, wide)
        difference = _difference(source.read(path), array)
        if difference:
            problems.append(f"{path}: {difference}")
        elif number := nonfinite(array):
            notes.append(f"{path} has {number:,} values that are NaN or infinite, in both")
    release_memory()
    return Verification(len(theirs), tuple(problems), tuple(notes), tuple(rounded))


def compare_outputs(
    folder: str | Path, model_dir: str | Path, *, arch: str | None = None, step: int | None = None
) -> dict[str, float]:
    """The largest difference of each output, relative to the largest of its values where that is
    above 1, between PyTorch, reading the folder, and this
    network, reading the model directory, at fp32 on random tokens. Needs torch and transformers.

    Both models are in memory at once.
    """
    folder = Path(folder)
    values = hf_config.load_config(folder)
    where = folder / "config.json"
    arch = arch or hf_config.recognise(values, where)
    theirs_config = hf_config.to_model_config(values, arch, where)
    stored = MergedLora(StoredWeights(Path(model_dir), step))
    network = hf_config.exported(stored.config, arch)
    network = dataclasses.replace(network, dtype=np.float32)
    specs = flatten(CodeT5p(network).specs)
    # Read as it is exported, which rounds a sum or a product, and then widened.
    arrays = ((path, jnp.asarray(stored.read(path).astype(np.float32))) for path, _ in specs)
    rng = np.random.default_rng(0)
    rows = theirs_config.vocab_size
    length = min(32, theirs_config.encoder.max_positions or 32)
    tokens = rng.integers(0, theirs_config.encoder_vocab_size or rows, (2, length))
    targets = rng.integers(0, rows, (2, min(16, theirs_config.decoder.max_positions or 16)))
    segments = np.ones_like(tokens)
    segments[1, length * 5 // 8 :] = 0
    inputs = [x.astype(np.int32) for x in (tokens, segments, targets)]
    theirs = torch_outputs.outputs(folder, arch, *inputs)
    mine = _outputs(CodeT5p(network).bind(nested(dict(arrays))), *map(jnp.asarray, inputs))
    if "logits" in mine:
        mine["logits"] = mine["logits"][..., :rows]
    real = segments > 0
    if "encoder states" in mine:
        for found in (theirs, mine):
            found["encoder states"] = np.asarray(found["encoder states"])[real]
    return {
        name: float(np.max(np.abs(value - mine[name])) / max(1.0, np.max(np.abs(value))))
        for name, value in theirs.items()
    }


def _open(
    folder: Path, arch: str | None, allow_pickle: bool
) -> tuple[dict[str, Weights], ModelConfig]:
    """Where each parameter of the folder is read, and its network."""
    if is_t5x(folder):
        weights: Weights = open_t5x(folder)
        return dict.fromkeys(weights.shapes, weights), weights.config
    weights = open_hugging_face(folder, arch, allow_pickle=allow_pickle)
    sources: dict[str, Weights] = dict.fromkeys(weights.shapes, weights)
    if (folder / sentence_transformers.MODULES).is_file():
        file = SafetensorsFolder(folder / sentence_transformers.DENSE_FOLDER)
        arrays = {}
        for entry in sentence_transformers.DENSE_TABLE:
            array = file.read(entry.theirs)
            arrays[entry.ours] = entry.to_ours(array, array.shape[::-1])
        sources |= dict.fromkeys(arrays, ArrayWeights(weights.config, arrays))
    return sources, weights.config


def _part(mine: ModelConfig, theirs: ModelConfig) -> ModelConfig:
    """The part of a network that an architecture with what `theirs` has would keep."""
    return hf_config.exported(mine, hf_config.default_architecture(theirs))


def _difference(theirs: np.ndarray, mine: np.ndarray) -> str:
    """Empty where the bytes are equal, after rounding to the narrower dtype."""
    narrow = min((theirs.dtype, mine.dtype), key=lambda d: d.itemsize)
    theirs, mine = theirs.astype(narrow, copy=False), mine.astype(narrow, copy=False)
    sums = [_sha256(x) for x in (theirs, mine)]
    if sums[0] == sums[1]:
        return ""
    largest = np.max(np.abs(theirs.astype(np.float32) - mine.astype(np.float32)))
    return f"sha256 {sums[0][:12]} there, {sums[1][:12]} here; largest difference {largest:.3g}"


def _sha256(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data).hexdigest()


def _outputs(
    model: CodeT5p, tokens: jax.Array, segments: jax.Array, targets: jax.Array
) -> dict[str, Any]:
    out: dict[str, Any] = {}
    encoded = None
    if model.config.encoder.num_layers:
        encoded = out["encoder states"] = model.encode(tokens, segments)
        if model.config.embed_dim is not None:
            out["embeddings"] = model.embed(encoded, segments)
    if model.config.decoder.num_layers:
        ones = jnp.ones_like(targets)
        states = model.decode(targets, ones, encoded, None if encoded is None else segments)
        out["logits"] = model.logits(states)
        if model.config.matching_head:
            out["matching logits"] = model.match(states, ones)
    return out
