#!/usr/bin/env bash
# A tour of dst-grpc for the shell: asks a server what it has, and prints one JSON document. See ../README.md.
set -euo pipefail

if [ $# -ne 3 ]; then
    echo "usage: tour.sh ADDRESS TOUR_FILE RETRY_ADDRESS" >&2
    exit 2
fi
address=$1
inputs=$(cat "$2")
retry_address=$3
model=$(jq .model <<<"$inputs")

# Plain text, or TLS if there are authorities to trust.
if [ -n "${DST_CLIENT_CA:-}" ]; then
    connection=(--cacert "$DST_CLIENT_CA") scheme=https
else
    connection=(--http2-prior-knowledge) scheme=http
fi

# The metadata of every call: a proxy in front of several servers chooses by the model. A token is on no command line,
# which others on this machine can read.
metadata() {
    jq -r '"dst-model: \(.)"' <<<"$model"
    [ -z "${DST_CLIENT_TOKEN:-}" ] || printf 'authorization: Bearer %s\n' "$DST_CLIENT_TOKEN"
}

# call ADDRESS SERVICE/METHOD: sends the JSON messages on stdin, prints those that come back. On failure the error goes
# to stderr, as JSON too, and the status is 8 times the gRPC code.
call() {
    buf curl --protocol grpc "${connection[@]}" --timeout 60s --emit-defaults --header @<(metadata) \
        --schema ../../../ --data @- "$scheme://$1/$2"
}

# pages METHOD REQUEST: every page of a list.
pages() {
    local token='""' page
    while
        # Within $(...) a failure ends nothing by itself.
        page=$(jq --argjson token "$token" '.pageToken = $token' <<<"$2" | call "$address" "dst.v1.CatalogService/$1") ||
            return
        printf '%s\n' "$page"
        token=$(jq .nextPageToken <<<"$page")
        [ "$token" != '""' ]
    do :; done
}

# detail TYPE: the first detail of that type of the error on stdin, as JSON; nothing if there is none. Errors carry
# their details as base64 without padding.
detail() {
    local value
    value=$(jq -r --arg type "$1" 'first(.details[]? | select(.type == $type)).value // empty')
    if [ -n "$value" ]; then
        printf '%s==' "$value" | base64 --decode 2>/dev/null |
            buf convert ../../../ --type "$1" --from -#format=binpb --to -#format=json
    fi
}

# retrying ADDRESS SERVICE/METHOD REQUEST: calls again as long as the server says, in RetryInfo, that waiting helps.
retrying() {
    local attempt error delay
    error=$(mktemp)
    for attempt in 1 2 3 4; do
        if call "$1" "$2" <<<"$3" 2>"$error"; then
            rm "$error"
            return
        fi
        delay=$(detail google.rpc.RetryInfo <"$error" | jq -r '.retryDelay | rtrimstr("s")')
        if [ -z "$delay" ] || [ "$attempt" = 4 ]; then break; fi
        sleep "$delay"
    done
    cat "$error" >&2
    rm "$error"
    return 1
}

tokenize() {
    jq "{model, text: .$1}" <<<"$inputs" | call "$address" dst.v1.CatalogService/Tokenize |
        jq --slurp '{token_ids: map(.tokenIds[]), token_strings: map(.tokenStrings[])}'
}

# What the requests share: the prompt, and how far the model prefers the targets to the distractors.
question='{
    model,
    prompt: {text: .prompt},
    lossFnConfig: {
        name: "LOSS_FN_NAME_LOGIT_DIFF",
        targetTokens: .target_tokens,
        distractorTokens: .distractor_tokens
    }
}'
dense="$question"' + {requestId: "dense", derivedScalars: [
    {dst: "DERIVED_SCALAR_TYPE_UNFLATTENED_ATTN_WRITE_TO_FINAL_RESIDUAL_GRAD"},
    {dst: "DERIVED_SCALAR_TYPE_ATTN_QK_LOGITS"},
    {dst: "DERIVED_SCALAR_TYPE_MLP_WRITE", config: {layerIndices: {layerIndices: [0]}}}
]}'
sparse="$question"' + {
    requestId: "sparse",
    autoencoders: [.autoencoder],
    encoding: "TENSOR_ENCODING_SPARSE_LATENTS",
    derivedScalars: [
        {dst: "DERIVED_SCALAR_TYPE_ONLINE_AUTOENCODER_LATENT"},
        {dst: "DERIVED_SCALAR_TYPE_ONLINE_AUTOENCODER_WRITE_TO_FINAL_RESIDUAL_GRAD"}
    ]
}'
wrong="$dense"' + {requestId: "wrong", config: {layerIndices: {layerIndices: [0, 999]}}}'

# In JSON a uint64 is a string.
resolved='def resolved: {
    device,
    model: .model.name,
    autoencoders: [.autoencoders[].name],
    forward_passes: .cost.forwardPasses,
    backward_passes: .cost.backwardPasses,
    output_bytes: (.cost.outputBytes | tonumber),
    scalars: [.scalars[] | {
        dst,
        requires_grad: .requiresGrad,
        layer_indices: .layerIndices,
        axes: [.axes[] | [.dimension, (.size | tonumber)]]
    }]
};'

health=$(call "$address" grpc.health.v1.Health/Check <<<'{"service": "dst.v1.DerivedScalarService"}' | jq .status)

models=$(pages ListModels '{}' | jq --slurp '[.[].models[] | {
    name,
    family,
    n_layers: .dimensions.nLayers,
    d_model: .dimensions.dModel,
    n_heads: .dimensions.nHeads,
    d_mlp: .dimensions.dMlp,
    vocab_size: .dimensions.vocabSize,
    context_window: .dimensions.contextWindow,
    parameter_bytes: (.parameterBytes | tonumber),
    default_model: .defaultModel,
    autoencoders
}]')

types=$(pages ListDerivedScalarTypes '{"pageSize": 40}' | jq --slurp '{
    pages: length,
    names: [.[].types[].name],
    last: (last.types | last | {name, dimensions, formula})
}')

tokens=$(tokenize prompt)
unicode=$(tokenize unicode)

resolve=$(jq "{load: true, request: ($sparse)}" <<<"$inputs" |
    call "$address" dst.v1.DerivedScalarService/Resolve |
    jq '.frames[]' |
    tee >(jq -r '.loading // empty | "loading \(.context): \(.bytesDone) of \(.bytesTotal) bytes"' >&2) |
    jq --slurp "$resolved"'{
        stages: (reduce (.[] | del(.partial) | keys[0] | ascii_upcase) as $stage
            ([]; if last == $stage then . else . + [$stage] end)),
        loaded: (map(.loading // empty | {(.context): (.bytesDone | tonumber)}) | add // {}),
        resolved: (map(.resolved // empty) | first + {scalars: map(.scalars[])} | resolved)
    }')

# All requests on one stream. A bad one fails alone, with its details as JSON, and the answers may overtake one another.
resolve_stream=$(jq "{request: {request: ($dense, $sparse, $wrong)}}" <<<"$inputs" |
    call "$address" dst.v1.DerivedScalarService/ResolveStream |
    jq --slurp "$resolved"'
        def error: {
            code: ["OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND"][.code],
            reason: (.details[].reason // empty),
            fields: [.details[].fieldViolations[]?.field]
        };
        map(.requestId as $id | .frames[] | {id: $id} + .) | group_by(.id) | map(
            map(.resolved // empty) as $pieces | map(.error // empty) as $errors |
            {(first.id): (
                if $errors[0] then {error: ($errors[0] | error)}
                else {resolved: ($pieces | first + {scalars: map(.scalars[])} | resolved)} end
            )}
        ) | add')

request=$(jq --argjson ids "$(jq .token_ids <<<"$tokens")" '{model, tokenIds: $ids}' <<<"$inputs")
retry=$(retrying "$retry_address" dst.v1.CatalogService/Detokenize "$request" | jq --slurp '{text: map(.text) | add}')

jq -n --argjson health "$health" --argjson models "$models" --argjson types "$types" --argjson tokens "$tokens" \
    --argjson unicode "$unicode" --argjson resolve "$resolve" --argjson resolve_stream "$resolve_stream" \
    --argjson retry "$retry" '$ARGS.named'
