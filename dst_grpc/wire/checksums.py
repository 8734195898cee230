"""The checksum of tensors: CRC-32 as in zlib, gzip and PNG, of their bytes; `crc32(data, value)` goes on from *value*.

isa-l computes it ten times as fast as zlib, where a processor multiplies without carries. A client alone does without.
"""

try:
    from isal.isal_zlib import crc32
except ImportError:
    from zlib import crc32

__all__ = ["crc32"]
