"""T5X checkpoints as its own network and checkpointer lay them out, scanned and not."""

import jax
import numpy as np
import pytest
import tensorstore as ts
from flax.serialization import msgpack_serialize

from codet5p_jax.cli.main import main
from codet5p_jax.interop.t5x import open_t5x
from codet5p_jax.models import CodeT5p, init_params, t5
from codet5p_jax.models.params import flatten
from codet5p_jax.training.conversion import import_weights
from codet5p_jax.training.stored_weights import load_params

D, H, K, F, V = 6, 2, 5, 7, 11


def network(gated):
    config = t5(
        vocab_size=V, d_model=D, num_heads=H, head_dim=K, d_ff=F, num_encoder_layers=3,
        num_decoder_layers=2, gated=gated, activation="gelu_tanh" if gated else "relu",
        tie_embeddings=not gated,
    )  # fmt: skip
    params = init_params(CodeT5p(config).specs, jax.random.key(0))
    return config, {path: np.array(array) for path, array in flatten(params)}


def theirs_of(config, p, split_heads):
    """name -> array in the unscanned layout, written out by hand from t5x/examples/t5/network.py"""
    out = {"token_embedder/embedding": p["embedding"]}
    for tower, cfg in (("encoder", config.encoder), ("decoder", config.decoder)):
        out[f"{tower}/{tower}_norm/scale"] = p[f"{tower}/final_norm/scale"]
        out[f"{tower}/relpos_bias/rel_embedding"] = p[f"{tower}/relative_bias"].T
        for i in range(cfg.num_layers):
            at, mine = f"{tower}/layers_{i}", {
                k.removeprefix(f"{tower}/layers/"): v[i]
                for k, v in p.items()
                if k.startswith(f"{tower}/layers/")
            }  # fmt: skip
            names = {"attention": "self_attention" if cfg.causal else "attention"}
            if cfg.causal:
                names["cross_attention"] = "encoder_decoder_attention"
            for ours, name in names.items():
                for x, full in (("q", "query"), ("k", "key"), ("v", "value")):
                    kernel = mine[f"{ours}/{x}"]
                    kernel = kernel if split_heads else kernel.reshape(D, H * K)
                    out[f"{at}/{name}/{full}/kernel"] = kernel
                kernel = mine[f"{ours}/o"]
                kernel = kernel if split_heads else kernel.reshape(H * K, D)
                out[f"{at}/{name}/out/kernel"] = kernel
                norm = "pre_cross_attention" if ours == "cross_attention" else f"pre_{name}"
                out[f"{at}/{norm}_layer_norm/scale"] = mine[f"{ours}_norm/scale"]
            out[f"{at}/pre_mlp_layer_norm/scale"] = mine["feed_forward_norm/scale"]
            out[f"{at}/mlp/wo/kernel"] = mine["feed_forward/wo"]
            if cfg.gated:
                out[f"{at}/mlp/wi_0/kernel"] = mine["feed_forward/gate"]
                out[f"{at}/mlp/wi_1/kernel"] = mine["feed_forward/wi"]
            else:
                out[f"{at}/mlp/wi/kernel"] = mine["feed_forward/wi"]
    if "lm_head" in p:
        out["decoder/logits_dense/kernel"] = p["lm_head"].T
    return out


def scanned(unscanned, shared_bias):
    """Layers along axis 1; t5x/examples/scalable_t5 keeps a relative bias in each layer."""
    out, layers = {}, {}
    for name, array in unscanned.items():
        tower, second, *rest = name.split("/")
        if second.startswith("layers_"):
            layers.setdefault(f"{tower}/{tower}/{'/'.join(rest)}", []).append(array)
        elif second == "relpos_bias" and not shared_bias:
            number = len({n.split("/")[1] for n in unscanned if n.startswith(f"{tower}/layers_")})
            layers[f"{tower}/{tower}/relpos_bias/rel_embedding"] = [array] * number
        else:
            out[name] = array
    return out | {name: np.stack(arrays, axis=1) for name, arrays in layers.items()}


def write(folder, arrays):
    """Vectors inside the msgpack file, the rest as gzipped zarr, as T5X does by default."""
    folder.mkdir()
    tree = {}
    for name, array in arrays.items():
        *parents, last = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = array
        if array.ndim > 1:
            path = f"target.{name.replace('/', '.')}"
            spec = {
                "driver": "zarr",
                "dtype": "float32",
                "kvstore": {"driver": "file", "path": str(folder / path)},
                "metadata": {"compressor": {"id": "gzip"}, "shape": list(array.shape)},
            }
            ts.open(spec, create=True).result().write(array).result()
            node[last] = {**spec, "kvstore": {"driver": "gfile", "path": "/somewhere/else"}}
    content = {"version": 3, "optimizer": {"target": tree, "state": {"step": np.zeros((), "i4")}}}
    (folder / "checkpoint").write_bytes(msgpack_serialize(content))


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("layout", ["unscanned", "scanned", "scanned, a bias in each layer"])
def test_every_parameter_arrives(tmp_path, gated, layout):
    config, params = network(gated)
    theirs = theirs_of(config, params, split_heads=layout != "unscanned")
    if layout != "unscanned":
        theirs = scanned(theirs, shared_bias=layout == "scanned")
    write(tmp_path / "checkpoint_1000", theirs)
    import_weights(tmp_path / "checkpoint_1000", tmp_path / "run")
    loaded, read_config, _ = load_params(tmp_path / "run")
    assert (read_config.encoder, read_config.decoder) == (config.encoder, config.decoder)
    assert read_config.tie_embeddings == config.tie_embeddings
    found = dict(flatten(loaded))
    assert found.keys() == params.keys()
    for path, array in params.items():
        np.testing.assert_array_equal(found[path], array, err_msg=path)


def test_the_import_is_verified(tmp_path, capsys):
    config, params = network(True)
    write(tmp_path / "c", theirs_of(config, params, split_heads=False))
    import_weights(tmp_path / "c", tmp_path / "run")
    assert main(["convert", "verify", str(tmp_path / "c"), str(tmp_path / "run")]) == 0
    assert "PyTorch reads no T5X checkpoint" in capsys.readouterr().out
    write(tmp_path / "d", theirs_of(config, params | {"embedding": -params["embedding"]}, False))
    assert main(["convert", "verify", str(tmp_path / "d"), str(tmp_path / "run")]) == 1
    assert "DIFFERS  embedding: sha256" in capsys.readouterr().out


def test_layers_with_biases_of_their_own_are_no_t5(tmp_path):
    config, params = network(False)
    theirs = scanned(theirs_of(config, params, split_heads=True), shared_bias=False)
    theirs["decoder/decoder/relpos_bias/rel_embedding"][0, 1, 0] += 1
    write(tmp_path / "c", theirs)
    with pytest.raises(ValueError, match="the layers of the decoder have relative biases of their"):
        open_t5x(tmp_path / "c")


def test_what_is_damaged_is_named(tmp_path):
    config, params = network(False)
    theirs = theirs_of(config, params, split_heads=False)
    write(tmp_path / "c", theirs)
    path = tmp_path / "c/target.token_embedder.embedding"
    path.rename(tmp_path / "away")
    with pytest.raises(ValueError, match=r"token_embedder/embedding should lie in target\.token_"):
        open_t5x(tmp_path / "c")
    (tmp_path / "c/checkpoint").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="is no T5X checkpoint: expected msgpack"):
        open_t5x(tmp_path / "c")
    del theirs["decoder/layers_1/mlp/wo/kernel"]
    write(tmp_path / "d", theirs)
    with pytest.raises(ValueError, match="decoder/layers_1/mlp/wo/kernel is missing"):
        open_t5x(tmp_path / "d")


def test_what_is_unexpected_is_named(tmp_path):
    config, params = network(False)
    theirs = theirs_of(config, params, split_heads=False)
    write(tmp_path / "c", theirs | {"extra": np.zeros((2, 3), np.float32)})
    with pytest.raises(ValueError, match="extra in checkpoint is unexpected"):
        open_t5x(tmp_path / "c")
    name = "decoder/layers_0/mlp/wo/kernel"
    write(tmp_path / "d", theirs | {name: np.zeros((0, 2, 0), np.float32)})
    with pytest.raises(ValueError, match=rf"{name} has shape \(0, 0\)"):
        open_t5x(tmp_path / "d")
    both = scanned(theirs_of(config, params, split_heads=True), shared_bias=True)
    write(tmp_path / "both", both | {name: np.zeros((24, 16), np.float32)})
    with pytest.raises(ValueError, match=rf"are both {name}; expected layers that are scanned"):
        open_t5x(tmp_path / "both")
    write(tmp_path / "e", theirs)
    folder = tmp_path / "e/target.token_embedder.embedding"
    folder.rename(tmp_path / "away")
    folder.symlink_to(tmp_path / "away")
    with pytest.raises(ValueError, match=r"embedding is a link out of the folder, to .*away"):
        open_t5x(tmp_path / "e")


def test_a_dtype_that_weights_do_not_have_is_named(tmp_path):
    config, params = network(False)
    theirs = theirs_of(config, params, split_heads=False)
    name = "encoder/encoder_norm/scale"
    write(tmp_path / "c", theirs | {name: theirs[name].astype(np.int32)})
    weights = open_t5x(tmp_path / "c")
    with pytest.raises(ValueError, match=f"{name} is of dtype int32; expected one of float32"):
        weights.dtype("encoder/final_norm/scale")


def test_a_missing_chunk_is_no_zeros(tmp_path):
    config, params = network(False)
    write(tmp_path / "c", theirs_of(config, params, split_heads=False))
    (tmp_path / "c/target.token_embedder.embedding/0.0").unlink()
    weights = open_t5x(tmp_path / "c")
    with pytest.raises(ValueError, match="token_embedder/embedding cannot be read; a file of it"):
        weights.read("embedding")


def test_a_network_without_heads_is_none(tmp_path):
    config, params = network(False)
    theirs = theirs_of(config, params, split_heads=False)
    theirs["encoder/relpos_bias/rel_embedding"] = np.zeros((0, 32), np.float32)
    write(tmp_path / "c", theirs)
    with pytest.raises(ValueError, match="expected an encoder and a decoder with heads, found 3"):
        open_t5x(tmp_path / "c")
