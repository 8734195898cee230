"""The figures of the embedded model: the three behaviours on held-out prompts, loss on held-out text, sampled text. It
measures and returns numbers; `model_card` writes them down and the tests hold them to their promises."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from tokenizers import Tokenizer
from transformers import GPT2LMHeadModel

from scripts.embedded.behaviours import Contrast, agreement, ioi, ioi_template
from scripts.embedded.packing import Blocks, Randomness, Repeat, separator_id
from scripts.embedded.wordings import VERB_PAIRS, Wording

FAMOUS_PROMPT: Final = Contrast(
    prompt="When Mary and John went to the store, John gave a drink to",
    answer=" Mary",
    wrong=" John",
    essential=frozenset({"Mary", "John"}),
    order="ABBA",
)
_BATCH: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class ContrastFigures:
    """How a model answers prompts that have a right and a tempting wrong next token."""

    prompts: int
    top: float
    """Share of prompts where the right token is the most likely of the whole vocabulary."""
    preferred: float
    """Share of prompts where the right token beats the wrong one."""
    margin: float
    """Mean logit of the right token minus that of the wrong one."""


def last_logits(model: GPT2LMHeadModel, prompts: Sequence[list[int]]) -> torch.Tensor:
    """Logits after the last token of each prompt, one row each. Prompts are padded on the right, where causal attention
    cannot see the padding."""
    rows = []
    with torch.inference_mode():
        for start in range(0, len(prompts), _BATCH):
            batch = prompts[start : start + _BATCH]
            ids = torch.zeros(len(batch), max(map(len, batch)), dtype=torch.long)
            for row, prompt in enumerate(batch):
                ids[row, : len(prompt)] = torch.tensor(prompt)
            hidden = model.transformer(ids).last_hidden_state
            last = torch.tensor([len(prompt) - 1 for prompt in batch])
            rows.append(model.lm_head(hidden[torch.arange(len(batch)), last]))
    return torch.cat(rows)


def measure_contrasts(model: GPT2LMHeadModel, tokenizer: Tokenizer, contrasts: Sequence[Contrast]) -> ContrastFigures:
    """The figures of `contrasts`, whose answers must be single tokens."""
    logits = last_logits(model, [tokenizer.encode(contrast.prompt).ids for contrast in contrasts])
    right = torch.tensor([tokenizer.token_to_id("Ġ" + contrast.answer[1:]) for contrast in contrasts])
    wrong = torch.tensor([tokenizer.token_to_id("Ġ" + contrast.wrong[1:]) for contrast in contrasts])
    rows = torch.arange(len(contrasts))
    margin = logits[rows, right] - logits[rows, wrong]
    return ContrastFigures(
        prompts=len(contrasts),
        top=(logits.argmax(-1) == right).double().mean().item(),
        preferred=(margin > 0).double().mean().item(),
        margin=margin.double().mean().item(),
    )


def held_out_ioi(count: int, wording: Wording, order: str | None = None) -> list[Contrast]:
    """Prompts of indirect object identification with held-out pairs of names; of one order of names, if given."""
    rng = random.Random("held-out ioi")
    found: list[Contrast] = []
    while len(found) < count:
        contrast = ioi(rng, "held_out", wording)
        if order in (None, contrast.order):
            found.append(contrast)
    return found


def recurring_templates(count: int, training_draws: int) -> int:
    """How many of `count` templates drawn to measure on are among `training_draws` drawn as training draws them."""
    rng = random.Random("training draws")
    drawn = {ioi_template(rng, "drawn") for _ in range(training_draws)}
    rng = random.Random("held-out draws")
    return sum(ioi_template(rng, "drawn") in drawn for _ in range(count))


def held_out_agreement(count: int, wording: Wording, verbs: tuple[tuple[str, str], ...] = VERB_PAIRS) -> list[Contrast]:
    """Prompts of agreement with held-out pairs of nouns, in which the noun in between has the other number: the hard
    half."""
    rng = random.Random("held-out agreement")
    return [agreement(rng, "held_out", verbs, wording=wording, clash=True) for _ in range(count)]


def held_out_repeats(tokenizer: Tokenizer, count: int) -> list[Repeat]:
    """Random sequences "... A B ... A" of a generator that training never used."""
    rng, randomness = random.Random("held-out repeats"), Randomness(tokenizer)
    return [randomness.repeat(rng) for _ in range(count)]


def measure_induction(model: GPT2LMHeadModel, repeats: Sequence[Repeat]) -> float:
    """Share of `repeats` where the token that followed before is the most likely one."""
    best = last_logits(model, [repeat.prompt for repeat in repeats]).argmax(-1)
    return (best == torch.tensor([repeat.answer for repeat in repeats])).double().mean().item()


def measure_loss(model: GPT2LMHeadModel, blocks: Blocks) -> float:
    """Mean cross-entropy, in nats per token, over the tokens of `blocks` that can be predicted."""
    total, count = 0.0, 0
    with torch.inference_mode():
        for start in range(0, len(blocks.ids), 16):
            ids = torch.from_numpy(blocks.ids[start : start + 16])
            keep = torch.from_numpy(blocks.scored[start : start + 16])[:, 1:]
            hidden = model.transformer(ids).last_hidden_state[:, :-1][keep]
            targets = ids[:, 1:][keep]
            total += torch.nn.functional.cross_entropy(model.lm_head(hidden), targets, reduction="sum").item()
            count += len(targets)
    return total / count


def sample(model: GPT2LMHeadModel, tokenizer: Tokenizer, prompt: str, seed: int, tokens: int = 60) -> str:
    """`prompt` and what the model writes after it (temperature 0.8, from the forty likeliest tokens)."""
    generator = torch.Generator().manual_seed(seed)
    separator = separator_id(tokenizer)
    ids = tokenizer.encode(prompt).ids
    for _ in range(tokens):
        logits, candidates = (last_logits(model, [ids])[0] / 0.8).topk(40)
        chosen = candidates[torch.multinomial(logits.softmax(-1), 1, generator=generator)].item()
        if chosen == separator:
            break
        ids.append(int(chosen))
    return tokenizer.decode(ids)
