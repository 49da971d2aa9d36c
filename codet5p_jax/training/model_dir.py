"""What a model directory holds, and how a model configuration is written as JSON.

MODEL_DIR/
  config.json             the ModelConfig
  run.json                what decides the course of the run: seed, tokenizer, phases, objectives
  tokenizer/              tokenizer.json and the roles of its special tokens
  encoder_tokenizer/      that of the encoder, where encoder and decoder have one each
  checkpoints/<step>/     weights, optimizer and data position
  snapshots/<step>/       weights alone, if asked for
  best/<step>/            the weights of the best evaluation, if asked for
  operative_config.gin    the configuration of the latest start
  metrics.jsonl           one record per line
  tensorboard/            if asked for
  profile/                traces, if asked for
  damaged/<step>/         checkpoints that could not be read, moved out of the way
  lock                    empty; locked by the process that trains
"""

import dataclasses
import difflib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from codet5p_jax.files import lock, write_text
from codet5p_jax.interop import tokenizer_files
from codet5p_jax.models.configs import Lora, ModelConfig, StackConfig


@dataclasses.dataclass(frozen=True)
class ModelDir:
    """The paths inside a model directory."""

    root: Path

    @property
    def config(self) -> Path:
        """The ModelConfig as JSON."""
        return self.root / "config.json"

    @property
    def run(self) -> Path:
        """What decides the course of the run."""
        return self.root / "run.json"

    @property
    def tokenizer(self) -> Path:
        """Folder of tokenizer files."""
        return self.root / "tokenizer"

    @property
    def encoder_tokenizer(self) -> Path:
        """Folder of tokenizer files of an encoder that came with its own; it may be missing."""
        return self.root / tokenizer_files.ENCODER

    @property
    def checkpoints(self) -> Path:
        """Folder of checkpoints."""
        return self.root / "checkpoints"

    @property
    def snapshots(self) -> Path:
        """Folder of snapshots of weights alone."""
        return self.root / "snapshots"

    @property
    def best(self) -> Path:
        """Folder of the weights of the best evaluation."""
        return self.root / "best"

    @property
    def operative_config(self) -> Path:
        """The configuration as text."""
        return self.root / "operative_config.gin"

    @property
    def metrics(self) -> Path:
        """Records, one JSON object per line."""
        return self.root / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        """TensorBoard's event files."""
        return self.root / "tensorboard"

    @property
    def profile(self) -> Path:
        """Traces of steps."""
        return self.root / "profile"

    @property
    def damaged(self) -> Path:
        """Checkpoints that could not be read."""
        return self.root / "damaged"

    @property
    def lock(self) -> Path:
        """Locked by the process that trains."""
        return self.root / "lock"


def config_to_json(config: ModelConfig) -> dict[str, Any]:
    """A ModelConfig as plain JSON values; `dtype` as its name.

    >>> config_to_json(config)["dtype"]
    'bfloat16'
    """
    out = dataclasses.asdict(config)
    out["dtype"] = jnp.dtype(config.dtype).name
    return json.loads(json.dumps(out))  # tuples become lists here rather than in the file


def config_from_json(values: Mapping[str, Any]) -> ModelConfig:
    """The ModelConfig written by `config_to_json`.

    Raises:
      ValueError: a field this version does not know; names the nearest one.
    """
    values = dict(values)
    for tower in ("encoder", "decoder"):
        stack = dict(values[tower])
        if isinstance(stack.get("cross_attention"), list):
            stack["cross_attention"] = tuple(stack["cross_attention"])
        if stack.get("lora") is not None:
            lora = dict(stack["lora"])
            _check_fields(Lora, lora, f"{tower}.lora")
            stack["lora"] = Lora(**{**lora, "targets": tuple(lora["targets"])})
        _check_fields(StackConfig, stack, tower)
        values[tower] = StackConfig(**stack)
    _check_fields(ModelConfig, values, "config.json")
    values["dtype"] = getattr(jnp, values["dtype"])
    return ModelConfig(**values)


def load_config(model_dir: Path) -> ModelConfig:
    """The ModelConfig of a model directory.

    Raises:
      FileNotFoundError, ValueError: it is not a model directory.
    """
    path = ModelDir(model_dir).config
    if not path.is_file():
        raise FileNotFoundError(
            f"{model_dir} is not a model directory: it has no config.json; set MODEL_DIR to the "
            "folder that training wrote"
        )
    values = json.loads(path.read_text(encoding="utf-8"))
    if "model_type" in values:
        raise ValueError(
            f"{model_dir} is not a model directory: its config.json is Hugging Face's. Write "
            f"hf:{model_dir} where that is taken, or make a model directory of it: codet5p convert "
            f"import --from {model_dir}"
        )
    return config_from_json(values)


@contextmanager
def locked(directory: ModelDir) -> Iterator[None]:
    """Keeps other processes from training in the directory, which is made if missing.

    Raises:
      OSError: another process trains in it, or it cannot be written.
    """
    with _writing(directory):
        directory.root.mkdir(parents=True, exist_ok=True)
        file = directory.lock.open("a")
    with file:
        lock(
            file,
            f"another process is training in MODEL_DIR {directory.root}; wait until it has ended, "
            "or set MODEL_DIR to another folder. If none is, a machine that vanished has left its "
            f"lock on a network file system: remove {directory.lock}",
        )
        yield


def claim(
    directory: ModelDir,
    config: ModelConfig,
    run: Mapping[str, Any],
    operative_config: str,
    tokenizer: Path | None,
    run_defaults: Mapping[str, Any] | None = None,
    encoder_tokenizer: Path | None = None,
) -> None:
    """Makes the directory this run's, or checks that it already is.

    Args:
      directory: made if missing.
      config: compared with what `config.json` means to this version.
      run: JSON values compared with `run.json`.
      operative_config: written as it is.
      tokenizer: folder or file copied to `tokenizer/` unless that exists.
      run_defaults: what an older `run.json` means by leaving a value out.
      encoder_tokenizer: folder copied to `encoder_tokenizer/` unless that exists.

    Raises:
      ValueError: the directory belongs to another run; names what differs.
      OSError: the directory cannot be written.
    """
    for path, mine in ((directory.config, config_to_json(config)), (directory.run, dict(run))):
        if path.exists():
            theirs = json.loads(path.read_text(encoding="utf-8"))
            if path == directory.config:  # fields that are new since then get their defaults
                theirs = config_to_json(config_from_json(theirs))
            else:
                theirs = _completed(theirs, run_defaults or {})
            differing = differences(theirs, mine)
            if differing:
                raise ValueError(
                    f"{directory.root} belongs to another run: {path.name} differs in "
                    f"{'; '.join(differing[:5])}. Set MODEL_DIR to a new folder, and "
                    "INITIAL_CHECKPOINT_PATH to this one to start from its weights"
                )
    with _writing(directory):
        directory.root.mkdir(parents=True, exist_ok=True)
        write_text(directory.config, json.dumps(config_to_json(config), indent=2) + "\n")
        write_text(directory.run, json.dumps(run, indent=2) + "\n")
        write_text(directory.operative_config, operative_config)
        for source, target in (
            (tokenizer, directory.tokenizer),
            (encoder_tokenizer, directory.encoder_tokenizer),
        ):
            if source is not None and not target.exists():
                _copy(source, target)


def check_tokenizer(theirs: Path, tokenizer: Path, digest: str | None = None) -> None:
    """Checks that ids mean to some weights what they mean in the data, as `same_tokenizer` does.

    Raises:
      ValueError: they differ; names both folders.
    """
    if not same_tokenizer(theirs, tokenizer, digest):
        raise ValueError(
            f"the tokenizer of the weights, {theirs}, is not that of the data, "
            f"{tokenizer}: their ids mean other text. Prepare the data with --tokenizer="
            f"{theirs}, or set INITIAL_CHECKPOINT_PATH to weights of this tokenizer"
        )


def encoder_tokenizer(directory: ModelDir, weights: Path | None, tokenizer: Path) -> Path | None:
    """Folder of the encoder's tokenizer, where that is another than the data's; else None.

    Args:
      directory: of the run.
      weights: folder that the run starts from: a model directory, or one of Hugging Face.
      tokenizer: folder of the data's tokenizer in a token cache.
    """
    for root in (directory.root, weights):
        if root is not None and ModelDir(root).encoder_tokenizer.is_dir():
            own = ModelDir(root).encoder_tokenizer
            return None if same_tokenizer(own, tokenizer) else own
    return None


def same_tokenizer(theirs: Path, tokenizer: Path, digest: str | None = None) -> bool:
    """Whether ids mean the same text.

    Of two byte-level tokenizers one may have `[ENC]`, `[TDEC]` and `[CDEC]` besides: they are
    appended, and change no other id. Of other kinds only the digest that a run recorded tells, or
    without a run whether SentencePiece models are the same file. Where there is nothing to compare,
    they pass as the same.

    Args:
      theirs: folder with the tokenizer of some weights; a folder without one is not judged.
      tokenizer: folder of the data's tokenizer in a token cache, named after its digest.
      digest: of the tokenizer that a run recorded; None: there was no run.
    """
    if digest == tokenizer.name or not theirs.is_dir():
        return True
    if digest is None and not _has_tokenizer(theirs):
        return True
    from codet5p_jax.data.tokenizer import Tokenizer  # most runs need no tokenizer

    def load(folder: Path, roles: Any = None) -> Tokenizer | None:
        own = None if (folder / "roles.json").is_file() else roles
        try:
            return Tokenizer.load(folder, own)
        except (OSError, ValueError, KeyError, TypeError):  # of another kind
            return None

    mine = load(tokenizer)
    other = load(theirs, mine and mine.roles)
    if mine and other:
        return other.with_prefixes().fingerprint == mine.with_prefixes().fingerprint
    if mine or other:
        return False
    models = [[f.read_bytes() for f in folder.glob("*.model")] for folder in (theirs, tokenizer)]
    return digest is None and (not all(models) or models[0] == models[1])


def require_space(
    directory: ModelDir,
    checkpoint_bytes: int,
    number: int,
    snapshot_bytes: int = 0,
    snapshots: int = 0,
    best_bytes: int = 0,
) -> None:
    """Fails if the disk has no room for `number` checkpoints, some snapshots, and the weights of
    the best evaluation besides those that they take the place of.

    Raises:
      OSError: with the sizes.
    """
    free = shutil.disk_usage(directory.root).free
    if free < number * checkpoint_bytes + snapshots * snapshot_bytes + 2 * best_bytes:
        more = f" and {snapshots} snapshots of {size_text(snapshot_bytes)}" if snapshots else ""
        more += f" and twice the best weights of {size_text(best_bytes)}" if best_bytes else ""
        raise OSError(
            f"{directory.root} has {size_text(free)} free; {number} checkpoints of "
            f"{size_text(checkpoint_bytes)}{more} are to be written. Free some space, set "
            "MODEL_DIR to another disk, or keep fewer of them"
        )


def differences(theirs: Any, mine: Any, path: str = "") -> list[str]:
    """Where two JSON values differ, as `path: theirs, now mine`.

    >>> differences({"a": {"b": 1}}, {"a": {"b": 2}})
    ['a.b: 1, now 2']
    """
    if isinstance(theirs, Mapping) and isinstance(mine, Mapping):
        found = []
        for name in dict.fromkeys([*theirs, *mine]):
            inner = f"{path}.{name}" if path else str(name)
            found += differences(theirs.get(name), mine.get(name), inner)
        return found
    return [] if theirs == mine else [f"{path}: {theirs!r}, now {mine!r}"]


def size_text(number: int | float) -> str:
    """`1.23 GB`, or MB below a tenth of that."""
    return f"{number / 1e9:.2f} GB" if number >= 1e8 else f"{number / 1e6:.2f} MB"


@contextmanager
def _writing(directory: ModelDir) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        raise OSError(
            f"cannot write to MODEL_DIR {directory.root}: {e.strerror or e}; set MODEL_DIR to a "
            "folder that is writable and has room"
        ) from e


def _completed(values: Any, defaults: Any) -> Any:
    """`values`, with what they lack, at any depth, from `defaults`."""
    if not (isinstance(values, Mapping) and isinstance(defaults, Mapping)):
        return values
    inner = {name: _completed(values[name], defaults.get(name)) for name in values}
    return {**defaults, **inner}


def recorded_tokenizer(directory: ModelDir) -> str | None:
    """Digest of the tokenizer that a run was trained with; None where none is recorded."""
    if not directory.run.is_file():
        return None
    return json.loads(directory.run.read_text(encoding="utf-8")).get("tokenizer")


def _has_tokenizer(folder: Path) -> bool:
    names = ("tokenizer.json", "vocab.json", "*.model")
    return any(True for name in names for _ in folder.glob(name))


def _check_fields(cls: type, values: Mapping[str, Any], where: str) -> None:
    known = [f.name for f in dataclasses.fields(cls)]
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{where}: {cls.__name__} has no field {name!r}{hint}")


def _copy(source: Path, target: Path) -> None:
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    if source.is_dir():
        shutil.copytree(source, partial)
    else:
        partial.mkdir()
        shutil.copy2(source, partial / source.name)
    os.replace(partial, target)
