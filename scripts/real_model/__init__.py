"""A model that people really use, for trying the server out: SmolLM2-135M-Instruct, from a GGUF file to a folder."""
