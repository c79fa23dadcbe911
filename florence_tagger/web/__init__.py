"""The HTTP side: Detect's envelope in, Detect's envelope out. The only user of Flask and gunicorn."""
