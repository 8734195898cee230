"""The outputs in the documentation, made again: `python -m scripts.guide` compares them, `--write` renews them."""
