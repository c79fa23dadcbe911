"""Untrusted bytes to frames: the only user of Pillow."""
