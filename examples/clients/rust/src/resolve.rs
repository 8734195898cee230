//! Asking what a request would cost before it is run.

use serde_json::{json, Map, Value};

use crate::errors::ErrorReport;
use crate::grpc::Status;
use crate::proto::dst::v1::resolve_response::Stage;
use crate::proto::dst::v1::{
    resolve_stream_request, resolve_stream_response, Axis, DeriveRequest, ResolveRequest, ResolveStreamRequest,
    Resolved,
};
use crate::proto::google::rpc::Code;
use crate::server::Server;

/// Also loads what the request needs, and says on the way how far that is.
pub async fn resolve(server: &Server, request: DeriveRequest) -> Result<Value, Status> {
    let mut stages = vec![];
    let mut loaded = Map::new();
    let mut answer = None;
    let mut responses = server.scalars.resolve(ResolveRequest { request: Some(request), load: true }).await?;
    while let Some(response) = responses.message().await? {
        match response.stage {
            Some(Stage::Validated(_)) => stages.push("VALIDATED"),
            Some(Stage::Loading(progress)) => {
                eprintln!("loading {}: {} of {} bytes", progress.context, progress.bytes_done, progress.bytes_total);
                if loaded.is_empty() {
                    stages.push("LOADING");
                }
                loaded.insert(progress.context, progress.bytes_done.into());
            }
            Some(Stage::Resolved(message)) => {
                stages.push("RESOLVED");
                answer = Some(resolved(&message));
            }
            None => {} // a stage that this client does not know
        }
    }
    let answer = answer.ok_or_else(|| Status::new(Code::DataLoss, "Resolve ended without an answer"))?;
    Ok(json!({"stages": stages, "loaded": loaded, "resolved": answer}))
}

/// Asks about many requests at once. A bad one fails alone, and the answers may overtake one another.
pub async fn resolve_stream(server: &Server, requests: Vec<DeriveRequest>) -> Result<Value, Status> {
    let message = |request| ResolveStreamRequest {
        message: Some(resolve_stream_request::Message::Request(ResolveRequest { request: Some(request), load: false })),
    };
    let mut responses = server.scalars.resolve_stream(requests.into_iter().map(message).collect()).await?;
    let mut answers = Map::new();
    while let Some(response) = responses.message().await? {
        let answer = match response.stage {
            Some(resolve_stream_response::Stage::Resolved(message)) => json!({"resolved": resolved(&message)}),
            Some(resolve_stream_response::Stage::Error(status)) => {
                json!({"error": ErrorReport::from(&status).to_json()})
            }
            _ => continue, // on the way
        };
        answers.insert(response.request_id, answer);
    }
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
