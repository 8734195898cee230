"""Frozen values: requests, answers and what they consist of, with the rules that need no model."""
