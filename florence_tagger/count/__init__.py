"""Many files at a time: which they are, their counts in order, and the forms in which these are told."""
