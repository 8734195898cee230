"""The algebra of derived scalars: from recorded taps to derived scalars.

`task` is one type of one request, resolved, and `topology` the order of computation in its model. `derive` names the
taps that a task is computed from and computes it, layer by layer, out of `components` (what is measured, and what it
writes to the residual stream), `directions` (what writes are projected on), `edges` (one node to many) and `recompute`
(a traced activation as a function of the residual before it). `topk` and `node_vectors` are used by TopK and Explain.
"""
