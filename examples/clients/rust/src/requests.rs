//! What the tour asks.

use std::error::Error;

use serde_json::Value;

use crate::proto::dst::v1::prompt::Prompt as Content;
use crate::proto::dst::v1::{
    DeriveRequest, DerivedScalarSpec, DerivedScalarType, DstConfig, ExplainPart, ExplainRequest, ExplainRun,
    LayerIndices, LossFnConfig, LossFnName, Prompt, TensorElementType, TensorEncoding, TokenIds,
};

const NOT_ONE_TOKEN: &str = "not one token";

/// What to ask about.
pub struct Inputs {
    pub model: String,
    pub prompt: String,
    target_tokens: Vec<String>,
    distractor_tokens: Vec<String>,
    autoencoder: String,
    pub unicode: String,
}

impl Inputs {
    pub fn from_json(json: &Value) -> Result<Self, Box<dyn Error>> {
        let text = |name: &str| json[name].as_str().map(str::to_owned).ok_or(format!("{name} must be a text"));
        let texts = |name: &str| {
            let list = json[name].as_array().ok_or(format!("{name} must be a list"))?;
            let texts = list.iter().map(|entry| entry.as_str().map(str::to_owned)).collect::<Option<Vec<_>>>();
            texts.ok_or(format!("{name} must hold texts"))
        };
        Ok(Self {
            model: text("model")?,
            prompt: text("prompt")?,
            target_tokens: texts("target_tokens")?,
            distractor_tokens: texts("distractor_tokens")?,
            autoencoder: text("autoencoder")?,
            unicode: text("unicode")?,
        })
    }

    /// About the prompt, and about how far the model prefers the targets to the distractors.
    fn question(&self, id: &str, derived_scalars: Vec<DerivedScalarSpec>) -> DeriveRequest {
        DeriveRequest {
            request_id: id.to_owned(),
            model: self.model.clone(),
            prompt: Some(Prompt { prompt: Some(Content::Text(self.prompt.clone())) }),
            loss_fn_config: Some(logit_diff(&self.target_tokens, &self.distractor_tokens)),
            derived_scalars,
            ..Default::default()
        }
    }

    pub fn dense(&self) -> DeriveRequest {
        let mut mlp_write = scalar(DerivedScalarType::MlpWrite);
        mlp_write.config = Some(layers(&[0]));
        self.question(
            "dense",
            vec![
                scalar(DerivedScalarType::UnflattenedAttnWriteToFinalResidualGrad),
                scalar(DerivedScalarType::AttnQkLogits),
                mlp_write,
            ],
        )
    }

    /// Splices an autoencoder into the run; only its active latents travel.
    pub fn sparse(&self) -> DeriveRequest {
        let scalars = vec![
            scalar(DerivedScalarType::OnlineAutoencoderLatent),
            scalar(DerivedScalarType::OnlineAutoencoderWriteToFinalResidualGrad),
        ];
        DeriveRequest {
            autoencoders: vec![self.autoencoder.clone()],
            encoding: TensorEncoding::SparseLatents.into(),
            ..self.question("sparse", scalars)
        }
    }

    /// Half the bytes, and gradients beside the values.
    pub fn half(&self, id: &str, element_type: TensorElementType) -> DeriveRequest {
        DeriveRequest {
            config: Some(DstConfig { derive_gradients: true, ..layers(&[0]) }),
            element_type: element_type.into(),
            ..self.question(id, vec![scalar(DerivedScalarType::AttnQkProbs)])
        }
    }

    /// A layer that no model here has.
    pub fn wrong(&self) -> DeriveRequest {
        DeriveRequest { request_id: "wrong".to_owned(), config: Some(layers(&[0, 999])), ..self.dense() }
    }

    /// Four bad fields.
    pub fn rejected(&self) -> DeriveRequest {
        let mut attn_write = scalar(DerivedScalarType::AttnWrite);
        attn_write.config = Some(layers(&[77]));
        DeriveRequest {
            loss_fn_config: Some(logit_diff(&[NOT_ONE_TOKEN.to_owned()], &[])),
            config: Some(DstConfig { device_for_raw_activations: Some("cuda:3".to_owned()), ..layers(&[0, 999]) }),
            ..self.question("rejected", vec![scalar(DerivedScalarType::MlpPostAct), attn_write])
        }
    }

    /// An answer of many megabytes.
    pub fn large(&self) -> DeriveRequest {
        self.question("large", vec![scalar(DerivedScalarType::MlpWrite)])
    }

    /// Eight prompts of different lengths: the prompt's tokens less the last 0, 1, ... One is poisoned.
    pub fn prefixes(&self, token_ids: &[u32]) -> Vec<DeriveRequest> {
        (0..8)
            .map(|i| {
                let length = token_ids.len().saturating_sub(i).max(1);
                let prefix = TokenIds { token_ids: token_ids[..length].to_vec() };
                DeriveRequest {
                    prompt: Some(Prompt { prompt: Some(Content::TokenIds(prefix)) }),
                    loss_fn_config: (i == 3).then(|| logit_diff(&[NOT_ONE_TOKEN.to_owned()], &[])),
                    ..self.question(&format!("prompt-{i}"), vec![scalar(DerivedScalarType::Logits)])
                }
            })
            .collect()
    }

    pub fn explain(&self) -> ExplainRequest {
        let question = self.question("explain", vec![]);
        ExplainRequest {
            request_id: question.request_id,
            model: question.model,
            runs: vec![ExplainRun {
                prompt: question.prompt,
                loss_fn_config: question.loss_fn_config,
                ..Default::default()
            }],
            k: Some(3),
            scored_token_count: Some(3),
            top_logit_count: Some(3),
            parts: vec![
                ExplainPart::NodeTable.into(),
                ExplainPart::UpvotedOutputTokens.into(),
                ExplainPart::TopLogits.into(),
            ],
            ..Default::default()
        }
    }
}

fn logit_diff(targets: &[String], distractors: &[String]) -> LossFnConfig {
    LossFnConfig {
        name: LossFnName::LogitDiff.into(),
        target_tokens: targets.to_vec(),
        distractor_tokens: distractors.to_vec(),
        ..Default::default()
    }
}

fn scalar(dst: DerivedScalarType) -> DerivedScalarSpec {
    DerivedScalarSpec { dst: dst.into(), config: None }
}

/// Restricts a config to some layers. A config without it means every layer; so does an empty list.
fn layers(indices: &[u32]) -> DstConfig {
    DstConfig { layer_indices: Some(LayerIndices { layer_indices: indices.to_vec() }), ..Default::default() }
}
