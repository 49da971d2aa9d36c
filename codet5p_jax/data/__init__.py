"""From corpora to batches. `vocab`, `seqio_tasks` and `prepare` alone import SeqIO."""
