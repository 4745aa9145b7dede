"""Chat messages in the forms that data sets have them in."""

from typing import Any

Messages = list[dict[str, str]]

_SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "system": "system",
    "tool": "tool",
}


def as_messages(value: Any) -> Messages | None:
    """Messages with "role" and "content" (text, or a list of text parts), or ShareGPT's "from" and "value".

    None where `value` is no such list.
    """
    if not isinstance(value, list) or not value:
        return None
    made = [_message(one) for one in value]
    return [one for one in made if one is not None] if None not in made else None


def _message(one: Any) -> dict[str, str] | None:
    if not isinstance(one, dict):
        return None
    role, content = one.get("role"), one.get("content")
    if role is None and content is None and isinstance(one.get("from"), str):
        role, content = _SHAREGPT_ROLES.get(one["from"].lower()), one.get("value")
    content = _text(content)
    return {"role": role, "content": content} if isinstance(role, str) and content is not None else None


def _text(content: Any) -> str | None:
    if not isinstance(content, list):
        return content if isinstance(content, str) else None
    found = (part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text")
    texts = [text for text in found if isinstance(text, str)]
    return "".join(texts) if len(texts) == len(content) else None
