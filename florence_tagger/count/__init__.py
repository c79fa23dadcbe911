"""The command `count`: input files, their counts in order, and the formats in which these are written."""
