"""How much memory a run's passes take: the tensors alive at the peak, counted from the code of the decoder.

Memory peaks at one of three times: at the end of the forward pass, when everything recorded is there and the last layer
or the logits are computed; at the start of a gradient pass, when the whole graph is there too; at its end, when the
gradients are. A tensor that is both recorded and saved by the graph counts once.

What each layer's graph saves: the inputs of norms; queries, keys and values, or the tensor that they are parts of;
the weighted sums of values or, where scores are computed as a matrix, the probabilities and the mask; what the
nonlinearity saves and, in gated MLPs, both factors of the product; of spliced autoencoders, the latents. Linear maps
save nothing, as weights have no gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dst_grpc.domain.architecture import ActivationFunction
from dst_grpc.domain.autoencoders import AutoencoderActivation
from dst_grpc.domain.locations import ActivationLocationType
from dst_grpc.pipeline.sizes import most_latents

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from dst_grpc.contexts.entries import AutoencoderEntry
    from dst_grpc.engine.taps import Site
    from dst_grpc.pipeline.sizes import Sizes

_L = ActivationLocationType
_LOSS_ROWS = 4
"""For each row of logits that a loss reads: the row, its logarithms of probabilities, and a gradient of each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PassBytes:
    """Bytes of a run's tensors."""

    peak: int
    """The most at any time of its passes."""
    kept: int
    """What is recorded, and stays until the answer is made."""


def pass_bytes(
    sizes: Sizes,
    values: Iterable[Site],
    gradients: Iterable[Site],
    *,
    n_gradient_passes: int = 1,
    logit_count: int = 0,
    spliced: Sequence[AutoencoderEntry] = (),
) -> PassBytes:
    """Bytes of one run's passes.

    Args:
        sizes: of the model and prompt.
        values: sites whose value is recorded.
        gradients: sites whose gradient is.
        n_gradient_passes: how often gradients are taken.
        logit_count: tokens whose logits are computed, besides those that are recorded.
        spliced: the autoencoders in the graph.
    """
    recorded, differentiated = frozenset(values), frozenset(gradients)
    tensors = _Tensors(sizes, recorded | differentiated, spliced)
    of_values = tensors.recorded(recorded) + tensors.kept_latents
    of_gradients = n_gradient_passes * tensors.recorded(differentiated)
    last = tensors.last_layer
    of_logits = tensors.unembedding(logit_count, backward=False)
    forward = of_values + max(tensors.forward(last) - tensors.logits, of_logits)
    if not differentiated:
        return PassBytes(peak=forward, kept=of_values)
    layers = range(min(0 if layer is None else layer for _, layer in differentiated), last + 1)
    graphs = [tensors.saved(layer) for layer in layers]
    # Layer by layer the graph gives way to the gradients that are recorded.
    of_logits = tensors.unembedding(logit_count, backward=True)
    start = sum(graphs) + max(of_logits, of_gradients // max(len(layers), 1) + tensors.backward(last))
    end = max(graphs, default=0) + of_gradients + tensors.backward(layers.start)
    return PassBytes(peak=max(forward, of_values + max(start, end)), kept=of_values + of_gradients)


class _Tensors:
    """Bytes of the tensors of a run's layers, given the sites that are recorded."""

    def __init__(self, sizes: Sizes, sites: Collection[Site], spliced: Sequence[AutoencoderEntry]) -> None:
        self._sizes, self._sites, self._spliced = sizes, sites, spliced
        model, architecture = sizes.model, sizes.architecture
        token = sizes.n_tokens * sizes.item_bytes
        self._residual, self._neurons = token * model.d_model, token * model.d_mlp
        self._queries = token * model.n_heads * model.d_head
        self._keys = token * model.n_key_value_heads * model.d_head
        self._matrix = token * sizes.n_tokens * model.n_heads
        self._mask = sizes.n_tokens**2
        """Of one byte each."""
        self._is_shared = model.n_key_value_heads < model.n_heads
        self._architecture = architecture
        self.logits = token * model.vocab_size if (_L.LOGITS, None) in sites else 0
        """Of the recorded logits."""

    def unembedding(self, n_rows: int, *, backward: bool) -> int:
        """While logits, or their gradient, are computed: besides the logits themselves, if they are recorded."""
        if not n_rows:
            return 0
        rows = n_rows * _LOSS_ROWS * self._sizes.item_bytes * self._sizes.model.vocab_size
        count = 2 if self._architecture.final_softcap else 0
        return 2 * self._residual + rows + self.logits * (count + backward)

    @property
    def last_layer(self) -> int:
        """The last that runs."""
        n_layers = self._sizes.n_layers
        return max((n_layers - 1 if layer is None else layer for _, layer in self._sites), default=n_layers - 1)

    def recorded(self, sites: Collection[Site]) -> int:
        """Of the values, or gradients, at *sites*."""
        total = self._sizes.recorded_bytes(sites, most_latents(self._spliced))
        if not self._is_shared:  # a value is a part of one tensor with the query and the key before their factors
            total += 2 * self._queries * sum(location is _L.ATTN_VALUE for location, _ in sites)
        return total

    def _has(self, layer: int, *locations: ActivationLocationType) -> bool:
        return any((location, layer) in self._sites for location in locations)

    def _makes_matrix(self, layer: int) -> bool:
        """Whether scores are computed as a matrix, rather than in the fused kernel."""
        return self._architecture.attn_softcap is not None or self._recorded_matrices(layer) > 0

    def _recorded_matrices(self, layer: int) -> int:
        """How many of scores and probabilities are recorded."""
        return self._has(layer, _L.ATTN_QK_LOGITS) + self._has(layer, _L.ATTN_QK_PROBS)

    def _masks(self, layer: int) -> bool:
        """Whether the fused kernel is given a mask."""
        windows = self._architecture.sliding_windows
        window = windows[layer] if windows else None
        return window is not None and window < self._sizes.n_tokens

    def saved(self, layer: int) -> int:
        """What the graph saves of *layer*, but for what is recorded."""
        own = self._saved_of_norms(layer) + self._saved_of_attention(layer) + self._saved_of_mlp(layer)
        return own + sum(
            self._latents(one) * (_saved_by_threshold(one) + (not self._keeps_latents(one, layer)))
            for one in self._spliced
            if layer in one.layer_indices
        )

    def _saved_of_norms(self, layer: int) -> int:
        architecture = self._architecture
        entering = self._has(layer - 1, _L.RESID_POST_MLP) if layer else (_L.RESID_POST_EMBEDDING, None) in self._sites
        count = int(not entering) + 2 * architecture.post_norms
        if not architecture.parallel:
            count += not self._has(layer, _L.RESID_POST_ATTN)
        return count * self._residual

    def _saved_of_attention(self, layer: int) -> int:
        architecture, makes_matrix = self._architecture, self._makes_matrix(layer)
        is_repeated = self._is_shared and (makes_matrix or self._has(layer, _L.ATTN_KEY, _L.ATTN_VALUE))
        keys = self._queries if is_repeated else self._keys
        total = 0 if self._has(layer, _L.ATTN_QUERY) else self._queries
        total += 0 if self._has(layer, _L.ATTN_KEY) else keys
        value_is_recorded = self._has(layer, _L.ATTN_VALUE)
        if is_repeated:
            total += 0 if value_is_recorded else keys
        if architecture.qk_norm or not (is_repeated or value_is_recorded):
            total += self._queries + 2 * self._keys
        if makes_matrix:
            total += self._mask
            total += 0 if self._has(layer, _L.ATTN_QK_PROBS) else self._matrix
            total += 0 if architecture.attn_softcap is None else self._matrix
        else:
            total += 0 if self._has(layer, _L.ATTN_WEIGHTED_SUM_OF_VALUES) else self._queries
            total += self._sizes.item_bytes * self._mask if self._masks(layer) else 0
        return total

    def _saved_of_mlp(self, layer: int) -> int:
        is_relu = self._architecture.activation is ActivationFunction.RELU
        if self._architecture.gated:
            return self._neurons * (2 if is_relu or self._has(layer, _L.MLP_PRE_ACT) else 3)
        is_recorded = self._has(layer, _L.MLP_POST_ACT if is_relu else _L.MLP_PRE_ACT)
        return 0 if is_recorded else self._neurons

    def forward(self, layer: int) -> int:
        """While *layer* is computed, besides what is recorded."""
        architecture = self._architecture
        mlp = self._neurons * ((4 if architecture.gated else 2) - self._has(layer, _L.MLP_PRE_ACT))
        mlp -= self._neurons * self._has(layer, _L.MLP_POST_ACT)
        attention = self._queries + 2 * self._keys
        if self._makes_matrix(layer):
            # Those before the mask or those in the order of the softmax, those after it, and the probabilities.
            attention += 2 * self._mask + self._matrix * (3 - min(self._recorded_matrices(layer), 1))
        return 4 * self._residual + max(mlp, attention, self._while_spliced(layer, backward=False))

    def backward(self, layer: int) -> int:
        """While *layer* is differentiated, besides the graph and what is recorded."""
        mlp = self._neurons * (3 if self._architecture.gated else 2)
        attention = self._queries + 2 * self._keys
        if self._makes_matrix(layer):
            attention += self._matrix * (2 if self._architecture.attn_softcap is None else 3)
        return 2 * self._residual + max(mlp, attention, self._while_spliced(layer, backward=True))

    # Latents of spliced autoencoders

    def _latents(self, one: AutoencoderEntry) -> int:
        """Of those of a layer."""
        return self._sizes.n_tokens * self._sizes.item_bytes * one.n_latents

    def _while_spliced(self, layer: int, *, backward: bool) -> int:
        """While the widest splice of *layer* is computed, or differentiated: latents, and what they are computed from,
        or gradients of those as they are made and as they are tapped, also of earlier layers that write here."""
        tensors = (
            self._latents(one)
            * (3 + _saved_by_threshold(one) + one.stays_in_files + 2 * layer * (backward and one.is_cross_layer))
            for one in self._spliced
            if layer in one.layer_indices
        )
        return max(tensors, default=0)

    def _keeps_latents(self, one: AutoencoderEntry, layer: int) -> bool:
        """Whether latents of *layer* are kept anyway: recorded, or for later layers that they write to."""
        return one.is_cross_layer or (one.input.latent_tap, layer) in self._sites

    @property
    def kept_latents(self) -> int:
        """Of those that are kept for later layers, but for recorded ones."""
        layers = range(self.last_layer + 1)
        return sum(
            self._latents(one) * sum((one.input.latent_tap, layer) not in self._sites for layer in layers)
            for one in self._spliced
            if one.is_cross_layer
        )


def _saved_by_threshold(one: AutoencoderEntry) -> int:
    """Tensors of the size of the latents that the graph saves besides these: of JumpReLU, a factor of its product."""
    is_jump = any(header.activation is AutoencoderActivation.JUMP_RELU for header in one.headers)
    return int(is_jump and not one.stays_in_files)
