"""The bundled model's training: drawn scenes, training loop and evaluation."""
