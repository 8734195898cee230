"""The keys of SAELens's `cfg.json` in every version that wrote one, and the present names of old ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dst_grpc.engine.families.config_values import ConfigValues
from dst_grpc.engine.formats.known_keys import KnownKeys

if TYPE_CHECKING:
    from dst_grpc.engine.files import File

FACTOR = "norm_scaling_factor"
"""The factor that inputs are multiplied by, if a config says that there is one; it is added to the file by hand."""
_RENAMED = {
    "hook_point": "hook_name",
    "hook_point_head_index": "hook_head_index",
    "activation_fn_str": "activation_fn",
}
_OF_METADATA = (
    *("hook_name", "hook_name_out", "hook_head_index", "hook_head_index_out", "hf_hook_name", "hf_hook_name_out"),
    *("model_from_pretrained_kwargs", FACTOR),
)
"""Keys that are in `metadata` since version 6, and at the top level before."""
# Settings of training, model and data, which versions 0 to 5 wrote at the top level.
_TRAINING = """
act_store_device activation_normalization_factor adam_beta1 adam_beta2 autocast autocast_lm aux_loss_coefficient
b_dec_init_method cached_activations_path checkpoint_path compile_llm compile_sae context_size dataset_path
dataset_trust_remote_code dead_feature_estimation_method dead_feature_threshold dead_feature_window
decoder_heuristic_init decoder_heuristic_init_norm decoder_init_norm decoder_orthogonal_init device dtype
eval_batch_size_prompts eval_every_n_wandb_logs exclude_special_tokens expansion_factor feature_reinit_scale
feature_sampling_method feature_sampling_window finetuning_method finetuning_tokens from_pretrained_path hook_eval
hook_layer hook_point_eval hook_point_layer init_encoder_as_decoder_transpose is_dataset_tokenized jumprelu_bandwidth
jumprelu_init_threshold jumprelu_sparsity_loss_mode jumprelu_tanh_scale l0_coefficient l0_warm_up_steps l1_coefficient
l1_warm_up_steps llm_compilation_mode log_activations_store_to_wandb log_optimizer_state_to_wandb log_to_wandb lp_norm
lr lr_decay_steps lr_end lr_scheduler_name lr_warm_up_steps matryoshka_widths model_class_name model_kwargs model_name
mse_loss_normalization n_batches_in_buffer n_checkpoints n_eval_batches n_restart_cycles neuronpedia_id noise_scale
normalize_sae_decoder pre_act_loss_coefficient prepend_bos resample_batches resume run_name sae_compilation_mode
sae_lens_training_version sae_lens_version scale_sparsity_penalty_by_decoder_norm seed seqpos_slice store_batch_size
store_batch_size_prompts streaming tokens_per_buffer topk_threshold_lr total_training_steps total_training_tokens
train_batch_size train_batch_size_tokens training_tokens unique_id use_cached_activations use_ghost_grads
use_sparse_activations verbose wandb_entity wandb_id wandb_log_frequency wandb_project
"""
_KEYS = KnownKeys(
    read=frozenset(
        {"architecture", "activation_fn", "activation_fn_kwargs", "apply_b_dec_to_input", "d_in", "d_out", "d_sae", "k"}
        | {"finetuning_scaling_factor", "metadata", "normalize_activations", "rescale_acts_by_decoder_norm"}
        | {"reshape_activations", *_OF_METADATA}
    ),
    harmless=frozenset(_TRAINING.split()),
)
_ARGUMENTS = KnownKeys(read=frozenset({"k"}), only={"signed": (None, False)})


class SaeLensConfig:
    """The values of a `cfg.json`, under their present names, from wherever its version puts them."""

    def __init__(self, file: File) -> None:
        """Read *file*; raises DataLoss if it is not a valid config, or holds an unknown key."""
        config = ConfigValues.read(file)
        values = {_RENAMED.get(key, key): value for key, value in config.values.items()}
        metadata = values.get("metadata") or {}
        if not isinstance(metadata, dict):
            raise config.refusal("metadata", "must be an object")
        self.has_metadata = "metadata" in values
        known = {key: metadata[key] for key in _OF_METADATA if key in metadata}
        self.values = ConfigValues(config.path, known | values)
        _KEYS.check(self.values)
        self._arguments = self.values.nested("activation_fn_kwargs")
        if self._arguments is not None:
            _ARGUMENTS.check(self._arguments)

    def get(self, key: str) -> Any:
        """The value of *key*; None if it is absent."""
        return self.values.values.get(key)

    def text(self, key: str, default: str) -> str:
        """The text under *key*; the *default* if it is absent, or nothing. Raises DataLoss if it is anything else."""
        return self.values.text(key) if self.get(key) else default

    @property
    def k(self) -> int:
        """Latents that a top-k autoencoder keeps, from where versions 3 to 5 or 6 store it; raises DataLoss if it is
        absent."""
        if self._arguments is not None and self._arguments.values.get("k") is not None:
            return self._arguments.size("k")
        return self.values.size("k")
