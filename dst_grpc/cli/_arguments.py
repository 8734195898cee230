"""The options of `derive` and `resolve`, and the request they describe."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from functools import wraps
from typing import Annotated, Any, get_type_hints

import typer

from dst_grpc.cli._console import ModelOption
from dst_grpc.cli._parse import SOURCE, parse_ablation, parse_patch, parse_scale, parse_trace
from dst_grpc.client import AblationSpec, DerivedScalarType, DeriveRequest, DstConfig, Intervention, make_request
from dst_grpc.errors import InvalidRequest

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
    typer.Option(
        "--loss",
        metavar="NAME",
        help="logit_diff (the default), logit_minus_mean, probs, log_prob, sequence_log_prob, entropy, kl_divergence "
        "(from the run without changes, of a pair from the clean one), cross_entropy or zero.",
    ),
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
    typer.Option(
        "--ablate",
        metavar="SPEC",
        help="Overwrite activations, e.g. attn.qk_probs@2[:,:,1]=0 or mlp.post_act@2[5:9,(1,4)]=0; may be repeated.",
    ),
]
ScaleOption = Annotated[
    list[str] | None,
    typer.Option(
        "--scale", metavar="SPEC", help="Multiply activations, e.g. attn.qk_probs@2[:,:,1]*0.5; may be repeated."
    ),
]
PatchOption = Annotated[
    list[str] | None,
    typer.Option(
        "--patch",
        metavar="SPEC",
        help="Take activations from the run of --source, e.g. resid.post_mlp@2[13]; may be repeated.",
    ),
]
SourceOption = Annotated[
    str | None,
    typer.Option("--source", metavar="PROMPT", help="The prompt whose run --patch takes activations from."),
]
DetachOption = Annotated[
    bool,
    typer.Option(
        "--detach-final-layer-norm-scale/--no-detach-final-layer-norm-scale",
        help="Freeze the final norm: hold its scale constant in gradients, so that direct effects are shares of a "
        "logit difference. Otherwise they are those of a small change, of which the norm takes back a part.",
    ),
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
"""Types derived by default, if there is a loss or a trace: direct effects."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestOptions:
    """The prompt, and the options of what to derive."""

    prompt: PromptArgument
    types: TypeOption = None
    target: TargetOption = None
    distractor: DistractorOption = None
    loss: LossOption = None
    trace: TraceOption = None
    ablate: AblateOption = None
    scale: ScaleOption = None
    patch: PatchOption = None
    source: SourceOption = None
    detach_final_layer_norm_scale: DetachOption = True
    autoencoder: AutoencoderOption = None
    read: ReadOption = None
    layer: LayerOption = None
    gradients: GradientsOption = False
    model: ModelOption = None

    def request(self) -> DeriveRequest:
        """The request that they describe.

        Raises:
            InvalidRequest: If an option cannot be valid, whatever the model.
        """
        if bool(self.patch) is not (self.source is not None):
            lacks = "--source: a prompt to take activations from" if self.patch else "--patch: activations to take"
            raise InvalidRequest.of("--patch" if self.patch else "--source", f"needs {lacks}")
        has_origin = bool(self.target or self.loss or self.trace)
        ablations = [parse_ablation(text) for text in self.ablate or ()]
        changes = [found for found in ablations if isinstance(found, Intervention)]
        return make_request(
            self.prompt,
            self.types or (DEFAULT_TYPES if has_origin else ("logits",)),
            target=self.target,
            distractor=self.distractor,
            loss=self.loss,
            trace=None if self.trace is None else parse_trace(self.trace),
            ablations=[found for found in ablations if isinstance(found, AblationSpec)],
            interventions=[*changes, *map(parse_scale, self.scale or ()), *map(parse_patch, self.patch or ())],
            source_runs={} if self.source is None else {SOURCE: self.source},
            detach_final_layer_norm_scale=self.detach_final_layer_norm_scale,
            autoencoders=self.autoencoder or (),
            config=DstConfig(
                derive_gradients=self.gradients,
                layer_indices=tuple(self.layer) if self.layer else None,
                multi_autoencoder_context=tuple(self.read) if self.read else None,
            ),
            model=self.model or None,
        )


def takes_request(command: Callable[..., None]) -> Callable[..., None]:
    """*command* with its first parameter, a RequestOptions, replaced by the options themselves."""
    hints = get_type_hints(RequestOptions, include_extras=True)
    shared = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is MISSING else field.default,
            annotation=hints[field.name],
        )
        for field in fields(RequestOptions)
    ]
    own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]

    @wraps(command)
    def run(**values: Any) -> None:
        command(RequestOptions(**{field.name: values.pop(field.name) for field in fields(RequestOptions)}), **values)

    parameters = [*shared, *own]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # functions may carry one
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run
