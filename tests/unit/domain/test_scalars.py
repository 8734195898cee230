"""The table of facts agrees with the specification, row by row.

`specified_scalars.tsv` holds the columns of the specification's section 10: `P:` before a shape marks a first axis
that is declared as tokens and runs over pairs; location `raises` is asked of vocabulary tokens; grad tells whether even
FORWARD needs a backward pass; layers is L (all), 1 (exactly one must be named) or none (once per model); needs are M a
model, A / Am / Aa an autoencoder of any / MLP / attention type, t a trace, n a node for attribution, f an index for the
fake gradient, 1L one layer, in brackets what only some uses need.
"""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from dst_grpc.domain.components import Dimension, NodeType
from dst_grpc.domain.scalar_facts import Backward
from dst_grpc.domain.scalar_types import DerivedScalarType
from dst_grpc.domain.scalars import FACTS

LETTERS = {
    "T": Dimension.SEQUENCE_TOKENS,
    "U": Dimension.ATTENDED_TO_SEQUENCE_TOKENS,
    "d": Dimension.RESIDUAL_STREAM_CHANNELS,
    "F": Dimension.MLP_ACTS,
    "H": Dimension.ATTN_HEADS,
    "ck": Dimension.QUERY_AND_KEY_CHANNELS,
    "cv": Dimension.VALUE_CHANNELS,
    "Z": Dimension.AUTOENCODER_LATENTS,
    "V": Dimension.VOCAB_SIZE,
    "1": Dimension.SINGLETON,
}
AUTOENCODERS = {
    "A": NodeType.AUTOENCODER_LATENT,
    "Am": NodeType.MLP_AUTOENCODER_LATENT,
    "Aa": NodeType.ATTENTION_AUTOENCODER_LATENT,
}
FIELDS = {
    "t": "trace_config",
    "n": "node_index_for_attribution",
    "f": "activation_index_for_fake_grad",
    "1L": "layer_indices",
}
T = DerivedScalarType
REAL_GRADIENT_OF_A_COPY = {
    T.PREVIOUS_LAYER_RESID_POST_MLP: Backward.GRADIENT,
    T.FLATTENED_ATTN_POST_SOFTMAX: Backward.GRADIENT,
    T.ATTN_WRITE_NORM: Backward.RATIO,
}
"""Where the reference repeats FORWARD as BACKWARD, these yield what a gradient is; the others yield none."""

ROWS = list(csv.DictReader(Path(__file__).with_name("specified_scalars.tsv").read_text().splitlines(), delimiter="\t"))


def test_every_type_is_specified_once_and_in_order() -> None:
    assert [int(row["number"]) for row in ROWS] == list(range(1, len(DerivedScalarType) + 1))
    assert [row["member"] for row in ROWS] == [dst.name for dst in DerivedScalarType]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["member"])
def test_the_facts_of_a_type_are_the_specified_ones(row: dict[str, str]) -> None:
    dst = DerivedScalarType[row["member"]]
    facts = FACTS[dst]
    assert dst.number == int(row["number"])
    assert dst.value == row["member"].lower()
    shape = row["shape"].removeprefix("P:")
    assert facts.dimensions == tuple(LETTERS[letter] for letter in shape.split(","))
    assert facts.is_flattened == row["shape"].startswith("P:")
    assert facts.node_type == row["node"]
    location = facts.location_within_layer
    assert (location.name if location else "-") == row["location"].replace("raises", "-")
    assert facts.requires_grad_for_forward_pass == (row["grad"] == "yes")
    assert facts.once == (row["layers"] == "none")
    assert facts.single_layer == (row["layers"] == "1")


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["member"])
def test_a_type_needs_what_is_specified(row: dict[str, str]) -> None:
    facts = FACTS[DerivedScalarType[row["member"]]]
    needs = row["needs"].split(",")
    assert facts.autoencoder == next((AUTOENCODERS[need] for need in needs if need in AUTOENCODERS), None)
    assert set(facts.required_config_fields) == {FIELDS[need] for need in needs if need in FIELDS}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["member"])
def test_a_type_has_the_specified_backward_pass_or_none(row: dict[str, str]) -> None:
    dst = DerivedScalarType[row["member"]]
    expected = {
        "gradient": Backward.GRADIENT,
        "ratio": Backward.RATIO,
        "copy": REAL_GRADIENT_OF_A_COPY.get(dst, Backward.ABSENT),
        "-": Backward.REFUSED,
    }[row["backward"]]
    assert FACTS[dst].backward is expected


def test_the_raw_types_are_the_first_seventeen() -> None:
    assert [dst.number for dst, facts in FACTS.items() if facts.is_raw] == list(range(1, 18))
    assert all(facts.tap is not None for facts in FACTS.values() if facts.is_raw)


def test_every_type_has_a_formula() -> None:
    assert all(facts.formula for facts in FACTS.values())


def test_every_flattened_type_says_so_in_its_note() -> None:
    for facts in FACTS.values():
        assert facts.is_flattened == ("token pairs" in facts.note)


@pytest.mark.parametrize(
    ("dst", "words"),
    [
        (T.RESID_POST_MLP_PROJ_TO_FINAL_RESIDUAL_GRAD, "strictly before"),
        (T.MLP_AUTOENCODER_LATENT, "without the MLP's bias"),
        (T.MLP_WRITE_NORM, "sign"),
        (T.ATTN_WRITE_TO_LATENT_PER_SEQUENCE_TOKEN, "lone autoencoder"),
        (T.ONLINE_MLP_AUTOENCODER_WRITE, "node type"),
    ],
)
def test_peculiar_types_are_noted(dst: DerivedScalarType, words: str) -> None:
    assert words in FACTS[dst].note


@pytest.mark.parametrize("note", sorted({facts.note for facts in FACTS.values()} - {""}))
def test_notes_are_sentences(note: str) -> None:
    assert note.endswith((".", "..."))
    assert note[0].isupper()
