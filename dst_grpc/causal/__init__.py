"""Causal questions: the graph of a model's nodes, attribution along its edges, circuits."""
