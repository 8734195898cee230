"""Between protocol buffers and domain values: one module per noun, two functions per kind of value.

`X_to_wire(value)` gives the message, `X_from_wire(message)` the value. Conversion is pure and total: a message that is
no valid value raises one error that lists every bad field. A request's error is InvalidRequest, with paths relative to
the message; an answer's is DataLoss, because there the other side is the server. Nothing here opens a socket or knows
of gRPC.
"""
