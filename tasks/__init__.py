"""SeqIO tasks and mixtures of CodeT5+."""
