"""What the vectors say of messages is what `wire` makes of them."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import json_format

from dst_grpc._gen.dst.v1 import inference_pb2
from dst_grpc.domain.requests import DeriveRequest
from dst_grpc.domain.results import SparseTensor
from dst_grpc.errors import DataLoss, Reason
from dst_grpc.wire.assembly import Assembler
from dst_grpc.wire.codec import read_request
from dst_grpc.wire.envelope import received

FOLDER = Path(__file__).parent
ANSWERS = json.loads((FOLDER / "answers.json").read_text(encoding="utf-8"))
REQUESTS = json.loads((FOLDER / "requests.json").read_text(encoding="utf-8"))
ERRORS = {Reason.ANSWER_TRUNCATED: "truncated", Reason.ANSWER_CORRUPT: "corrupt"}

Json = dict[str, Any]


def by_name(vector: Json) -> str:
    return str(vector["name"])


def bits(tensor: Any) -> list[str]:
    values = tensor.values
    if isinstance(tensor, SparseTensor):
        values = np.zeros(tensor.info.shape, np.float32)
        values[tuple(tensor.coordinates.T)] = tensor.values
    digits = values.astype(">f4").tobytes().hex()
    return [digits[i : i + 8] for i in range(0, len(digits), 8)]


def result_of(messages: list[str]) -> Json:
    assembler = Assembler()
    try:
        for message in messages:
            for frame in received(base64.b64decode(message)).frames:
                assembler.add(frame)
        answer = assembler.finish()
    except DataLoss as error:
        return {"error": ERRORS[error.reason]}
    tensors = [
        {"shape": list(tensor.info.shape), "layer_index": tensor.info.layer_index, "bits": bits(tensor)}
        for tensor in answer.tensors
    ]
    return {"tensors": tensors}


@pytest.mark.parametrize("vector", ANSWERS, ids=by_name)
def test_an_answer_means_what_it_should(vector: Json) -> None:
    assert result_of(vector["messages"]) == vector["result"]


@pytest.mark.parametrize("vector", REQUESTS, ids=by_name)
def test_a_request_is_read_and_judged_as_it_should(vector: Json) -> None:
    message = inference_pb2.DeriveRequest.FromString(base64.b64decode(vector["message"]))
    assert message == json_format.ParseDict(vector["json"], inference_pb2.DeriveRequest())
    request, problems = read_request(DeriveRequest, message)
    missing = {"prompt"} if request is not None and request.prompt is None else set()
    assert sorted(missing | {*problems.fields}) == vector["violations"]


def test_the_vectors_are_those_of_the_script() -> None:
    done = subprocess.run([sys.executable, "-m", "scripts.conformance", "--check"], cwd=FOLDER.parents[1], check=False)
    assert done.returncode == 0
