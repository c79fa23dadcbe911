"""Makes the bundled model: its world of drawn scenes."""
