"""One of two processes that save checkpoints and snapshots of one state.

python -m tests.training.two_processes PROCESS PORT MODEL_DIR
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from codet5p_jax.sharding import MeshConfig, make_mesh
from codet5p_jax.training.checkpoints import CheckpointPolicy, Checkpoints, SnapshotPolicy
from codet5p_jax.training.model_dir import ModelDir
from codet5p_jax.training.optimizers import AdamW
from codet5p_jax.training.schedules import Constant
from codet5p_jax.training.state import init_state
from codet5p_jax.training.stored_weights import read_params
from tests.training.linear import Linear, Regression

POLICY = CheckpointPolicy(every=2, keep_last=1, snapshots=SnapshotPolicy(1, keep_last=2))


def main(process: str, port: str, model_dir: str) -> None:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", 2, int(process))
    mesh, model = make_mesh(MeshConfig(fsdp=-1)), Linear()
    directory = ModelDir(Path(model_dir))
    with jax.set_mesh(mesh):
        rule = AdamW().make(Constant(0.1).make(10), model.specs)
        state = init_state(model, [Regression()], rule, mesh, seed=0)
        saver = Checkpoints(directory.checkpoints, POLICY)
        for step in (1, 2, 3, 4):
            saver.save_snapshot(state, step, {"step": step})
            if step % POLICY.every == 0:
                saver.save(state, step, {"step": step})
        saver.close()
        w = state.params["w"]
        wanted = {"w": jax.ShapeDtypeStruct(w.shape, w.dtype, sharding=w.sharding)}
        found = read_params(directory.snapshots / "4", wanted)["w"]
    for mine, theirs in zip(w.addressable_shards, found.addressable_shards, strict=True):
        expected = np.asarray(mine.data).astype(jnp.bfloat16)
        np.testing.assert_array_equal(np.asarray(theirs.data), expected)
    assert not found.is_fully_addressable
    print("process", process, "of", jax.process_count(), "read what both have written")


if __name__ == "__main__":
    main(*sys.argv[1:])
