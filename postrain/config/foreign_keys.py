"""Keys of Lightning, Transformers, TRL, verl and the Hydra templates, and their equivalents here.

One table for check.py (unknown keys), arguments.py (unknown flags) and keywords.py (unknown arguments of Python).
Leaves out misspellings: check.py finds similar keys.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class ForeignKey:
    """A setting of other programs."""

    names: str
    """Its names there, separated by spaces: whole dotted keys or their last parts."""
    keys: str = ""
    """The equivalent keys here, separated by spaces, the closest first; not every method has all of them."""
    requires: str = ""
    """The group option that the keys require, if not every run has them."""
    note: str = ""
    """A remark on the keys, or the remedy if there is no equivalent key."""


FOREIGN_KEYS = (
    ForeignKey("lr base_lr learning_rate step_size peak_lr actor_lr", "method.learning_rate"),
    ForeignKey(
        "max_epochs num_train_epochs num_epochs n_epochs total_epochs min_epochs epochs",
        "method.num_train_epochs method.updates",
    ),
    ForeignKey(
        "max_steps total_steps num_steps train_steps num_train_steps total_training_steps max_train_steps max_iters "
        "max_iterations iterations total_episodes trainer.steps min_steps",
        "method.updates",
        note="an update is one optimizer step, or epochs * minibatches steps for methods with these keys",
    ),
    ForeignKey("lmbda", "method.on_policy", note="share of the batch whose completions the student samples"),
    ForeignKey("num_ppo_epochs ppo_epochs num_iterations mini_epochs", "method.epochs"),
    ForeignKey(
        "num_mini_batches num_minibatches ppo_mini_batch_size mini_batch_size steps_per_generation",
        "method.minibatches_per_epoch",
        note="optimizer steps in each pass over a rollout",
    ),
    ForeignKey(
        "per_device_train_batch_size train_batch_size batch_size global_batch_size bs bsz rollout_batch_size",
        "method.batch_size",
        note="global batch size over all devices; method.micro_batch_tokens bounds the memory",
    ),
    ForeignKey(
        "gradient_accumulation_steps accumulate_grad_batches grad_accum micro_batch_size per_device_batch_size "
        "per_device_eval_batch_size eval_batch_size ppo_micro_batch_size",
        "method.micro_batch_tokens micro_batch_tokens",
        note="gradients are accumulated over micro-batches of at most this many tokens; results do not depend on it",
    ),
    ForeignKey(
        "gradient_checkpointing enable_gradient_checkpointing activation_checkpointing use_gradient_checkpointing",
        "method.gradient_checkpointing",
    ),
    ForeignKey("tf32 allow_tf32", "trainer.float32_matmul_precision", note="high allows TF32"),
    ForeignKey(
        "logging_steps log_every_n_steps log_interval log_freq logging_strategy log_steps",
        note="every update is logged; leave it out",
    ),
    ForeignKey(
        "eval_steps eval_strategy evaluation_strategy eval_interval eval_freq eval_every val_check_interval "
        "check_val_every_n_epoch test_freq",
        "evaluation.every",
    ),
    ForeignKey("save_steps save_strategy save_freq save_interval every_n_train_steps", "trainer.checkpoint_every"),
    ForeignKey("save_total_limit save_top_k", "trainer.checkpoints_kept"),
    ForeignKey("output_dir default_root_dir save_dir log_dir logging_dir out_dir work_dir", "paths.output"),
    ForeignKey("run_name experiment_name exp_name task_name tags", "name"),
    ForeignKey(
        "model_name model_name_or_path name_or_path model_id model_path base_model pretrained hf_model "
        "pretrained_model_name_or_path",
        note="choose model=OPTION, or model=local model.path=DIRECTORY_OR_HUB_NAME",
    ),
    ForeignKey(
        "dataset dataset_name dataset_path train_file data_path data_files train_files train_path train_data data_dir",
        note="choose data=OPTION, or data.path=FILE",
    ),
    ForeignKey("eval_file eval_dataset validation_file val_file val_files test_file eval_data", "data.eval_path"),
    ForeignKey("max_train_samples max_samples num_samples limit_train_batches n_train limit", "data.max_rows"),
    ForeignKey("dataset_mixer dataset_mixer_list dataset_weights interleave_probs mix_strategy mixture", "data.mix"),
    ForeignKey("max_eval_samples limit_val_batches limit_test_batches val_size", "data.eval_rows"),
    ForeignKey(
        "max_seq_length max_seq_len max_length seq_len block_size cutoff_len model_max_length", "data.max_length"
    ),
    ForeignKey("max_prompt_length max_source_length prompt_length", "data.max_prompt_length"),
    ForeignKey("packing", "data.pack"),
    ForeignKey("chat_template", "data.template"),
    ForeignKey(
        "max_completion_length max_new_tokens max_response_length max_target_length response_length max_gen_len "
        "max_tokens generation_max_length",
        "rollout.max_new_tokens",
    ),
    ForeignKey("temperature", "rollout.temperature"),
    ForeignKey("top_p", "rollout.top_p"),
    ForeignKey("top_k", "rollout.top_k"),
    ForeignKey("use_vllm vllm vllm_mode", note="choose rollout=vllm"),
    ForeignKey(
        "vllm_importance_sampling_correction vllm_importance_sampling_mode rollout_is rollout_rs tis_imp_ratio_cap",
        "method.rollout_importance_sampling_mode",
    ),
    ForeignKey(
        "vllm_importance_sampling_cap vllm_importance_sampling_clip_max rollout_is_threshold",
        "method.rollout_importance_sampling_clip_max",
    ),
    ForeignKey("max_async_level max_staleness staleness_threshold async_generation_ratio", "rollout.overlap"),
    ForeignKey(
        "num_generations num_return_sequences n_samples_per_prompt num_samples_per_prompt rollout_n rollout.n best_of",
        "method.group_size samples",
    ),
    ForeignKey("beta kl_beta kl_coeff kl_coef init_kl_coef kl_loss_coef kl_penalty_coef", "method.beta method.kl_coef"),
    ForeignKey(
        "epsilon clip clip_range cliprange clip_eps clip_ratio ppo_clip",
        "method.clip_low method.clip_high",
        note="set both for a symmetric clip",
    ),
    ForeignKey("epsilon_low clip_ratio_low", "method.clip_low"),
    ForeignKey("epsilon_high clip_ratio_high", "method.clip_high"),
    ForeignKey("adap_kl_ctrl kl_ctrl.target_kl algorithm.kl_ctrl.target_kl", "method.adaptive_kl_target"),
    ForeignKey("horizon algorithm.kl_ctrl.horizon", "method.adaptive_kl_horizon"),
    ForeignKey("cliprange_value", "method.value_clip"),
    ForeignKey("vf_coef value_loss_coef", "method.value_coef"),
    ForeignKey("ent_coef entropy_coeff", "method.entropy_coef"),
    ForeignKey("gae_lambda lambda", "method.lam"),
    ForeignKey("discount discount_factor", "method.gamma"),
    ForeignKey("loss_type objective", "method.loss method.loss_type"),
    ForeignKey("scale_rewards", "method.scale_rewards"),
    ForeignKey("max_grad_norm gradient_clip_val grad_clip clip_grad_norm grad_norm_clip", "method.max_grad_norm"),
    ForeignKey("warmup_steps warmup_ratio num_warmup_steps", "method.warmup", note="a share of the updates"),
    ForeignKey("lr_scheduler_type lr_scheduler scheduler scheduler_type", "method.schedule"),
    ForeignKey("adam_beta1 adam_beta2 betas", "method.adam_betas"),
    ForeignKey("adam_epsilon eps", "method.adam_eps"),
    ForeignKey("wd adam_weight_decay", "method.weight_decay"),
    ForeignKey("optimizer optimizer_name", note="choose optim=adamw, sgd or adafactor, or any torch optimizer"),
    ForeignKey("lora_r lora_rank rank peft.r lora.r", "adapter.r", requires="adapter=lora"),
    ForeignKey("lora_alpha", "adapter.alpha", requires="adapter=lora"),
    ForeignKey("lora_dropout", "adapter.dropout", requires="adapter=lora"),
    ForeignKey("lora_target_modules target_modules", "adapter.target_modules", requires="adapter=lora"),
    ForeignKey("use_peft use_lora peft lora", note="choose adapter=lora"),
    ForeignKey("load_in_4bit load_in_8bit use_qlora quantization", note="choose adapter=qlora"),
    ForeignKey("fp16 bf16 mixed_precision torch_dtype amp", "trainer.precision"),
    ForeignKey(
        "n_gpus num_gpus gpus nproc_per_node n_gpus_per_node world_size", "trainer.devices", requires="trainer=ddp"
    ),
    ForeignKey("nnodes", "trainer.num_nodes"),
    ForeignKey("use_cpu device no_cuda use_mps_device", note="choose trainer=cpu, gpu or mps"),
    ForeignKey("deepspeed fsdp", note="choose trainer=fsdp"),
    ForeignKey("report_to use_wandb wandb tracker with_tracking", note="choose logger=wandb, tensorboard or trackio"),
    ForeignKey("wandb_project project project_name", "logger.project", requires="logger=wandb"),
    ForeignKey("resume_from_checkpoint ckpt_path load_from resume_from", "resume", note="give the run folder"),
    ForeignKey("random_seed data_seed seed_everything manual_seed", "seed"),
    ForeignKey("num_workers dataloader_num_workers pin_memory", note="rows are kept in memory; leave it out"),
    ForeignKey("reward_model reward_model_path rm_path", note="choose reward=learned reward.path=RUN_FOLDER"),
    ForeignKey("reward_funcs reward_fn reward_func", note="choose reward=function reward.function=FILE.py:NAME"),
    ForeignKey("ref_model reference_model ref_model_path", "reference"),
    ForeignKey(
        "sync_ref_model",
        "method.ref_sync_steps",
        note="updates between synchronizations, such as 64; 0 for none",
    ),
    ForeignKey("ref_model_sync_steps", "method.ref_sync_steps"),
    ForeignKey("ref_model_mixup_alpha", "method.ref_mixup_alpha"),
    ForeignKey("max_time", note="choose callbacks with a node of lightning.pytorch.callbacks.Timer"),
    ForeignKey("trainer.logger", note="choose logger=OPTION"),
    ForeignKey("trainer.callbacks", note="choose callbacks=OPTION"),
    ForeignKey("enable_model_summary", note="choose callbacks with a node of lightning.pytorch.callbacks.ModelSummary"),
    ForeignKey("gradient_clip_algorithm", "method.max_grad_norm", note="gradients are clipped by their norm"),
    ForeignKey("limit_predict_batches", note="nothing is predicted; leave it out"),
    ForeignKey("inference_mode", note="an evaluation never computes gradients; leave it out"),
    ForeignKey("use_distributed_sampler", note="batches are already sharded over the ranks; leave it out"),
    ForeignKey("benchmark", note="it selects convolution kernels, and no model has any; leave it out"),
    ForeignKey("sync_batchnorm", note="no model has batch norm; leave it out"),
    ForeignKey("reload_dataloaders_every_n_epochs", note="the order of rows follows from the seed; leave it out"),
    ForeignKey("barebones", note="leave it out; report=false and evaluation.completions=0 save time"),
    ForeignKey("plugins", note="choose trainer.strategy and trainer.precision"),
    ForeignKey("enable_autolog_hparams", note="a logger always gets the settings; leave it out"),
    ForeignKey("model_registry", note="choose logger=wandb or trackio, or copy RUN_FOLDER/model"),
    ForeignKey("enable_progress_bar", note="choose callbacks=rich for another bar"),
    ForeignKey("enable_checkpointing", "trainer.checkpoint_every"),
    ForeignKey("num_sanity_val_steps", note="a run is evaluated before its first update; leave it out"),
    ForeignKey("hparams_search", note="choose sweep=search, or sweep=FILE.yaml with a search of your own"),
    ForeignKey("print_config ignore_warnings enforce_tags extras", note="leave it out; --cfg job prints the config"),
    ForeignKey("fast_dev_run overfit_batches", note="for a short trial use method.updates=3 evaluation=quick"),
)


def suggest_key(key: str, exists: Callable[[str], bool]) -> str | None:
    """The suggestion for an unknown `key`; `exists` returns whether the config has a key.

    None for a key that is not in the table, or whose equivalents the config does not have.
    """
    for known in _matches(key):
        keys = [name for name in known.keys.split() if known.requires or exists(name)][:2]
        remark = f"with {known.requires}" if known.requires else known.note
        if keys:
            return f"did you mean {' or '.join(keys)}?" + (f" ({remark})" if remark else "")
        if not known.keys:
            return known.note
    return None


def suggest_argument(word: str, known: Collection[str]) -> list[str]:
    """At most two of the `known` arguments that other libraries call `word`."""
    names = (key.rpartition(".")[2] for entry in _matches(word) for key in entry.keys.split())
    return [name for name in dict.fromkeys(names) if name in known][:2]


def _matches(key: str) -> Iterator[ForeignKey]:
    """The table entries that match a key: those with the whole key first."""
    word = key.rpartition(".")[2]
    yield from (known for name in dict.fromkeys((key, word)) for known in FOREIGN_KEYS if name in known.names.split())


# Groups for which users often write a Hub name, a file or a function in place of an option.
FILES = (".jsonl", ".json", ".csv", ".parquet", ".txt", ".gguf")
OPTIONS = {("trainer", "cuda"): "gpu", ("trainer", "deepspeed"): "fsdp"}
"""Options under their names in other programs."""
REPLACEMENTS = {
    "model": "model=local model.path=",
    "data": "data=jsonl data.path=",
    "reward": "reward=function reward.function=",
}


def suggest_option(group: str, name: str) -> str | None:
    """What to write if `name` is an option under its name elsewhere, or a path; else None."""
    if (group, name.lower()) in OPTIONS:
        return f"write {group}={OPTIONS[group, name.lower()]}"
    return (
        f"write {REPLACEMENTS[group]}{name}"
        if group in REPLACEMENTS and ({"/", ":"} & {*name} or name.endswith(FILES))
        else None
    )
