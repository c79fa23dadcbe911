"""Untrusted bytes to frames, in separate processes: the only user of Pillow, PyAV and puremagic."""
