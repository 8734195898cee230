//! Asking why the model said one thing and not another.

use std::collections::BTreeMap;
use std::error::Error;

use serde_json::{json, Value};

use crate::proto::dst::v1::explain_response::Part;
use crate::proto::dst::v1::{tensor_index, ExplainRequest, GroupValues, NodeTable, ScoredTokens, TokenScore};
use crate::server::Server;
use crate::summary::bits;

/// Reads the parts of an explanation, each of which comes as soon as it is ready.
pub async fn explain(server: &Server, request: ExplainRequest) -> Result<Value, Box<dyn Error>> {
    let mut parts = BTreeMap::new();
    let mut groups = vec![];
    let mut scored_tokens = vec![];
    let mut top_logits = vec![];
    let (mut messages, mut counted) = (0, 0);
    let mut responses = server.scalars.explain(request).await?;
    while let Some(response) = responses.message().await? {
        messages += 1;
        let name = match response.part {
            Some(Part::Header(_)) => "header",
            Some(Part::NodeTable(table)) => {
                groups.extend(table.groups.iter().map(|group| group_json(&table, group)));
                "node_table"
            }
            Some(Part::ScoredTokens(scored)) => {
                scored_tokens.push(scored_json(&scored));
                "scored_tokens"
            }
            Some(Part::TopLogits(table)) => {
                let logits = table.groups.first().ok_or("top logits without their group")?;
                for i in logits.top.iter().map(|i| *i as usize) {
                    top_logits.push(json!([table.vocab_tokens[i], bits(logits.values[i])]));
                }
                "top_logits"
            }
            Some(Part::Trailer(trailer)) => {
                counted = trailer.message_count;
                "trailer"
            }
            _ => continue, // not wanted here, or not known
        };
        *parts.entry(name).or_insert(0) += 1;
    }
    if messages != counted {
        return Err(format!("truncated: {messages} messages came, the trailer counts {counted}").into());
    }
    Ok(json!({"parts": parts, "groups": groups, "scored_tokens": scored_tokens, "top_logits": top_logits}))
}

fn group_json(table: &NodeTable, group: &GroupValues) -> Value {
    let nodes = |positions: &[u32]| positions.iter().map(|i| node(table, group, *i as usize)).collect::<Vec<_>>();
    json!({"group_id": group.group_id, "top": nodes(&group.top), "bottom": nodes(&group.bottom)})
}

/// The node at a position of a table, with its value in a group.
fn node(table: &NodeTable, group: &GroupValues, position: usize) -> Value {
    let index = &table.nodes[position];
    let at = |entry: &Option<tensor_index::Index>| match entry {
        Some(tensor_index::Index::At(at)) => Some(*at),
        _ => None,
    };
    json!({
        "node_type": index.node_type().as_str_name(),
        "layer_index": index.layer_index,
        "tensor_indices": index.tensor_indices.iter().map(|entry| at(&entry.index)).collect::<Vec<_>>(),
        "bits": bits(group.values[position]),
    })
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
