"""CodeT5+ pretraining, fine-tuning and conversion in JAX."""

__version__ = "0.1.0"
