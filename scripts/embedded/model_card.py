"""The model card: measures the artefacts as their files hold them and writes the figures, with how everything was made,
as Markdown. Nothing in it is typed in by hand but its prose."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from tokenizers import Tokenizer
from transformers import GPT2LMHeadModel

from dst_grpc.graphs.influence import scores
from scripts.embedded import (
    behaviours,
    evaluate,
    lexicon,
    train_autoencoders,
    train_model,
    train_transcoders,
    transcoder_figures,
)
from scripts.embedded.packing import BLOCK_LENGTH, LESSONS, held_out_blocks, led

PROMPTS: Final = 2000
TRAINING_DRAWS: Final = 300_000
"""More than the prompts of this kind that all lessons together hold."""
SAMPLE_PROMPTS: Final = (
    "One day",
    "Mary and John",
    "The teacher",
    "The fox and the crow",
    "The opposite of hot",
    "And the LORD said unto Moses",
)

_HEAD: Final = """\
# The embedded default model

A GPT-2-architecture language model of {parameters:.2f} million parameters, its tokenizer, {autoencoders} sparse
autoencoders (three kinds at each of its {layers} layers), and a transcoder of each layer's MLP. It exists so that a
server has something worth explaining from its first second, with nothing to download: its text is simple, its
behaviours are few, clear and measured. It is no use as a source of knowledge or of advice.

| | |
| --- | --- |
| layers, width, heads, MLP width | {layers}, {width}, {heads}, {mlp} |
| context | {context} tokens |
| vocabulary | {vocabulary} tokens; byte-level BPE that takes frequent words whole, with their leading space |
| activation, norms | `gelu_new`, pre-norm; embedding and unembedding are one matrix |
| weights | float16 in the file, meant to be run in float32; every figure below is of these rounded weights |
| special token | `<|endoftext|>` stands between documents; a prompt starts without it |

## How it was made
```
apt-get install bible-kjv
python -m scripts.embedded
```
makes everything in this folder: tokenizer, model, autoencoders, transcoders, this card. Seeds are fixed in the scripts
({model_seed} for the model, {autoencoder_seed} and up for the autoencoders, {transcoder_seed} and up for the
transcoders). On two CPU cores that had other work too, the model took {minutes[model]:.0f} minutes
({tokens:.1f} million tokens, {step_tokens} a step, AdamW, bfloat16 autocast; {early} steps on rows of {lengths[0]}
tokens with many short repeats, then {late} on rows of {lengths[1]} and {last} on rows of {lengths[2]} tokens), the
autoencoders {minutes[autoencoders]:.0f}, and the transcoders {minutes[transcoders]:.0f} of a processor's time.

The files shipped here are the output of one such run. Another processor or another version of torch rounds otherwise,
and so makes a model of the same kind rather than these very bytes.

The full text, by tokens: about 70 % made-up sentences and stories from the templates and word lists in
`scripts/embedded`, 15 % random token sequences that repeat themselves (only the repeats are learned from), and 15 %
passages of the King James Bible (1611, public domain) as the Debian package `bible-kjv` prints it. Nothing else went
in. The last {last} steps add plain sentences with the rarer words, and prompts of the behaviours below in which random
words stand for some that do not matter; of those only the answer is learned. The made-up text and the weights carry the
licence of this project.

## Behaviours
Every prompt has a pair of names or nouns that training never has as the two people, or the two nouns, of a sentence or
story ({share:.0%} of all pairs are held out; `scripts/embedded/behaviours.py` draws the line). Random sequences, random
words of noisy prompts and the four people of an introduction by full names are not kept from holding such a pair.
Wordings (`wordings.py`) are of three kinds:

- drawn: put together at random from the parts that training uses. Of {prompts} such templates {recurring} recur among
  {draws} drawn as training draws them: the combinations are new, the parts are not.
- new: fixed templates that training never has, made of words that it knows from such sentences.
- foreign: fixed templates that training never has, made of words that training uses in other sentences only
  ("explained", "during", "opposite"). This is where so small a model is at its end.

"Top" is the share of prompts where the right token is the likeliest of all {vocabulary}; "preferred" the share where it
beats the tempting wrong one; margin is the mean difference of their two logits.
"""

_AUTOENCODERS: Final = """
## Autoencoders
ReLU latents, trained with a penalty on their sum, decoder columns of length one. Measured on {tokens} tokens of
held-out text mixed as the training text is. L0 is the mean number of latents above zero per token, FVU the fraction of
variance unexplained; dead latents are zero on every one of these tokens. The last column is the FVU on held-out made-up
text alone, which the tests measure again.

| reads | layer | latents | L0 | FVU | dead | FVU, made-up |
| --- | --- | --- | --- | --- | --- | --- |
"""

_TRANSCODERS: Final = """
## Transcoders
`transcoders/{name}` has a transcoder of the MLP of each layer, in circuit-tracer's layout: what attribution graphs
are made of. It reads what the MLP reads (`{reads}`) and predicts what the MLP adds to the residual stream
(`{writes}`), from {features} features, each active where its pre-activation is above its layer's threshold
(JumpReLU). Trained with batch top-k on {training_tokens} tokens, decoder rows of length one: an activation is the
length of what the feature writes.

Measured on {tokens} tokens of held-out text, without the first token of each row, where graphs have no features. Rows
start with the token between documents, as prompts of graphs do. FVU is of the MLP's write; dead features are active at
none of these tokens; the last column is the FVU on held-out made-up text alone, which the tests measure again.

| layer | features | L0 | FVU | dead | FVU, made-up |
| --- | --- | --- | --- | --- | --- |
"""

_SETS: Final = """
As a set, beside others: with all {layers} MLPs replaced by them at once, without errors, the loss in nats per token on
{tokens} tokens of such text; and the mean scores of the whole attribution graphs of {prompts} held-out prompts, half of
them of names and half of agreement, with the number of active features. *Random* has as many features that read
directions drawn at random and are active as often; what they write is fitted by least squares. *None* has no feature
ever active and writes its biases alone: in its graphs every MLP is an error.

| MLPs | loss | replacement score | completeness score | features |
| --- | --- | --- | --- | --- |
"""

_FAMOUS: Final = """
Of the graph of `{prompt}` the replacement score is {replacement:.3f}, its
completeness score {completeness:.3f}, with {features} active features.
"""

_TAIL: Final = """
## Limits
- It writes like its text: short sentences about a made-up world, or an imitation of the Bible. It is often silly.
- Words outside its vocabulary are spelled in pieces that it hardly knows. It knows no language but English, no code,
  and almost no digits.
- People have one of {names} names from English-speaking places, chosen for being common; pronouns follow a fixed list
  of which names are women's and which are men's.
- Things in the made-up text are drawn at random ("a wooden city"), so what it associates with a thing says little about
  the thing.
- It often ends a text right after a name or a verb that it had to find: the noisy prompts of the last steps end there,
  and it learned that too.
- Three names in one sentence, or a story in which the right name is not the one left out, are outside what it learned.
  In a wording far from its own it often falls back on "the" or on the wrong name: see the rows "new" and "foreign".
- Figures of autoencoders and transcoders are of text like its training text; on other text more stays unexplained.
"""


def _behaviour_table(model: GPT2LMHeadModel, tokenizer: Tokenizer) -> list[str]:
    is_are = (("is", "are"),)
    rows = [
        ("indirect object, subject named last (ABBA)", "drawn", evaluate.held_out_ioi(PROMPTS, "drawn", "ABBA")),
        ("indirect object, subject named first (BABA)", "drawn", evaluate.held_out_ioi(PROMPTS, "drawn", "BABA")),
        ("indirect object", "new", evaluate.held_out_ioi(PROMPTS, "new")),
        ("indirect object", "foreign", evaluate.held_out_ioi(PROMPTS, "foreign")),
        ("agreement across a noun of the other number", "drawn", evaluate.held_out_agreement(PROMPTS, "drawn")),
        ("agreement, is / are alone", "drawn", evaluate.held_out_agreement(PROMPTS, "drawn", is_are)),
        ("agreement", "new", evaluate.held_out_agreement(PROMPTS, "new")),
        ("agreement", "foreign", evaluate.held_out_agreement(PROMPTS, "foreign")),
    ]
    lines = [
        "",
        "| behaviour | wording | prompts | top | preferred | margin |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, wording, contrasts in rows:
        found = evaluate.measure_contrasts(model, tokenizer, contrasts)
        # What verb follows a subject is open, so "top" says little for agreement: only "is" or "are" is compared.
        top = "" if "agreement" in name else f"{found.top:.2%}"
        lines.append(f"| {name} | {wording} | {found.prompts} | {top} | {found.preferred:.2%} | {found.margin:.1f} |")
    repeats = evaluate.held_out_repeats(tokenizer, PROMPTS)
    accuracy = evaluate.measure_induction(model, repeats)
    lines.append(f'| induction: random tokens "... A B ... A", then B | random | {PROMPTS} | {accuracy:.2%} | | |')
    return lines


def _top_tokens(model: GPT2LMHeadModel, tokenizer: Tokenizer, prompt: str) -> list[str]:
    likeliest = evaluate.last_logits(model, [tokenizer.encode(prompt).ids])[0].softmax(-1).topk(5)
    cells = [
        f"`{tokenizer.decode([int(index)])}` {value:.1%}"
        for value, index in zip(likeliest.values.tolist(), likeliest.indices.tolist(), strict=True)
    ]
    return [f"- `{prompt}` -> " + ", ".join(cells)]


def _autoencoder_table(folder: Path) -> list[str]:
    lines = _AUTOENCODERS.format(tokens=train_autoencoders.HELD_OUT_ROWS * BLOCK_LENGTH).splitlines()
    for kind in train_autoencoders.KINDS:
        config = json.loads((folder / kind / "config.json").read_text())
        for layer, row in config["layers"].items():
            lines.append(
                f"| `{kind}` | {layer} | {config['n_latents']} | {row['l0']:.1f} | {row['fvu']:.3f} | "
                f"{row['dead_latents']} | {row['fvu_made_text']:.3f} |"
            )
    return lines


def _transcoder_tables(folder: Path, model: GPT2LMHeadModel, tokenizer: Tokenizer) -> list[str]:
    place = folder / "transcoders" / train_transcoders.NAME
    config = json.loads((place / "config.json").read_text())
    training = train_transcoders.TRAINING_TEXT
    held_out = led(held_out_blocks(tokenizer, transcoder_figures.ROWS, with_bible=True), tokenizer)
    lines = _TRANSCODERS.format(
        name=train_transcoders.NAME,
        reads=train_transcoders.READS,
        writes=train_transcoders.WRITES,
        features=config["n_features"],
        training_tokens=training.rows * training.length,
        tokens=train_autoencoders.HELD_OUT_ROWS * (BLOCK_LENGTH - 1),
    ).splitlines()
    for layer, row in config["layers"].items():
        lines.append(
            f"| {layer} | {config['n_features']} | {row['l0']:.1f} | {row['fvu']:.3f} | {row['dead_features']} | "
            f"{row['fvu_made_text']:.3f} |"
        )
    asked = transcoder_figures.prompts(tokenizer)
    lines += _SETS.format(layers=model.config.n_layer, tokens=held_out.ids.size, prompts=len(asked)).splitlines()
    lines.append(f"| the model's own | {evaluate.measure_loss(model, held_out):.3f} | | | |")
    trained = train_transcoders.read_set(place)
    sets = {
        "transcoders": trained,
        "random": transcoder_figures.random_set(model, tokenizer, trained),
        "none": transcoder_figures.empty_set(trained),
    }
    decoder = transcoder_figures.decoder_of(folder / "model")
    famous = transcoder_figures.begun(tokenizer, evaluate.FAMOUS_PROMPT.prompt)
    for name, one in sets.items():
        found = transcoder_figures.measure_set(model, decoder, one, held_out, asked)
        lines.append(
            f"| {name} | {found.loss:.3f} | {found.replacement:.2f} | {found.completeness:.2f} | {found.features:.0f} |"
        )
    graph = transcoder_figures.graph_of(famous, decoder, transcoder_figures.in_engine(trained))
    score = scores(graph)
    lines += _FAMOUS.format(
        prompt=evaluate.FAMOUS_PROMPT.prompt,
        replacement=score.replacement,
        completeness=score.completeness,
        features=graph.nodes.n_features,
    ).splitlines()
    return lines


def main(folder: Path, minutes: Mapping[str, float]) -> None:
    """Measure everything in `folder` and write its `MODEL_CARD.md`; `minutes` are what the steps took."""
    model, tokenizer = train_model.load(folder / "model")
    config = model.config
    head = _HEAD.format(
        parameters=sum(tensor.numel() for tensor in model.parameters()) / 1e6,
        autoencoders=len(train_autoencoders.KINDS) * config.n_layer,
        layers=config.n_layer,
        width=config.n_embd,
        heads=config.n_head,
        mlp=4 * config.n_embd,
        context=config.n_positions,
        vocabulary=tokenizer.get_vocab_size(),
        model_seed=train_model.SEED,
        autoencoder_seed=train_autoencoders.SEED,
        transcoder_seed=train_transcoders.SEED,
        minutes=minutes,
        early=sum(lesson.steps for lesson in LESSONS[:2]),
        late=LESSONS[2].steps,
        last=sum(lesson.steps for lesson in LESSONS[3:]),
        lengths=(LESSONS[0].length, LESSONS[2].length, LESSONS[-1].length),
        step_tokens=LESSONS[-1].rows * LESSONS[-1].length,
        tokens=sum(lesson.steps * lesson.rows * lesson.length for lesson in LESSONS) / 1e6,
        share=behaviours.HELD_OUT_SHARE,
        prompts=PROMPTS,
        recurring=evaluate.recurring_templates(PROMPTS, TRAINING_DRAWS),
        draws=TRAINING_DRAWS,
    )
    lines = [head.rstrip("\n"), *_behaviour_table(model, tokenizer), ""]
    for prompt in (evaluate.FAMOUS_PROMPT.prompt, "The key to the cabinets", "The keys to the cabinet"):
        lines += _top_tokens(model, tokenizer, prompt)
    made = evaluate.measure_loss(model, held_out_blocks(tokenizer, 200, with_bible=False))
    mixed = evaluate.measure_loss(model, held_out_blocks(tokenizer, 200, with_bible=True))
    lines += ["", f"Loss on held-out text: {made:.3f} nats per token made-up, {mixed:.3f} with the Bible mixed in."]
    lines += ["", "### Samples", "Temperature 0.8, forty likeliest tokens, first try each; the prompt is in bold.", ""]
    for seed, prompt in enumerate(SAMPLE_PROMPTS):
        text = evaluate.sample(model, tokenizer, prompt, seed)
        lines.append(f"- **{prompt}**{text[len(prompt) :]}")
    lines += _autoencoder_table(folder / "autoencoders")
    lines += _transcoder_tables(folder, model, tokenizer)
    lines.append(_TAIL.format(names=len(lexicon.NAMES)).rstrip("\n"))
    (folder / "MODEL_CARD.md").write_text("\n".join(lines) + "\n")
