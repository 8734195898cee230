#!/bin/sh
# Fails if protos/ breaks what clients have compiled against: the image of dst.v1 that version 0.1.0 froze, made by
#   buf build --path protos/dst --exclude-source-info -o protos/dst-v1-0.1.0.binpb
# Each release that adds to dst.v1 adds the image of its own.
set -eu

buf=${BUF:-buf}
frozen=protos/dst-v1-0.1.0.binpb
if [ ! -f "$frozen" ]; then
    echo "breaking: $frozen is missing" >&2
    exit 1
fi
"$buf" breaking --against "$frozen"
