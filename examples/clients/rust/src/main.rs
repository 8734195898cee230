//! A tour of dst-grpc: asks a server about a prompt and prints one JSON document. See ../README.md.

mod assemble;
mod catalog;
mod conformance;
mod derive;
mod errors;
mod explain;
mod grpc;
mod proto;
mod requests;
mod resolve;
mod server;
mod summary;
mod tensor;

use std::error::Error;

use serde_json::{json, Map, Value};

use crate::proto::dst::v1::TensorElementType;
use crate::requests::Inputs;
use crate::server::Server;

async fn tour(server: &Server, refusing: &Server, inputs: &Inputs) -> Result<Value, Box<dyn Error>> {
    let mut document = Map::new();
    let mut add = |member: &str, value: Value| document.insert(member.to_owned(), value);
    add("health", catalog::health(server).await?);
    add("models", catalog::models(server).await?);
    add("types", catalog::types(server).await?);
    let tokens = catalog::tokenize(server, &inputs.model, &inputs.prompt).await?;
    add("tokens", catalog::to_json(&tokens));
    let unicode = catalog::tokenize(server, &inputs.model, &inputs.unicode).await?;
    add("unicode", catalog::to_json(&unicode));
    add("resolve", resolve::resolve(server, inputs.sparse()).await?);
    let requests = vec![inputs.dense(), inputs.sparse(), inputs.wrong()];
    add("resolve_stream", resolve::resolve_stream(server, requests).await?);
    let mut derived = Map::new();
    for request in [
        inputs.dense(),
        inputs.sparse(),
        inputs.half("float16", TensorElementType::Float16),
        inputs.half("bfloat16", TensorElementType::Bfloat16),
    ] {
        let id = request.request_id.clone();
        derived.insert(id, summary::of_answer(&derive::derive(server, request).await?));
    }
    add("derive", derived.into());
    add("derive_stream", derive::derive_stream(server, inputs.prefixes(&tokens.token_ids)).await?);
    add("explain", explain::explain(server, inputs.explain()).await?);
    add("deadline", json!({"code": derive::miss_deadline(server).await?.code}));
    add("cancel", json!({"pins": derive::cancel(server, inputs.large()).await?}));
    add("rejected", derive::rejected(server, inputs.rejected()).await?.to_json());
    add("retry", json!({"text": catalog::detokenize(refusing, &inputs.model, tokens.token_ids).await?}));
    Ok(document.into())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<_> = std::env::args().collect();
    let (address, file, retry_address) = match arguments.as_slice() {
        [_, address, file, retry_address] => (address, file, retry_address),
        [_, command, file] if command == "conformance" => {
            println!("{}", conformance::judge_all(&serde_json::from_str(&std::fs::read_to_string(file)?)?)?);
            return Ok(());
        }
        _ => return Err("usage: tour ADDRESS TOUR_FILE RETRY_ADDRESS, or tour conformance VECTORS_FILE".into()),
    };
    let inputs = Inputs::from_json(&serde_json::from_str(&std::fs::read_to_string(file)?)?)?;
    let server = Server::connect(address, &inputs.model).await?;
    let refusing = Server::connect(retry_address, &inputs.model).await?;
    println!("{:#}", tour(&server, &refusing, &inputs).await?);
    Ok(())
}
