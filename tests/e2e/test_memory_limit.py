"""A server whose memory really is limited: a request that is too large for it fails, and others are served on."""

from __future__ import annotations

_FREE_MIB = 48
PROGRAM = f"""
import resource
from dst_grpc.rpc import server, settings

def limit(address):
    status = open("/proc/self/status").read()
    mapped = int(status.partition("VmSize:")[2].split()[0]) << 10
    resource.setrlimit(resource.RLIMIT_AS, (mapped + ({_FREE_MIB} << 20), resource.RLIM_INFINITY))
    print(address, flush=True)

server.serve(settings.Settings(port=0, preload=("embedded",), store_bytes=0), on_ready=lambda a: print(a, flush=True))
"""
