"""A `config.json` of Hugging Face as our ModelConfig, and the reverse."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from codet5p_jax.files import check_file
from codet5p_jax.interop import causal_lms, codet5p_large, composed
from codet5p_jax.interop.causal_families import FAMILIES
from codet5p_jax.interop.differences import differences
from codet5p_jax.interop.safetensors_files import read_json
from codet5p_jax.models.configs import ModelConfig, t5

# architecture -> (model_type, name of the PyTorch class; None: read only)
T5_ARCHITECTURES = {
    "t5": ("t5", "T5ForConditionalGeneration"),
    "t5_encoder": ("t5", "T5EncoderModel"),
    "codet5p_embedding": ("codet5p_embedding", "CodeT5pEmbeddingModel"),
    "codet5p_bimodal": ("codet5p_bimodal", "CodeT5pBimodalModel"),
}
COMPOSED = {"codet5p": codet5p_large, "codet5p_composed": composed}
ARCHITECTURES = {
    **T5_ARCHITECTURES,
    **{arch: (family.model_type, family.cls) for arch, family in FAMILIES.items()},
    "codet5p": ("codet5p", "CodeT5pEncoderDecoderModel"),
    "codet5p_composed": ("codet5p_composed", "CodeT5pComposedModel"),
}
ENCODERS = ("t5_encoder", "codet5p_embedding")
WITH_HEADS = ("codet5p_embedding", "codet5p_bimodal")


@dataclasses.dataclass(frozen=True)
class Modeling:
    """Where the class of an architecture is that transformers does not have.

    Attributes:
      file: in this folder; written into those of the architecture.
      config: the class of its configuration.
      auto: the class of transformers that finds the model.
    """

    file: str
    config: str
    auto: str


_FILE, _COMPOSED_FILE = "modeling_codet5p.py", "modeling_codet5p_composed.py"
MODELING = {
    "codet5p_embedding": Modeling(_FILE, "CodeT5pEmbeddingConfig", "AutoModel"),
    "codet5p_bimodal": Modeling(_FILE, "CodeT5pBimodalConfig", "AutoModel"),
    "codet5p": Modeling(_COMPOSED_FILE, "CodeT5pConfig", "AutoModelForSeq2SeqLM"),
    "codet5p_composed": Modeling(_COMPOSED_FILE, "CodeT5pComposedConfig", "AutoModelForSeq2SeqLM"),
}
LOG_TEMPERATURE = "log_temperature"
SCALE_OUTPUTS = "scale_decoder_outputs"

_ACTIVATIONS = {
    "relu": "relu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
}


def load_config(folder: Path) -> dict[str, Any]:
    """The content of `config.json`.

    Raises:
      FileNotFoundError: there is none.
      ValueError: it is no JSON object.
    """
    path = folder / "config.json"
    if not check_file(path):
        raise FileNotFoundError(f"{folder} has no config.json; expected a Hugging Face folder")
    return read_object(path)


def recognise(values: Mapping[str, Any], where: Path) -> str:
    """The architecture that a `config.json` is of.

    Raises:
      ValueError: none of those that convert.
    """
    kind, classes = values.get("model_type"), values.get("architectures") or []
    if not isinstance(kind, str | None):
        raise ValueError(f"{where}: expected a name as model_type, found {kind!r}")
    if not isinstance(classes, list):
        raise ValueError(f"{where}: expected a list of names as architectures, found {classes!r}")
    if kind in MODELING:
        return kind
    if kind in ("t5", "mt5"):
        return "t5_encoder" if any("EncoderModel" in str(c) for c in classes) else "t5"
    found = {
        arch: len(family.marks)
        for arch, family in FAMILIES.items()
        if kind == family.model_type and all(values.get(k) == v for k, v in family.marks.items())
    }
    if found:
        return max(found, key=lambda arch: found[arch])
    families = dict.fromkeys(family.model_type for family in FAMILIES.values())
    known = ("t5", "mt5", *MODELING, *families)
    if kind is None and {"encoder", "decoder"} <= values.keys():
        raise ValueError(f"{where} is of a model directory; expected a Hugging Face folder")
    raise ValueError(
        f"{where}: model_type {kind!r} does not convert; expected {', '.join(known[:-1])} or "
        f"{known[-1]}; `codet5p convert import --arch` makes a model directory of what is one of "
        "these under another name"
    )


def to_model_config(values: Mapping[str, Any], arch: str, where: Path) -> ModelConfig:
    """The network that a `config.json` describes.

    Raises:
      ValueError: a value is missing, of another type, or none that the network can have.
    """
    if arch in FAMILIES:
        return causal_lms.read(FAMILIES[arch], values, where)
    if arch in COMPOSED:
        return COMPOSED[arch].read(values, where)

    def number(name: str, default: Any = None, kind: Any = int) -> Any:
        value = values.get(name)
        value = default if value is None else value
        sound = isinstance(value, kind) and not isinstance(value, bool)
        if not sound or not abs(value) < 2**63:  # fails for NaN as well
            raise ValueError(f"{where}: expected a number as {name}, found {value!r}")
        return value

    def boolean(name: str) -> bool | None:
        value = values.get(name)
        if not isinstance(value, bool | None):
            raise ValueError(f"{where}: expected true or false as {name}, found {value!r}")
        return value

    pooling = values.get("pooling", "first") if arch in WITH_HEADS else "first"
    if pooling not in ("first", "mean"):
        raise ValueError(f"{where}: expected first or mean as pooling, found {pooling!r}")

    activation, gated = _activation(values.get("feed_forward_proj", "relu"), where)
    _check_repeated(values, activation, gated, where)
    layers = number("num_layers")
    tied = boolean("tie_word_embeddings")
    try:
        config = t5(
            vocab_size=number("vocab_size"),
            d_model=number("d_model"),
            num_heads=number("num_heads"),
            head_dim=number("d_kv"),
            d_ff=number("d_ff"),
            num_encoder_layers=layers,
            num_decoder_layers=0 if arch in ENCODERS else number("num_decoder_layers", layers),
            activation=activation,
            gated=gated,
            relative_buckets=number("relative_attention_num_buckets", 32),
            relative_max_distance=number("relative_attention_max_distance", 128),
            tie_embeddings=tied is not False or arch in ENCODERS,
            pooling=pooling,
            embed_dim=number("embed_dim", 256) if arch in WITH_HEADS else None,
            matching_head=arch == "codet5p_bimodal",
            dropout=float(number("dropout_rate", 0.1, (int, float))),
        )
    except ValueError as error:
        text = str(error)
        raise ValueError(text if text.startswith(str(where)) else f"{where}: {text}") from None
    eps = float(number("layer_norm_epsilon", 1e-6, (int, float)))
    if not 0 <= eps < 1:
        raise ValueError(f"{where}: expected a small number as layer_norm_epsilon, found {eps}")
    # transformers v5 writes that weights are tied whether they are or not, and what it makes of it.
    # Its mT5 never scales.
    scaled = boolean(SCALE_OUTPUTS)
    if scaled is None:
        scaled = values.get("model_type") != "mt5"
    unscaled = not scaled and config.tie_embeddings
    return dataclasses.replace(
        config,
        prompt_to_decoder=boolean("prompt_to_decoder") is True and config.decoder.num_layers > 0,
        scale_tied_head=not (unscaled and config.decoder.num_layers),
        encoder=dataclasses.replace(config.encoder, norm_eps=eps),
        decoder=dataclasses.replace(config.decoder, norm_eps=eps),
    )


def exported(config: ModelConfig, arch: str) -> ModelConfig:
    """The part of a network that an architecture has; none has a classification head."""
    config = dataclasses.replace(config, classes=None, classify_pairs=False)
    if arch in FAMILIES:
        return dataclasses.replace(config, matching_head=False)
    if arch in ENCODERS:
        none = dataclasses.replace(config.decoder, num_layers=0)
        # An encoder has no output projection, so nothing says whether it is tied.
        config = dataclasses.replace(
            config,
            decoder=none,
            matching_head=False,
            tie_embeddings=True,
            scale_tied_head=True,
            prompt_to_decoder=False,
        )
    if arch in ("t5", "t5_encoder", *COMPOSED):
        config = dataclasses.replace(config, embed_dim=None, matching_head=False, pooling="first")
    return config


def default_architecture(config: ModelConfig) -> str:
    """The architecture that has every part of a network; of a decoder alone, the most similar one
    where none has.

    Raises:
      ValueError: the network has a classification head, which no architecture has.
    """
    if config.classes is not None:
        raise ValueError(
            "no architecture has the network's classification head (classes); name one (arch, "
            "export_arch) to write the rest without it, such as t5_encoder"
        )
    if not config.encoder.num_layers:
        written = (arch for arch, family in FAMILIES.items() if family.cls)
        return min(written, key=lambda arch: _distance(config, arch))
    if not config.decoder.num_layers:
        return "codet5p_embedding" if config.embed_dim else "t5_encoder"
    if config.embed_dim and config.matching_head:
        return "codet5p_bimodal"
    fits = (arch for arch in ("t5", *COMPOSED) if not _distance(config, arch))
    return next(fits, "codet5p_composed")


def to_hugging_face(
    config: ModelConfig, arch: str, dtype: str, log_temperature: float | None
) -> dict[str, Any]:
    """The `config.json` of an exported network, but for its special tokens.

    Args:
      config: of the whole network.
      arch: one of `ARCHITECTURES`.
      dtype: of the tensors, by name.
      log_temperature: of the contrastive loss, which no tensor of theirs holds.

    Raises:
      ValueError: the network is no such architecture, or it is read only; names what differs.
    """
    model_type, cls = ARCHITECTURES[arch]
    if cls is None:
        raise ValueError(
            f"{arch} is read and not written, as transformers has no class for it; the network is "
            f"also {default_architecture(exported(config, arch))}: choose that as arch"
        )
    values = {
        "model_type": model_type,
        "architectures": [cls],
        **_described(config, arch),
        "use_cache": arch not in ENCODERS,
        "dtype": dtype,
    }
    if arch not in FAMILIES:
        values["is_encoder_decoder"] = arch not in ENCODERS
    if arch in MODELING:
        code = MODELING[arch]
        module = code.file.removesuffix(".py")
        values["auto_map"] = {
            "AutoConfig": f"{module}.{code.config}",
            code.auto: f"{module}.{cls}",
        }
    if arch in WITH_HEADS and log_temperature is not None:
        values[LOG_TEMPERATURE] = log_temperature
    differing = _unlike(config, arch)
    if differing:
        raise ValueError(f"the network is no {arch}: {'; '.join(differing[:5])}")
    return values


def log_temperature(values: Mapping[str, Any], where: Path) -> float | None:
    """The log of the contrastive temperature, where a `config.json` has it.

    Raises:
      ValueError: it is no finite number.
    """
    value = values.get(LOG_TEMPERATURE)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 100:
        raise ValueError(
            f"{where}: expected a number between -100 and 100 as {LOG_TEMPERATURE}, found {value!r}"
        )
    return float(value)


def read_object(path: Path) -> dict[str, Any]:
    """The content of a JSON file that is an object.

    Raises:
      ValueError: it is none; names the file.
    """
    values = read_json(path)
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected a JSON object, found {type(values).__name__}")
    return values


def _activation(spec: Any, where: Path) -> tuple[Any, bool]:
    """`gated-gelu` as (activation, gated); in T5 that gelu is the approximate one."""
    gated, _, name = str(spec).rpartition("-")
    name = "gelu_new" if spec == "gated-gelu" else name
    if gated not in ("", "gated") or name not in _ACTIVATIONS:
        raise ValueError(
            f"{where}: feed_forward_proj {spec!r} is unknown; expected one of "
            f"{', '.join(_ACTIVATIONS)}, or `gated-` before it"
        )
    return _ACTIVATIONS[name], bool(gated)


def _check_repeated(values: Mapping[str, Any], activation: str, gated: bool, where: Path) -> None:
    """transformers writes some settings twice, and computes with the second of each."""
    same = {
        "hidden_size": "d_model",
        "num_attention_heads": "num_heads",
        "num_hidden_layers": "num_layers",
        "head_dim": "d_kv",
    }
    expected = {name: (values.get(own), own) for name, own in same.items()}
    expected["dense_act_fn"] = activation, "feed_forward_proj"
    expected["is_gated_act"] = gated, "feed_forward_proj"
    for name, (value, own) in expected.items():
        found = values.get(name)
        means = _ACTIVATIONS.get(str(found)) if name == "dense_act_fn" else found
        if found is not None and means != value:
            raise ValueError(
                f"{where}: {name} {found!r} contradicts {own} {values.get(own)!r}; transformers "
                "computes with the former, and the two have to say the same"
            )


def _feed_forward_proj(activation: str, gated: bool) -> str:
    name = {"gelu_tanh": "gelu_new"}.get(activation, activation)
    if gated:
        return "gated-gelu" if name == "gelu_new" else f"gated-{name}"
    return name


def _described(config: ModelConfig, arch: str) -> dict[str, Any]:
    """The keys of a `config.json` that describe a network, or what an architecture has of it."""
    network, tower = exported(config, arch), config.encoder
    if arch in FAMILIES:
        return causal_lms.write(FAMILIES[arch], network)
    if arch in COMPOSED:
        return COMPOSED[arch].write(network)
    values: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "d_model": tower.d_model,
        "d_kv": tower.head_dim,
        "d_ff": tower.d_ff,
        "num_heads": tower.num_heads,
        "num_layers": tower.num_layers,
        "num_decoder_layers": network.decoder.num_layers,
        "feed_forward_proj": _feed_forward_proj(tower.activation, tower.gated),
        "relative_attention_num_buckets": tower.relative_buckets,
        "relative_attention_max_distance": tower.relative_max_distance,
        "layer_norm_epsilon": tower.norm_eps,
        "dropout_rate": config.dropout,
        "tie_word_embeddings": network.tie_embeddings,
    }
    if network.tie_embeddings and not network.scale_tied_head:
        values[SCALE_OUTPUTS] = False
    if arch not in ENCODERS:  # False: the decoder starts from decoder_start_token_id alone
        values["prompt_to_decoder"] = network.prompt_to_decoder
    if arch in WITH_HEADS:
        values["embed_dim"] = config.embed_dim
        if config.pooling != "first":
            values["pooling"] = config.pooling
    return values


def _unlike(config: ModelConfig, arch: str) -> list[str]:
    """What of a network an architecture cannot have, a line each."""
    written = _described(config, arch)
    try:
        theirs = to_model_config(written, arch, Path("config.json"))
    except ValueError as error:
        raise ValueError(f"the network is no {arch}: {error}") from None
    found = differences(exported(config, arch), theirs)
    return [f"{path} is {a!r}, {arch} has {b!r}" for path, a, b in found]


def _distance(config: ModelConfig, arch: str) -> float:
    try:
        return float(len(_unlike(config, arch)))
    except ValueError:
        return float("inf")
