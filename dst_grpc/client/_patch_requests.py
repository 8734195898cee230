"""From keyword arguments to a request of Patch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeAlias

from dst_grpc.client._given import given, tuple_of
from dst_grpc.client._pair_requests import PairArguments, PairLike, pairs_of, references_of
from dst_grpc.client._requests import PromptLike, TokensLike, loss_of, member, names_of
from dst_grpc.domain.attribute import AttributedNode
from dst_grpc.domain.components import LossFnName
from dst_grpc.domain.interventions import Intervention
from dst_grpc.domain.origins import LossFnConfig
from dst_grpc.domain.pairs import Alternative, Orientation
from dst_grpc.domain.patch import OF_HEADS, EdgeList, PatchCell, PatchGrid, PatchRequest, PathGrid

CellsLike: TypeAlias = (
    Mapping[str, Iterable[Intervention]] | Iterable[PatchCell | Intervention | Iterable[Intervention]]
)
"""Cells of one's own: interventions, one or several to a cell, perhaps by the cells' names."""


class PatchArguments(PairArguments, total=False):
    """The keyword arguments of `patch`, besides its prompts: PairArguments, and these."""

    alternative: Alternative | str
    """What takes the place of a node: `patching` (its value in the other run), `mean_by_position`, `mean_by_length`,
    `mean`, `zero`."""
    reference: Iterable[PromptLike]
    """The prompts of a mean."""
    nodes: AttributedNode | str | Iterable[AttributedNode | str]
    """Nodes, a grid for each: `resid_pre`, `resid_mid`, `resid_post`, `attn_out`, `mlp_out`, `head`, `query`, `key`,
    `value`, `pattern`, `input`. Nothing, and nothing else asked for = `resid_pre`."""
    all_positions: bool
    """Whether a cell of these grids changes all positions at once."""
    layers: Iterable[int]
    """The layers of these grids; nothing = all."""
    positions: Iterable[int]
    """The positions of these grids; nothing = all."""
    heads: Iterable[int]
    """The heads of these grids, of nodes that heads have; nothing = all."""
    grids: Iterable[PatchGrid]
    """Further grids."""
    senders: Iterable[str] | None
    """Path patching: names of sources, such as "a0.h1"; nothing = all. None, and no receivers = no paths."""
    receivers: Iterable[str] | None
    """Names of readers, such as "a2.h0<q>" or "logits"; nothing = all."""
    through_mlps: bool
    """Whether paths through MLPs in between count (Wang et al. 2022)."""
    together: bool
    """Whether a cell changes what all receivers of a sender read."""
    edges: Iterable[str]
    """Path patching of single edges, by name, such as "a0.h1->m2"."""
    cells: CellsLike
    """Cells of your own."""
    divergence: bool
    """Whether to return KL(clean run, changed run) at the last token too."""
    top_logits: int
    """How many of each cell's largest logits at the last token to return."""
    all_logits: bool
    """Whether to return all of them."""


def make_patch_request(
    clean: PromptLike | None = None,
    corrupt: PromptLike | None = None,
    *,
    target: TokensLike | None = None,
    distractor: TokensLike | None = None,
    loss: LossFnConfig | LossFnName | str | None = None,
    pairs: Iterable[PairLike] = (),
    model: str | None = None,
    autoencoders: str | Iterable[str] = (),
    orientation: Orientation | str = Orientation.NOISING,
    alternative: Alternative | str = Alternative.PATCHING,
    reference: Iterable[PromptLike] = (),
    nodes: AttributedNode | str | Iterable[AttributedNode | str] = (),
    all_positions: bool = False,
    layers: Iterable[int] = (),
    positions: Iterable[int] = (),
    heads: Iterable[int] = (),
    grids: Iterable[PatchGrid] = (),
    senders: Iterable[str] | None = None,
    receivers: Iterable[str] | None = None,
    through_mlps: bool = False,
    together: bool = False,
    edges: Iterable[str] = (),
    cells: CellsLike = (),
    divergence: bool = False,
    top_logits: int = 0,
    all_logits: bool = False,
    request_id: str = "",
) -> PatchRequest:
    """The request that the arguments describe; see PatchArguments.

    Raises:
        InvalidRequest: If an argument cannot be valid, whatever the model; names that are nearly right are suggested.
    """
    kinds = tuple(member(AttributedNode, node, f"nodes[{i}]") for i, node in enumerate(names_of(nodes, "nodes")))
    own, listed, further = _cells(cells), tuple_of("edges", edges), tuple_of("grids", grids)
    has_paths = senders is not None or receivers is not None or through_mlps or together
    if not (kinds or own or listed or further or has_paths):
        kinds = (AttributedNode.RESID_PRE,)
    of_layers, of_positions = tuple_of("layers", layers), tuple_of("positions", positions)
    of_heads = tuple_of("heads", heads)
    made = [
        given(
            f"grids[{i}]",
            PatchGrid,
            node=node,
            all_positions=all_positions,
            layers=() if node is AttributedNode.INPUT else of_layers,
            positions=of_positions,
            entries=of_heads if node in OF_HEADS else (),
        )
        for i, node in enumerate(kinds)
    ]
    paths = given(
        "paths[0]",
        PathGrid,
        senders=tuple_of("senders", senders or ()),
        receivers=tuple_of("receivers", receivers or ()),
        through_mlps=through_mlps,
        together=together,
    )
    return given(
        "",
        PatchRequest,
        pairs=pairs_of(clean, corrupt, pairs),
        request_id=request_id,
        model=model,
        loss_fn_config=loss_of(loss, target, distractor),
        autoencoders=names_of(autoencoders),
        orientation=member(Orientation, orientation, "orientation"),
        alternative=member(Alternative, alternative, "alternative"),
        reference=references_of(reference),
        grids=(*made, *further),
        paths=(paths,) if has_paths else (),
        edges=given("edges", EdgeList, edges=listed) if listed else None,
        cells=own,
        divergence=divergence,
        top_logits=top_logits,
        all_logits=all_logits,
    )


def _cells(cells: CellsLike) -> tuple[PatchCell, ...]:
    named = cells.items() if isinstance(cells, Mapping) else (("", one) for one in tuple_of("cells", cells))
    return tuple(_cell(name, one, i) for i, (name, one) in enumerate(named))


def _cell(name: str, cell: PatchCell | Intervention | Iterable[Intervention], i: int) -> PatchCell:
    if isinstance(cell, PatchCell):
        return cell
    path = f"cells[{i}]"
    changes = (cell,) if isinstance(cell, Intervention) else tuple_of(path, cell)
    return given(path, PatchCell, name=name, interventions=changes)
