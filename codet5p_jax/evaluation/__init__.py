"""Retrieval figures, BM25, the search index, samples and the report."""
