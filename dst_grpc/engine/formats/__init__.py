"""Autoencoder file formats: one module for each; `detect` finds the format of given files."""
