#!/bin/sh
# Fails if protos/ breaks what clients have compiled against. The base is the main branch, or what AGAINST names (a tag
# say); where it has no protos to compare with (a first commit, a shallow clone) that is said, and nothing fails.
set -eu

buf=${BUF:-buf}
base=
for ref in ${AGAINST:-main origin/main}; do
    if git rev-parse --verify --quiet "$ref^{commit}" >/dev/null; then
        base=$ref
        break
    fi
done
if [ -z "$base" ]; then
    echo "breaking: no ref ${AGAINST:-main} here, nothing to compare with"
    exit 0
fi
if ! git cat-file -e "$base:protos/dst" 2>/dev/null || ! git cat-file -e "$base:buf.yaml" 2>/dev/null; then
    echo "breaking: $base has no protos yet, nothing to compare with"
    exit 0
fi

# A folder works everywhere; buf's own reading of .git does not in worktrees and shallow clones.
old=$(mktemp -d)
trap 'rm -rf "$old"' EXIT
git archive "$base" protos buf.yaml | tar -x -C "$old"
"$buf" breaking --against "$old"
echo "breaking: compatible with $base"
