"""Autoencoder file formats: a module for each says what its files hold; `detect` finds the right one."""
