"""T5X checkpoints: msgpack, which holds small arrays itself and says which lie beside it as zarr.

Both layouts are read as the unscanned one of `t5x/examples/t5`: layers under names of their own,
heads and head width as one axis, one relative bias for each tower.
"""

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts
from flax.serialization import msgpack_restore

from codet5p_jax.files import check_inside
from codet5p_jax.interop.safetensors_files import DTYPES, TensorInfo, check_name
from codet5p_jax.interop.tables import LAYER, Entry, Table
from codet5p_jax.interop.weights import ForeignWeights
from codet5p_jax.models.configs import ModelConfig, StackConfig, t5

FILE = "checkpoint"
_NAMES = {"q": "query", "k": "key", "v": "value", "o": "out"}
_BIAS = "relpos_bias/rel_embedding"


class T5XFolder:
    """The parameters of `checkpoint_<step>`, without the optimizer's.

    Attributes:
      where: the folder.
      tensors: by name, without `target/`; names and shapes are those of the unscanned layout.

    Raises:
      ValueError: it is no T5X checkpoint, or a parameter is absent.
    """

    def __init__(self, folder: Path):
        self.where, self.tensors = folder, {}
        self._stored: dict[str, Any] = {}  # array, or open zarr
        # name -> (stored name, layer or None)
        self._places: dict[str, tuple[str, int | None]] = {}
        for name, leaf in _flatten(_target(folder / FILE)).items():
            check_name(folder / FILE, name)
            self._stored[name] = _array(folder, name, leaf)
        self._whole = lru_cache(maxsize=1)(self._read_stored)
        for name in self._stored:
            self._add(name)

    def read(self, name: str) -> np.ndarray:
        """One parameter of one layer."""
        stored, layer = self._places[name]
        self.tensors[name].weight_dtype(name)
        if stored.endswith(_BIAS) and stored.count("/") > 2:
            return self._bias(name)
        array = self._whole(stored)
        if layer is not None:
            array = array[:, layer]
        return array.reshape(self.tensors[name].shape)

    def _add(self, stored: str) -> None:
        tower, *rest = stored.split("/")
        shape = tuple(self._stored[stored].shape)
        if stored.endswith(_BIAS) and stored.count("/") > 2:  # one in each layer
            if len(shape) == 3:
                shape = (shape[0], shape[2])
            self._put(f"{tower}/{_BIAS}", stored, None, shape)
        elif rest and rest[0] == tower and len(shape) > 1:  # scanned
            for layer in range(shape[1]):
                name = f"{tower}/layers_{layer}/{'/'.join(rest[1:])}"
                self._put(name, stored, layer, (shape[0], *shape[2:]))
        else:
            self._put(stored, stored, None, shape)

    def _put(self, name: str, stored: str, layer: int | None, shape: tuple[int, ...]) -> None:
        if len(shape) == 3:  # heads and head width are axes
            first, second, third = shape
            out = name.endswith("/out/kernel")
            shape = (first * second, third) if out else (first, second * third)
        if name in self._places:
            raise ValueError(
                f"{self.where}: {self._places[name][0]} and {stored} are both {name}; expected "
                "layers that are scanned, or one by one"
            )
        self._places[name] = (stored, layer)
        dtype = np.dtype(self._dtype(stored))
        known = dtype if dtype in DTYPES.values() else None
        self.tensors[name] = TensorInfo(known, shape, self.where / FILE, dtype.name)

    def _bias(self, name: str) -> np.ndarray:
        """The relative bias of a tower whose layers have one each."""
        tower = name.split("/")[0]
        stored = [s for s in self._stored if s.startswith(f"{tower}/") and s.endswith(_BIAS)]
        layers = [self._read_stored(s) for s in stored]
        if len(stored) == 1 and layers[0].ndim == 3:
            layers = list(np.moveaxis(layers[0], 1, 0))
        if any(not np.array_equal(layer, layers[0]) for layer in layers[1:]):
            raise ValueError(
                f"{self.where}: the layers of the {tower} have relative biases of their own "
                f"({stored[0]}); expected one that they share, as in T5"
            )
        return layers[0]

    def _dtype(self, stored: str) -> Any:
        array = self._stored[stored]
        return array.dtype if isinstance(array, np.ndarray) else array.dtype.numpy_dtype

    def _read_stored(self, stored: str) -> np.ndarray:
        array = self._stored[stored]
        if isinstance(array, np.ndarray):
            return array
        try:
            return np.asarray(array.read().result())
        except Exception as error:  # TensorStore raises ValueError with pages of context
            raise ValueError(
                f"{self.where}: {stored} cannot be read; a file of it is missing or damaged: "
                f"{str(error).splitlines()[0][:200]}"
            ) from None


def is_t5x(folder: Path) -> bool:
    """Whether a folder looks like a T5X checkpoint."""
    return (folder / FILE).is_file() and not (folder / "config.json").exists()


def open_t5x(folder: Path) -> ForeignWeights:
    """The weights of a T5X checkpoint of a T5, scanned or not.

    Shapes say what the network is. What they do not say is as in T5: the activation is relu, or the
    approximate gelu where it is gated; distances end at 128; the norms' epsilon is 1e-6.

    Raises:
      ValueError: files or tensors are not those of a T5.
    """
    source = T5XFolder(folder)
    config = _config(source)
    weights = ForeignWeights(source, config, _table(config))
    for tower in ("encoder", "decoder"):
        weights.read(f"{tower}/relative_bias")  # fails where layers differ
    return weights


def _config(source: T5XFolder) -> ModelConfig:
    tensors = source.tensors

    def shape(name: str) -> tuple[int, int]:
        if name not in tensors or len(tensors[name].shape) != 2:
            raise ValueError(f"{source.where}: expected a T5, but there is no matrix {name}")
        return tensors[name].shape  # pyright: ignore[reportReturnType]

    def layers(tower: str) -> int:
        prefix = f"{tower}/layers_"
        numbers = {n.removeprefix(prefix).split("/")[0] for n in tensors if n.startswith(prefix)}
        return len(numbers)

    vocab_size, width = shape("token_embedder/embedding")
    heads, buckets = shape(f"encoder/{_BIAS}")
    if not (heads and layers("encoder") and layers("decoder")):
        raise ValueError(
            f"{source.where}: expected an encoder and a decoder with heads, found "
            f"{layers('encoder')} and {layers('decoder')} layers and {heads} heads"
        )
    gated = "encoder/layers_0/mlp/wi_0/kernel" in tensors
    joined = shape("encoder/layers_0/attention/query/kernel")[1]
    return t5(
        vocab_size=vocab_size,
        d_model=width,
        num_heads=heads,
        head_dim=joined // heads,
        d_ff=shape(f"encoder/layers_0/mlp/{'wi_0' if gated else 'wi'}/kernel")[1],
        num_encoder_layers=layers("encoder"),
        num_decoder_layers=layers("decoder"),
        activation="gelu_tanh" if gated else "relu",
        gated=gated,
        relative_buckets=buckets,
        tie_embeddings="decoder/logits_dense/kernel" not in tensors,
    )


def _table(config: ModelConfig) -> Table:
    """As `tables.hugging_face`. Their wi_0 is activated, as our gate is."""
    table = [Entry("embedding", "token_embedder/embedding", "V D -> V D")]
    for tower, cfg in (("encoder", config.encoder), ("decoder", config.decoder)):
        table += _tower(tower, cfg)
    if not config.tie_embeddings:
        table.append(Entry("lm_head", "decoder/logits_dense/kernel", "D V -> V D"))
    return tuple(table)


def _tower(tower: str, cfg: StackConfig) -> list[Entry]:
    def layer(ours: str, theirs: str, axes: str) -> Entry:
        return Entry(f"{tower}/layers/{ours}", f"{tower}/layers_{LAYER}/{theirs}", axes)

    own = "self_attention" if cfg.causal else "attention"
    parts = [("attention", own, f"pre_{own}")]
    if cfg.causal:
        parts.append(("cross_attention", "encoder_decoder_attention", "pre_cross_attention"))
    out: list[Entry] = []
    for ours, theirs, norm in parts:
        for x, name in _NAMES.items():
            axes = "(H K) D -> H K D" if x == "o" else "D (H K) -> D H K"
            out.append(layer(f"{ours}/{x}", f"{theirs}/{name}/kernel", axes))
        out.append(layer(f"{ours}_norm/scale", f"{norm}_layer_norm/scale", "D -> D"))
    kernels = {"gate": "wi_0", "wi": "wi_1"} if cfg.gated else {"wi": "wi"}
    for ours, theirs in {**kernels, "wo": "wo"}.items():
        out.append(layer(f"feed_forward/{ours}", f"mlp/{theirs}/kernel", "I O -> I O"))
    out.append(layer("feed_forward_norm/scale", "pre_mlp_layer_norm/scale", "D -> D"))
    out.append(Entry(f"{tower}/relative_bias", f"{tower}/{_BIAS}", "H B -> B H"))
    out.append(Entry(f"{tower}/final_norm/scale", f"{tower}/{tower}_norm/scale", "D -> D"))
    return out


def _target(path: Path) -> dict[str, Any]:
    check_inside(path)
    try:
        content: Any = msgpack_restore(path.read_bytes())
        target = content.get("optimizer", content)["target"]
        if not isinstance(target, dict):
            raise TypeError
    except Exception:  # untrusted bytes fail to unpack in many ways
        raise ValueError(f"{path} is no T5X checkpoint: expected msgpack with a `target`") from None
    return target


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in tree.items():
        inside = isinstance(value, dict) and not {"driver", "kvstore"} <= value.keys()
        out |= _flatten(value, f"{prefix}{key}/") if inside else {f"{prefix}{key}": value}
    return out


def _array(folder: Path, name: str, leaf: Any) -> Any:
    """An array of the msgpack file, or the zarr beside it. Its place follows from its name: what
    the file says of drivers and paths is not used."""
    if isinstance(leaf, np.ndarray):
        return leaf
    path = folder / f"target.{name.replace('/', '.')}"
    if not path.is_dir():
        raise ValueError(f"{folder / FILE}: {name} should lie in {path.name}, which is absent")
    for file in (path, *path.rglob("*")):
        check_inside(file)
    spec = {
        "driver": "zarr",
        "kvstore": {"driver": "file", "path": str(path.resolve())},
        "fill_missing_data_reads": False,  # a missing file would read as zeros
    }
    try:
        return ts.open(spec, read=True).result()
    except Exception as error:  # TensorStore raises ValueError with pages of context
        raise ValueError(f"{path} cannot be read: {str(error).splitlines()[0][:200]}") from None
