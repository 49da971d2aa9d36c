"""Optimizers, the train step, checkpoints, metrics, and the training script `train.py`."""
