"""The model itself: decoder, taps, autoencoders, tokenizer, and reading them from files."""
