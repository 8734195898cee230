//! Asking why the model said one thing and not another.

use std::collections::BTreeMap;
use std::error::Error;

use serde_json::{json, Value};

use crate::assemble::joined;
use crate::proto::dst::v1::explain_frame::Frame;
use crate::proto::dst::v1::{
    tensor_index, ExplainRequest, NodeTable, ScoredTokens, TableGroup, TableNode, TokenScore,
};
use crate::server::Server;
use crate::summary::bits;

/// Reads an explanation, each frame of which comes as soon as it is ready.
pub async fn explain(server: &Server, request: ExplainRequest) -> Result<Value, Box<dyn Error>> {
    let mut parts = BTreeMap::new();
    let mut scored_tokens = vec![];
    // Tables of many nodes come in several frames.
    let (mut table, mut logits) = (NodeTable::default(), NodeTable::default());
    let (mut count, mut counted) = (0, 0);
    let mut responses = server.scalars.explain(request).await?;
    while let Some(response) = responses.message().await? {
        for frame in response.frames {
            count += 1;
            let name = match frame.frame {
                Some(Frame::Header(_)) => "header",
                Some(Frame::NodeTable(piece)) => {
                    joined(&mut table, &piece);
                    "node_table"
                }
                Some(Frame::ScoredTokens(scored)) => {
                    scored_tokens.push(scored_json(&scored));
                    "scored_tokens"
                }
                Some(Frame::TopLogits(piece)) => {
                    joined(&mut logits, &piece);
                    "top_logits"
                }
                Some(Frame::Trailer(trailer)) => {
                    counted = trailer.frame_count;
                    "trailer"
                }
                _ => continue, // not wanted here, or not known
            };
            *parts.entry(name).or_insert(0) += 1;
        }
    }
    if count != counted {
        return Err(format!("truncated: {count} frames came, the trailer counts {counted}").into());
    }
    let groups: Vec<_> = table.groups.iter().enumerate().map(|(i, group)| group_json(&table, i, group)).collect();
    let best = logits.groups.first().ok_or("top logits without their group")?;
    let top_logits: Vec<_> = best.top.iter().map(|i| token(&logits.nodes[*i as usize])).collect();
    Ok(json!({"parts": parts, "groups": groups, "scored_tokens": scored_tokens, "top_logits": top_logits}))
}

fn group_json(table: &NodeTable, group: usize, chosen: &TableGroup) -> Value {
    let nodes = |positions: &[u32]| positions.iter().map(|i| node(&table.nodes[*i as usize], group)).collect::<Vec<_>>();
    json!({"group_id": chosen.group_id, "top": nodes(&chosen.top), "bottom": nodes(&chosen.bottom)})
}

/// A node of a table, with its value in a group.
fn node(row: &TableNode, group: usize) -> Value {
    let index = row.node.clone().unwrap_or_default();
    let at = |entry: &Option<tensor_index::Index>| match entry {
        Some(tensor_index::Index::At(at)) => Some(*at),
        _ => None,
    };
    json!({
        "node_type": index.node_type().as_str_name(),
        "layer_index": index.layer_index,
        "tensor_indices": index.tensor_indices.iter().map(|entry| at(&entry.index)).collect::<Vec<_>>(),
        "bits": bits(row.values[group]),
    })
}

/// A token and the bits of its logit.
fn token(row: &TableNode) -> Value {
    json!([row.vocab_token, bits(row.values[0])])
}

fn scored_json(message: &ScoredTokens) -> Value {
    let pairs =
        |scores: &[TokenScore]| scores.iter().map(|score| json!([score.token, bits(score.score)])).collect::<Vec<_>>();
    let nodes = message
        .nodes
        .iter()
        .map(|node| json!({"node": node.node, "top": pairs(&node.top), "bottom": pairs(&node.bottom)}));
    json!({"part": message.part().as_str_name(), "nodes": nodes.collect::<Vec<_>>()})
}
