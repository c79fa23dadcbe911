"""Conversion of Florence-2 checkpoints to the OpenVINO model folders that `florence_tagger` serves (needs torch)."""
