//! Generates messages from protos/, and a client for each service of them.

use std::fmt::Write;
use std::path::Path;

use prost_build::{Config, Service, ServiceGenerator};

const PROTOS: &str = "../../../protos";

fn main() -> std::io::Result<()> {
    let services = ["catalog_service", "context_service", "derived_scalar_service"];
    let mut files: Vec<_> = services.iter().map(|name| format!("{PROTOS}/dst/v1/{name}.proto")).collect();
    files.push(format!("{PROTOS}/third_party/google/rpc/error_details.proto"));
    files.push(format!("{PROTOS}/third_party/google/rpc/code.proto"));
    files.push(format!("{PROTOS}/third_party/grpc/health/v1/health.proto"));
    let third_party = Path::new(PROTOS).join("third_party");
    println!("cargo:rerun-if-changed={PROTOS}");
    Config::new()
        .bytes(["dst.v1.TensorChunk.data"]) // a slice of what was received rather than a copy
        .service_generator(Box::new(Clients))
        .compile_protos(&files, &[third_party.as_path(), Path::new(PROTOS)])
}

/// Writes, for each service, what tonic-build would: a struct with a method for each RPC.
struct Clients;

impl ServiceGenerator for Clients {
    fn generate(&mut self, service: Service, code: &mut String) {
        let name = &service.name;
        write!(
            code,
            "/// A client of {package}.{name}.\n\
             #[derive(Clone)]\n\
             pub struct {name}Client {{ channel: crate::grpc::Channel }}\n\
             impl {name}Client {{\n\
             pub fn new(channel: crate::grpc::Channel) -> Self {{ Self {{ channel }} }}\n",
            package = service.package,
        )
        .unwrap();
        for method in &service.methods {
            let (input, output) = (&method.input_type, &method.output_type);
            let (kind, argument, result) = match (method.client_streaming, method.server_streaming) {
                (false, false) => ("unary", input.clone(), output.clone()),
                (false, true) => ("server_streaming", input.clone(), format!("crate::grpc::Streaming<{output}>")),
                _ => ("streaming", format!("Vec<{input}>"), format!("crate::grpc::Streaming<{output}>")),
            };
            write!(
                code,
                "#[allow(dead_code)]\n\
                 pub async fn {name}(&self, request: {argument}) -> Result<{result}, crate::grpc::Status> {{\n\
                 self.channel.{kind}(\"/{package}.{service}/{rpc}\", request).await\n\
                 }}\n",
                name = method.name,
                package = service.package,
                service = service.proto_name,
                rpc = method.proto_name,
            )
            .unwrap();
        }
        code.push_str("}\n");
    }
}
