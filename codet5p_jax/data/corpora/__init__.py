"""Corpus readers: streams of plain dicts, each with the place it came from; no TensorFlow.

A reader checks that its files exist when it is called, and reads them while it is iterated.
"""
