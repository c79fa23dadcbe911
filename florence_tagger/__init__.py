"""Counts the objects in pictures with a Florence-2 model on OpenVINO, and serves the counts over HTTP."""

__version__ = "0.1.0"
