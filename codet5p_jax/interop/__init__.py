"""Weights in and out: Hugging Face folders and T5X checkpoints, exact both ways.

`tables` says which of their tensors is which of our parameters; `hf_config` does the same for
configurations; `causal_families` does both for language models that are a decoder alone;
`safetensors_files` reads and writes files; `weights` joins them.
"""
