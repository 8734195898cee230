"""Writes `tests/conformance/*.json`: messages as bytes, with what they mean, for the tests of every client.

`python -m scripts.conformance` writes, `--check` compares. Only the generated messages, struct and zlib are used here:
what an answer means is said in this file once, and not taken from the code that the vectors are to judge.
"""

from __future__ import annotations

import argparse
import base64
import json
import math
import struct
import sys
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from google.protobuf import json_format, text_format
from google.protobuf.message import Message

from dst_grpc._gen.dst.v1 import component_pb2 as component
from dst_grpc._gen.dst.v1 import derived_scalar_type_pb2 as types
from dst_grpc._gen.dst.v1 import inference_pb2 as pb
from dst_grpc._gen.dst.v1 import tensor_pb2

FOLDER = Path(__file__).resolve().parent.parent / "tests" / "conformance"
TRUNCATED, CORRUPT = {"error": "truncated"}, {"error": "corrupt"}
_T, _D = types.DerivedScalarType, component.Dimension
_ELEMENT_TYPES = {
    "float32": tensor_pb2.TENSOR_ELEMENT_TYPE_FLOAT32,
    "float16": tensor_pb2.TENSOR_ELEMENT_TYPE_FLOAT16,
    "bfloat16": tensor_pb2.TENSOR_ELEMENT_TYPE_BFLOAT16,
}

Json = dict[str, Any]


class Tensor:
    """A tensor of an answer: its info, its bytes on the wire, and its elements as the bits of float32."""

    def __init__(
        self,
        values: Sequence[float],
        shape: Sequence[int],
        *,
        element_type: str = "float32",
        layer: int | None = 0,
        sparse: bool = False,
    ) -> None:
        """*values* in row-major order, representable in *element_type*."""
        nonzero = [i for i, value in enumerate(values) if value or math.isnan(value)]
        sent = [values[i] for i in nonzero] if sparse else list(values)
        self.data = b"".join(_stored(value, element_type) for value in sent)
        if sparse:
            self.data += b"".join(struct.pack(f"<{len(shape)}I", *_position(i, shape)) for i in nonzero)
        dimensions = [_D.DIMENSION_SEQUENCE_TOKENS, _D.DIMENSION_AUTOENCODER_LATENTS][-len(shape) :] if shape else []
        self.info = pb.TensorInfo(
            dst=_T.DERIVED_SCALAR_TYPE_ONLINE_MLP_AUTOENCODER_LATENT,
            pass_type=component.PASS_TYPE_FORWARD,
            layer_index=layer,
            axes=[tensor_pb2.Axis(dimension=d, size=n) for d, n in zip(dimensions, shape, strict=True)],
            element_type=_ELEMENT_TYPES[element_type],
            encoding=tensor_pb2.TENSOR_ENCODING_SPARSE_LATENTS if sparse else tensor_pb2.TENSOR_ENCODING_DENSE,
            byte_length=len(self.data),
            nonzero_count=len(sent) if sparse else None,
        )
        self.meaning = {
            "shape": list(shape),
            "layer_index": layer,
            "bits": [struct.pack(">f", value).hex() for value in values],
        }


def _stored(value: float, element_type: str) -> bytes:
    if element_type == "bfloat16":
        return struct.pack("<f", value)[2:]
    return struct.pack("<e" if element_type == "float16" else "<f", value)


def _position(index: int, shape: Sequence[int]) -> list[int]:
    position = []
    for size in reversed(shape):
        index, at = divmod(index, size)
        position.append(at)
    return position[::-1]


def frames_of(tensors: Sequence[Tensor], *, chunk_bytes: int = 1 << 20) -> list[pb.DeriveFrame]:
    """The frames of an answer, as a server cuts them."""
    for i, tensor in enumerate(tensors):
        tensor.info.tensor_id = i
    header = pb.Header(
        model="m@0:float32:cpu", token_ids=[7, 0], token_strings=["a", "\ufffd"], tensors=[t.info for t in tensors]
    )
    frames = [pb.DeriveFrame(header=header)]
    for i, tensor in enumerate(tensors):
        for at in range(0, len(tensor.data), chunk_bytes):
            chunk = pb.TensorChunk(tensor_id=i, offset=at, data=tensor.data[at : at + chunk_bytes])
            frames.append(pb.DeriveFrame(chunk=chunk))
    trailer = pb.Trailer(
        tensor_count=len(tensors),
        byte_count=sum(len(t.data) for t in tensors),
        checksums=[zlib.crc32(t.data) for t in tensors],
        statistics=pb.RunStatistics(forward_passes=1),
        provenance=pb.Provenance(element_type=tensor_pb2.TENSOR_ELEMENT_TYPE_FLOAT32),
    )
    return [*frames, pb.DeriveFrame(trailer=trailer)]


def answer(name: str, about: str, messages: Iterable[Sequence[pb.DeriveFrame]], result: Json) -> Json:
    """A vector: the frames of each DeriveResponse, and what they come to."""
    encoded = [_encoded(pb.DeriveResponse(request_id="r", frames=frames)) for frames in messages]
    return {"name": name, "about": about, "messages": encoded, "result": result}


def whole(tensors: Sequence[Tensor]) -> Json:
    """The result of a sound answer."""
    return {"tensors": [tensor.meaning for tensor in tensors]}


def answers() -> list[Json]:
    """Answers, sound and damaged."""
    odd = [0.0, -0.0, 1.0, -math.inf, math.inf, math.nan, 1e-45, 3.4028234663852886e38]
    plain = [Tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [2, 3])]
    several = [Tensor([float(i) for i in range(6)], [2, 3], layer=n) for n in range(3)]
    f32, f16 = (
        [Tensor(odd, [2, 4])],
        [Tensor([1.5, -2.0, 65504.0, 2.0**-24, -math.inf, 0.0], [2, 3], element_type="float16")],
    )
    bf16 = [Tensor([1.5, -2.0, 2.0**127, 2.0**-133, math.inf, 0.0], [2, 3], element_type="bfloat16")]
    sparse = [Tensor([0.0, 2.5, 0.0, 0.0, 0.0, -1.0], [2, 3], sparse=True)]
    sparse16 = [Tensor([0.0, 2.5, 0.0, 0.0, 0.0, -1.0], [2, 3], element_type="bfloat16", sparse=True)]
    nothing = [Tensor([0.0] * 6, [2, 3], sparse=True), *[Tensor([], [0, 3]), Tensor([7.0], [], layer=None)]]
    overflowing = Tensor([], [0, 0])
    for axis in overflowing.info.axes:
        axis.size = 1 << 31
    outside = Tensor([0.0, 1.0], [1, 2], sparse=True)
    outside.info.axes[1].size = 1
    unknown = Tensor([1.0], [1])
    unknown.info.encoding = tensor_pb2.TENSOR_ENCODING_UNSPECIFIED
    cut = frames_of(several, chunk_bytes=8)
    pieces = _in_pieces(cut[0])
    sound = frames_of(plain)
    header, chunk, trailer = sound
    later = pb.DeriveFrame.FromString(b"\xfa\x01\x02hi")
    return [
        answer("float32", "zeros, infinities, a NaN, the smallest and the largest", [frames_of(f32)], whole(f32)),
        answer("float16", "half precision, widened", [frames_of(f16)], whole(f16)),
        answer("bfloat16", "the upper half of a float32, widened", [frames_of(bf16)], whole(bf16)),
        answer("sparse", "values, then coordinates", [frames_of(sparse)], whole(sparse)),
        answer("sparse_bfloat16", "values of two bytes, coordinates of four", [frames_of(sparse16)], whole(sparse16)),
        answer("empty", "nothing but zeros, an axis of size 0, no axes", [frames_of(nothing)], whole(nothing)),
        answer("no_tensors", "an answer may hold none", [frames_of([])], whole([])),
        answer("many_chunks", "chunks of 8 bytes in one message", [cut], whole(several)),
        answer("many_messages", "one frame in each message", [[frame] for frame in cut], whole(several)),
        answer("empty_message", "a message without frames means nothing", [[], sound, []], whole(plain)),
        answer("header_in_pieces", "all but the last of which are partial", [[*pieces, *cut[1:]]], whole(several)),
        answer(
            "pieces_in_messages", "one piece in each message", [*[[piece] for piece in pieces], cut[1:]], whole(several)
        ),
        answer(
            "later_kind",
            "a kind of frame that is not known yet is ignored",
            [[header, later, chunk, trailer]],
            whole(plain),
        ),
        answer("truncated", "no trailer", [sound[:-1]], TRUNCATED),
        answer("truncated_in_a_tensor", "half a tensor, no trailer", [cut[:3]], TRUNCATED),
        answer("truncated_in_a_header", "a piece of a header, no more", [pieces[:1]], TRUNCATED),
        answer("nothing_at_all", "no frame", [], TRUNCATED),
        answer("no_header", "chunks before the header", [[chunk, trailer]], CORRUPT),
        answer("two_headers", "the header twice", [[header, header, chunk, trailer]], CORRUPT),
        answer("missing_piece", "a chunk where the header should go on", [[pieces[0], *cut[1:]]], CORRUPT),
        answer(
            "pieces_that_differ", "two pieces of a header name two models", [[*_differing(pieces), *cut[1:]]], CORRUPT
        ),
        answer("swapped_chunks", "the second chunk first", [[cut[0], cut[2], cut[1], *cut[3:]]], CORRUPT),
        answer("repeated_chunk", "a chunk twice", [[cut[0], cut[1], cut[1], *cut[2:]]], CORRUPT),
        answer("missing_chunk", "a chunk left out", [[cut[0], *cut[2:]]], CORRUPT),
        answer(
            "wrong_tensor", "a chunk of a tensor that is not due", [[cut[0], *cut[4:7], *cut[1:4], *cut[7:]]], CORRUPT
        ),
        answer("too_long", "more bytes than announced", [[header, _longer(chunk), trailer]], CORRUPT),
        answer("flipped_bit", "the checksum tells", [[header, _flipped(chunk), trailer]], CORRUPT),
        answer("early_trailer", "the trailer before the last tensor", [[header, trailer]], CORRUPT),
        answer("after_the_trailer", "a frame after the trailer", [[*sound, chunk]], CORRUPT),
        answer(
            "wrong_count",
            "the trailer counts another number of bytes",
            [[header, chunk, _miscounted(trailer)]],
            CORRUPT,
        ),
        answer(
            "wrong_length", "the byte length is not that of the axes", [[_mislabelled(header), chunk, trailer]], CORRUPT
        ),
        answer("overflow", "the sizes come to 2^64 bytes, announced are 0", [frames_of([overflowing])], CORRUPT),
        answer("outside", "a coordinate beyond the end of its axis", [frames_of([outside])], CORRUPT),
        answer("no_encoding", "neither dense nor sparse", [frames_of([unknown])], CORRUPT),
    ]


def _in_pieces(frame: pb.DeriveFrame) -> list[pb.DeriveFrame]:
    """A header in as many pieces as it has tensors, which protobuf merges to it."""
    *tensors, last = frame.header.tensors
    first = pb.Header(
        model=frame.header.model, token_ids=frame.header.token_ids, token_strings=frame.header.token_strings
    )
    pieces = [pb.DeriveFrame(header=first, partial=True)]
    pieces += [pb.DeriveFrame(header=pb.Header(tensors=[tensor]), partial=True) for tensor in tensors]
    return [*pieces, pb.DeriveFrame(header=pb.Header(tensors=[last]))]


def _differing(pieces: list[pb.DeriveFrame]) -> list[pb.DeriveFrame]:
    changed = [pb.DeriveFrame.FromString(piece.SerializeToString()) for piece in pieces]
    changed[1].header.model = "another@0:float32:cpu"
    return changed


def _longer(frame: pb.DeriveFrame) -> pb.DeriveFrame:
    chunk = pb.TensorChunk(tensor_id=0, offset=0, data=frame.chunk.data + b"\0\0\0\0")
    return pb.DeriveFrame(chunk=chunk)


def _flipped(frame: pb.DeriveFrame) -> pb.DeriveFrame:
    data = frame.chunk.data
    chunk = pb.TensorChunk(tensor_id=0, offset=0, data=bytes([data[0] ^ 1]) + data[1:])
    return pb.DeriveFrame(chunk=chunk)


def _miscounted(frame: pb.DeriveFrame) -> pb.DeriveFrame:
    changed = pb.DeriveFrame.FromString(frame.SerializeToString())
    changed.trailer.byte_count += 1
    return changed


def _mislabelled(frame: pb.DeriveFrame) -> pb.DeriveFrame:
    changed = pb.DeriveFrame.FromString(frame.SerializeToString())
    changed.header.tensors[0].byte_length += 4
    return changed


REQUESTS = {
    "plain": (
        "a prompt, a target, a type",
        """
        prompt { text: "ab" }
        loss_fn_config { name: LOSS_FN_NAME_LOGIT_DIFF target_tokens: " x" distractor_token_ids: 3 }
        derived_scalars { dst: DERIVED_SCALAR_TYPE_MLP_ACT_TIMES_GRAD }
    """,
        (),
    ),
    "trace": (
        "a head, through its keys",
        """
        request_id: "\\303\\244"
        prompt { token_ids { token_ids: 0 token_ids: 4294967295 } }
        trace_config {
          node_index {
            node_type: NODE_TYPE_ATTENTION_HEAD
            tensor_indices { at: 1 } tensor_indices { at: 0 } tensor_indices { at: 2 }
            layer_index: 0
          }
          pre_or_post_act: PRE_OR_POST_ACT_PRE attention_trace_type: ATTENTION_TRACE_TYPE_K
        }
        config { layer_indices {} }
    """,
        (),
    ),
    "ablation": (
        "a head's row of attention, in every layer",
        """
        prompt { text: "ab" }
        ablation_specs {
          index {
            activation_location_type: ACTIVATION_LOCATION_TYPE_ATTN_QK_PROBS
            tensor_indices { at: 1 } tensor_indices { all {} } tensor_indices { at: 0 }
          }
          value: 0
        }
        element_type: TENSOR_ELEMENT_TYPE_BFLOAT16 encoding: TENSOR_ENCODING_SPARSE_LATENTS
    """,
        (),
    ),
    "interventions": (
        "a vector added, a range scaled, a gradient detached",
        """
        prompt { text: "ab" }
        interventions {
          at { activation_location_type: ACTIVATION_LOCATION_TYPE_RESID_POST_MLP axes { at: 1 } layer_index: 0 }
          add { vector { tensor { axes { size: 2 } data: "\\000\\000\\200?\\000\\000\\000\\300" } } factor: 2 }
        }
        interventions {
          at { activation_location_type: ACTIVATION_LOCATION_TYPE_MLP_POST_ACT axes { range { start: 0 stop: 2 } } }
          scale { factor: 0 }
        }
        interventions {
          at {
            activation_location_type: ACTIVATION_LOCATION_TYPE_ATTN_QK_PROBS
            axes { all {} } axes { list { positions: 1 positions: 0 } }
            pass_type: PASS_TYPE_BACKWARD
          }
          detach {}
        }
        detach_final_layer_norm_scale: false
        max_chunk_bytes: 65535
    """,
        (),
    ),
    "empty_is_absent": (
        "an empty text and an unspecified member are as good as none",
        """
        model: "" prompt { text: "ab" }
        config { model_name: "" autoencoder_context: "" inference_engine_type: INFERENCE_ENGINE_TYPE_UNSPECIFIED }
    """,
        (),
    ),
    "odd_interventions": (
        "a vector of other than its bytes, no action, a scaled gradient, too small a chunk",
        """
        prompt { text: "ab" }
        interventions {
          at { activation_location_type: ACTIVATION_LOCATION_TYPE_RESID_POST_MLP axes {} }
          add { vector { tensor { axes { size: 2 } data: "abc" } } }
        }
        interventions { at { activation_location_type: ACTIVATION_LOCATION_TYPE_LOGITS layer_index: 0 } }
        interventions {
          at { activation_location_type: ACTIVATION_LOCATION_TYPE_LOGITS pass_type: PASS_TYPE_BACKWARD }
          scale { factor: 2 }
        }
        max_chunk_bytes: 7
    """,
        (
            "interventions[0].add.vector.tensor.data",
            "interventions[0].at.axes[0]",
            "interventions[1]",
            "interventions[1].at.layer_index",
            "interventions[2].at.pass_type",
            "max_chunk_bytes",
        ),
    ),
    "nothing": ("a prompt is required", "", ("prompt",)),
    "empty_prompt": ("neither a text nor tokens", "prompt {}", ("prompt",)),
    "index_without_position": (
        "neither `at` nor `all`",
        """
        prompt { text: "ab" }
        trace_config {
          node_index { node_type: NODE_TYPE_MLP_NEURON tensor_indices {} tensor_indices { at: 3 } layer_index: 0 }
          pre_or_post_act: PRE_OR_POST_ACT_POST
        }
    """,
        ("trace_config.node_index.tensor_indices[0]",),
    ),
    "three_at_once": (
        "every bad field is named",
        """
        prompt { text: "" }
        loss_fn_config { name: LOSS_FN_NAME_LOGIT_MINUS_MEAN target_tokens: " x" distractor_tokens: " y" }
        ablation_specs { index { activation_location_type: ACTIVATION_LOCATION_TYPE_LOGITS } value: 0 }
    """,
        ("prompt.text", "loss_fn_config.distractor_tokens", "ablation_specs[0].index.tensor_indices"),
    ),
    "unknown_members": (
        "numbers that no member has",
        """
        prompt { text: "ab" }
        loss_fn_config { name: 77 target_tokens: " x" }
        derived_scalars { dst: 9999 }
        element_type: 55
    """,
        ("loss_fn_config.name", "derived_scalars[0].dst", "element_type"),
    ),
    "trace_through_nothing": (
        "a head needs to know through which of its inputs",
        """
        prompt { text: "ab" }
        trace_config {
          node_index {
            node_type: NODE_TYPE_ATTENTION_HEAD
            tensor_indices { at: 1 } tensor_indices { at: 0 } tensor_indices { at: 2 }
            layer_index: 0
          }
          pre_or_post_act: PRE_OR_POST_ACT_PRE
        }
    """,
        ("trace_config.attention_trace_type",),
    ),
}
"""Name: what it is about, the DeriveRequest as text, and the paths of what is wrong with it whatever the model."""


def requests() -> list[Json]:
    """Requests, valid and invalid."""
    found = []
    for name, (about, text, violations) in REQUESTS.items():
        message = text_format.Parse(text, pb.DeriveRequest())
        found.append(
            {
                "name": name,
                "about": about,
                "message": _encoded(message),
                "json": json_format.MessageToDict(message),
                "violations": sorted(violations),
            }
        )
    return found


def _encoded(message: Message) -> str:
    return base64.b64encode(message.SerializeToString(deterministic=True)).decode()


def main() -> None:
    """Write or compare."""
    parser = argparse.ArgumentParser(prog="python -m scripts.conformance", description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    check = parser.parse_args().check
    stale = []
    for name, vectors in (("answers", answers()), ("requests", requests())):
        path = FOLDER / f"{name}.json"
        text = json.dumps(vectors, indent=1, ensure_ascii=True) + "\n"
        if check and (not path.exists() or path.read_text(encoding="utf-8") != text):
            stale.append(path.name)
        elif not check:
            path.write_text(text, encoding="utf-8")
    if stale:
        sys.exit(f"not fresh: {', '.join(stale)}; run python -m scripts.conformance")


if __name__ == "__main__":
    main()
