"""Checks of the serving image on machines without a Docker engine."""
