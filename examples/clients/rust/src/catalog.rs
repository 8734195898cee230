//! What can be asked: health, models, derived scalar types, tokens.

use serde_json::{json, Value};

use crate::errors::retrying;
use crate::grpc::Status;
use crate::proto::dst::v1::{
    DetokenizeRequest, Dimension, ListDerivedScalarTypesRequest, ListModelsRequest, ModelInfo, TokenizeRequest,
    TokenizeResponse,
};
use crate::proto::grpc::health::v1::HealthCheckRequest;
use crate::server::Server;

pub async fn health(server: &Server) -> Result<Value, Status> {
    let request = HealthCheckRequest { service: "dst.v1.DerivedScalarService".to_owned() };
    Ok(server.health.check(request).await?.status().as_str_name().into())
}

pub async fn models(server: &Server) -> Result<Value, Status> {
    let mut models = vec![];
    let mut request = ListModelsRequest::default();
    loop {
        let page = server.catalog.list_models(request.clone()).await?;
        models.extend(page.models.into_iter().map(model));
        if page.next_page_token.is_empty() {
            return Ok(models.into());
        }
        request.page_token = page.next_page_token;
    }
}

fn model(model: ModelInfo) -> Value {
    let sizes = model.dimensions.unwrap_or_default();
    json!({
        "name": model.name,
        "family": model.family,
        "n_layers": sizes.n_layers,
        "d_model": sizes.d_model,
        "n_heads": sizes.n_heads,
        "d_mlp": sizes.d_mlp,
        "vocab_size": sizes.vocab_size,
        "context_window": sizes.context_window,
        "parameter_bytes": model.parameter_bytes,
        "default_model": model.default_model,
        "autoencoders": model.autoencoders,
    })
}

pub async fn types(server: &Server) -> Result<Value, Status> {
    let mut types = vec![];
    let mut pages = 0;
    let mut request = ListDerivedScalarTypesRequest { page_size: 40, ..Default::default() };
    loop {
        let page = server.catalog.list_derived_scalar_types(request.clone()).await?;
        pages += 1;
        types.extend(page.types);
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    Ok(json!({
        "pages": pages,
        "names": types.iter().map(|info| &info.name).collect::<Vec<_>>(),
        "last": types.last().map(|info| json!({
            "name": info.name,
            "dimensions": info.dimensions().map(|dimension: Dimension| dimension.as_str_name()).collect::<Vec<_>>(),
            "formula": info.formula,
        })),
    }))
}

pub async fn tokenize(server: &Server, model: &str, text: &str) -> Result<TokenizeResponse, Status> {
    let request = TokenizeRequest { model: model.to_owned(), text: text.to_owned() };
    let mut responses = server.catalog.tokenize(request).await?;
    let mut tokens = TokenizeResponse::default();
    // The tokens of a long text come in several messages.
    while let Some(response) = responses.message().await? {
        tokens.token_ids.extend(response.token_ids);
        tokens.token_strings.extend(response.token_strings);
    }
    Ok(tokens)
}

pub fn to_json(tokens: &TokenizeResponse) -> Value {
    json!({"token_ids": tokens.token_ids, "token_strings": tokens.token_strings})
}

pub async fn detokenize(server: &Server, model: &str, token_ids: Vec<u32>) -> Result<String, Status> {
    let request = DetokenizeRequest { model: model.to_owned(), token_ids };
    retrying(|| async {
        let mut responses = server.catalog.detokenize(request.clone()).await?;
        let mut text = String::new();
        while let Some(response) = responses.message().await? {
            text.push_str(&response.text);
        }
        Ok(text)
    })
    .await
}
