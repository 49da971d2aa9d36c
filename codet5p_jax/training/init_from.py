"""Starting from the weights of another run; the optimizer and the step count start afresh."""

import dataclasses
import difflib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.typing import DTypeLike

from codet5p_jax.data.tokens import SpecialTokens
from codet5p_jax.interop import hf_config
from codet5p_jax.interop.changed_weights import ResizedVocabulary
from codet5p_jax.interop.differences import differences
from codet5p_jax.interop.token_ids import TokenIds
from codet5p_jax.interop.weights import (
    ForeignWeights,
    Weights,
    hugging_face_folder,
    only_pickled,
    open_hugging_face,
    place,
)
from codet5p_jax.models.configs import ModelConfig
from codet5p_jax.models.int8 import scale_of, scales_of
from codet5p_jax.models.params import Params, ParamSpec, flatten, init_params, logical_axes
from codet5p_jax.sharding import param_shardings
from codet5p_jax.training.checkpoint_files import DRAWN, checkpoint_path, read_meta
from codet5p_jax.training.checkpoints import InitFrom
from codet5p_jax.training.freezing import LORA
from codet5p_jax.training.model_dir import (
    ModelDir,
    check_tokenizer,
    load_config,
    recorded_tokenizer,
)
from codet5p_jax.training.state import compiler_options
from codet5p_jax.training.stored_weights import (
    as_int8,
    described,
    lasting,
    read_params,
    stored_arrays,
)


@dataclass(frozen=True)
class InitPlan:
    """Which parameters of a model come from a checkpoint.

    Attributes:
      path: folder of the checkpoint.
      foreign: where it is a Hugging Face folder, its tensors as our parameters.
      sources: path here -> path in the checkpoint.
      rows: path here -> (rows there, rows here), of those with fewer tokens there.
      fresh: paths of the parameters that are initialised.
    """

    path: Path
    foreign: ForeignWeights | None
    sources: dict[str, str]
    rows: dict[str, tuple[int, int]]
    fresh: tuple[str, ...]

    @property
    def source(self) -> str:
        """As `InitFrom.path`, and absolute."""
        return f"hf:{self.path.resolve()}" if self.foreign else str(self.path.resolve())

    def __str__(self) -> str:
        """What is taken and what is fresh, in one line."""
        fresh = [f"rows {a:,} to {b - 1:,} of {name}" for name, (a, b) in self.rows.items()]
        fresh += self.fresh
        more = f" and {len(fresh) - 12} more" if len(fresh) > 12 else ""
        listed = ", ".join(fresh[:12]) or "nothing"
        return f"{len(self.sources)} arrays from {self.path}; fresh: {listed}{more}"


def folder_of(source: InitFrom) -> Path:
    """The model directory of a checkpoint, or the folder of Hugging Face.

    Raises:
      FileNotFoundError: there is no checkpoint.
    """
    return hugging_face_folder(source.path) or checkpoint_path(Path(source.path)).parents[1]


def network_of(
    path: str,
    *,
    vocab_size: int | None = None,
    embed_dim: int | None = None,
    matching_head: bool | None = None,
    dropout: float | None = None,
    dtype: DTypeLike = jnp.float32,
    attention: Literal["xla", "fused"] = "xla",
    remat: Literal["none", "dots", "full"] = "none",
    scan_layers: bool = True,
    loss_chunk: int = 128,
    loss_chunks: int = 4,
) -> ModelConfig:
    """The network that some weights are of, to go on with them; reads no weights.

    Args:
      path: as `InitFrom.path`; it has to be there whenever the run is started, also to go on.
      vocab_size, embed_dim, matching_head, dropout: as `ModelConfig` has them; None: as there.
      dtype, attention, remat, scan_layers, loss_chunk, loss_chunks: as `ModelConfig` has them. They
        decide how training computes, and not what, and are not taken from there; nor is
        `StackConfig.int8`, which `Trainable` sets.

    Raises:
      FileNotFoundError: there are no weights.
      ValueError: they are of no network that converts, or have no safetensors files.
    """
    source = InitFrom(path)
    try:
        foreign = _foreign(source)
        theirs = foreign.config if foreign else load_config(folder_of(source))
    except FileNotFoundError as error:
        raise FileNotFoundError(
            "the network is that of other weights, which have to be there, for a dry run as well: "
            f"expected them as path (INITIAL_CHECKPOINT_PATH), found {path!r} ({error})"
        ) from error
    given = {
        "vocab_size": vocab_size,
        "embed_dim": embed_dim,
        "matching_head": matching_head,
        "dropout": dropout,
    }
    return dataclasses.replace(
        theirs,
        **{name: value for name, value in given.items() if value is not None},
        encoder=dataclasses.replace(theirs.encoder, int8=False),
        decoder=dataclasses.replace(theirs.decoder, int8=False),
        dtype=dtype,
        attention=attention,
        remat=remat,
        scan_layers=scan_layers,
        loss_chunk=loss_chunk,
        loss_chunks=loss_chunks,
    )


def plan_init(
    source: InitFrom,
    specs: Params,
    tokenizer: Path | None = None,
    model: ModelConfig | None = None,
) -> InitPlan:
    """Which parameter of the checkpoint each parameter of this model takes; reads no weights.

    A checkpoint may have fewer rows per token than this model: the first ones are taken.

    Args:
      source: the checkpoint, and how its names become those of this model.
      specs: of this model.
      tokenizer: folder of the tokenizer that the ids of the data come from; None: not compared
        with that of the weights.
      model: the network that `specs` are of; None: that it computes what theirs does is taken on
        trust.

    Raises:
      FileNotFoundError: there is no checkpoint.
      OSError: it is damaged.
      ValueError: names that match nothing (with the nearest ones), shapes or tokenizers that
        differ.
    """
    foreign = _foreign(source)
    path = foreign.where if foreign else checkpoint_path(Path(source.path))
    stored = foreign.shapes if foreign else {n: x.shape for n, x in stored_arrays(path).items()}
    renamed: dict[str, str] = {}
    for name in stored:
        target = name
        for pattern, replacement in source.rename:
            target = re.sub(pattern, replacement, target)
        if target in renamed:
            raise ValueError(
                f"init_from: {renamed[target]} and {name} are both renamed to {target}; make the "
                "rename rules more specific"
            )
        renamed[target] = name
    scales = scales_of(specs)  # which come with their kernels
    mine: dict[str, ParamSpec] = {n: spec for n, spec in flatten(specs) if n not in scales}
    names: list[str] = []
    sizes: list[str] = []
    rows: dict[str, tuple[int, int]] = {}
    surplus: dict[str, tuple[str, int]] = {}  # path here -> (setting, rows there), if more
    for name, spec in mine.items():
        if name not in renamed:
            if not _matches(name, (*source.new, LORA)):  # additions of zero need no pattern
                names.append(f"{name}: not in the checkpoint{_nearest(name, renamed)}")
            continue
        theirs = stored[renamed[name]]
        numbers = _rows(theirs, spec)
        if numbers is not None and numbers[0] < numbers[1]:
            rows[name] = numbers
        elif theirs != spec.shape:
            sizes.append(f"{name}: shape {theirs} there, {spec.shape} here")
            if numbers is not None:
                own = name == "encoder_embedding"
                surplus[name] = "encoder_vocab_size" if own else "VOCAB_SIZE", numbers[0]
    for name in renamed:
        if name not in mine and not _matches(name, source.unused):
            names.append(f"{name}: not in this model{_nearest(name, mine)}")
    settings = [] if model is None or source.rename else _unlike(model, path, foreign)
    if settings or sizes or names:
        raise ValueError(
            f"init_from {source.path}: the weights do not fit this model:\n  "
            + "\n  ".join([*settings, *sizes, *names])
            + ".\n"  # the command line shows it all in one line
            + "\n".join(_remedies(settings, len(sizes) > len(surplus), surplus.values(), names))
        )
    if tokenizer is not None and foreign:
        check_tokenizer(path, tokenizer)
    elif tokenizer is not None:
        run = ModelDir(path.parents[1])
        check_tokenizer(run.tokenizer, tokenizer, recorded_tokenizer(run))
    sources = {name: renamed[name] for name in mine if name in renamed}
    return InitPlan(
        path, foreign, sources, rows, tuple(name for name in mine if name not in renamed)
    )


def _remedies(
    settings: Sequence[str], sizes: bool, rows: Iterable[tuple[str, int]], names: Sequence[str]
) -> Iterator[str]:
    """What to change, a line for each kind of problem."""
    if settings or sizes:
        fields = [line.partition(":")[0].rpartition(".")[2] for line in settings] or ["the sizes"]
        yield (
            f"Set {', '.join(dict.fromkeys(fields))} of the model as there (in gin, of what "
            "train.train.model names), or take the network from the weights: "
            "--gin_file=models/of_weights.gin."
        )
    for setting, number in dict(rows).items():
        yield f"Set {setting} of the model to {number} or more."
    if names:
        yield (
            "Rename what has no partner (InitFrom.rename), or list it in InitFrom.new (to be "
            "initialised) or InitFrom.unused (to be left behind)."
        )


def _unlike(mine: ModelConfig, path: Path, foreign: ForeignWeights | None) -> list[str]:
    """What the network of the weights computes otherwise in the parts that both have."""
    if foreign is not None:
        theirs = foreign.config
    elif (path.parents[1] / "config.json").is_file():
        theirs = load_config(path.parents[1])
    else:
        return []
    same = ("vocab_size", "encoder_vocab_size", "embed_dim", "matching_head", "pooling", "dropout")
    same += ("prompt_to_decoder", "classes", "classify_pairs")
    towers = {}
    for name in ("encoder", "decoder"):
        stacks = getattr(mine, name), getattr(theirs, name)
        if all(stack.num_layers for stack in stacks):
            towers[name] = dataclasses.replace(stacks[1], lora=stacks[0].lora, int8=stacks[0].int8)
        else:
            towers[name] = stacks[0]
    if not theirs.decoder.num_layers:
        same += ("tie_embeddings", "scale_tied_head", "head_bias")
    theirs = dataclasses.replace(theirs, **towers, **{name: getattr(mine, name) for name in same})
    return [f"{name}: {b!r} there, {a!r} here" for name, a, b in differences(mine, theirs)]


def frozen_as_drawn(plan: InitPlan, frozen: Collection[str]) -> list[str]:
    """Frozen parameters that are, at least in part, initial values, here or in the composed model
    that they come from: nobody has trained them, and this run does not either."""
    drawn = set() if plan.foreign else set(read_meta(plan.path).get(DRAWN, ()))
    taken = {name for name, theirs in plan.sources.items() if theirs not in drawn}
    return sorted(name for name in frozen if name not in taken or name in plan.rows)


def left_out(plan: InitPlan | None, frozen: Collection[str]) -> frozenset[str]:
    """Which parameters `Trainable.save_frozen = False` keeps out of checkpoints: the frozen ones
    that are whole where they come from, and stay there.

    Raises:
      ValueError: none do.
    """
    if plan is None:
        raise ValueError(
            "Trainable.save_frozen = False leaves the frozen parameters where they came from, but "
            "INITIAL_CHECKPOINT_PATH (init_from) names nothing"
        )
    whole = {name for name in frozen if name in plan.sources and name not in plan.rows}
    if plan.foreign is None:
        stay = lasting(plan.path)
        whole = {name for name in whole if plan.sources[name] in stay}
    if not whole:
        raise ValueError(
            f"Trainable.save_frozen = False, but no frozen parameter can be left in {plan.path}: "
            "a run deletes its checkpoints and snapshots as it goes on. Start from an export of it "
            "(codet5p convert export, then hf: and the folder), or set save_frozen = True"
        )
    return frozenset(whole)


def token_ids(plan: InitPlan | None, special: SpecialTokens) -> dict[str, Any]:
    """What a checkpoint keeps of special ids, for what is exported of it: those of the data, and
    where the weights it starts from end a text with several tokens, all of them."""
    ends: Collection[int | None] = ()
    if plan is not None and plan.foreign is not None:
        arch = hf_config.recognise(hf_config.load_config(plan.path), plan.path)
        tokens = TokenIds.read(plan.path, arch)
        ends = (tokens.eos, *tokens.other_eos)
    elif plan is not None and (ids := read_meta(plan.path).get("token_ids")):
        ends = (ids["eos"], *ids.get("other_eos", ()))
    names = ("pad", "bos", "eos", "decoder_start")
    found = {name: getattr(special, name) for name in names}
    return found | {"other_eos": [n for n in ends if n != special.eos] if len(ends) > 1 else []}


def repointed(elsewhere: Mapping[str, Any], source: InitFrom) -> dict[str, Any]:
    """What a checkpoint says of the parameters that it leaves out (`describe_elsewhere`), with
    `source` in place of what is not there any more.

    Raises:
      FileNotFoundError: neither is there.
    """

    def gone(place: str) -> bool:
        return not Path(hugging_face_folder(place) or place).exists()

    missing = {place for place in {kept["source"] for kept in elsewhere.values()} if gone(place)}
    if not missing:
        return dict(elsewhere)
    folder = hugging_face_folder(source.path)
    new = f"hf:{folder.resolve()}" if folder else str(checkpoint_path(Path(source.path)))
    return {
        name: {**kept, "source": new} if kept["source"] in missing else kept
        for name, kept in elsewhere.items()
    }


def load_init(
    plan: InitPlan, specs: Params, mesh: Mesh, *, seed: int
) -> tuple[dict[str, jax.Array], dict[str, Any]]:
    """Weights by path of this model, read straight onto the mesh.

    They are the moving average where that run kept one: what it was evaluated with. Rows that the
    checkpoint lacks are those that `init_state` draws from `seed`.

    Returns:
      (weights, what `describe_elsewhere` wants to know of those that became int8).
    """
    shardings = dict(flatten(param_shardings(logical_axes(specs), specs, mesh)))
    mine = {
        name: jax.ShapeDtypeStruct(spec.shape, spec.dtype, sharding=shardings[name])
        for name, spec in flatten(specs)
    }
    int8 = {n: theirs for n, theirs in plan.sources.items() if mine[n].dtype == jnp.int8}
    others = {n: theirs for n, theirs in plan.sources.items() if n not in int8}
    kernels, originals = _load_int8(plan, int8, mine, mesh)
    loaded = _load_plain(plan, others, mine, mesh)
    if plan.rows:
        loaded |= _with_fresh_rows(plan, loaded, specs, mesh, seed)
    return kernels | loaded, originals


def _load_plain(
    plan: InitPlan,
    sources: Mapping[str, str],
    mine: Mapping[str, jax.ShapeDtypeStruct],
    mesh: Mesh,
) -> dict[str, jax.Array]:
    """What is read in the dtype that it has here."""
    if plan.foreign is not None:
        weights: Weights = plan.foreign
        if plan.rows:  # filled up first, as an array has to have its shape; drawn later
            sizes = {plan.sources[name]: here for name, (_, here) in plan.rows.items()}
            encoder_rows = sizes.pop("encoder_embedding", None)
            rows = next(iter(sizes.values()), plan.foreign.config.vocab_size)
            weights = ResizedVocabulary(plan.foreign, rows, encoder_rows)
        loaded = {
            name: place(weights, theirs, mine[name].dtype, mine[name].sharding)
            for name, theirs in sources.items()
        }
    else:
        wanted = {theirs: mine[name] for name, theirs in sources.items()}
        stored = dict(flatten(read_params(plan.path, wanted, pad=bool(plan.rows))))
        loaded = {name: stored.pop(theirs) for name, theirs in sources.items()}
    _check_finite(loaded, plan.path, mesh)
    return loaded


def _load_int8(
    plan: InitPlan,
    sources: Mapping[str, str],
    mine: Mapping[str, jax.ShapeDtypeStruct],
    mesh: Mesh,
) -> tuple[dict[str, jax.Array], dict[str, Any]]:
    """Kernels in 8 bits and their scales, one kernel after the other: only one at a time is as wide
    as it is in its file. Those that are int8 there are copied."""
    stored = {} if plan.foreign or not sources else stored_arrays(plan.path)
    loaded: dict[str, jax.Array] = {}
    originals: dict[str, Any] = {}
    for name, theirs in sources.items():
        dtype = plan.foreign.dtype(theirs) if plan.foreign else stored[theirs].dtype
        if dtype == jnp.int8:
            pair = {theirs: mine[name], scale_of(theirs): mine[scale_of(name)]}
            found = dict(flatten(read_params(plan.path, pair)))
            loaded |= {name: found[theirs], scale_of(name): found[scale_of(theirs)]}
            continue
        wide = jax.ShapeDtypeStruct(mine[name].shape, dtype, sharding=mine[name].sharding)
        kernel = _load_plain(plan, {name: theirs}, {name: wide}, mesh)[name]
        originals[name] = described(kernel)
        loaded |= as_int8(name, kernel, mine)
        del kernel
    return loaded, originals


def _with_fresh_rows(
    plan: InitPlan, loaded: Mapping[str, jax.Array], specs: Params, mesh: Mesh, seed: int
) -> dict[str, jax.Array]:
    """The arrays of `plan.rows`, whose last rows are drawn."""
    mine: dict[str, ParamSpec] = dict(flatten(specs))

    def with_fresh_rows(padded: dict[str, jax.Array], key: jax.Array) -> dict[str, jax.Array]:
        fresh = init_params({name: mine[name] for name in padded}, key)  # keys come from paths
        out = {}
        for name, array in padded.items():
            axis = mine[name].axes.index("vocab")
            row = jax.lax.broadcasted_iota(jnp.int32, array.shape, axis)
            out[name] = jnp.where(row < plan.rows[name][0], array, fresh[name])
        return out

    fill = jax.jit(
        with_fresh_rows,
        donate_argnums=0,
        out_shardings={name: loaded[name].sharding for name in plan.rows},
        compiler_options=compiler_options(mesh),
    )
    with jax.set_mesh(mesh):
        return fill({name: loaded[name] for name in plan.rows}, jax.random.key(seed))


def _foreign(source: InitFrom) -> ForeignWeights | None:
    folder = hugging_face_folder(source.path)
    if folder is None:
        return None
    if only_pickled(folder):
        raise ValueError(
            f"{folder} has its weights only as a pickle, which training does not read; make a "
            f"model directory of it first: codet5p convert import --allow_pickle --from {folder}"
        )
    return open_hugging_face(folder)


def _check_finite(arrays: dict[str, jax.Array], where: Path, mesh: Mesh) -> None:
    """Fails where weights are NaN or infinite: nothing could be learned from there."""
    count = jax.jit(
        lambda tree: jax.tree.map(lambda x: jnp.sum(~jnp.isfinite(x), dtype=jnp.int32), tree),
        compiler_options=compiler_options(mesh),
    )
    found = {name: int(n) for name, n in jax.device_get(count(arrays)).items() if n}
    if found:
        name = next(iter(found))
        raise ValueError(
            f"init_from {where}: {name} has {found[name]:,} values that are NaN or infinite"
            + (f", and so have {len(found) - 1} more parameters" if len(found) > 1 else "")
        )


def _rows(stored: tuple[int, ...], spec: ParamSpec) -> tuple[int, int] | None:
    """(rows there, rows here) where a stored shape is the same but for its rows per token."""
    if "vocab" not in spec.axes or len(stored) != len(spec.shape):
        return None
    axis = spec.axes.index("vocab")
    same = stored[:axis] + stored[axis + 1 :] == spec.shape[:axis] + spec.shape[axis + 1 :]
    return (stored[axis], spec.shape[axis]) if same else None


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in patterns)


def _nearest(name: str, names: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(name, list(names), n=1)
    return f" (nearest: {near[0]})" if near else ""
