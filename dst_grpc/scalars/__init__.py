"""The algebra of derived scalars: from recorded taps to the 106 types.

`task` says what one type of one request is about; `topology` how the parts of its model hang together; `reads` which
taps it needs; `derive` computes it, layer by layer, out of `components` (what writes), `edges` (one node to many) and
`recompute` (an activation as a function of the residual before it).
"""
