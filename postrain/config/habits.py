"""What users of Lightning, Transformers, TRL, verl and the Hydra templates type, and the key that does it here.

One table for check.py (unknown keys) and overrides.py (unknown flags). Leaves out misspellings, which are
found by likeness.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Habit:
    """A setting as other programs call it."""

    words: str
    """The last part of a dotted key, or all of it; several, separated by spaces."""
    keys: str = ""
    """Keys that do the same here, the closest first; not every method has each."""
    needs: str = ""
    """The choice that brings the keys, where a run does not have them by itself."""
    advice: str = ""
    """What to know about the keys, or what to write where no single key does the same."""


HABITS = (
    Habit("lr base_lr learning_rate step_size peak_lr actor_lr", "method.learning_rate"),
    Habit(
        "max_epochs num_train_epochs num_epochs n_epochs total_epochs min_epochs epochs",
        "method.updates",
        advice="the length of a run is counted in updates",
    ),
    Habit(
        "max_steps total_steps num_steps train_steps num_train_steps total_training_steps max_train_steps max_iters "
        "max_iterations iterations total_episodes trainer.steps min_steps",
        "method.updates",
        advice="an update is one optimizer step, with epochs and minibatches epochs * minibatches of them",
    ),
    Habit("num_ppo_epochs ppo_epochs num_iterations mini_epochs", "method.epochs"),
    Habit("num_mini_batches num_minibatches ppo_mini_batch_size mini_batch_size", "method.minibatches_per_epoch"),
    Habit(
        "per_device_train_batch_size train_batch_size batch_size global_batch_size bs bsz rollout_batch_size",
        "method.batch_size",
        advice="it counts over all devices; memory is bounded by method.micro_batch_tokens",
    ),
    Habit(
        "gradient_accumulation_steps accumulate_grad_batches grad_accum micro_batch_size per_device_batch_size "
        "per_device_eval_batch_size eval_batch_size ppo_micro_batch_size gradient_checkpointing",
        "method.micro_batch_tokens micro_batch_tokens",
        advice="batches are accumulated by themselves, in pieces of that many tokens, and no number depends on it",
    ),
    Habit(
        "logging_steps log_every_n_steps log_interval log_freq logging_strategy log_steps",
        advice="every update is logged; leave it out",
    ),
    Habit(
        "eval_steps eval_strategy evaluation_strategy eval_interval eval_freq eval_every val_check_interval "
        "check_val_every_n_epoch test_freq",
        "evaluation.every",
    ),
    Habit("save_steps save_strategy save_freq save_interval every_n_train_steps", "trainer.checkpoint_every"),
    Habit("save_total_limit save_top_k", "trainer.checkpoints_kept"),
    Habit("output_dir default_root_dir save_dir log_dir logging_dir out_dir work_dir", "paths.output"),
    Habit("run_name experiment_name exp_name task_name tags", "name"),
    Habit(
        "model_name model_name_or_path name_or_path model_id model_path base_model pretrained hf_model "
        "pretrained_model_name_or_path",
        advice="choose model=OPTION, or model=local model.path=DIRECTORY_OR_HUB_NAME",
    ),
    Habit(
        "dataset dataset_name dataset_path train_file data_path data_files train_files train_path train_data data_dir",
        advice="choose data=OPTION, or data.path=FILE",
    ),
    Habit("eval_file eval_dataset validation_file val_file val_files test_file eval_data", "data.eval_path"),
    Habit("max_train_samples max_samples num_samples limit_train_batches n_train limit", "data.max_rows"),
    Habit("max_eval_samples limit_val_batches limit_test_batches val_size", "data.eval_rows"),
    Habit("max_seq_length max_seq_len max_length seq_len block_size cutoff_len model_max_length", "data.max_length"),
    Habit("max_prompt_length max_source_length prompt_length", "data.max_prompt_length"),
    Habit("packing", "data.pack"),
    Habit("chat_template", "data.template"),
    Habit(
        "max_completion_length max_new_tokens max_response_length max_target_length response_length max_gen_len "
        "max_tokens generation_max_length",
        "rollout.max_new_tokens",
    ),
    Habit("temperature", "rollout.temperature"),
    Habit("top_p", "rollout.top_p"),
    Habit("top_k", "rollout.top_k"),
    Habit("use_vllm vllm vllm_mode", advice="choose rollout=vllm"),
    Habit(
        "num_generations num_return_sequences n_samples_per_prompt num_samples_per_prompt rollout_n rollout.n best_of",
        "method.group_size samples",
    ),
    Habit("beta kl_beta kl_coeff kl_coef init_kl_coef kl_loss_coef kl_penalty_coef", "method.beta method.kl_coef"),
    Habit("epsilon clip_range cliprange clip_eps clip_ratio ppo_clip", "method.clip method.clip_low method.clip_high"),
    Habit("epsilon_low clip_ratio_low", "method.clip_low method.clip"),
    Habit("epsilon_high clip_ratio_high", "method.clip_high method.clip"),
    Habit("cliprange_value", "method.value_clip"),
    Habit("vf_coef value_loss_coef", "method.value_coef"),
    Habit("ent_coef entropy_coeff", "method.entropy_coef"),
    Habit("gae_lambda lambda", "method.lam"),
    Habit("discount discount_factor", "method.gamma"),
    Habit("loss_type objective", "method.loss method.loss_type"),
    Habit("scale_rewards", "method.scale_rewards"),
    Habit("max_grad_norm gradient_clip_val grad_clip clip_grad_norm grad_norm_clip", "method.max_grad_norm"),
    Habit("warmup_steps warmup_ratio num_warmup_steps", "method.warmup", advice="a share of the updates"),
    Habit("lr_scheduler_type lr_scheduler scheduler scheduler_type", "method.schedule"),
    Habit("adam_beta1 adam_beta2 betas", "method.adam_betas"),
    Habit("adam_epsilon eps", "method.adam_eps"),
    Habit("wd adam_weight_decay", "method.weight_decay"),
    Habit("optimizer optimizer_name", advice="choose optim=adamw, sgd or adafactor, or any torch optimizer"),
    Habit("lora_r lora_rank rank peft.r lora.r", "adapter.r", needs="adapter=lora"),
    Habit("lora_alpha", "adapter.alpha", needs="adapter=lora"),
    Habit("lora_dropout", "adapter.dropout", needs="adapter=lora"),
    Habit("lora_target_modules target_modules", "adapter.target_modules", needs="adapter=lora"),
    Habit("use_peft use_lora peft lora", advice="choose adapter=lora"),
    Habit("load_in_4bit load_in_8bit use_qlora quantization", advice="choose adapter=qlora"),
    Habit("fp16 bf16 mixed_precision torch_dtype amp", "trainer.precision"),
    Habit("n_gpus num_gpus gpus nproc_per_node n_gpus_per_node world_size", "trainer.devices", needs="trainer=ddp"),
    Habit("nnodes", "trainer.num_nodes"),
    Habit("use_cpu device no_cuda", advice="choose trainer=cpu or trainer=gpu"),
    Habit("deepspeed fsdp", advice="choose trainer=fsdp"),
    Habit("report_to use_wandb wandb tracker with_tracking", advice="choose logger=wandb, tensorboard or trackio"),
    Habit("wandb_project project project_name", "logger.project", needs="logger=wandb"),
    Habit("resume_from_checkpoint ckpt_path load_from resume_from", "resume", advice="give the run folder"),
    Habit("random_seed data_seed seed_everything manual_seed", "seed"),
    Habit("num_workers dataloader_num_workers pin_memory", advice="rows are kept in memory; leave it out"),
    Habit("reward_model reward_model_path rm_path", advice="choose reward=learned reward.path=RUN_FOLDER"),
    Habit("reward_funcs reward_fn reward_func", advice="choose reward=function reward.function=FILE.py:NAME"),
    Habit("ref_model reference_model ref_model_path", "reference"),
    Habit("max_time", advice="choose callbacks with a node of lightning.pytorch.callbacks.Timer"),
    Habit("trainer.logger", advice="choose logger=OPTION"),
    Habit("trainer.callbacks", advice="choose callbacks=OPTION"),
    Habit("enable_model_summary", advice="choose callbacks with a node of lightning.pytorch.callbacks.ModelSummary"),
    Habit("gradient_clip_algorithm", "method.max_grad_norm", advice="gradients are clipped by their norm"),
    Habit("limit_predict_batches", advice="nothing is predicted; leave it out"),
    Habit("inference_mode", advice="an evaluation never keeps gradients; leave it out"),
    Habit("use_distributed_sampler", advice="batches come shared out over the ranks; leave it out"),
    Habit("benchmark", advice="it chooses between convolutions, and there are none; leave it out"),
    Habit("sync_batchnorm", advice="it is for batch norm, and there is none; leave it out"),
    Habit("reload_dataloaders_every_n_epochs", advice="the order of rows follows from the seed; leave it out"),
    Habit("barebones", advice="leave it out; report=false and evaluation.completions=0 save time"),
    Habit("plugins", advice="choose trainer.strategy and trainer.precision"),
    Habit("enable_autolog_hparams", advice="a logger always gets the settings; leave it out"),
    Habit("model_registry", advice="choose logger=wandb or trackio, or copy RUN_FOLDER/model"),
    Habit("enable_progress_bar", advice="choose callbacks=rich for another bar"),
    Habit("enable_checkpointing", "trainer.checkpoint_every"),
    Habit("num_sanity_val_steps", advice="a run is evaluated before its first update; leave it out"),
    Habit("hparams_search", advice="choose sweep=search, or sweep=FILE.yaml with a search of your own"),
    Habit("print_config ignore_warnings enforce_tags extras", advice="leave it out; --cfg job prints the config"),
    Habit("fast_dev_run overfit_batches", advice="for a short trial say method.updates=3 evaluation=quick"),
)


def meant(key: str, there: Callable[[str], bool]) -> str | None:
    """What somebody meant who typed the unknown `key`; `there` tells whether the config has a key.

    None where nobody else calls anything that, or where nothing of it is here.
    """
    for habit in _found(key):
        keys = [name for name in habit.keys.split() if habit.needs or there(name)][:2]
        told = f"with {habit.needs}" if habit.needs else habit.advice
        if keys:
            return f"did you mean {' or '.join(keys)}?" + (f" ({told})" if told else "")
        if not habit.keys:
            return habit.advice
    return None


def _found(key: str) -> Iterator[Habit]:
    """The habits a key fits: those that name all of it first."""
    word = key.rpartition(".")[2]
    yield from (habit for spoken in dict.fromkeys((key, word)) for habit in HABITS if spoken in habit.words.split())


# Groups whose options people replace by the thing itself: a Hub name, a file, a function.
FILES = (".jsonl", ".json", ".csv", ".parquet", ".txt", ".gguf")
GIVEN = {
    "model": "model=local model.path=",
    "data": "data=jsonl data.path=",
    "reward": "reward=function reward.function=",
}


def given(group: str, name: str) -> str | None:
    """What to write for a path where the name of an option is expected; None where it is none."""
    return f"write {GIVEN[group]}{name}" if group in GIVEN and ({"/", ":"} & {*name} or name.endswith(FILES)) else None
