"""Every optimizer against its formula in NumPy, and against itself on layers kept apart."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from codet5p_jax.models import CodeT5p
from codet5p_jax.models.params import ParamSpec, flatten, normal
from codet5p_jax.training.optimizers import Adafactor, AdamW, Muon, RmsScaledAdamW, WithRates
from codet5p_jax.training.parameter_roles import decays, is_hidden_matrix, matrix_axes
from codet5p_jax.training.schedules import Linear
from tests.training.synthetic import tiny_config

LAYERS = 3
SPECS = {
    "q": ParamSpec((LAYERS, 4, 2, 3), ("layers", "embed", "heads", "head_dim"), normal(1.0)),
    "o": ParamSpec((LAYERS, 2, 3, 4), ("layers", "heads", "head_dim", "embed"), normal(1.0)),
    "scale": ParamSpec((LAYERS, 4), ("layers", "norm"), normal(1.0)),
    "embedding": ParamSpec((7, 4), ("vocab", "embed"), normal(1.0)),
    "positions": ParamSpec((6, 4), ("positions", "embed"), normal(1.0)),
    "table": ParamSpec((5, 2), ("buckets", "heads"), normal(1.0)),
}
ALL = [
    AdamW(clip_norm=None),
    Adafactor(min_size_to_factor=2),
    Adafactor(),
    RmsScaledAdamW(weight_decay=0.1, clip_norm=None),
    Muon(clip_norm=None),
]
MATRICES = ("q", "o", "embedding", "positions")  # the table holds biases
SCHEDULE = Linear(0.1).make(10)


def draw(specs, seed):
    rng = np.random.default_rng(seed)
    return {k: jnp.asarray(rng.normal(size=s.shape), jnp.float32) for k, s in specs.items()}


def run(optimizer, specs, params, gradients):
    """Parameters after each of the gradients."""
    rule = optimizer.make(SCHEDULE, specs)

    @jax.jit
    def step(params, state, gradient):
        updates, state = rule.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    state = rule.init(params)
    for gradient in gradients:
        params, state = step(params, state, gradient)
    return params


@pytest.mark.parametrize("optimizer", ALL, ids=lambda o: type(o).__name__)
def test_a_stack_of_layers_is_as_many_parameters(optimizer):
    """One array [L, ...] is updated as L arrays would be."""
    params, gradients = draw(SPECS, 0), [draw(SPECS, i) for i in (1, 2)]

    def apart(tree):
        out = {}
        for name, value in tree.items():
            if "layers" not in SPECS[name].axes:
                out[name] = value
                continue
            for layer in range(LAYERS):
                out[f"{name}{layer}"] = value[layer]
        return out

    specs_apart = {
        key: ParamSpec(value.shape, SPECS[key.rstrip("012")].axes[-value.ndim :], normal(1.0))
        for key, value in apart(params).items()
    }
    stacked = apart(run(optimizer, SPECS, params, gradients))
    separate = run(optimizer, specs_apart, apart(params), [apart(g) for g in gradients])
    for name in separate:
        np.testing.assert_allclose(stacked[name], separate[name], rtol=2e-5, atol=2e-6)


def adam_direction(gradients, b1, b2, eps):
    m = v = 0.0
    for t, g in enumerate(gradients, 1):
        g = np.asarray(g, np.float64)
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        yield (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)


def test_adamw_is_the_textbook_formula_and_decays_matrices_only():
    params, gradients = draw(SPECS, 0), [draw(SPECS, i) for i in (1, 2, 3)]
    # 1 - 0.999^t would leave four digits of single precision to compare.
    result = run(AdamW(weight_decay=0.3, b2=0.9, clip_norm=None), SPECS, params, gradients)
    for name in SPECS:
        p = np.asarray(params[name], np.float64)
        decay = 0.3 if name in MATRICES else 0.0
        directions = adam_direction([g[name] for g in gradients], 0.9, 0.9, 1e-8)
        for t, direction in enumerate(directions):
            p -= float(SCHEDULE(t)) * (direction + decay * p)
        np.testing.assert_allclose(result[name], p, rtol=1e-5, atol=1e-6)


def test_adamw_agrees_with_torch():
    torch = pytest.importorskip("torch")
    params, gradients = draw(SPECS, 0), [draw(SPECS, i) for i in (1, 2, 3)]
    result = run(AdamW(clip_norm=1.0), SPECS, params, gradients)
    theirs = {k: torch.nn.Parameter(torch.tensor(np.array(v))) for k, v in params.items()}
    groups = [
        {"params": [theirs[k] for k in MATRICES], "weight_decay": 0.1},
        {"params": [theirs[k] for k in ("scale", "table")], "weight_decay": 0.0},
    ]
    adam = torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=1e-8)
    for t, gradient in enumerate(gradients):
        for name, p in theirs.items():
            p.grad = torch.tensor(np.array(gradient[name]))
        torch.nn.utils.clip_grad_norm_(list(theirs.values()), 1.0)
        for group in adam.param_groups:
            group["lr"] = float(SCHEDULE(t))
        adam.step()
    for name, p in theirs.items():
        np.testing.assert_allclose(result[name], p.detach().numpy(), rtol=2e-5, atol=2e-6)


def test_rms_scaled_adamw_scales_by_the_parameter_then_decays():
    params, gradients = draw(SPECS, 0), [draw(SPECS, i) for i in (1, 2)]
    optimizer = RmsScaledAdamW(weight_decay=0.2, b2=0.9, clip_norm=None)
    result = run(optimizer, SPECS, params, gradients)
    p = np.asarray(params["embedding"], np.float64)
    directions = adam_direction([g["embedding"] for g in gradients], 0.9, 0.9, 1e-6)
    for t, direction in enumerate(directions):
        rms = max(1e-3, np.sqrt(np.mean(p * p)))
        p = p - float(SCHEDULE(t)) * (rms * direction + 0.2 * p)
    np.testing.assert_allclose(result["embedding"], p, rtol=1e-5, atol=1e-6)


def test_adafactor_is_the_papers_algorithm():
    """Algorithms 4 and 5 of Shazeer and Stern, on one projection of each layer as a matrix."""
    params, gradients = draw(SPECS, 0), [draw(SPECS, i) for i in (1, 2, 3)]
    result = run(Adafactor(min_size_to_factor=2), SPECS, params, gradients)
    for layer in range(LAYERS):
        x = np.asarray(params["q"][layer], np.float64).reshape(4, 6)
        rows, columns = np.zeros(4), np.zeros(6)
        for t, gradient in enumerate(gradients, 1):
            g = np.asarray(gradient["q"][layer], np.float64).reshape(4, 6)
            b2 = 1 - t**-0.8
            rows = b2 * rows + (1 - b2) * np.mean(g * g + 1e-30, axis=1)
            columns = b2 * columns + (1 - b2) * np.mean(g * g + 1e-30, axis=0)
            u = g / np.sqrt(np.outer(rows, columns) / rows.mean())
            u /= max(1.0, np.sqrt(np.mean(u * u)))
            alpha = max(1e-3, np.sqrt(np.mean(x * x))) * float(SCHEDULE(t - 1))
            x -= alpha * u
        np.testing.assert_allclose(result["q"][layer].reshape(4, 6), x, rtol=2e-5, atol=2e-6)


def test_muon_orthogonalises_each_layer_and_leaves_the_rest_to_adam():
    params, gradients = draw(SPECS, 0), [draw(SPECS, 1)]
    muon = run(Muon(clip_norm=None, weight_decay=0.0), SPECS, params, gradients)
    adam = run(AdamW(clip_norm=None, weight_decay=0.0), SPECS, params, gradients)
    for name in ("scale", "embedding", "positions", "table"):
        np.testing.assert_allclose(muon[name], adam[name], rtol=1e-6)
    for layer in range(LAYERS):
        update = np.asarray(params["q"][layer] - muon["q"][layer]).reshape(4, 6)
        # Five Newton-Schulz steps bring singular values near one, rms scaling makes them 0.2·√6.
        singular = np.linalg.svd(update, compute_uv=False) / (0.1 * 0.2 * np.sqrt(6))
        assert np.all((singular > 0.6) & (singular < 1.3)), singular
        # The first momentum is the gradient itself: same singular vectors.
        u, _, vt = np.linalg.svd(np.asarray(gradients[0]["q"][layer]).reshape(4, 6))
        rotated = u.T @ update @ vt[:4].T
        np.testing.assert_allclose(rotated, np.diag(np.diag(rotated)), atol=1e-5)


def test_rates_multiply_the_updates_of_what_they_match_and_the_first_match_holds():
    params, gradient = draw(SPECS, 0), draw(SPECS, 1)
    rates = (("embedding", 4.0), ("[qo]", 0.5), ("o", 3.0))
    plain = run(AdamW(), SPECS, params, [gradient])
    scaled = run(WithRates(AdamW(), rates), SPECS, params, [gradient])
    for name, factor in {"embedding": 4.0, "q": 0.5, "o": 0.5, "scale": 1.0, "table": 1.0}.items():
        step = plain[name] - params[name]
        np.testing.assert_allclose(scaled[name], params[name] + factor * step, rtol=1e-5)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("embeding", "'embeding' matches no parameter; the nearest is 'embedding'"),
        ("stac/.*", r"'stac/\.\*' matches no parameter; the nearest is 'stack/\.\*'"),
        ("(", "no regular expression"),
    ],
)
def test_a_rate_for_nothing_is_an_error(pattern, message):
    with pytest.raises(ValueError, match=message):
        WithRates(AdamW(), ((pattern, 2.0),)).make(SCHEDULE, {**SPECS, "stack": SPECS})


@pytest.mark.parametrize(
    ("optimizer", "wrong", "message"),
    [
        (AdamW, {"b1": 7.0}, "b1 has to be at least 0 and below 1, found 7.0"),
        (Muon, {"momentum": 1.0}, "momentum has to be"),
        (Adafactor, {"clip_norm": 0.0}, "clip_norm has to be above 0, or None"),
        (RmsScaledAdamW, {"weight_decay": -1.0}, "weight_decay has to be 0 or more"),
        (WithRates, {"optimizer": AdamW(), "rates": ()}, "at least one parameter"),
        (WithRates, {"optimizer": AdamW(), "rates": (("q", -1.0),)}, "factor of 0 or more"),
    ],
)
def test_values_that_cannot_work_are_refused(optimizer, wrong, message):
    with pytest.raises(ValueError, match=message):
        optimizer(**wrong)


def test_the_global_norm_is_clipped_over_all_parameters():
    gradients = draw(SPECS, 1)
    rule = AdamW(clip_norm=1e-3).make(SCHEDULE, SPECS)
    params = draw(SPECS, 0)
    _, state = jax.jit(rule.update)(gradients, rule.init(params), params)
    moments = optax.tree.get(state, "mu")
    assert float(optax.tree.norm(moments)) == pytest.approx(0.1 * 1e-3, rel=1e-4)


def test_roles_of_the_real_networks_parameters():
    specs = CodeT5p(tiny_config(embed_dim=8, matching_head=True)).specs
    found = dict(flatten(specs))
    undecayed = {n for n, s in found.items() if not decays(s)}
    assert {n.rsplit("/", 1)[-1] for n in undecayed} == {
        *("scale", "bias", "relative_bias", "log_temperature")
    }
    adam = {n for n, s in found.items() if not is_hidden_matrix(s)} - undecayed
    assert adam == {"embedding", "projection/kernel", "matching_head/kernel"}
    assert matrix_axes(found["decoder/layers/cross_attention/o"]) == ((1, 2), (3,))


def test_learned_positions_are_an_embedding():
    """One vector a position, of which a sequence reads few: Muon's orthogonal updates are not for
    them, weight decay is."""
    config = tiny_config()
    learned = {"position": "learned", "max_positions": 16}
    towers = {t: dataclasses.replace(getattr(config, t), **learned) for t in ("encoder", "decoder")}
    specs = dict(flatten(CodeT5p(dataclasses.replace(config, **towers)).specs))
    for name in ("encoder/positions", "decoder/positions", "embedding"):
        assert not is_hidden_matrix(specs[name]), name
        assert decays(specs[name]), name
