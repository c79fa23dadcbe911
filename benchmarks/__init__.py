"""What measures: checkpoints of real geometry without real weights."""
