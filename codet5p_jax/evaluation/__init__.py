"""Retrieval figures, BM25, the search index, samples, the report; `metrics` for benchmarks."""
