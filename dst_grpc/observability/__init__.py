"""Logs and metrics of the server's calls. It observes calls and never changes them."""
