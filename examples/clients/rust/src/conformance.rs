//! What the assembler makes of the vectors of tests/conformance: answers as bytes, sound and damaged.

use std::error::Error;

use prost::Message;
use serde_json::{json, Map, Value};

use crate::assemble::{Answer, Assembler, DamagedAnswer};
use crate::proto::dst::v1::DeriveResponse;
use crate::summary::bits;
use crate::tensor::Tensor;

/// The result of each vector by its name.
pub fn judge_all(vectors: &Value) -> Result<Value, Box<dyn Error>> {
    let mut results = Map::new();
    for vector in vectors.as_array().ok_or("the vectors are no list")? {
        let name = vector["name"].as_str().ok_or("a vector has no name")?;
        let messages = vector["messages"].as_array().ok_or("a vector has no messages")?;
        let responses = messages.iter().map(response).collect::<Result<_, _>>()?;
        let result = match assemble(responses) {
            Ok(answer) => json!({"tensors": answer.tensors.iter().map(of_tensor).collect::<Vec<_>>()}),
            Err(DamagedAnswer::Truncated) => json!({"error": "truncated"}),
            Err(DamagedAnswer::Corrupt(_)) => json!({"error": "corrupt"}),
        };
        results.insert(name.to_owned(), result);
    }
    Ok(results.into())
}

fn response(message: &Value) -> Result<DeriveResponse, Box<dyn Error>> {
    let bytes = base64::decode(message.as_str().ok_or("a message is no text")?)?;
    Ok(DeriveResponse::decode(bytes.as_slice())?)
}

fn assemble(responses: Vec<DeriveResponse>) -> Result<Answer, DamagedAnswer> {
    let mut assembler = Assembler::default();
    for frame in responses.into_iter().flat_map(|response| response.frames) {
        assembler.add(frame)?;
    }
    assembler.finish()
}

fn of_tensor(tensor: &Tensor) -> Value {
    json!({
        "shape": tensor.info.axes.iter().map(|axis| axis.size).collect::<Vec<_>>(),
        "layer_index": tensor.info.layer_index,
        "bits": tensor.dense().into_iter().map(bits).collect::<Vec<_>>(),
    })
}
