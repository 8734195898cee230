"""`python -m dst_grpc.cli`."""

from __future__ import annotations

from dst_grpc.cli import main

if __name__ == "__main__":
    main()
