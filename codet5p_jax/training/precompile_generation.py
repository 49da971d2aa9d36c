"""Generation compiled for TPUs that are not there, as `precompile` compiles the training step."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from codet5p_jax.data.tokens import SpecialTokens
from codet5p_jax.decoding.generate import compiled
from codet5p_jax.decoding.sampling import Sampling
from codet5p_jax.models.codet5p import CodeT5p
from codet5p_jax.models.configs import ModelConfig
from codet5p_jax.models.params import Params, abstract_params, logical_axes
from codet5p_jax.sharding import MeshConfig, batch_sharding, make_mesh, param_shardings, replicated
from codet5p_jax.training.flops import count_flops
from codet5p_jax.training.freezing import Trainable, freeze, frozen_towers
from codet5p_jax.training.precompile import (
    PhaseReport,
    Report,
    compile_for,
    measure,
    report_of,
    topology_devices,
)

# Which ids they are makes no difference to what is computed.
SPECIAL = SpecialTokens(pad=0, bos=1, eos=2, unk=3, sentinels=(), decoder_start=0)


@dataclasses.dataclass(frozen=True)
class Generation:
    """What is generated at a time.

    Attributes:
      rows: prompts, over all devices.
      inputs_length: tokens of a prompt, padding included.
      outputs_length: tokens written for each at most; a report counts all of them.
    """

    rows: int
    inputs_length: int
    outputs_length: int

    @classmethod
    def parse(cls, text: str) -> "Generation":
        """From `64x512x128`.

        Raises:
          ValueError: it is not of that form.
        """
        numbers = [int(n) if n.isdecimal() else 0 for n in text.split("x")]
        if len(numbers) != 3 or min(numbers) < 1:
            raise ValueError(
                f"expected ROWSxINPUTSxOUTPUTS such as 64x512x128, found {text!r} (--generate)"
            )
        return cls(*numbers)


def precompile_generation(
    *,
    topology: str,
    model: ModelConfig,
    generation: Generation,
    mesh: MeshConfig = MeshConfig(),  # noqa: B008
    trainable: Trainable | None = None,
    num_slices: int = 1,
) -> Report:
    """Compiles greedy generation. Allocates nothing on the topology.

    Raises:
      ValueError: there is no such topology, the model has no encoder or no decoder, or parameters,
        rows or the mesh do not divide over it.
      ImportError: libtpu is not installed.
    """
    if not (model.encoder.num_layers and model.decoder.num_layers):
        raise ValueError(
            "generation from prompts needs an encoder and a decoder; one has no layers"
        )
    chip, devices = topology_devices(topology, num_slices)
    device_mesh = make_mesh(mesh, devices)
    rows, inputs = generation.rows, generation.inputs_length
    ways = device_mesh.shape["replica"] * device_mesh.shape["fsdp"]
    if rows % ways:
        raise ValueError(
            f"{rows} prompts do not divide over {ways} data-parallel devices; change the first "
            "number of --generate, or the mesh"
        )
    network, split = freeze(CodeT5p(frozen_towers(model, trainable)), trainable)
    prefix = inputs if model.prompt_to_decoder else 0
    length = generation.outputs_length
    by_rows = batch_sharding(device_mesh)
    shardings = param_shardings(
        logical_axes(network.specs), abstract_params(network.specs), device_mesh
    )
    params = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        abstract_params(network.specs),
        shardings,
    )

    def tokens(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.int32, sharding=by_rows)

    batch = (tokens(rows, inputs), tokens(rows, inputs), tokens(rows, prefix), tokens(rows))
    key = jax.eval_shape(lambda: jax.random.key(0))
    key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=replicated(device_mesh))
    wanted = _flops(network, params, generation, prefix) / len(devices)
    run = compiled(network, SPECIAL, Sampling(max_length=length, min_length=length))
    program, seconds = compile_for(functools.partial(run.lower, params, *batch, key), device_mesh)
    memory, speed, advice = measure(
        program, chip, {"params": params}, batch, wanted, trips=length,
        advice=("batch: fewer rows at a time", "mesh: more chips, or tensor"),
    )  # fmt: skip
    phase = PhaseReport(
        "generation", {"prompts": rows}, seconds, speed is not None, memory, advice, speed
    )
    return report_of(topology, num_slices, chip, device_mesh, network, split, [phase])


def _flops(network: CodeT5p, params: Params, generation: Generation, prefix: int) -> float:
    """Of the encoder, of a prefix through the decoder, and of the steps of the decoder, each
    against a cache of full length."""
    rows, inputs, length = generation.rows, generation.inputs_length, generation.outputs_length

    def start(params: Params, tokens: jax.Array, given: jax.Array) -> dict[str, jax.Array]:
        bound = network.bind(params)
        read = given if prefix else None
        return bound.init_cache(
            bound.encode(tokens, tokens), tokens, length, prefix_BP=read, prefix_segments_BP=read
        )

    def step(params: Params, tokens: jax.Array, cache: dict[str, jax.Array]) -> jax.Array:
        bound = network.bind(params)
        return bound.logits(bound.decode_step(tokens, cache)[0])

    params = abstract_params(network.specs)
    prompts, given, last = (jax.ShapeDtypeStruct((rows, n), jnp.int32) for n in (inputs, prefix, 1))
    cache = jax.eval_shape(start, params, prompts, given)
    first = count_flops(jax.make_jaxpr(start)(params, prompts, given).jaxpr)
    each = count_flops(jax.make_jaxpr(step)(params, last, cache).jaxpr)
    return first + length * each
