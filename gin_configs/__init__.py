"""gin files: `models/` (shapes), `runs/` (what to train), `meshes/` (how to shard)."""
