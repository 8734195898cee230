"""The options that say what to derive, shared by `derive` and `resolve`, and the request they describe."""

from __future__ import annotations

from typing import Annotated

import typer

from dst_grpc.cli._parse import parse_ablation, parse_trace
from dst_grpc.client import DerivedScalarType, DeriveRequest, DstConfig, make_request

PromptArgument = Annotated[str, typer.Argument(metavar="PROMPT", help="The text, taken as it is.", show_default=False)]
TypeOption = Annotated[
    list[str] | None,
    typer.Option(
        "--type",
        "-t",
        metavar="NAME",
        help="What to derive; may be repeated. `dst-grpc types` lists the names.",
        autocompletion=lambda incomplete: [t.value for t in DerivedScalarType if t.value.startswith(incomplete)],
    ),
]
TargetOption = Annotated[
    list[str] | None,
    typer.Option("--target", metavar="TOKEN", help="Token to raise (mind the leading space); may be repeated."),
]
DistractorOption = Annotated[
    list[str] | None, typer.Option("--distractor", metavar="TOKEN", help="Token to lower; may be repeated.")
]
LossOption = Annotated[
    str | None,
    typer.Option("--loss", metavar="NAME", help="logit_diff (the default), logit_minus_mean, probs or zero."),
]
TraceOption = Annotated[
    str | None,
    typer.Option(
        "--trace",
        metavar="NODE",
        help="Start from an activation instead of a loss, e.g. 2.n5@13, 2.h3@13,1:V or mlp.post_act@2[13,5].",
    ),
]
AblateOption = Annotated[
    list[str] | None,
    typer.Option("--ablate", metavar="SPEC", help="Overwrite activations, e.g. attn.qk_probs@2[:,:,1]=0."),
]
AutoencoderOption = Annotated[
    list[str] | None,
    typer.Option("--autoencoder", metavar="NAME", help="Autoencoder to splice into the run; may be repeated."),
]
ReadOption = Annotated[
    list[str] | None,
    typer.Option("--read", metavar="NAME", help="Autoencoder to read after the run instead; may be repeated."),
]
LayerOption = Annotated[
    list[int] | None, typer.Option("--layer", metavar="N", help="Only this layer; may be repeated. Default: all.")
]
GradientsOption = Annotated[bool, typer.Option("--gradients", help="Derive the gradients (the BACKWARD pass) too.")]

DEFAULT_TYPES = ("mlp_write_to_final_residual_grad", "unflattened_attn_write_to_final_residual_grad")
"""What explains an output best, if there is a loss or a trace."""


def request_of(
    prompt: str,
    *,
    types: list[str] | None,
    target: list[str] | None,
    distractor: list[str] | None,
    loss: str | None,
    trace: str | None,
    ablate: list[str] | None,
    autoencoder: list[str] | None,
    read: list[str] | None,
    layer: list[int] | None,
    gradients: bool,
    model: str | None,
) -> DeriveRequest:
    """The request that the options describe.

    Raises:
        InvalidRequest: If an option cannot be valid, whatever the model.
    """
    has_origin = bool(target or loss or trace)
    return make_request(
        prompt,
        types or (DEFAULT_TYPES if has_origin else ("logits",)),
        target=target,
        distractor=distractor,
        loss=loss,
        trace=None if trace is None else parse_trace(trace),
        ablations=[parse_ablation(text) for text in ablate or ()],
        autoencoders=autoencoder or (),
        config=DstConfig(
            derive_gradients=gradients,
            layer_indices=tuple(layer) if layer else None,
            multi_autoencoder_context=tuple(read) if read else None,
        ),
        model=model,
    )
