"""The paper's benchmarks from published files to figures, one kind of them a module.

`registry.BENCHMARKS` has them by name, `run.run` takes a model, or a file of predictions, through
one.
"""
