"""Model directories from the weights of others, and the reverse, one parameter at a time."""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

import jax
import numpy as np

from codet5p_jax import signals
from codet5p_jax.data.tokenizer import Tokenizer
from codet5p_jax.files import new_folder
from codet5p_jax.interop import (
    hf_config,
    peft,
    sentence_transformers,
    tokenizer_files,
)
from codet5p_jax.interop.changed_weights import LORA_ENDS, MergedLora, ResizedVocabulary
from codet5p_jax.interop.t5x import is_t5x, open_t5x
from codet5p_jax.interop.token_ids import (
    GENERATION,
    TokenIds,
    note_of_others,
    other_generation_settings,
)
from codet5p_jax.interop.weights import (
    FLOATS,
    ForeignWeights,
    Weights,
    export_hugging_face,
    hugging_face_folder,
    nonfinite,
    open_hugging_face,
)
from codet5p_jax.models.configs import ModelConfig
from codet5p_jax.training.checkpoint_files import ELSEWHERE
from codet5p_jax.training.model_dir import ModelDir, config_to_json
from codet5p_jax.training.stored_weights import (
    StoredWeights,
    release_memory,
    write_weights,
)

Say = Callable[[str], None]


def import_weights(
    source: str | Path,
    model_dir: str | Path,
    *,
    arch: str | None = None,
    dtype: str | None = None,
    vocab_size: int | None = None,
    pad_vocab_to_multiple: int = 1,
    allow_pickle: bool = False,
    say: Say = print,
) -> None:
    """Makes a model directory of a Hugging Face folder or a T5X checkpoint. Neither torch nor code
    of the folder runs.

    Args:
      source: the folder; of T5X, `checkpoint_<step>`.
      model_dir: made; appears when it is complete.
      arch: one of `hf_config.ARCHITECTURES`; None: what `config.json` says.
      dtype: of the parameters; None: each keeps its own.
      vocab_size: rows of the embedding; new ones are the mean of all; None: those it has.
      pad_vocab_to_multiple: rows are added up to a multiple of this.
      allow_pickle: whether to read `pytorch_model.bin`; needs torch.
      say: is told what happens, and of values that are not finite.

    Raises:
      FileNotFoundError, ValueError: files, configuration and tensors do not fit each other.
      FileExistsError: there is something at `model_dir`.
    """
    source, model_dir = Path(source), Path(model_dir)
    _check_names(arch, tuple(hf_config.ARCHITECTURES), dtype)
    if is_t5x(source):
        if arch is not None:
            raise ValueError(
                f"arch {arch!r} is for folders of Hugging Face, and {source} is a checkpoint of "
                "T5X, whose shapes say what it is; leave --arch out"
            )
        weights: Weights = open_t5x(source)
        tokens = TokenIds(eos=1, bos=None)  # T5's
    else:
        values = hf_config.load_config(source)
        arch = arch or hf_config.recognise(values, source / "config.json")
        weights = foreign = open_hugging_face(source, arch, allow_pickle=allow_pickle)
        tokens = TokenIds.read(source, arch)
        if (source / sentence_transformers.MODULES).is_file():
            say(f"{source} is of sentence-transformers: only its encoder is read")
        others = other_generation_settings(source)
        if others:
            say(f"not kept of {GENERATION}: {', '.join(others)}")
        if dtype is None:
            _report_mixed(foreign, say)
    before = weights.config.vocab_size
    tokens, others = tokens.within(before)
    if others:
        say(note_of_others(others, source, before))
    _report_missing(weights.config, tokens, source, say)
    weights = _resized(weights, vocab_size, pad_vocab_to_multiple)
    rows = weights.config.vocab_size
    tokens.require_rows(rows, source)
    if rows < before:
        say(f"left out: rows {rows:,} to {before - 1:,} of the vocabulary")
    chosen = FLOATS[dtype] if dtype else None

    def arrays() -> Iterator[tuple[str, np.ndarray]]:
        for path in weights.shapes:
            signals.check()
            array = weights.read(path, chosen)
            report_nonfinite(path, array, say)
            yield path, array

    with new_folder(model_dir, _bytes(weights, chosen)) as partial:
        directory = ModelDir(partial)
        config = config_to_json(weights.config)
        directory.config.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        if not tokenizer_files.copy_tokenizer(source, directory.tokenizer):
            say(f"{source} has no tokenizer files")
        elif rows < before:
            tokenizer_files.drop_tokens(directory.tokenizer, rows)
        if vocab_size is not None and directory.tokenizer.is_dir():
            _add_prefixes(directory.tokenizer, vocab_size, before, say)
        tokenizer_files.copy_tokenizer(
            source / tokenizer_files.ENCODER, directory.encoder_tokenizer
        )
        directory.checkpoints.mkdir()
        meta = {
            "step": 0,
            "model": config,
            "tokenizer": "../../tokenizer",
            "token_ids": asdict(tokens),
        }
        write_weights(directory.checkpoints / "0", arrays(), meta)
    say(f"{_summary(weights.shapes)} from {source} to {model_dir}")


def export_weights(
    model_dir: str | Path,
    folder: str | Path,
    *,
    arch: str | None = None,
    dtype: str | None = None,
    step: int | None = None,
    max_shard_bytes: int = 5 * 10**9,
    vocab_size: int | None = None,
    causal_masks: bool = False,
    say: Say = print,
) -> None:
    """Makes a Hugging Face folder of a model directory.

    Args:
      model_dir: as training or `import_weights` wrote it, or the folder of one checkpoint or
        snapshot in it.
      folder: made; appears when it is complete.
      arch: one of `hf_config.ARCHITECTURES`, or `sentence_transformers`; None: the one with every
        part of the network.
      dtype: of the tensors; None: each keeps that of the checkpoint, also a kernel that low-rank
        additions are merged into.
      step: a checkpoint; None: the newest.
      max_shard_bytes: of one file.
      vocab_size: rows of the embedding to write; None: all.
      causal_masks: as `export_hugging_face` takes it.
      say: is told what happens.

    Raises:
      FileNotFoundError: no model directory, or no checkpoint in it.
      ValueError: the network is no such architecture.
      FileExistsError: there is something at `folder`.
    """
    _check_names(arch, (*hf_config.ARCHITECTURES, sentence_transformers.ARCHITECTURE), dtype)
    if max_shard_bytes < 1:
        raise ValueError(f"max_shard_bytes has to be 1 or more, found {max_shard_bytes}")
    stored = StoredWeights(Path(model_dir), step)
    # With a dtype chosen, the sum is rounded once, to that.
    merged = MergedLora(stored, FLOATS["float32"] if dtype else None)
    weights = _resized(merged, vocab_size, 1)
    rounded = sorted({merged.dtype(path).name for path in merged.merged} - {"float32"})
    if rounded:
        say(
            f"low-rank additions are merged into {len(merged.merged)} kernels, and the sums "
            f"rounded to the {' and '.join(rounded)} of these; --dtype=float32 does not round"
        )
    if stored.rounded:
        say(
            f"{len(stored.rounded)} kernels are int8 in {model_dir}, and are exported with those "
            "values; a run with save_frozen = False exports them as they were before"
        )
    if vocab_size is not None and vocab_size > stored.config.vocab_size:
        raise ValueError(
            f"vocab_size {vocab_size:,} is more than the {stored.config.vocab_size:,} rows that "
            f"{model_dir} has; rows are added on import"
        )
    ids = stored.meta.get("token_ids")
    tokenizer = stored.tokenizer if stored.tokenizer.is_dir() else None
    tokens = TokenIds.from_json(ids) if ids else tokenizer_files.token_ids(tokenizer)
    if tokens is None:
        raise ValueError(
            f"neither the checkpoint nor the tokenizer in {model_dir} says which ids are pad and "
            'eos; put a roles.json beside tokenizer.json: {"pad": "<pad>", "eos": "</s>", …}'
        )
    tokens.require_rows(weights.config.vocab_size, Path(model_dir))
    before, rows = stored.config.vocab_size, weights.config.vocab_size
    if rows < before:
        say(f"left out: rows {rows:,} to {before - 1:,} of the vocabulary")
    if (arch or hf_config.default_architecture(weights.config)) in hf_config.COMPOSED:
        tokens = tokens.of_seq2seq()
    _report_missing(weights.config, tokens, model_dir, say)
    encoder_tokenizer = stored.encoder_tokenizer
    left_out = export_hugging_face(
        Path(folder),
        _Reporting(weights, say),
        arch=arch,
        dtype=dtype,
        max_shard_bytes=max_shard_bytes,
        tokenizer=tokenizer,
        encoder_tokenizer=encoder_tokenizer if encoder_tokenizer.is_dir() else None,
        tokens=tokens,
        causal_masks=causal_masks,
    )
    if left_out:
        say(f"left out, since the architecture has no place for them: {', '.join(left_out)}")
    kept = {path: shape for path, shape in weights.shapes.items() if path not in left_out}
    say(f"{_summary(kept)} from {model_dir} to {folder}")


def export_adapter(
    model_dir: str | Path,
    folder: str | Path,
    *,
    arch: str | None = None,
    base: str | None = None,
    dtype: str | None = None,
    step: int | None = None,
    say: Say = print,
) -> None:
    """Makes a folder of the low-rank additions of a run, which PEFT adds to the base model.

    Args:
      model_dir: as training with `Trainable.lora` wrote it.
      folder: made; appears when it is complete.
      arch: of the base model, one of `hf_config.ARCHITECTURES`; None: the one with every part.
      base: name or path of the base model; None: the Hugging Face folder that the run left its
        frozen weights in, if it did.
      dtype: of the tensors; None: each keeps that of the checkpoint.
      step: a checkpoint; None: the newest.
      say: is told what happens.

    Raises:
      FileNotFoundError: no model directory, or no checkpoint in it.
      ValueError: there are no additions, something else trained, or the network is no such
        architecture.
      FileExistsError: there is something at `folder`.
    """
    stored = StoredWeights(Path(model_dir), step)
    others = [path for path in stored.trained if not path.endswith(LORA_ENDS)]
    if others and len(others) < len(stored.trained):
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        raise ValueError(
            f"an adapter has low-rank additions alone, but {others[0]}{more} trained in "
            f"{model_dir} as well; export the merged network, without --adapter"
        )
    origins = {kept["source"] for kept in stored.meta.get(ELSEWHERE, {}).values()}
    if base is None and len(origins) == 1 and (origin := hugging_face_folder(*origins)):
        base = str(origin)
    modules = peft.export_adapter(
        Path(folder), _Reporting(stored, say), arch=arch, base=base, dtype=dtype
    )
    if base is None:
        say(f"{peft.CONFIG} names no base model; --base says which it is")
    say(f"additions to {len(modules)} modules from {model_dir} to {folder}")


def check_exportable(config: ModelConfig, arch: str | None = None) -> None:
    """Fails before anything is trained where `export_weights` would fail after it.

    Raises:
      ValueError: no architecture has that name, or none of theirs is this network.
    """
    known = (*hf_config.ARCHITECTURES, sentence_transformers.ARCHITECTURE)
    if arch is not None and arch not in known:
        raise ValueError(f"export_arch has to be one of {', '.join(known)}, found {arch!r}")
    arch = arch or hf_config.default_architecture(config)
    if arch == sentence_transformers.ARCHITECTURE:
        sentence_transformers.files(config)
        arch = "t5_encoder"
    hf_config.to_hugging_face(config, arch, "float32", None)


def check_one_process() -> None:
    """`export_weights` reads what one process wrote. Asking for their number starts the devices.

    Raises:
      ValueError: there are several.
    """
    if jax.process_count() > 1:
        raise ValueError(
            "export_to works in a run of one process; leave it out, and use `codet5p convert "
            "export` when the run has ended"
        )


class _Reporting:
    """Weights that say so when values are not finite, and end where a signal asked for it."""

    def __init__(self, weights: Weights, say: Say):
        self._weights, self._say = weights, say
        self.config, self.shapes, self.dtype = weights.config, weights.shapes, weights.dtype

    def read(
        self, path: str, dtype: np.dtype | None = None, index: tuple[slice, ...] | None = None
    ) -> np.ndarray:
        signals.check()
        array = self._weights.read(path, dtype, index)
        if array.nbytes > 2**24:
            release_memory()  # what reading it took
        report_nonfinite(path, array, self._say)
        return array


def report_nonfinite(path: str, array: np.ndarray, say: Say) -> None:
    """Says so where some of the values of a parameter are NaN or infinite."""
    number = nonfinite(array)
    if number:
        say(f"WARNING: {path} has {number:,} values that are NaN or infinite")


def _report_missing(config: ModelConfig, tokens: TokenIds, where: str | Path, say: Say) -> None:
    """A decoder alone may lack any of them."""
    missing = tokens.missing() if config.encoder.num_layers and config.decoder.num_layers else ()
    if missing:
        say(
            f"WARNING: {where} names no {' and no '.join(missing)} token; `generate` of what is "
            "exported has to be given one"
        )


def _report_mixed(weights: ForeignWeights, say: Say) -> None:
    """Our layers are one array, which has one dtype."""
    mixed = {path: weights.dtypes(path) for path in weights.shapes}
    mixed = {path: found for path, found in mixed.items() if len(found) > 1}
    if mixed:
        path, found = next(iter(mixed.items()))
        more = f", and so of {len(mixed) - 1} more parameters" if len(mixed) > 1 else ""
        say(
            f"WARNING: layers of {path} are {' and '.join(d.name for d in found)}{more}; they "
            "become float32, and are exported as that; --dtype chooses one for all"
        )


def _check_names(arch: str | None, known: tuple[str, ...], dtype: str | None) -> None:
    for what, name, names in (("arch", arch, known), ("dtype", dtype, tuple(FLOATS))):
        if name is not None and name not in names:
            raise ValueError(f"{what} has to be one of {', '.join(names)}, found {name!r}")


def _resized(weights: Weights, vocab_size: int | None, multiple: int) -> Weights:
    rows = weights.config.vocab_size if vocab_size is None else vocab_size
    for name, number in (("vocab_size", rows), ("pad_vocab_to_multiple", multiple)):
        if number < 1:
            raise ValueError(f"{name} has to be 1 or more, found {number}")
    rows = -(-rows // multiple) * multiple
    return weights if rows == weights.config.vocab_size else ResizedVocabulary(weights, rows)


def _add_prefixes(folder: Path, rows: int, before: int, say: Say) -> None:
    """Gives a tokenizer `[ENC]`, `[TDEC]` and `[CDEC]` where the `rows` asked for are just enough
    for these; the embedding had `before`."""
    try:
        tokenizer = Tokenizer.load(folder)
    except (OSError, ValueError, KeyError) as error:  # none that stage 2 could use
        say(f"the tokenizer is copied as it is, without [ENC], [TDEC] and [CDEC]: {error}")
        return
    wider = tokenizer.with_prefixes()
    if rows == wider.vocab_size > tokenizer.vocab_size:
        for name in tokenizer_files.FILES:
            (folder / name).unlink(missing_ok=True)
        wider.save(folder)
        old = min(before, rows) - tokenizer.vocab_size
        say(
            "the tokenizer has [ENC], [TDEC] and [CDEC] now"
            + (f"; {old} of their rows are those that the embedding had there" if old > 0 else "")
        )


def _bytes(weights: Weights, dtype: np.dtype | None) -> int:
    return sum(
        math.prod(shape) * (dtype or weights.dtype(path)).itemsize
        for path, shape in weights.shapes.items()
    )


def _summary(shapes: Mapping[str, tuple[int, ...]]) -> str:
    number = sum(math.prod(shape) for shape in shapes.values())
    return f"{number:,} parameters"
