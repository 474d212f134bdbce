"""From chat messages to the model's prompt text: the model's own Jinja template, in a sandbox."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import jinja2
import jinja2.ext
from jinja2 import nodes
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from jevons.base.errors import ModelError, RequestError

# What evaluating a template raises when the messages are not what it expects: "a" + None, 1 % 0, a list as a key, ...
TROUBLE = (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError)


class GenerationTag(jinja2.ext.Extension):
    """`{% generation %}…{% endgeneration %}` marks the model's words for training; here it is only a scope."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it as an instance variable

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)


def raise_exception(message: str) -> NoReturn:
    """A template's own refusal, such as "roles must alternate"."""
    raise RequestError(f"messages: the model's chat template refuses them: {message}", param="messages")


def strftime_now(layout: str) -> str:
    return datetime.now().astimezone().strftime(layout)


def tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Plain JSON, as models were trained on; Jinja's own filter escapes <, > and & for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def environment() -> ImmutableSandboxedEnvironment:
    """What Hugging Face templates expect to find (transformers/utils/chat_template_utils.py)."""
    env = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, jinja2.ext.loopcontrols]
    )
    env.filters["tojson"] = tojson
    env.globals |= {"raise_exception": raise_exception, "strftime_now": strftime_now}
    return env


class ChatTemplate:
    """One model's chat template, compiled once.

    Args:
        sources: Jinja text by name: "default", and for some models "tool_use" for requests with tools.
        tokens: the special tokens a template may write, such as `bos_token`.

    Raises:
        ModelError: a template is not valid Jinja.
    """

    def __init__(self, sources: Mapping[str, str], tokens: Mapping[str, str]) -> None:
        env = environment()
        try:
            self._templates = {name: env.from_string(source) for name, source in sources.items()}
        except jinja2.TemplateSyntaxError as broken:
            raise ModelError(f"chat_template: line {broken.lineno} is not valid Jinja: {broken.message}") from broken
        self._tokens = dict(tokens)

    def render(
        self,
        messages: list[dict[str, Any]],
        /,
        *,
        tools: list[dict[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **kwargs: Any,
    ) -> str:
        """The prompt's text.

        Args:
            messages: as in an OpenAI request; content is a string, None, or a list of text parts.
            tools: as in an OpenAI request.
            add_generation_prompt: end with the opening of the assistant's turn.
            kwargs: further values the template reads, such as `enable_thinking`.

        Raises:
            RequestError: no template, content that is not text, or the template refuses the messages.
        """
        given = {"messages": plain_messages(messages), "tools": tools, "add_generation_prompt": add_generation_prompt}
        if taken := given.keys() & kwargs.keys():
            raise RequestError(f"chat_template_kwargs: may not set {', '.join(sorted(taken))}", "chat_template_kwargs")
        try:
            return self._chosen(tools).render({"documents": None} | self._tokens | kwargs | given)
        except TROUBLE as refused:
            message = f"messages: the model's chat template cannot render them: {refused}"
            raise RequestError(message, param="messages") from refused

    def _chosen(self, tools: list[dict[str, Any]] | None) -> jinja2.Template:
        name = "tool_use" if tools and "tool_use" in self._templates else "default"
        if name not in self._templates:
            raise RequestError("messages: this model has no chat template; use /v1/completions", param="messages")
        return self._templates[name]


def template_sources(model_dir: Path, settings: Mapping[str, Any]) -> dict[str, str]:
    """A model's templates by name; {} if it has none.

    chat_template.jinja goes before chat_template.json, and that before `chat_template` of tokenizer_config.json.
    """
    jinja, packed = model_dir / "chat_template.jinja", model_dir / "chat_template.json"
    if jinja.is_file():
        return {"default": jinja.read_text("utf-8")}
    found = json.loads(packed.read_bytes())["chat_template"] if packed.is_file() else settings.get("chat_template")
    if isinstance(found, list):
        return {entry["name"]: entry["template"] for entry in found}
    return {"default": found} if found else {}


def plain_messages(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages with content as one string and tool arguments as objects, as templates expect; none is changed."""
    return [plain_message(message, f"messages[{i}]") for i, message in enumerate(messages)]


def plain_message(message: dict[str, Any], where: str) -> dict[str, Any]:
    plain = message | {"content": plain_content(message.get("content"), f"{where}.content")}
    calls = plain.pop("tool_calls", None)
    return plain | {"tool_calls": [plain_call(call) for call in calls]} if calls else plain


def plain_content(content: Any, where: str) -> str:
    """Text parts go on lines of their own, as vLLM joins them: both must see the same prompt."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise RequestError(f"{where}: must be a string or a list of parts, got {type(content).__name__}", param=where)
    return "\n".join(part_text(part, f"{where}[{j}]") for j, part in enumerate(content))


def part_text(part: Any, where: str) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    if kind != "text":
        raise RequestError(f"{where}.type: this model reads 'text' parts only, got {kind!r}", param=f"{where}.type")
    text = part.get("text")
    if not isinstance(text, str):
        raise RequestError(f"{where}.text: must be a string, got {type(text).__name__}", param=f"{where}.text")
    return text


def plain_call(call: dict[str, Any]) -> dict[str, Any]:
    """OpenAI sends a tool call's arguments as JSON text, templates print an object; what is no object stays text."""
    function = call.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = json.loads(function["arguments"] or "{}")
    except json.JSONDecodeError:
        return call
    return call | {"function": function | {"arguments": arguments}} if isinstance(arguments, dict) else call
