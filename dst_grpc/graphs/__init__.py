"""Attribution graphs: how the active features of transcoders, what these miss, and the tokens act on one another and on
logits, in the local replacement model of one prompt.

Ameisen et al. 2025, "Circuit Tracing", https://transformer-circuits.pub/2025/attribution-graphs/methods.html; nodes,
order, pruning and scores are those of circuit-tracer, https://github.com/safety-research/circuit-tracer.
"""
