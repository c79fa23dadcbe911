"""Makes the bundled model: its world of drawn scenes, its training and its evaluation."""
