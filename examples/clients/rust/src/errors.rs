//! Errors, with the machine-readable details that every one of them carries (google.rpc).

use std::future::Future;
use std::time::Duration;

use prost::Message;
use serde_json::{json, Value};

use crate::grpc::Status;
use crate::proto::google::rpc;

const MOST_ATTEMPTS: u32 = 4;

/// What a program can act on.
pub struct ErrorReport {
    /// Name of a google.rpc.Code.
    pub code: &'static str,
    /// A member of dst.v1.ErrorReason; empty if gRPC itself made the error.
    pub reason: String,
    /// The bad fields of the request, by their paths.
    pub fields: Vec<String>,
}

impl ErrorReport {
    pub fn to_json(&self) -> Value {
        json!({"code": self.code, "reason": self.reason, "fields": self.fields})
    }
}

/// Describes the error of a call.
impl From<&Status> for ErrorReport {
    fn from(status: &Status) -> Self {
        Self::from(&rich(status))
    }
}

/// Describes the error of one item of a stream.
impl From<&rpc::Status> for ErrorReport {
    fn from(status: &rpc::Status) -> Self {
        let bad: rpc::BadRequest = find(status, "google.rpc.BadRequest").unwrap_or_default();
        Self {
            code: rpc::Code::from_i32(status.code).unwrap_or(rpc::Code::Unknown).as_str_name(),
            reason: find(status, "google.rpc.ErrorInfo").map_or_else(String::new, |info: rpc::ErrorInfo| info.reason),
            fields: bad.field_violations.into_iter().map(|violation| violation.field).collect(),
        }
    }
}

/// Makes a call again as long as the server says, in RetryInfo, that waiting helps.
///
/// RESOURCE_EXHAUSTED, for example, may mean a full queue, which drains, or too little memory for the request, which
/// stays: the code alone does not tell.
pub async fn retrying<T, F: Future<Output = Result<T, Status>>>(call: impl Fn() -> F) -> Result<T, Status> {
    let mut attempt = 1;
    loop {
        let status = match call().await {
            Ok(response) => return Ok(response),
            Err(status) => status,
        };
        let info: Option<rpc::RetryInfo> = find(&rich(&status), "google.rpc.RetryInfo");
        match info.and_then(|info| info.retry_delay) {
            Some(delay) if attempt < MOST_ATTEMPTS => {
                tokio::time::sleep(Duration::new(delay.seconds as u64, delay.nanos as u32)).await;
                attempt += 1;
            }
            _ => return Err(status),
        }
    }
}

/// The rich status, which travels beside the bare one.
fn rich(status: &Status) -> rpc::Status {
    match rpc::Status::decode(status.details.clone()) {
        Ok(rich) if !status.details.is_empty() => rich,
        _ => rpc::Status { code: status.code as i32, message: status.message.clone(), details: vec![] },
    }
}

fn find<T: Message + Default>(status: &rpc::Status, name: &str) -> Option<T> {
    let detail = status.details.iter().find(|detail| detail.type_url.ends_with(&format!("/{name}")))?;
    T::decode(detail.value.as_slice()).ok()
}
