"""Planning: from a request to what a run has to record and every task to derive from it. Pure; touches no weights.

All rules that need the model are checked here, before anything is loaded onto a device: names, ranks, index ranges,
layers, what each type needs. Every bad field is reported at once; what is missing is reported only if nothing is bad.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dst_grpc.domain.components import PassType
from dst_grpc.errors import DstError, InvalidRequest, Reason, Violations
from dst_grpc.pipeline.checks import check_ablation, check_trace_can_run, check_trace_indices
from dst_grpc.pipeline.cost import estimate_cost
from dst_grpc.pipeline.findings import Findings
from dst_grpc.pipeline.lookup import Catalogue, Lookup
from dst_grpc.pipeline.plan import Plan, PlannedScalar, last_layer_of
from dst_grpc.pipeline.sizes import Sizes
from dst_grpc.pipeline.tasks import TaskBuilder
from dst_grpc.scalars.loss import TokenLoss
from dst_grpc.scalars.topology import AutoencoderInputs, Residual, Topology

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dst_grpc.domain.config import DstConfig
    from dst_grpc.domain.requests import DeriveRequest
    from dst_grpc.domain.resolution import AutoencoderInfo, ModelInfo
    from dst_grpc.domain.trace import TraceConfig
    from dst_grpc.engine.taps import Ablation
    from dst_grpc.engine.tokenizer import Tokenizer

MAX_TENSORS = 20_000
"""Tensors of one answer. Their headers take about 50 bytes each, and a message holds 4 MiB."""


def make_plan(request: DeriveRequest, catalogue: Catalogue, known: Violations | None = None) -> Plan:
    """Plan *request*.

    Args:
        request: what is asked.
        catalogue: what can be loaded.
        known: what reading the request's message found, whose paths hold stand-ins in *request*. All else is checked,
            and everything told together.

    Raises:
        InvalidRequest: listing every field that the model or another field rules out, and those of *known*.
        NotFound: for an unknown model or autoencoder.
        PreconditionFailed: if a type needs an origin, autoencoder or field that the request lacks.
    """
    findings = Findings.after(known)
    plan = plan_run(request, catalogue, findings)
    if plan is None:
        raise findings.error()
    return plan


def plan_run(request: DeriveRequest, catalogue: Catalogue, findings: Findings) -> Plan | None:
    """The plan of *request*; None if there is something in *findings*, which takes what is wrong or missing.

    Raises:
        NotFound: for an unknown model or autoencoder, unless the request has other faults that are known.
    """
    if any(map(findings.holds_stand_in, ("model", "config.model_context", "config.model_name"))):
        return None
    try:
        model = catalogue.model(model_ref(request))
        return _Planner(_without_stand_ins(request, findings), catalogue, model, findings).plan()
    except DstError:
        if findings.known:
            return None
        raise


def model_ref(request: DeriveRequest) -> str:
    """Name or handle of the model that *request* is for; empty for the default."""
    return request.model or request.config.model_context or request.config.model_name or ""


def names_files(request: DeriveRequest) -> bool:
    """Whether *request* names autoencoders by path: to plan it, their files are read."""
    configs = (request.config, *(spec.config for spec in request.derived_scalars))
    return any(config is not None and config.autoencoder_config is not None for config in configs)


def _without_stand_ins(request: DeriveRequest, findings: Findings) -> DeriveRequest:
    """*request* without what is known to be bad and could mislead the rules about other fields."""
    if not findings.known:
        return request
    optional: dict[str, Any] = {
        name: None for name in ("prompt", "loss_fn_config", "trace_config") if findings.holds_stand_in(name)
    }
    specs = tuple(
        spec
        if spec.config is None
        else replace(spec, config=_config_without_stand_ins(spec.config, f"derived_scalars[{i}].config", findings))
        for i, spec in enumerate(request.derived_scalars)
    )
    config = _config_without_stand_ins(request.config, "config", findings)
    return replace(request, **optional, config=config, derived_scalars=specs)


def _config_without_stand_ins(config: DstConfig, path: str, findings: Findings) -> DstConfig:
    names = ("autoencoder_config", "trace_config", "activation_index_for_fake_grad", "node_index_for_attribution")
    optional: dict[str, Any] = {name: None for name in names if findings.holds_stand_in(f"{path}.{name}")}
    return replace(config, **optional)


class _Planner:
    """The state of one planning: what was found, and what is wrong."""

    def __init__(self, request: DeriveRequest, catalogue: Catalogue, model: ModelInfo, findings: Findings) -> None:
        self._request, self._catalogue, self._model, self._findings = request, catalogue, model, findings
        self._lookup = Lookup(catalogue, model, findings)
        self._sizes = self._sizes_of(model.dimensions.context_window)

    def _sizes_of(self, n_tokens: int) -> Sizes:
        return Sizes(self._model.dimensions, n_tokens, self._model.architecture)

    def _topology(self, sets: Sequence[AutoencoderInfo]) -> Topology:
        return Topology(self._sizes.n_layers, self._model.architecture, AutoencoderInputs.of_sets(sets))

    def plan(self) -> Plan | None:
        request = self._request
        tokenizer = self._catalogue.tokenizer(self._model.name)
        tokens = self._tokens(tokenizer)
        if tokens:
            self._sizes = self._sizes_of(len(tokens))
        loss = self._loss(tokenizer)
        spliced = self._spliced()
        self._lookup.check_model(request.config, "config")
        shared_sets = self._lookup.sets_of(request.config, "config", spliced)
        self._check_origin(spliced or shared_sets)
        ablations = self._ablations(spliced, self._topology(spliced or shared_sets))
        scalars = [self._scalar(i, loss, spliced) for i in range(len(request.derived_scalars))]
        self._check_tensor_count(scalars)
        if self._findings.count or self._findings.known:
            return None
        planned = tuple(scalar for scalar in scalars if scalar is not None)
        return self._assembled(tokens, tokenizer, loss, spliced, shared_sets, ablations, planned)

    def _assembled(
        self,
        tokens: tuple[int, ...],
        tokenizer: Tokenizer,
        loss: TokenLoss | None,
        spliced: tuple[AutoencoderInfo, ...],
        shared_sets: tuple[AutoencoderInfo, ...],
        ablations: tuple[Ablation, ...],
        scalars: tuple[PlannedScalar, ...],
    ) -> Plan:
        request = self._request
        reads = frozenset().union(*(scalar.reads for scalar in scalars))
        values = {site for pass_type, site in reads if pass_type is PassType.FORWARD}
        gradients = {site for pass_type, site in reads if pass_type is PassType.BACKWARD}
        values |= gradients  # The zeros of a missing gradient take the value's shape.
        if request.trace_config is not None:
            topology = self._topology(spliced or shared_sets)
            rho = topology.residual_of_trace(request.trace_config).site
            values.add(rho)
            values |= set(topology.residuals_of_trace_value(request.trace_config))
            if gradients:
                gradients.add(rho)
        last = None if loss is not None else last_layer_of(values)
        everything = {info.handle or info.name: info for info in (*spliced, *shared_sets)}
        for scalar in scalars:
            everything |= {info.handle or info.name: info for info in scalar.sets}
        return Plan(
            request=request,
            model=self._model,
            token_ids=tokens,
            token_strings=tuple(tokenizer.token_strings(tokens)),
            loss=loss,
            spliced=spliced,
            origin_sets=spliced or shared_sets,
            autoencoders=tuple(everything.values()),
            ablations=ablations,
            scalars=scalars,
            values=frozenset(values),
            gradients=frozenset(gradients),
            stop_after_layer=last,
            config=self._canonical(request.config, shared_sets, request.trace_config),
            cost=estimate_cost(self._sizes, values, gradients, scalars, needs_logits=last is None),
        )

    # The run

    def _tokens(self, tokenizer: Tokenizer) -> tuple[int, ...]:
        prompt = self._request.prompt
        if prompt is None:
            return ()
        if prompt.text is not None:
            tokens = tuple(tokenizer.encode(prompt.text))
            self._findings.check(bool(tokens), "prompt.text", "holds no token")
        else:
            tokens = prompt.token_ids or ()
            # An embedding may be padded with rows that are no token's.
            vocabulary = min(self._model.dimensions.vocab_size, tokenizer.vocab_size)
            for i, token in enumerate(tokens):
                if token >= vocabulary:
                    field = f"prompt.token_ids.token_ids[{i}]"
                    self._findings.add(field, f"must be below the vocabulary size {vocabulary}, not {token}")
        window = self._model.dimensions.context_window
        if len(tokens) > window:
            message = f"has {len(tokens)} tokens, but the context window of {self._model.name!r} holds {window}"
            self._findings.add("prompt", message, Reason.PROMPT_TOO_LONG)
        return tokens

    def _loss(self, tokenizer: Tokenizer) -> TokenLoss | None:
        given = self._request.loss_fn_config
        if given is None:
            return None
        ids: dict[str, list[int]] = {}
        vocabulary = self._model.dimensions.vocab_size
        for side in ("target", "distractor"):
            ids[side] = []
            for i, text in enumerate(getattr(given, f"{side}_tokens")):
                try:
                    ids[side].append(tokenizer.single_token(text, f"loss_fn_config.{side}_tokens[{i}]"))
                except InvalidRequest as error:
                    self._findings.extend(error)
            for i, token in enumerate(getattr(given, f"{side}_token_ids")):
                field = f"loss_fn_config.{side}_token_ids[{i}]"
                self._findings.check(token < vocabulary, field, f"must be below the vocabulary size {vocabulary}")
                ids[side].append(token)
        return TokenLoss(given.name, tuple(ids["target"]), tuple(ids["distractor"]))

    def _spliced(self) -> tuple[AutoencoderInfo, ...]:
        found = self._lookup.sets(self._request.autoencoders, "autoencoders")
        for path, info in found.items():
            self._findings.check(
                info.spliceable,
                path,
                f"{info.name} reads {info.dst} and can only be read offline: name it in config instead",
            )
        return tuple(info for info in found.values() if info.spliceable)

    def _check_origin(self, sets: tuple[AutoencoderInfo, ...]) -> None:
        trace = self._request.trace_config
        if trace is None:
            return
        check_trace_indices(self._findings, trace, "trace_config", self._sizes, sets)
        has_loss = self._request.loss_fn_config is not None
        check_trace_can_run(self._findings, trace, "trace_config", AutoencoderInputs.of_sets(sets), has_loss=has_loss)

    def _ablations(self, spliced: tuple[AutoencoderInfo, ...], topology: Topology) -> tuple[Ablation, ...]:
        if self._findings.holds_stand_in("autoencoders"):
            return ()  # which taps there are depends on them
        renamed = spliced[0].input.latent_tap if len(spliced) == 1 else None
        found = []
        for i, spec in enumerate(self._request.ablation_specs):
            path = f"ablation_specs[{i}]"
            if not self._findings.holds_stand_in(path):
                ablation = check_ablation(self._findings, spec, path, self._sizes, spliced, generic=renamed)
                found.append(ablation)
        trace = self._request.trace_config
        if trace is None:
            return tuple(found)
        rho = topology.residual_of_trace(trace)
        return tuple(reached for ablation in found for reached in self._reached(ablation, rho))

    def _reached(self, ablation: Ablation, rho: Residual) -> Iterator[Ablation]:
        """*ablation*, or of a backward one what the origin's gradient meets on its way from *rho*.

        The rest would do nothing to this prompt alone; in a batch, the gradients of others would set it off.
        """
        location, layer = ablation.location, ablation.layer
        if ablation.pass_type is PassType.FORWARD:
            yield ablation
        elif layer is not None or location.has_no_layers:
            if rho.depends_on((location, layer)):
                yield ablation
        else:
            for each in range(self._sizes.n_layers):
                if rho.depends_on((location, each)):
                    yield replace(ablation, layer=each)

    # The derived scalars

    def _scalar(self, index: int, loss: TokenLoss | None, spliced: tuple[AutoencoderInfo, ...]) -> PlannedScalar | None:
        request = self._request
        spec, spec_path = request.derived_scalars[index], f"derived_scalars[{index}]"
        if self._findings.holds_stand_in(f"{spec_path}.dst"):
            return None
        config = request.config_of(spec)
        path = "config" if spec.config is None else f"{spec_path}.config"
        if spec.config is not None:
            self._lookup.check_model(config, path)
        sets = self._lookup.sets_of(config, path, spliced)
        builder = TaskBuilder(
            request=request,
            spec=spec,
            config=config,
            path=path,
            spec_path=spec_path,
            model=self._model,
            sizes=self._sizes,
            sets=sets,
            spliced=spliced,
            loss=loss,
            findings=self._findings,
        )
        built = builder.build()
        if built is None:
            return None
        task, reads = built
        return PlannedScalar(
            spec_index=index,
            task=task,
            config=self._canonical(config, sets, task.trace, layers=task.layers),
            sets=sets,
            axes=self._sizes.axes(task, sets),
            reads=reads,
        )

    def _check_tensor_count(self, scalars: Sequence[PlannedScalar | None]) -> None:
        """An answer's header names every tensor, and must fit into one message."""
        count = sum(len(s.task.layers) * len(s.task.passes) for s in scalars if s is not None)
        if count > MAX_TENSORS:
            self._findings.add("derived_scalars", f"ask for {count} tensors; one answer holds at most {MAX_TENSORS}")

    def _canonical(
        self,
        config: DstConfig,
        sets: tuple[AutoencoderInfo, ...],
        trace: TraceConfig | None,
        *,
        layers: tuple[int | None, ...] | None = None,
    ) -> DstConfig:
        """*config* with every context and default filled in."""
        covered = tuple(layer for layer in layers or () if layer is not None)
        return replace(
            config,
            model_name=self._model.name,
            model_context=self._model.handle or self._model.name,
            autoencoder_context=None,
            autoencoder_config=None,
            multi_autoencoder_context=tuple(info.handle or info.name for info in sets) or None,
            trace_config=trace,
            layer_indices=config.layer_indices if layers is None else (covered or None),
            device_for_raw_activations=self._model.device,
        )
