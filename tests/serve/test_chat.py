from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from jevons.base.errors import ModelError, RequestError
from jevons.serve.chat import ChatTemplate, plain_messages, template_sources

CHATML = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
HI = [{"role": "user", "content": "hi"}]


def template(source: str, **tokens: str) -> ChatTemplate:
    return ChatTemplate({"default": source}, tokens)


def rendered(source: str, messages: list[dict[str, Any]] = HI, **kwargs: Any) -> str:
    return template(source).render(messages, **kwargs)


def test_a_chat_becomes_text() -> None:
    assert rendered(CHATML) == "<user>hi<assistant>"
    assert rendered(CHATML, add_generation_prompt=False) == "<user>hi"


def test_special_tokens_are_there_by_name() -> None:
    assert template("{{ bos_token }}|{{ eos_token }}", bos_token="<s>").render(HI) == "<s>|"


def test_further_values_reach_the_template() -> None:
    assert rendered("{{ enable_thinking }}", enable_thinking=False) == "False"


def test_values_the_request_names_itself_may_not_be_set_twice() -> None:
    with pytest.raises(RequestError, match="may not set messages") as refused:
        template(CHATML).render(HI, messages=[])
    assert refused.value.param == "chat_template_kwargs"


def test_a_template_may_refuse_the_messages() -> None:
    with pytest.raises(RequestError, match="refuses them: roles must alternate") as refused:
        rendered("{{ raise_exception('roles must alternate') }}")
    assert (refused.value.param, refused.value.status) == ("messages", 400)


@pytest.mark.parametrize(
    "source", ["{{ messages[5].content.x }}", "{{ 'a' + 1 }}", "{{ [].__class__.__mro__ }}", "{{ 1 % 0 }}"]
)
def test_a_template_that_fails_on_the_messages_blames_them(source: str) -> None:
    with pytest.raises(RequestError, match="cannot render them") as refused:
        rendered(source)
    assert refused.value.param == "messages"


def test_a_template_cannot_change_the_messages() -> None:
    with pytest.raises(RequestError, match="unsafe"):
        rendered("{{ messages.append(1) }}")


def test_json_is_written_plainly() -> None:
    assert rendered("{{ tools | tojson }}", tools=[{"name": "<é>&'"}]) == '[{"name": "<é>&\'"}]'
    assert rendered("{{ tools[0] | tojson(indent=1) }}", tools=[{"a": 1}]) == '{\n "a": 1\n}'


def test_blocks_leave_no_blank_lines() -> None:
    assert rendered("{% if true %}\n  {% for m in messages %}\nx\n  {% endfor %}\n{% endif %}\n") == "x\n"


def test_loops_may_be_left_early() -> None:
    assert rendered("{% for i in [1, 2, 3] %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}") == "1"


def test_the_generation_tag_only_marks() -> None:
    assert rendered("a{% generation %}{% set x = 1 %}b{{ x }}{% endgeneration %}{{ x is defined }}") == "ab1False"


def test_the_date_can_be_asked() -> None:
    assert rendered("{{ strftime_now('%Y') }}").startswith("20")


def test_tools_and_documents_are_none_where_not_given() -> None:
    assert rendered("{{ tools is none }}{{ documents is none }}") == "TrueTrue"


def test_requests_with_tools_use_the_template_made_for_them() -> None:
    both = ChatTemplate({"default": "plain", "tool_use": "tools"}, {})
    assert (both.render(HI), both.render(HI, tools=[{}])) == ("plain", "tools")


def test_a_model_without_template_says_what_to_use_instead() -> None:
    with pytest.raises(RequestError, match="no chat template; use /v1/completions"):
        ChatTemplate({}, {}).render(HI)


def test_a_template_that_is_no_jinja_is_the_models_fault() -> None:
    with pytest.raises(ModelError, match="line 2 is not valid Jinja"):
        template("a\n{% if %}")


def test_a_template_file_goes_before_the_settings(tmp_path: Path) -> None:
    settings = {"chat_template": "settings"}
    assert template_sources(tmp_path, settings) == {"default": "settings"}
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "packed"}))
    assert template_sources(tmp_path, settings) == {"default": "packed"}
    (tmp_path / "chat_template.jinja").write_text("file")
    assert template_sources(tmp_path, settings) == {"default": "file"}


def test_settings_may_hold_several_templates_or_none(tmp_path: Path) -> None:
    several = [{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}]
    assert template_sources(tmp_path, {"chat_template": several}) == {"default": "a", "tool_use": "b"}
    assert template_sources(tmp_path, {}) == {}


def test_text_parts_are_joined_by_lines() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}, "c"]
    assert plain_messages([{"role": "user", "content": parts}]) == [{"role": "user", "content": "a\nb\nc"}]


@pytest.mark.parametrize("message", [{"role": "assistant", "content": None}, {"role": "assistant"}])
def test_no_content_is_empty_text(message: dict[str, Any]) -> None:
    assert plain_messages([message]) == [{"role": "assistant", "content": ""}]


@pytest.mark.parametrize(
    ("content", "param"),
    [
        ([{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {}}], "messages[1].content[1].type"),
        ([{"type": "input_audio"}], "messages[1].content[0].type"),
        ([{}], "messages[1].content[0].type"),
        ([7], "messages[1].content[0].type"),
        ([{"type": "text"}], "messages[1].content[0].text"),
        (7, "messages[1].content"),
    ],
)
def test_content_that_is_no_text_is_refused_by_its_place(content: Any, param: str) -> None:
    with pytest.raises(RequestError) as refused:
        plain_messages([*HI, {"role": "user", "content": content}])
    assert refused.value.param == param
    assert str(refused.value).startswith(f"{param}: ")


@pytest.mark.parametrize(
    ("written", "passed"),
    [('{"city": "Ulm"}', {"city": "Ulm"}), ("", {}), ("[1]", "[1]"), ("{broken", "{broken"), ({"a": 1}, {"a": 1})],
)
def test_tool_arguments_are_objects_where_they_can_be(written: Any, passed: Any) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": written}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    assert plain_messages([message])[0]["tool_calls"][0]["function"] == {"name": "f", "arguments": passed}
    assert call["function"] == {"name": "f", "arguments": written}, "the request itself is left alone"


def test_an_empty_list_of_tool_calls_is_none() -> None:
    assert "tool_calls" not in plain_messages([{"role": "assistant", "content": "a", "tool_calls": []}])[0]
