"""Between protocol buffers and domain values.

`codec` converts every value by the fields of its class; conversion is pure and total: a message that is no valid value
raises one error that lists every bad field, InvalidRequest for a request, DataLoss for an answer, where the other side
is the server. `frames` cuts answers into messages and `assembly` puts them together. Nothing here opens a socket or
knows of gRPC.
"""
