"""Untrusted bytes to frames, in processes of their own: the only user of Pillow, PyAV and puremagic."""
