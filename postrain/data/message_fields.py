"""Roles and fields of messages: those that are read, and those that are refused with a reason."""

from __future__ import annotations

from collections.abc import Mapping

from postrain.data.layouts import MEDIA, REFUSED_COLUMNS

ROLES = {
    "human": "user",
    "user": "user",
    "prompter": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "ai": "assistant",
    "bot": "assistant",
    "chatbot": "assistant",
    "model": "assistant",
    "system": "system",
    "developer": "system",
}
RESULT_ROLES = ("tool", "function", "observation", "ipython", "tool_response")
CALL_ROLES = ("function_call", "tool_call")
"""Roles of ShareGPT for an assistant message that holds calls as JSON text."""
KNOWN_ROLES = (*ROLES, *RESULT_ROLES, *CALL_ROLES)
CALL_FIELDS = ("tool_calls", "function_call")
REASONING_FIELDS = ("reasoning_content", "reasoning", "thinking")
PREFIXES = ("prefix", "partial", "continue_final_message")
"""Fields that mark an assistant message as a prefill."""
TOOLS = "calls are read from tool_calls of an assistant message, results from tool messages, tools from a column"
REASONING = "reasoning is read from reasoning_content of an assistant message"
REFUSED: Mapping[str, str] = {
    **REFUSED_COLUMNS,
    **dict.fromkeys(("tools", "functions", "tool_calls", "function_call", "tool_call_id", "tool_call"), TOOLS),
    "file": MEDIA,
    "files": MEDIA,
    "input_audio": MEDIA,
    **dict.fromkeys((*REASONING_FIELDS, "reasoning_details", "thought"), REASONING),
    "refusal": "write the refusal into the content",
    "name": "names of speakers are not supported; write the name into the content",
    "channel": REASONING,
    "recipient": TOOLS,
    **dict.fromkeys(("label", "kto_tag"), "a label belongs in a column of the row, not in a message"),
    **dict.fromkeys(("mask", "masked", "train_detail", "training_detail"), "give the message a weight of 0 or 1"),
    **dict.fromkeys(PREFIXES, "only an assistant message at the end of a prompt can be continued"),
}
"""Fields that change the meaning of a message, with the reason why they are not supported."""
REFUSED_WORDS: Mapping[str, str] = {
    **dict.fromkeys(("tool", "tools", "function", "functions"), TOOLS),
    **dict.fromkeys(("image", "images", "audio", "audios", "video", "videos", "media", "attachments"), MEDIA),
    **dict.fromkeys(("reasoning", "thinking", "think", "thought", "thoughts"), REASONING),
}
"""The same for words in field names and in types of content parts, such as tool_responses and thinking_text."""
WEIGHTS = ("weight", "loss_weight", "loss", "train", "training", "trainable", "learnable", "train_on_turn")
TEXT_PARTS = ("text", "input_text", "output_text")
