"""Decoding in processes of their own, with limits: untrusted files never reach the service's process."""
