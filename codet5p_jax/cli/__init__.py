"""The command `codet5p`: one module per command, and the only place that imports gin."""
