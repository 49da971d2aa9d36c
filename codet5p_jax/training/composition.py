"""A model of two that exist: any stack as encoder, any decoder, joined by new cross-attention.

    compose(encoder="hf:codegen-350M", decoder="hf:codegen-2B", model_dir="COMPOSED")

An encoder is taken from an encoder-decoder, or made of a decoder-only model by letting every
position see all others, as CodeT5+ 2B and more do (paper §3.3). Weights that exist are copied
unchanged, each in its dtype; cross-attention, its norms and the projection between widths are
drawn.
"""

import dataclasses
import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from codet5p_jax import signals
from codet5p_jax.files import new_folder
from codet5p_jax.interop.hf_config import load_config, recognise
from codet5p_jax.interop.token_ids import TokenIds, note_of_others
from codet5p_jax.interop.tokenizer_files import copy_tokenizer
from codet5p_jax.interop.weights import Weights, hugging_face_folder, open_hugging_face
from codet5p_jax.models.codet5p import CodeT5p
from codet5p_jax.models.configs import ModelConfig
from codet5p_jax.models.params import ParamSpec, flatten, init_params, nested
from codet5p_jax.models.stack import layer_groups
from codet5p_jax.training.checkpoint_files import DRAWN
from codet5p_jax.training.conversion import report_nonfinite
from codet5p_jax.training.model_dir import ModelDir, config_to_json
from codet5p_jax.training.stored_weights import StoredWeights, write_weights

CROSS_LAYERS = re.compile(r"(all)|last:(\d+)|every:(\d+)|(\d+(?:,\d+)*)")


def cross_attention_layers(text: str, num_layers: int) -> tuple[int, ...]:
    """Indices of the layers that get cross-attention.

    >>> cross_attention_layers("last:1", 34), cross_attention_layers("every:2", 6)
    ((33,), (1, 3, 5))
    >>> cross_attention_layers("0,5", 6), cross_attention_layers("all", 2)
    ((0, 5), (0, 1))

    Raises:
      ValueError: the text is of another form, or an index is past the end.
    """
    match = CROSS_LAYERS.fullmatch(text)
    if match is None:
        raise ValueError(
            f"cross-attention layers {text!r}: expected all, last:N, every:N or indices as 0,5"
        )
    everything, last, every, indices = match.groups()
    if everything:
        return tuple(range(num_layers))
    if indices:
        chosen = tuple(sorted({int(i) for i in indices.split(",")}))
        if chosen[-1] >= num_layers:
            raise ValueError(
                f"cross-attention layer {chosen[-1]} is past the end: the decoder has "
                f"{num_layers} layers, 0 to {num_layers - 1}"
            )
        return chosen
    number = int(last or every)
    if not 1 <= number <= num_layers:
        raise ValueError(
            f"cross-attention layers {text!r}: expected a number from 1 to the {num_layers} layers "
            "of the decoder"
        )
    if last:
        return tuple(range(num_layers - number, num_layers))
    return tuple(range(number - 1, num_layers, number))


def composed_config(
    encoder: ModelConfig,
    decoder: ModelConfig,
    *,
    layers: str = "last:1",
    parallel: bool | None = None,
    zero_init: bool = False,
) -> ModelConfig:
    """The network of an encoder and a decoder that are parts of other networks.

    A decoder that was one alone is given prompts as well (`ModelConfig.prompt_to_decoder`).

    Args:
      encoder: with an encoder, or alone with a decoder, which becomes bidirectional.
      decoder: with a decoder; cross-attention that all its layers have is dropped.
      layers: of the decoder that get cross-attention, see `cross_attention_layers`.
      parallel: `StackConfig.cross_parallel`.
      zero_init: `StackConfig.cross_zero_init`.

    Raises:
      ValueError: a part is missing, or cannot be what it is to be.
    """
    _check_decoder(decoder)
    has_encoder = encoder.encoder.num_layers > 0
    reader = encoder.encoder if has_encoder else encoder.decoder
    if reader.attention_window is not None:
        raise ValueError(
            f"a decoder with attention_window = {reader.attention_window:,} cannot become an "
            "encoder: its window looks back; expected a model without one"
        )
    if encoder.scale_embedding != decoder.scale_embedding:
        one, other = "encoder", "decoder"
        one, other = (one, other) if encoder.scale_embedding else (other, one)
        raise ValueError(
            f"that of the {one} scales its embedding (scale_embedding, as Gemma), that of the "
            f"{other} does not, and a network has one rule for both; choose two that do, or none"
        )
    writer = decoder.decoder
    alone = not decoder.encoder.num_layers
    return dataclasses.replace(
        decoder,
        encoder=dataclasses.replace(reader, causal=False, cross_attention="none"),
        decoder=dataclasses.replace(
            writer,
            cross_attention=cross_attention_layers(layers, writer.num_layers),
            cross_parallel=parallel,
            cross_zero_init=zero_init,
        ),
        encoder_vocab_size=encoder.encoder_vocab_size or encoder.vocab_size,
        project_encoder=reader.d_model != writer.d_model,
        embed_dim=None,
        matching_head=False,
        prompt_to_decoder=alone or decoder.prompt_to_decoder,
        pooling="first",
        dropout=0.0,
    )


def compose(
    encoder: str,
    decoder: str,
    model_dir: str | Path,
    *,
    layers: str = "last:1",
    parallel: bool | None = None,
    zero_init: bool = False,
    seed: int = 0,
    say: Callable[[str], None] = print,
) -> None:
    """Makes a model directory of two models, one parameter at a time.

    Args:
      encoder, decoder: `hf:` and a Hugging Face folder, or a model directory.
      model_dir: made; appears when it is complete. `tokenizer/` is the decoder's and, where the
        encoder has one of its own, `encoder_tokenizer/` that of the encoder.
      layers, parallel, zero_init: as `composed_config` takes them.
      seed: of the weights that are drawn.
      say: is told what happens.

    Raises:
      FileNotFoundError, ValueError: one of the two is not what it should be.
      FileExistsError: there is something at `model_dir`.
    """
    reading, reader_tokenizer, _ = _open("encoder", encoder)
    writing, tokenizer, ids = _open("decoder", decoder)
    try:
        config = composed_config(
            reading.config, writing.config, layers=layers, parallel=parallel, zero_init=zero_init
        )
    except ValueError as error:
        raise ValueError(f"{encoder} (encoder) and {decoder} (decoder): {error}") from error
    if ids:
        tokens, others = TokenIds.from_json(ids).within(config.vocab_size)
        ids = dataclasses.asdict(tokens)
        if others:
            say(note_of_others(others, decoder, config.vocab_size))
    specs: dict[str, ParamSpec] = dict(flatten(CodeT5p(config).specs))
    sources = {name: _source(name, specs[name], reading, writing) for name in specs}
    drawn = [name for name, source in sources.items() if source is None]

    def arrays() -> Iterator[tuple[str, np.ndarray]]:
        for name, source in sources.items():
            signals.check()
            if source is None:
                fresh = init_params(nested({name: specs[name]}), jax.random.key(seed))
                yield name, np.asarray(dict(flatten(fresh))[name])
            else:
                weights, path, index = source
                array = weights.read(path, index=index)
                report_nonfinite(name, array, say)
                yield name, array

    def item_size(name: str) -> int:
        source = sources[name]
        return 4 if source is None else source[0].dtype(source[1]).itemsize

    size = sum(math.prod(spec.shape) * item_size(name) for name, spec in specs.items())
    with new_folder(Path(model_dir), size) as partial:
        directory = ModelDir(partial)
        values = config_to_json(config)
        directory.config.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        copy_tokenizer(tokenizer, directory.tokenizer)
        copy_tokenizer(reader_tokenizer, directory.encoder_tokenizer)
        directory.checkpoints.mkdir()
        meta: dict[str, Any] = {
            "step": 0,
            "model": values,
            "tokenizer": "../../tokenizer",
            "token_ids": ids,
            DRAWN: drawn,
        }
        write_weights(directory.checkpoints / "0", arrays(), meta)
    number = sum(math.prod(specs[name].shape) for name in drawn)
    say(f"{model_dir}: {sum(math.prod(s.shape) for s in specs.values()):,} parameters")
    say(f"{number:,} of them are new: {', '.join(drawn)}")


def compare_decoder(model_dir: str | Path, decoder: str) -> tuple[list[str], list[str], list[str]]:
    """Which parameters of the decoder of a composed model, trained or not, are bit for bit those of
    the model that it was taken from, and which are not. Cross-attention is neither.

    A run keeps what is frozen in a dtype of its own; theirs are cast to that before they are
    compared.

    Args:
      model_dir: of the composed model.
      decoder: as `compose` took it.

    Returns:
      (paths of the same, paths of the others, a line for each whose dtypes differ).

    Raises:
      FileNotFoundError, ValueError: one of the two is not what it should be.
    """
    mine, (theirs, *_) = StoredWeights(Path(model_dir)), _open("decoder", decoder)
    if not mine.config.decoder.num_layers:
        raise ValueError(f"{model_dir} is an encoder alone; expected a model with a decoder")
    try:
        _check_decoder(theirs.config)
    except ValueError as error:
        raise ValueError(f"{decoder} (decoder): {error}") from error
    same: list[str] = []
    others: list[str] = []
    cast: list[str] = []
    for name, spec in flatten(CodeT5p(mine.config).specs):
        if name.startswith("encoder") or (source := _source(name, spec, theirs, theirs)) is None:
            continue
        weights, path, index = source
        equal = False
        if path in weights.shapes:
            a, b = mine.read(name), weights.read(path, index=index)
            if a.dtype != b.dtype:
                cast.append(f"{name}: {b.dtype} there, {a.dtype} here")
            equal = (a.shape, a.tobytes()) == (b.shape, b.astype(a.dtype).tobytes())
        (same if equal else others).append(name)
    return same, others, cast


def _open(part: str, source: str) -> tuple[Weights, Path, dict[str, Any] | None]:
    """Weights, the folder of their tokenizer, and special ids where they are known.

    Raises:
      FileNotFoundError, ValueError: says that it is about the `part`.
    """
    try:
        return _weights(source)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{part}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{part}: {error}") from error


def _weights(source: str) -> tuple[Weights, Path, dict[str, Any] | None]:
    folder = hugging_face_folder(source)
    if folder is not None:
        arch = recognise(load_config(folder), folder / "config.json")
        ids = dataclasses.asdict(TokenIds.read(folder, arch))
        return open_hugging_face(folder), folder, ids
    stored = StoredWeights(Path(source))
    return stored, stored.tokenizer, stored.meta.get("token_ids")


def _source(
    name: str, spec: ParamSpec, reading: Weights, writing: Weights
) -> tuple[Weights, str, tuple[slice, ...]] | None:
    """Where a parameter is read: weights, path there, and part of it. None: it is drawn."""
    if "cross_attention" in name or name.startswith("encoder_to_decoder/"):
        return None
    tower, _, rest = name.partition("/")
    if name == "encoder_embedding":
        own = "encoder_embedding" in reading.shapes
        return reading, name if own else "embedding", ()
    if tower == "encoder":
        theirs: Literal["encoder", "decoder"] = (
            "encoder" if reading.config.encoder.num_layers else "decoder"
        )
        return reading, *_layers(rest, spec, theirs)
    if tower == "decoder":
        return writing, *_layers(rest, spec, "decoder")
    return writing, name, ()


def _check_decoder(config: ModelConfig) -> None:
    """Fails where a network has no decoder to copy."""
    if not config.decoder.num_layers:
        raise ValueError(
            "that of the decoder is an encoder alone (decoder.num_layers = 0); expected a "
            "decoder-only or an encoder-decoder model"
        )
    if len(layer_groups(config.decoder)) > 1:
        raise ValueError(
            "that of the decoder has cross-attention in some of its layers (decoder."
            f"cross_attention = {config.decoder.cross_attention}); expected a decoder without, as "
            "the one that it was made of, or with cross-attention in all layers"
        )


def _layers(rest: str, spec: ParamSpec, tower: str) -> tuple[str, tuple[slice, ...]]:
    """The path of a tower's parameter in other weights, and its layers there.

    Layers are stored in runs of equal ones: what is `layers_33/…` of a decoder whose last layer
    reads the encoder is the last part of `layers/…` of the decoder alone.
    """
    group, _, part = rest.partition("/")
    if not group.startswith("layers"):
        return f"{tower}/{rest}", ()
    first = int(group.removeprefix("layers").removeprefix("_") or 0)
    rest_of_shape = (slice(None),) * (len(spec.shape) - 1)
    return f"{tower}/layers/{part}", (slice(first, first + spec.shape[0]), *rest_of_shape)
