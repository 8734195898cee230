"""The scripts that make the embedded default model, its tokenizer and its autoencoders, from this folder and the King
James Bible. `python -m scripts.embedded` runs them all; nothing here is part of the installed package."""
