"""The same workloads by `transformers` and hooks, as one writes them: a pass for each changed run, of all prompts.

Shapes: p prompt, L layer, T token, d residual channel, V token of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import transformers

from scripts.scorecard.subjects import STRENGTHS, Example, Subject

Change = Callable[[torch.Tensor], torch.Tensor | None]
"""From the output of a module [b, T, d] to what takes its place; None for the same."""


class Reference:
    """A model of `transformers`."""

    def __init__(self, subject: Subject) -> None:
        """Load it."""
        self._subject = subject
        load: Any = transformers.AutoModelForCausalLM.from_pretrained
        self._model: Any = load(subject.folder, attn_implementation="eager", dtype=torch.float32).eval()
        self._model.requires_grad_(False)
        body = getattr(self._model, "transformer", None) or self._model.model
        self._layers: Sequence[Any] = body.h if hasattr(body, "h") else body.layers

    def ablations(self, examples: Sequence[Example], what: str) -> list[torch.Tensor]:
        """Logits [p, V] of each layer without what its attention, or its MLP, writes."""
        modules = [self._writes(layer)[what] for layer in self._layers]
        return [self._logits(examples, {module: torch.zeros_like}) for module in modules]

    def steered(self, examples: Sequence[Example]) -> list[torch.Tensor]:
        """Logits [p, V] at each strength."""
        layer = self._layers[self._subject.middle]

        def steers(strength: float) -> Change:
            return lambda x: x + strength * self._subject.direction

        return [self._logits(examples, {layer: steers(strength)}) for strength in STRENGTHS]

    def patched_last(self, examples: Sequence[Example]) -> list[torch.Tensor]:
        """Logits [p, V] with the last token's residual after each layer taken from the corrupt run."""
        sources = self._outputs([example.corrupt for example in examples], self._layers)

        def patches(source: torch.Tensor) -> Change:
            def change(x: torch.Tensor) -> torch.Tensor:
                x = x.clone()
                x[:, -1] = source[:, -1]
                return x

            return change

        return [self._logits(examples, {layer: patches(sources[layer])}) for layer in self._layers]

    def patched_everywhere(self, examples: Sequence[Example]) -> list[torch.Tensor]:
        """Logits [p * T, V], by layer, with one token's residual taken from the corrupt run; a pass for each layer,
        whose rows are the positions."""
        n_tokens = len(examples[0].clean)
        sources = self._outputs([example.corrupt for example in examples], self._layers)
        repeated = [example for example in examples for _ in range(n_tokens)]
        places = list(range(n_tokens)) * len(examples)
        rows = torch.arange(len(repeated))

        def patches(source: torch.Tensor) -> Change:
            def change(x: torch.Tensor) -> torch.Tensor:
                x = x.clone()
                x[rows, places] = source.repeat_interleave(n_tokens, dim=0)[rows, places]
                return x

            return change

        return [self._logits(repeated, {layer: patches(sources[layer])}) for layer in self._layers]

    def patterns(self, examples: Sequence[Example]) -> list[torch.Tensor]:
        """Attention patterns [p, H, T, T] by layer."""
        with torch.no_grad():
            return list(self._model(_tokens(examples), output_attentions=True).attentions)

    def attributed(self, examples: Sequence[Example], what: str) -> torch.Tensor:
        """Scores [L, T] of attribution patching of what attentions, or MLPs, write: the mean over examples."""
        modules = [self._writes(layer)[what] for layer in self._layers]
        sources = self._outputs([example.corrupt for example in examples], modules)
        clean, gradients = self._differentiated(examples, modules)
        scores = [((sources[module] - clean[module]) * gradients[module]).sum(dim=-1) for module in modules]
        return torch.stack(scores).mean(dim=1)

    def interchanged(self, examples: Sequence[Example]) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits [p, V] with the last token's component in the subspace taken from the corrupt run, and the gradient
        [p, d] of the logit difference at the residual that it made."""
        layer, rows = self._layers[self._subject.middle], self._subject.subspace
        source = self._outputs([example.corrupt for example in examples], [layer])[layer]

        def change(x: torch.Tensor) -> torch.Tensor:
            x = x.clone()
            x[:, -1] += (source[:, -1] - x[:, -1]) @ rows.T @ rows
            return x

        logits: list[torch.Tensor] = []
        _, gradients = self._differentiated(examples, [layer], {layer: change}, logits)
        return logits[0], gradients[layer][:, -1]

    # Passes

    def _writes(self, layer: Any) -> Mapping[str, Any]:
        """The modules whose outputs are added to the residual."""
        if hasattr(layer, "post_feedforward_layernorm"):
            return {"attn": layer.post_attention_layernorm, "mlp": layer.post_feedforward_layernorm}
        return {"attn": layer.attn if hasattr(layer, "attn") else layer.self_attn, "mlp": layer.mlp}

    def _logits(self, examples: Sequence[Example], changes: Mapping[Any, Change]) -> torch.Tensor:
        """Logits [p, V] at the last token of clean prompts."""
        with torch.no_grad(), _hooked(changes):
            logits: torch.Tensor = self._model(_tokens(examples)).logits
        return logits[:, -1]

    def _outputs(self, prompts: Sequence[Sequence[int]], modules: Sequence[Any]) -> dict[Any, torch.Tensor]:
        """What modules return [p, T, d] for some prompts."""
        found: dict[Any, torch.Tensor] = {}
        with torch.no_grad(), _hooked({module: _keeps(found, module) for module in modules}):
            self._model(torch.tensor([*map(list, prompts)]))
        return found

    def _differentiated(
        self,
        examples: Sequence[Example],
        modules: Sequence[Any],
        changes: Mapping[Any, Change] | None = None,
        logits: list[torch.Tensor] | None = None,
    ) -> tuple[dict[Any, torch.Tensor], dict[Any, torch.Tensor]]:
        """What modules return for clean prompts, after *changes*, and the gradients of the sum of logit differences
        there. *logits* receives those of the last tokens."""
        found: dict[Any, torch.Tensor] = {}

        def attached(module: Any) -> Change:
            def change(x: torch.Tensor) -> torch.Tensor:
                if changes and module in changes:
                    x = changes[module](x)  # type: ignore[assignment]  # ours return a tensor
                if not x.requires_grad:
                    x = x.detach().requires_grad_()
                found[module] = x
                return x

            return change

        with torch.enable_grad(), _hooked({module: attached(module) for module in modules}):
            last = self._model(_tokens(examples)).logits[:, -1]
            if logits is not None:
                logits.append(last.detach())
            rows = torch.arange(len(examples))
            wanted = [[one.target for one in examples], [one.distractor for one in examples]]
            difference = (last[rows, wanted[0]] - last[rows, wanted[1]]).sum()
            gradients = torch.autograd.grad(difference, [found[module] for module in modules])
        return {module: x.detach() for module, x in found.items()}, dict(zip(modules, gradients, strict=True))


def _tokens(examples: Sequence[Example]) -> torch.Tensor:
    return torch.tensor([list(example.clean) for example in examples])


def _keeps(found: dict[Any, torch.Tensor], module: Any) -> Change:
    def change(x: torch.Tensor) -> None:
        found[module] = x

    return change


@contextmanager
def _hooked(changes: Mapping[Any, Change]) -> Iterator[None]:
    """Change what modules return, within the block. Some return a tuple, whose first element it is."""

    def hook_of(change: Change) -> Callable[[Any, Any, Any], Any]:
        def hook(_module: Any, _inputs: Any, output: Any) -> Any:
            x = output[0] if isinstance(output, tuple) else output
            changed = change(x)
            if changed is None:
                return output
            return (changed, *output[1:]) if isinstance(output, tuple) else changed

        return hook

    with ExitStack() as stack:
        for module, change in changes.items():
            stack.callback(module.register_forward_hook(hook_of(change)).remove)
        yield
