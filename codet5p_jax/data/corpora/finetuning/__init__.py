"""Readers of the data that CodeT5 and CodeT5+ are fine-tuned on, in the formats it is published in.

Each reader takes a folder with the published files, plain or gzipped, and a split. Its records have
a `place` (file and line). A malformed record is an error, unless CODET5P_MAX_MALFORMED_SHARE allows
some: a benchmark is a whole.
"""
