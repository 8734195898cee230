"""Derived scalars of transformer language models over gRPC.

The package itself holds only its version: the client is `dst_grpc.client`, the server `dst_grpc.rpc`.
"""

from __future__ import annotations

__version__ = "0.1.0"
