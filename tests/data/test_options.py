"""The options of `data`: each YAML, the record kinds it can provide, and the effect of each key."""

from __future__ import annotations

import pytest
from transformers import AutoTokenizer

from postrain.config.schema import schema_of
from postrain.data.kinds.preference import Pairs
from postrain.data.kinds.prompt import Prompts
from postrain.data.kinds.steps import StepRows
from postrain.data.kinds.unpaired_preference import UnpairedPreferences
from postrain.data.module import DataModule
from postrain.data.schedule import EvalBatches
from postrain.errors import ConfigError
from postrain.types import Rows
from tests.data.helpers import write_lines
from tests.data.hub_sets import ROWS, SETS, write_set
from tests.data.modules import DEMONSTRATIONS, NANO, config, module, prepared
from tests.training_runs import CONF

OPTIONS = sorted(path.stem for path in (CONF / "data").glob("*.yaml"))
WORLD = {
    "world_text": {"Text": Rows},
    "world_demonstrations": {"Demonstration": Rows, "Prompt": Prompts, "Text": Rows},
    "world_preferences": {
        "Preference": Pairs,
        "UnpairedPreference": UnpairedPreferences,
        "Demonstration": Rows,
        "Prompt": Prompts,
    },
    "world_unpaired_preferences": {"UnpairedPreference": UnpairedPreferences, "Demonstration": Rows, "Prompt": Prompts},
    "world_stories": {"Prompt": Prompts},
    "world_sums": {"Prompt": Prompts},
    "world_steps": {
        "Steps": StepRows,
        "Demonstration": Rows,
        "UnpairedPreference": UnpairedPreferences,
        "Prompt": Prompts,
    },
}
ENVIRONMENTS = ("environment", "environment_demonstrations")
"""Tested in tests/environments."""


def test_every_option_is_tested():
    assert set(OPTIONS) == {*WORLD, *SETS, *ENVIRONMENTS, "jsonl", "mix", "reasoning_gym", "paraphrases"}


# The source of data=environment is the environment of a whole config.
@pytest.mark.parametrize("option", sorted({*OPTIONS} - {"environment"}))
def test_every_data_yaml_sets_all_keys_and_begins_with_a_comment(option):
    assert set(config(option)) == {"_target_", *schema_of(DataModule).keys}
    assert (CONF / "data" / f"{option}.yaml").read_text().startswith("# ")


@pytest.mark.parametrize(("option", "kind"), [(option, kind) for option in WORLD for kind in WORLD[option]])
def test_world_data_gives_batches_of_every_supported_kind(option, kind):
    data = prepared(option, kind=kind)
    batches = list(data.train_dataloader())
    assert [len(batch) for batch in batches] == [4, 4, 4]
    assert all(isinstance(batch, WORLD[option][kind]) for batch in batches)
    held_out = list(EvalBatches(data.eval, 4))
    assert sum(map(len, held_out)) == len(data.eval) > 0
    prompts = data.eval_prompts(3)
    assert 0 < len(prompts) <= 3
    assert len(set(prompts.texts)) == len(prompts)
    # Running text is packed into pages of several documents, which have no gold score.
    assert option == "world_text" or all("gold" in columns for columns in prompts.columns)
    assert data.gold_score is not None


def test_gold_scores_the_held_out_prompts():
    data = prepared("world_sums", kind="Prompt")
    prompts = data.eval_prompts(1)
    assert data.gold_score is not None
    columns = prompts.columns[0]
    right = data.gold_score(prompts.texts[0], f" The answer is {columns['answer']}.", columns["gold"])
    wrong = data.gold_score(prompts.texts[0], " The answer is no.", prompts.columns[0]["gold"])
    assert right["correct"] > wrong["correct"]


def test_columns_stay_with_their_prompts_after_shuffling():
    data = prepared("world_sums", kind="Prompt", updates=9)
    assert data.gold_score is not None
    order = []
    for batch in data.train_dataloader():
        assert isinstance(batch, Prompts)
        for text, columns, row in zip(batch.texts, batch.columns, batch.row_ids, strict=True):
            # The answer column of a row is right for its prompt.
            assert data.gold_score(text, f" The answer is {columns['answer']}.", columns["gold"])["correct"] == 1
            order.append(row)
    assert order[:30] != sorted(order[:30])


@pytest.mark.parametrize("option", sorted(SETS))
def test_offline_error_of_hub_options_names_the_data_set(option):
    with pytest.raises(ConfigError, match=rf"data set {config(option)['source']['repo']}: not in the cache"):
        prepared(option)


@pytest.fixture
def stored(tmp_path, monkeypatch):
    """Writes the stored rows of an option and returns the override that reads them through `datasets`."""
    import datasets.config  # noqa: PLC0415 - slow import, only for these tests

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return lambda option: f"data.source.repo={write_set(tmp_path / 'set', SETS[option])}"


@pytest.mark.parametrize("option", SETS)
def test_rows_of_hub_data_sets_become_batches_of_their_kinds(option, stored):
    made, repo = SETS[option], stored(option)
    for kind in made.kinds:
        data = prepared(option, repo, kind=kind)
        assert len(next(iter(data.train_dataloader()))) == 4
        assert len(data.eval) > 0


def test_hh_rlhf_reads_the_preference_files_of_its_folders_only(stored):
    data = prepared("hh_rlhf", stored("hh_rlhf"), kind="Preference")
    assert (data.audit.rows_read, data.audit.rows_train) == (3 * ROWS, 2 * ROWS)


def test_part_of_a_split_reads_these_rows_only(stored):
    data = prepared("openmathinstruct", stored("openmathinstruct"), "data.source.train_split='train_1M[:5]'")
    assert data.audit.rows_read == 5


def test_files_are_needed_for_every_split_that_is_read(stored):
    with pytest.raises(ConfigError, match=r"data\.source\.data_files: no files for the split train; add train: GLOB"):
        prepared("openmathinstruct", stored("openmathinstruct"), "data.source.train_split=train")


@pytest.mark.parametrize("option", [option for option, made in SETS.items() if made.prompt or made.columns])
def test_prompts_of_hub_data_sets_have_the_columns_of_rewards(option, stored):
    data = prepared(option, stored(option), kind="Prompt")
    # Row 0 is held out in some data sets without a held-out split.
    prompt = next(record for record in (*data.records.train, *data.records.held_out) if record.row == 0)
    assert SETS[option].prompt in prompt.content()[0]
    assert {name: prompt.columns[name] for name in SETS[option].columns} == SETS[option].columns


def test_path_replaces_the_source_of_any_option(data_path, tmp_path):
    held_out = write_lines(tmp_path / "held_out.jsonl", [{"prompt": "new", "completion": "x"}, DEMONSTRATIONS[0]])
    data = prepared("world_demonstrations", data_path, f"data.eval_path={held_out}")
    assert data.audit.source.endswith("demonstrations.jsonl")
    assert (data.audit.rows_read, data.audit.rows_train, data.audit.rows_eval) == (32, 30, 1)
    assert data.audit.dropped == {"held-out prompt also in training": 1}
    assert data.eval_prompts(5).texts == ("new",)
    assert prepared("world_demonstrations", f"data.eval_path={held_out}").audit.rows_eval == 2


@pytest.mark.parametrize(
    ("override", "changes"),
    [
        ("data.eval_fraction=0.1", lambda d: d.audit.rows_eval),
        ("data.eval_rows=4", lambda d: d.audit.rows_eval),
        ("data.columns.prompt=task", lambda d: d.eval_prompts(9).texts),
        ("data.template=alpaca", lambda d: d.audit.fingerprint),
        ("data.template=random", lambda d: d.audit.fingerprint),
        ("data.loss_on=all", lambda d: d.audit.supervised),
        ("data.max_length=20", lambda d: d.audit.lengths["longest"]),
        ("data.max_prompt_length=10", lambda d: d.audit.lengths["longest"]),
        ("data.gold=postrain.world.gold.score", lambda d: d.gold),
        ("data.show_mask=2", lambda d: d.audit.samples.count("row ")),
        ("data.quality.min_characters=29", lambda d: d.audit.rows_train),
        ("data.quality.max_characters=5", lambda d: d.audit.rows_train),
        ("data.quality.dedupe=true", lambda d: d.audit.rows_train),
        ("data.quality.near_dedupe=0.7", lambda d: d.audit.rows_train),
        ("data.quality.max_repetition=0.1", lambda d: d.audit.rows_train),
        ("data.quality.balance=task", lambda d: d.audit.rows_train),
    ],
)
def test_every_key_has_an_effect(override, changes, tmp_path):
    rows = [
        *DEMONSTRATIONS,
        DEMONSTRATIONS[7],
        DEMONSTRATIONS[9],
        {**DEMONSTRATIONS[11], "prompt": "x", "completion": "so on and on and on and on and on"},
        {**DEMONSTRATIONS[3], "completion": "short", "prompt": "y"},
        {**DEMONSTRATIONS[3], "completion": "tiny", "prompt": "z"},
    ]
    path = f"data.path={write_lines(tmp_path / 'demonstrations.jsonl', rows)}"
    before = prepared("jsonl", path, "data.eval_fraction=0.15")
    if override == "data.quality.max_characters=5":
        assert prepared("jsonl", path, override).audit.rows_train == 2
    assert changes(before) != changes(prepared("jsonl", path, "data.eval_fraction=0.15", override))


def test_loss_on_assistant_and_packing_have_an_effect(tmp_path):
    turns = [{"role": role, "content": "hello there"} for role in ("user", "assistant") * 2]
    path = write_lines(
        tmp_path / "x.jsonl", [{"messages": [{**turns[0], "content": f"{n}"}, *turns[1:]]} for n in range(9)]
    )
    last, every = (
        prepared("jsonl", f"data.path={path}", f"data.loss_on={what}").audit.supervised
        for what in ("completion", "assistant")
    )
    assert every == 2 * last
    (tmp_path / "x.txt").write_text("\n\n".join(f"{n} word" * 80 for n in range(40)))
    text = f"data.path={tmp_path / 'x.txt'}"
    loose, packed = (
        prepared("jsonl", text, "data.max_length=64", f"data.pack={pack}", kind="Text").audit
        for pack in ("false", "true")
    )
    assert packed.items > loose.items == packed.rows_train
    assert loose.cut
    assert not packed.cut


def test_option_without_rows_requires_a_path():
    assert config("jsonl")["path"] == "???"
    with pytest.raises(ConfigError, match=r"data\.path: has to be given"):
        module("jsonl", "data.path=null")


def test_running_text_leaves_the_tokenizers_chat_template_unchanged():
    tokenizer = AutoTokenizer.from_pretrained(NANO)
    own = tokenizer.chat_template
    data = module("world_text")
    data.prepare(kind="Text", tokenizer=tokenizer, context=512, batch_size=4, updates=3, seed=0)
    assert tokenizer.chat_template == own
    assert data.chat_template.name == "plain"


def test_file_instead_of_world_stories_uses_the_models_template(data_path):
    assert prepared("world_stories", kind="Prompt").chat_template.name == "plain"
    assert prepared("world_stories", "data.source.task=instructions", kind="Prompt").chat_template.name == "chat"
    assert prepared("world_stories", data_path, kind="Prompt").chat_template.name == "chat"
    assert prepared("world_stories", "data.template=alpaca", kind="Prompt").chat_template.name == "alpaca"
