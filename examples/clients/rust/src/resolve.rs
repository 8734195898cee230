//! Asking what a request would cost before it is run.

use std::collections::HashMap;

use serde_json::{json, Map, Value};

use crate::assemble::joined;
use crate::errors::ErrorReport;
use crate::grpc::Status;
use crate::proto::dst::v1::resolve_frame::Frame;
use crate::proto::dst::v1::{
    resolve_stream_request, Axis, DeriveRequest, ResolveRequest, ResolveStreamRequest, Resolved,
};
use crate::proto::google::rpc::Code;
use crate::server::Server;

/// Also loads what the request needs, and says on the way how far that is.
pub async fn resolve(server: &Server, request: DeriveRequest) -> Result<Value, Status> {
    let mut stages = vec![];
    let mut loaded = Map::new();
    let mut whole: Option<Resolved> = None;
    let mut responses = server.scalars.resolve(ResolveRequest { request: Some(request), load: true }).await?;
    while let Some(response) = responses.message().await? {
        for frame in response.frames {
            match frame.frame {
                Some(Frame::Validated(_)) => stages.push("VALIDATED"),
                Some(Frame::Loading(progress)) => {
                    let (done, total) = (progress.bytes_done, progress.bytes_total);
                    eprintln!("loading {}: {done} of {total} bytes", progress.context);
                    stages.push("LOADING");
                    loaded.insert(progress.context, done.into());
                }
                Some(Frame::Resolved(piece)) => {
                    stages.push("RESOLVED");
                    // What is said of many derived scalars comes in several frames.
                    joined(whole.get_or_insert_with(Resolved::default), &piece);
                }
                _ => {} // a kind that this client does not know
            }
        }
    }
    stages.dedup();
    let whole = whole.ok_or_else(|| Status::new(Code::DataLoss, "Resolve ended without an answer"))?;
    Ok(json!({"stages": stages, "loaded": loaded, "resolved": resolved(&whole)}))
}

/// Asks about many requests at once. A bad one fails alone, and the answers may overtake one another.
pub async fn resolve_stream(server: &Server, requests: Vec<DeriveRequest>) -> Result<Value, Status> {
    let message = |request| ResolveStreamRequest {
        message: Some(resolve_stream_request::Message::Request(ResolveRequest { request: Some(request), load: false })),
    };
    let mut responses = server.scalars.resolve_stream(requests.into_iter().map(message).collect()).await?;
    let mut answers = Map::new();
    let mut whole: HashMap<String, Resolved> = HashMap::new();
    while let Some(response) = responses.message().await? {
        for frame in response.frames {
            match frame.frame {
                Some(Frame::Resolved(piece)) => joined(whole.entry(response.request_id.clone()).or_default(), &piece),
                Some(Frame::Error(status)) => {
                    let error = ErrorReport::from(&status).to_json();
                    answers.insert(response.request_id.clone(), json!({"error": error}));
                }
                _ => {} // on the way
            }
        }
    }
    answers.extend(whole.iter().map(|(id, message)| (id.clone(), json!({"resolved": resolved(message)}))));
    Ok(answers.into())
}

fn resolved(message: &Resolved) -> Value {
    let cost = message.cost.clone().unwrap_or_default();
    let scalars = message.scalars.iter().map(|scalar| {
        json!({
            "dst": scalar.dst().as_str_name(),
            "requires_grad": scalar.requires_grad,
            "layer_indices": scalar.layer_indices,
            "axes": axes(&scalar.axes),
        })
    });
    json!({
        "device": message.device,
        "model": message.model.as_ref().map(|model| &model.name),
        "autoencoders": message.autoencoders.iter().map(|autoencoder| &autoencoder.name).collect::<Vec<_>>(),
        "forward_passes": cost.forward_passes,
        "backward_passes": cost.backward_passes,
        "output_bytes": cost.output_bytes,
        "scalars": scalars.collect::<Vec<_>>(),
    })
}

/// Pairs of a dimension's name and a size.
pub fn axes(axes: &[Axis]) -> Value {
    axes.iter().map(|axis| json!([axis.dimension().as_str_name(), axis.size])).collect()
}
