//! Running requests: one, many on a stream, one that is late, one that is cancelled.

use std::error::Error;
use std::time::Duration;

use serde_json::{json, Map, Value};
use tokio::time::{sleep, Instant};

use crate::assemble::{damaged, Answer, Assembler};
use crate::errors::ErrorReport;
use crate::grpc::Status;
use crate::proto::dst::v1::derive_frame::Frame as Kind;
use crate::proto::dst::v1::{
    derive_stream_request, DeriveRequest, DeriveStreamRequest, ListContextsRequest, WatchContextsRequest,
};
use crate::server::Server;

/// Runs one request.
pub async fn derive(server: &Server, request: DeriveRequest) -> Result<Answer, Box<dyn Error>> {
    let mut assembler = Assembler::default();
    // Whoever stops reading early stops the server's work too: dropping the responses cancels the call.
    let mut responses = server.scalars.derive(request).await?;
    while let Some(response) = responses.message().await? {
        for frame in response.frames {
            assembler.add(frame)?;
        }
    }
    Ok(assembler.finish()?)
}

/// Runs many requests, which the server batches. Answers may overtake one another, and their messages interleave; all
/// frames of a message are of one item.
pub async fn derive_stream(server: &Server, requests: Vec<DeriveRequest>) -> Result<Value, Box<dyn Error>> {
    // By item: the server numbers requests as they come.
    let mut assemblers: Vec<_> =
        requests.iter().map(|request| (request.request_id.clone(), Assembler::default())).collect();
    let message = |request| DeriveStreamRequest {
        message: Some(derive_stream_request::Message::Request(request)),
        timeout: None,
    };
    let mut responses = server.scalars.derive_stream(requests.into_iter().map(message).collect()).await?;
    let mut predictions = Map::new();
    while let Some(response) = responses.message().await? {
        let (_, assembler) = match assemblers.get_mut(response.item_index as usize) {
            Some(item) => item,
            None => return Ok(damaged(format!("item {}, which was not asked", response.item_index))?),
        };
        for frame in response.frames {
            if let Some(Kind::Error(status)) = &frame.frame {
                // An item that failed ends so, in place of its trailer, and the others go on.
                let error = ErrorReport::from(status).to_json();
                predictions.insert(response.request_id.clone(), json!({"error": error}));
            } else {
                assembler.add(frame)?;
            }
        }
    }
    for (id, assembler) in assemblers {
        if !predictions.contains_key(&id) {
            predictions.insert(id, predict(&assembler.finish()?));
        }
    }
    Ok(predictions.into())
}

/// Finds the largest logit at the last token.
fn predict(answer: &Answer) -> Value {
    let logits = &answer.tensors[0];
    let vocabulary = logits.info.axes[1].size as usize;
    let last = &logits.values[logits.values.len() - vocabulary..];
    let next = (1..vocabulary).fold(0, |best, token| if last[token] > last[best] { token } else { best });
    json!({"token_count": answer.header.token_ids.len(), "next_token": next})
}

/// Watches the server's contexts, which never ends by itself.
pub async fn miss_deadline(server: &Server) -> Result<ErrorReport, Box<dyn Error>> {
    let hurried = server.with_timeout(Duration::from_millis(250));
    let watch = || async {
        let mut responses = hurried.contexts.watch_contexts(WatchContextsRequest {}).await?;
        while responses.message().await?.is_some() {}
        Ok::<_, Status>(())
    };
    match watch().await {
        Ok(()) => Err("the watch ended by itself".into()),
        Err(status) => Ok(ErrorReport::from(&status)),
    }
}

/// Stops an answer after its first message, and waits until the server has stopped working for it.
pub async fn cancel(server: &Server, request: DeriveRequest) -> Result<u32, Box<dyn Error>> {
    let mut responses = server.scalars.derive(request).await?;
    responses.message().await?;
    drop(responses);

    let end = Instant::now() + Duration::from_secs(10);
    loop {
        let response = server.contexts.list_contexts(ListContextsRequest::default()).await?;
        let pins = response.contexts.iter().map(|context| context.pins).sum();
        if pins == 0 {
            return Ok(pins);
        }
        if Instant::now() > end {
            return Err("the server still works for a cancelled call".into());
        }
        sleep(Duration::from_millis(50)).await;
    }
}

/// Runs a request that the server must reject, and says how it does.
pub async fn rejected(server: &Server, request: DeriveRequest) -> Result<ErrorReport, Box<dyn Error>> {
    match derive(server, request).await {
        Ok(_) => Err("a request with four bad fields was accepted".into()),
        Err(error) => Ok(ErrorReport::from(&*error.downcast::<Status>()?)),
    }
}
