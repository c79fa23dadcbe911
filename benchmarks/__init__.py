"""Benchmarks of speed, memory and accuracy, and the checkpoints and models that they need."""
