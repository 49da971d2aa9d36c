"""Five steps of both stages give the same numbers on one device and on eight, however split."""

import functools

import jax
import numpy as np
import pytest

from codet5p_jax.models import CodeT5p
from codet5p_jax.objectives import (
    CodeToText,
    DecoderCLM,
    Seq2SeqCLM,
    SpanDenoising,
    TextCodePairs,
    TextToCode,
)
from codet5p_jax.sharding import MeshConfig, make_mesh
from codet5p_jax.training.batches import place
from codet5p_jax.training.optimizers import AdamW
from codet5p_jax.training.schedules import Linear
from codet5p_jax.training.state import abstract_state, init_state
from codet5p_jax.training.step import make_train_step
from tests.training.synthetic import SPECIAL, tiny_config

STEPS, ROWS, QUEUE = 5, 8, 16
STAGES = {
    "stage 1": (
        SpanDenoising(inputs_length=16, targets_length=8),
        Seq2SeqCLM(inputs_length=16, targets_length=16),
        DecoderCLM(targets_length=16),
    ),
    "stage 2": (
        TextCodePairs(text_length=8, code_length=12, momentum=0.9, queue_size=QUEUE, alpha=0.4),
        TextToCode(inputs_length=8, targets_length=12),
        CodeToText(inputs_length=12, targets_length=8),
    ),
}
FAMILIES = {  # those of gin_configs/meshes
    "data_parallel": MeshConfig(replica=8),
    "fsdp": MeshConfig(fsdp=8),
    "fsdp_tensor": MeshConfig(fsdp=4, tensor=2),
    "fsdp_tensor_sequence": MeshConfig(fsdp=2, sequence=2, tensor=2),
    "multi_slice": MeshConfig(replica=2, fsdp=4),
}


def batch_of(objectives, step):
    """Eight rows of each objective."""
    rng = np.random.default_rng(step)

    def row(objective):
        code = rng.integers(5, 45, rng.integers(8, 14)).astype(np.int32)
        example = {"tokens": code, "word_starts": rng.random(len(code)) < 0.7}
        return objective.features(example | {"text": code[:4], "code": code}, rng, SPECIAL)

    rows = {o.name: [row(o) for _ in range(ROWS)] for o in objectives}
    return {name: {k: np.stack([r[k] for r in x]) for k in x[0]} for name, x in rows.items()}


@functools.cache
def first_state(stage, model):
    """The state before step 0, made on one device."""
    rule = AdamW().make(Linear(1e-3).make(STEPS), model.specs)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    return jax.device_get(init_state(model, STAGES[stage], rule, mesh, seed=0))


@functools.cache
def network(dropout):
    return CodeT5p(tiny_config(embed_dim=8, matching_head=True, dropout=dropout))


@functools.cache
def trained(stage, sizes, devices, dropout):
    """Metrics of each step, and the state after the last, as NumPy arrays."""
    objectives, mesh = STAGES[stage], make_mesh(sizes, jax.devices()[:devices])
    model, learning_rate = network(dropout), Linear(1e-3, warmup_steps=2).make(STEPS)
    rule = AdamW().make(learning_rate, model.specs)
    shardings = jax.tree.map(lambda x: x.sharding, abstract_state(model, objectives, rule, mesh))
    step = make_train_step(
        model, objectives, {}, rule, learning_rate, seed=0, state_shardings=shardings
    )
    state = jax.device_put(first_state(stage, model), shardings)
    metrics = []
    with jax.set_mesh(mesh):
        for number in range(STEPS):
            state, found = step(state, place(batch_of(objectives, number), mesh))
            metrics.append(jax.device_get(found))
    return metrics, jax.device_get(state)


def check(stage, family, dropout):
    expected, one = trained(stage, MeshConfig(), 1, dropout)
    found, eight = trained(stage, FAMILIES[family], 8, dropout)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
    jax.tree.map(close, found, expected)
    jax.tree.map(close, eight.params, one.params)
    jax.tree.map(close, eight.objective_state, one.objective_state)
    if stage == "stage 2":  # rows of all devices, in the order of the batch
        queue = eight.objective_state["text_code_pairs"]["queue"]
        batches = [batch_of(STAGES[stage], n)["text_code_pairs"]["pair_id"] for n in range(STEPS)]
        latest = np.concatenate([batches[4], batches[3]])  # batch 4 took the place of batch 2
        np.testing.assert_array_equal(queue["pair_id"], latest)


@pytest.mark.parametrize(
    ("stage", "family"),
    [
        ("stage 1", "fsdp"),
        ("stage 1", "fsdp_tensor"),
        ("stage 1", "multi_slice"),
        ("stage 2", "data_parallel"),
        ("stage 2", "fsdp_tensor_sequence"),
    ],
)
def test_eight_devices_train_as_one(stage, family):
    check(stage, family, dropout=0.0)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("stage", STAGES)
def test_eight_devices_train_as_one_with_dropout(stage, family):
    check(stage, family, dropout=0.1)
