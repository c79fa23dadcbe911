"""Sandboxed decoding: untrusted files are decoded in separate processes with resource limits."""
