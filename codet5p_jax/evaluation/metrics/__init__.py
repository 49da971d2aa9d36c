"""The figures of the paper's benchmarks, one task's or one kind's a module.

Pure functions of references and predictions; reading files is the caller's. Values are in the units
of the benchmarks' own scripts: BLEU, exact match and edit similarity 0 to 100, the rest 0 to 1.
"""
