"""Conversion between protocol buffers and domain values.

`codec` converts every value by the fields of its class. Conversion is pure and total: an invalid message raises one
error that lists every bad field, InvalidRequest for a request, DataLoss for an answer. `frames` splits answers into
frames, `envelope` packs them into messages, and `assembly` reassembles them. Nothing here opens a socket or depends on
gRPC.
"""
