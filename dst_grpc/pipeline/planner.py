"""Planning: from a request to the taps that a run has to record and the tasks to derive from them. Pure; reads no
weights.

All rules that need the model are checked here, before anything is loaded onto a device: names, ranks, index ranges,
layers, what each type needs. Every bad field is reported at once; what is missing is reported only if nothing is bad.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from dst_grpc.domain.components import AttentionTraceType, PassType
from dst_grpc.domain.interventions import FINAL_NORM_DETACHED
from dst_grpc.engine.cancellation import Check, never_cancelled
from dst_grpc.errors import DstError, Reason, Violations
from dst_grpc.pipeline.asked_scalar import AskedScalar
from dst_grpc.pipeline.checks import check_layer, check_trace_can_run, check_trace_indices
from dst_grpc.pipeline.cost import costed
from dst_grpc.pipeline.directions import Directions
from dst_grpc.pipeline.findings import Findings
from dst_grpc.pipeline.interventions import (
    changes_of_gradient,
    given_by_request,
    planned_interventions,
)
from dst_grpc.pipeline.lookup import Lookup
from dst_grpc.pipeline.losses import Losses
from dst_grpc.pipeline.plan import Plan, PlannedScalar
from dst_grpc.pipeline.runs import GradientPass, Run
from dst_grpc.pipeline.scalar_planner import plan_scalar
from dst_grpc.pipeline.sizes import Sizes
from dst_grpc.pipeline.source_runs import SourceRuns
from dst_grpc.pipeline.stand_ins import without_stand_ins
from dst_grpc.scalars.origins import LossOrigin, TraceOrigin
from dst_grpc.scalars.topology import AutoencoderInputs, Topology

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dst_grpc.contexts.entries import AutoencoderEntry, ModelEntry
    from dst_grpc.contexts.registry import Registry
    from dst_grpc.domain.requests import DeriveRequest, Prompt
    from dst_grpc.engine.taps import Site
    from dst_grpc.engine.tokenizer import Tokenizer

MAX_TENSORS = 20_000
"""Tensors of one answer. Each takes about 50 bytes of its header, which is sent before any of them."""


def make_plan(
    request: DeriveRequest,
    registry: Registry,
    known: Violations | None = None,
    *,
    root: str = "",
    needs_prompt: bool = False,
    store_bytes: int = 0,
    check: Check = never_cancelled,
) -> Plan:
    """Plan *request*.

    Args:
        request: what is asked.
        registry: what can be loaded.
        known: violations found by reading the request's message, whose paths hold stand-ins in *request*. All else is
            checked, and all violations are reported together.
        root: the path of the request in the message.
        needs_prompt: whether it is to be run, not only resolved.
        store_bytes: budget of the store that will keep its recording, and what is recorded besides; 0 = nothing is.
        check: raises Cancelled once nobody waits for the plan.

    Raises:
        InvalidRequest: listing every field that the model or another field rules out, and those of *known*.
        NotFound: for an unknown model or autoencoder.
        PreconditionFailed: if a type needs an origin, autoencoder or field that the request lacks.
    """
    findings = Findings.after(known, root, check_wanted=check)
    if needs_prompt:
        findings.check(request.prompt is not None, "prompt", "is required")
    plan = plan_run(request, registry, findings, store_bytes)
    if plan is None:
        raise findings.error()
    return plan


def plan_run(request: DeriveRequest, registry: Registry, findings: Findings, store_bytes: int = 0) -> Plan | None:
    """The plan of *request*; None if *findings*, which collects what is wrong or missing, is not empty.

    Raises:
        NotFound: for an unknown model or autoencoder, unless other violations of the request are known.
    """
    if any(map(findings.holds_stand_in, ("model", "config.model_context", "config.model_name"))):
        return None
    try:
        model = registry.model_entry(model_ref(request))
        return _Planner(without_stand_ins(request, findings), registry, model, findings, store_bytes).plan()
    except DstError:
        if findings.known:
            return None
        raise


def model_ref(request: DeriveRequest) -> str:
    """Name or handle of the model that *request* is for; empty for the default."""
    return request.model or request.config.model_context or request.config.model_name or ""


class _Planner:
    """The state of planning one request."""

    def __init__(
        self, request: DeriveRequest, registry: Registry, model: ModelEntry, findings: Findings, store_bytes: int
    ) -> None:
        self._request, self._model, self._findings = request, model, findings
        self._store_bytes = store_bytes
        self._lookup = Lookup(registry, model, findings)
        self._lookup.note_handle(model_ref(request))
        self._sizes = self._sizes_of(0)
        self._topologies: dict[tuple[AutoencoderEntry, ...], Topology] = {}
        self._spliced_residuals: frozenset[Site] = frozenset()

    def _sizes_of(self, n_tokens: int) -> Sizes:
        """Sizes with a prompt; with that of a full context window if it is not known."""
        return Sizes.of_prompt(self._model, n_tokens)

    def _topology(self, sets: tuple[AutoencoderEntry, ...]) -> Topology:
        """The topology with *sets*, one object for all types that name them."""
        if sets not in self._topologies:
            inputs = AutoencoderInputs.of_sets(sets)
            self._topologies[sets] = Topology(
                self._sizes.n_layers, self._model.architecture, inputs, self._spliced_residuals
            )
        return self._topologies[sets]

    def plan(self) -> Plan | None:
        request = self._request
        tokenizer = self._model.tokenizer()
        tokens = () if request.prompt is None else self._tokens(tokenizer, request.prompt, "prompt")
        self._sizes = self._sizes_of(len(tokens))
        spliced = self._spliced()
        self._spliced_residuals = frozenset(
            (one.input.tap, layer) for one in spliced if one.input.is_of_stream for layer in one.layer_indices
        )
        self._lookup.check_model(request.config, "config")
        for i, layer in enumerate(request.config.layer_indices or ()):
            # Checked here too because there may be no derived scalar that reads it.
            check_layer(self._findings, layer, f"config.layer_indices.layer_indices[{i}]", self._sizes.n_layers)
        shared_sets = self._lookup.sets_of(request.config, "config", spliced)
        directions = Directions(self._findings, self._lookup, tokenizer, self._model.dimensions.vocab_size)
        sources = SourceRuns(
            request.source_runs,
            self._findings,
            spliced,
            directions,
            own_tokens=tokens,
            tokens_of=partial(self._tokens, tokenizer),
            sizes_of=self._sizes_of,
        )
        loss = None
        if request.loss_fn_config is not None:
            losses = Losses(
                findings=self._findings,
                tokenizer=tokenizer,
                sizes=self._sizes,
                tokens=tokens,
                lengths=sources.lengths,
                spliced=spliced,
                directions=directions,
            )
            loss = losses.planned(request.loss_fn_config)
        topology = self._topology(spliced or shared_sets)
        trace = self._trace(loss, spliced or shared_sets, topology)
        run = self._run(tokens, loss, trace, spliced, directions, sources)
        scalars = [self._scalar(i, loss, spliced) for i in range(len(request.derived_scalars))]
        self._check_tensor_count(scalars)
        self._check_divergence(run, loss, trace, scalars)
        if self._findings.count or self._findings.known:
            return None
        planned = tuple(scalar for scalar in scalars if scalar is not None)
        return self._assembled(run, tokenizer, loss, trace, (spliced, shared_sets), directions, topology, planned)

    def _assembled(
        self,
        run: Run,
        tokenizer: Tokenizer,
        loss: LossOrigin | None,
        trace: TraceOrigin | None,
        sets: tuple[tuple[AutoencoderEntry, ...], ...],
        directions: Directions,
        topology: Topology,
        scalars: tuple[PlannedScalar, ...],
    ) -> Plan:
        request = self._request
        spliced, shared_sets = sets
        taps = frozenset().union(*(scalar.taps for scalar in scalars))
        values = {site for pass_type, site in taps if pass_type is PassType.FORWARD}
        gradients = {site for pass_type, site in taps if pass_type is PassType.BACKWARD}
        values |= gradients  # The zeros of a missing gradient take the value's shape.
        plan = Plan(
            request=request,
            model=self._model,
            run=run,
            token_strings=tuple(tokenizer.token_strings(run.token_ids)),
            loss=loss,
            trace=trace,
            spliced=spliced,
            shared_sets=shared_sets,
            direction_sets=tuple(directions.sets),
            direction_paths=directions.paths,
            handles=tuple(self._lookup.handles),
            topology=topology,
            scalars=scalars,
            values=frozenset(values),
            gradients=frozenset(gradients),
            records_besides=self._store_bytes > 0,
        )
        return costed(plan, self._store_bytes)

    # The run

    def _tokens(self, tokenizer: Tokenizer, prompt: Prompt, path: str) -> tuple[int, ...]:
        """The tokens of the prompt at *path*; none if they are not known, or longer than the window."""
        if self._findings.holds_stand_in(path):
            return ()
        window = self._model.dimensions.context_window
        if prompt.text is None:
            tokens: Sequence[int] | None = prompt.token_ids or ()
        else:
            tokens = tokenizer.encode_at_most(prompt.text, window)
            self._findings.check(tokens != [], f"{path}.text", "holds no token")
        vocabulary = self._model.dimensions.vocab_size
        for i, token in enumerate(tokens if tokens and max(tokens) >= vocabulary else ()):
            if token >= vocabulary:
                field = f"{path}.token_ids.token_ids[{i}]"
                self._findings.add(field, f"must be below the vocabulary size {vocabulary}, not {token}")
        if tokens is not None and len(tokens) <= window:
            return tuple(tokens)
        count = f"more than {window}" if tokens is None else len(tokens)
        message = f"has {count} tokens, but the context window of {self._model.name!r} holds {window}"
        self._findings.add(path, message, Reason.PROMPT_TOO_LONG)
        return ()

    def _spliced(self) -> tuple[AutoencoderEntry, ...]:
        found = self._lookup.sets(self._request.autoencoders, "autoencoders")
        for path, entry in found.items():
            self._findings.check(
                entry.spliceable,
                path,
                f"{entry.name} reads {entry.dst} and is only read offline: name it in multi_autoencoder_context",
            )
        return tuple(entry for entry in found.values() if entry.spliceable)

    def _trace(
        self, loss: LossOrigin | None, sets: tuple[AutoencoderEntry, ...], topology: Topology
    ) -> TraceOrigin | None:
        trace = self._request.trace_config
        if trace is None:
            return None
        check_trace_indices(self._findings, trace, "trace_config", self._sizes, sets)
        check_trace_can_run(self._findings, trace, "trace_config", topology.inputs, has_loss=loss is not None)
        end = trace
        while end.downstream_trace_config is not None:
            end = end.downstream_trace_config
        if end.attention_trace_type is AttentionTraceType.V and loss is not None and not loss.is_of_last_logits:
            description = "must be of the logits at the prompt's last token: a trace through V reads its gradient there"
            self._findings.add("loss_fn_config", description)
        names = tuple(entry.name for entry in sets)
        return TraceOrigin(trace=trace, loss=loss, autoencoders=names, topology=topology)

    def _run(
        self,
        tokens: tuple[int, ...],
        loss: LossOrigin | None,
        trace: TraceOrigin | None,
        spliced: tuple[AutoencoderEntry, ...],
        directions: Directions,
        sources: SourceRuns,
    ) -> Run:
        """The request's run: gradients start from the trace, else from the loss."""
        found = list(
            planned_interventions(
                given_by_request(self._request),
                self._findings,
                self._sizes,
                spliced,
                directions,
                sources.lengths,
                has_prompt=self._request.prompt is not None,
            )
        )
        if self._request.detach_final_layer_norm_scale:
            found.append(FINAL_NORM_DETACHED)
        origins = [origin for origin in (loss, trace) if origin is not None]
        passes = [
            GradientPass(origin=one, interventions=tuple(changes_of_gradient(found, one, self._sizes.n_layers)))
            for one in origins[-1:]
        ]
        forward = tuple(one for one in found if one.at.pass_type is PassType.FORWARD)
        return Run(
            token_ids=tokens,
            interventions=forward,
            origins=tuple(origins),
            passes=tuple(passes),
            sources=sources.read_by(
                forward, [name for origin in origins if origin.reference for name in origin.reference[:1]]
            ),
        )

    # The derived scalars

    def _scalar(
        self, index: int, loss: LossOrigin | None, spliced: tuple[AutoencoderEntry, ...]
    ) -> PlannedScalar | None:
        request = self._request
        spec, spec_path = request.derived_scalars[index], f"derived_scalars[{index}]"
        if self._findings.holds_stand_in(f"{spec_path}.dst"):
            return None
        config = request.config_of(spec)
        path = "config" if spec.config is None else f"{spec_path}.config"
        if spec.config is not None:
            self._lookup.check_model(config, path)
        sets = self._lookup.sets_of(config, path, spliced)
        asked = AskedScalar(
            request=request,
            spec_index=index,
            config=config,
            path=path,
            spec_path=spec_path,
            model=self._model,
            sizes=self._sizes,
            topology=self._topology(sets),
            sets=sets,
            spliced=spliced,
            loss=loss,
            findings=self._findings,
        )
        return plan_scalar(asked)

    def _check_divergence(
        self, run: Run, loss: LossOrigin | None, trace: TraceOrigin | None, scalars: Sequence[PlannedScalar | None]
    ) -> None:
        """Note gradients of a divergence from an equal run, where it has its minimum."""
        if loss is None or loss.reference is None or trace is not None or self._findings.count:
            return
        vanishes = run.source(loss.reference[0]) == run.forward
        if vanishes and any(scalar is not None and scalar.requires_grad for scalar in scalars):
            description = "names a run that is the same as this one: all gradients of the divergence are 0 there"
            self._findings.add("loss_fn_config.reference_run", description)

    def _check_tensor_count(self, scalars: Sequence[PlannedScalar | None]) -> None:
        """An answer's header names every tensor."""
        count = sum(len(s.layers) * len(s.passes) for s in scalars if s is not None)
        if count > MAX_TENSORS:
            self._findings.add("derived_scalars", f"ask for {count} tensors; one answer holds at most {MAX_TENSORS}")
