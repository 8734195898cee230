"""Frozen values: what can be asked for and answered, with the rules that need no model."""
