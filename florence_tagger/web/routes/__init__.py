"""The routes of the service, a blueprint each."""
