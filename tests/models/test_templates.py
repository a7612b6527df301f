"""Chat templates of Qwen's kind are read as by transformers; others, and endless ones, are not."""

import time
from pathlib import Path

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from coral_lab import Product, load
from coral_lab.errors import CheckpointError, ItemError
from coral_lab.mini.architecture import CHAT_TEMPLATE
from coral_lab.models.inputs import prompt
from coral_lab.models.templates import render
from tests.models.layouts import Layout, write

MINI = Path(__file__).parents[2] / "data/coral-mini"

QWEN2_5_VL = (
    "{% set image_count = namespace(value=0) %}{% set video_count = namespace(value=0) %}"
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}<|im_start|>system\n"
    "You are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n{% else %}"
    "{% for content in message['content'] %}{% if content['type'] == 'image' or 'image' in content or "
    "'image_url' in content %}{% set image_count.value = image_count.value + 1 %}{% if add_vision_id %}"
    "Picture {{ image_count.value }}: {% endif %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif content['type'] == 'video' or 'video' in content %}"
    "{% set video_count.value = video_count.value + 1 %}{% if add_vision_id %}Video {{ video_count.value }}: "
    "{% endif %}<|vision_start|><|video_pad|><|vision_end|>{% elif 'text' in content %}{{ content['text'] }}"
    "{% endif %}{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Qwen2-VL's and Qwen2.5-VL's."""

QWEN3_VL = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}
        {%- if messages[0].content is string %}
            {{- messages[0].content }}
        {%- else %}
            {%- for content in messages[0].content %}
                {%- if 'text' in content %}
                    {{- content.text }}
                {%- endif %}
            {%- endfor %}
        {%- endif %}
        {{- '\\n\\n' }}
    {%- endif %}
    {{- "# Tools\\n\\nYou may call one or more functions.\\n\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- else %}
    {%- if messages[0].role == 'system' %}
        {{- '<|im_start|>system\\n' }}
        {%- if messages[0].content is string %}
            {{- messages[0].content }}
        {%- else %}
            {%- for content in messages[0].content %}
                {%- if 'text' in content %}
                    {{- content.text }}
                {%- endif %}
            {%- endfor %}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- set image_count = namespace(value=0) %}
{%- set video_count = namespace(value=0) %}
{%- for message in messages %}
    {%- if message.role == "user" %}
        {{- '<|im_start|>' + message.role + '\\n' }}
        {%- if message.content is string %}
            {{- message.content }}
        {%- else %}
            {%- for content in message.content %}
                {%- if content.type == 'image' or 'image' in content or 'image_url' in content %}
                    {%- set image_count.value = image_count.value + 1 %}
                    {%- if add_vision_id %}Picture {{ image_count.value }}: {% endif -%}
                    <|vision_start|><|image_pad|><|vision_end|>
                {%- elif content.type == 'video' or 'video' in content %}
                    {%- set video_count.value = video_count.value + 1 %}
                    {%- if add_vision_id %}Video {{ video_count.value }}: {% endif -%}
                    <|vision_start|><|video_pad|><|vision_end|>
                {%- elif 'text' in content %}
                    {{- content.text }}
                {%- endif %}
            {%- endfor %}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' + message.role + '\\n' }}
        {%- if message.content is string %}
            {{- message.content }}
        {%- else %}
            {%- for content_item in message.content %}
                {%- if 'text' in content_item %}
                    {{- content_item.text }}
                {%- endif %}
            {%- endfor %}
        {%- endif %}
        {%- if message.tool_calls %}
            {%- for tool_call in message.tool_calls %}
                {%- if (loop.first and message.content) or (not loop.first) %}
                    {{- '\\n' }}
                {%- endif %}
                {%- if tool_call.function %}
                    {%- set tool_call = tool_call.function %}
                {%- endif %}
                {{- '<tool_call>\\n{"name": "' }}
                {{- tool_call.name }}
                {{- '", "arguments": ' }}
                {%- if tool_call.arguments is string %}
                    {{- tool_call.arguments }}
                {%- else %}
                    {{- tool_call.arguments | tojson }}
                {%- endif %}
                {{- '}\\n</tool_call>' }}
            {%- endfor %}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' }}
        {{- message.content }}
        {{- '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

QWEN3 = """\
{%- macro render_content(content) %}{% if content is string %}{{ content }}{% else %}
{%- for item in content %}{{- item.text if 'text' in item else '' }}{% endfor %}{% endif %}{% endmacro %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- set said = render_content(message.content) | trim %}
    {%- if ns.multi_step_tool and message.role == "user" and not(said.startswith('<tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = render_content(message.content) %}
    {%- if '</think>' in content %}
        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- if loop.index0 % 2 == 1 and message.role == 'user' %}{{- '' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {%- generation %}{{- '<|im_start|>assistant\\n' }}{% endgeneration %}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""
"""As Qwen3 goes about it, with macros, namespaces, slices and methods of texts."""


def _message(role: str, *content: str | None) -> dict:
    """Texts, and None for a picture."""
    parts = [{"type": "image"} if part is None else {"type": "text", "text": part} for part in content]
    return {"role": role, "content": parts}


CHATS = {
    "a text": [_message("user", "a bag")],
    "nothing": [_message("user")],
    "two pictures": [_message("user", "a ", None, " and ", None, " with <b>'quotes\"</b> \n")],
    "a system's": [_message("system", "Be brief."), _message("user", None, "a")],
    "several turns": [
        _message("user", "a"),
        _message("assistant", "<think>x</think>\n\nb"),
        _message("user", "c"),
    ],
    "many parts": [_message("user", *["part ", None] * 300)],
    "many turns": [_message(role, "a" * 50) for role in ("user", "assistant") * 100],
}


@pytest.mark.parametrize("chat", CHATS.values(), ids=CHATS)
@pytest.mark.parametrize(
    "template", [CHAT_TEMPLATE, QWEN2_5_VL, QWEN3_VL, QWEN3], ids=["mini", "2.5-VL", "3-VL", "3"]
)
def test_qwens_templates_are_read_as_transformers_reads_them(template, chat):
    tokens = {"eos_token": "<|im_end|>"}
    theirs = render_jinja_template([chat], chat_template=template, add_generation_prompt=True, **tokens)[0][0]
    assert render(template, chat, tokens) == theirs


@pytest.mark.parametrize(
    "name", ["coral-mini", "coral-mini-base", "coral-mini-contrastive", "coral-mini-pretrained"]
)
def test_shipped_templates_are_read(name):
    text = (MINI.parent / name / "chat_template.jinja").read_text(encoding="utf-8")
    assert render(text, CHATS["a text"], {}).endswith("a bag<|im_end|>\n<|im_start|>assistant\n")


def _often(count: int, text: str) -> str:
    return text * count


LETTERS = "{% for a in messages[0].content[0].text %}"
REFUSED = {
    "counting": ("{% for i in range(10**9) %}x{% endfor %}", r"has range\(\) in line 1"),
    "counting by another name": ("{% set r = range %}{{ r(1000000000) }}", "it calls"),
    "a product": ("\n{{ 'a' * 9**9 }}", "has mul in line 2"),
    "a power": ("{{ 9 ** 9 }}", "has pow"),
    "a sum that doubles": ("{% set x = 'abcdefgh' %}" + _often(60, "{% set x = x + x %}"), "more characters"),
    "a list that doubles": ("{% set x = [1] %}" + _often(60, "{% set x = x + x %}"), "more characters"),
    "a macro that doubles": (
        "{% macro m(a) %}{{ a }}{{ a }}{% endmacro %}{% set x = 'abcdefgh' %}"
        + _often(60, "{% set x = m(x) %}"),
        "more characters",
    ),
    "a block that doubles": (
        "{% set x = 'abcdefgh' %}" + _often(60, "{% set x %}{{ x }}{{ x }}{% endset %}"),
        "more characters",
    ),
    "quotes of quotes": ("{% set x = '\"' %}" + _often(60, "{% set x = x|tojson %}"), "more characters"),
    "lists of letters": (
        "{% set x = 'abc' %}" + _often(60, "{% set x = x|list|string %}"),
        "more characters",
    ),
    "lists of lists": (
        "{% set x = 1 %}" + _often(60, "{% set x = [x, x] %}"),
        "a list of other than constants",
    ),
    "objects of objects": ("{% set x = 1 %}" + _often(60, "{% set x = {'a': x} %}"), "other than constants"),
    "namespaces": (
        "{% set a = namespace(x=1) %}" + _often(60, "{% set a = namespace(x=a, y=a) %}") + "{{ a }}",
        "it shows a Namespace",
    ),
    "a wide number": ("{{ '%999999999d' % 1 }}", "for whole numbers"),
    "a wide text": ("{{ 'a'.ljust(999999999) }}", "it calls ljust"),
    "a format": ("{{ '{:>999999999}'.format(1) }}", "it calls format"),
    "a method by another name": ("{% set f = 'a'.zfill %}{{ f(999999999) }}", "it calls zfill"),
    "a wide indent": ("{{ messages|tojson(indent=999999999) }}", "indent is 999999999"),
    "a filter": ("{{ 'a'|center(999999999) }}", "has filter center"),
    "an attribute": ("{{ ''|attr('__class__') }}", "has filter attr"),
    "a class": ("{{ ''.__class__.__mro__ }}", "unsafe"),
    "a test": ("{{ 1 is callable }}", "has test callable"),
    "another file": ("{% include '/etc/passwd' %}", "has include"),
    "an import": ("{% import 'os' as os %}", "has import"),
    "five loops": (LETTERS * 5 + "x" + "{% endfor %}" * 5, "loops more than 4 deep"),
    "four loops": (LETTERS * 4 + "{% set x = 1 %}" + "{% endfor %}" * 4, "more steps"),
    "a recursive loop": ("{% for a in messages recursive %}{{ loop(messages) }}{% endfor %}", "recursive"),
    "a recursive macro": ("{% macro m(a) %}{{ m(a) }}{{ m(a) }}{% endmacro %}{{ m(1) }}", "steps|recursion"),
    "70 KB": ("x" * 70_000, "has 70,000 characters, more than 65,536"),
    "depth": ("{% if a %}" * 3_000 + "{% endif %}" * 3_000, "recursion"),
}


@pytest.mark.parametrize(("template", "says"), REFUSED.values(), ids=REFUSED)
def test_others_are_refused_at_once(template, says):
    chat = [_message("user", "a" * 100)]
    started = time.process_time()
    with pytest.raises(Exception, match=says):
        render(template, chat, {})
    assert time.process_time() - started < 2


def test_a_template_may_fail_at_some_texts_only(tmp_path):
    folder = write(MINI, tmp_path / "mini", Layout())
    file = folder / "chat_template.jinja"
    file.write_text(
        file.read_text() + "{% if 'bag' in messages[0].content[-1].text %}{{ 'a'.zfill(9) }}{% endif %}"
    )
    model = load(folder)
    assert prompt(model, Product("1", "a shoe")).text
    with pytest.raises(
        ItemError, match=r"product 2: the model's chat template cannot write it \(it calls zfill"
    ):
        prompt(model, Product("2", "a bag"))
    file.write_text("{{ 9 ** 9 }}")
    with pytest.raises(
        CheckpointError, match="has no working processor: the chat template has pow in line 1"
    ):
        load(folder)
