"""Templates get what transformers gives them, and nothing that reaches out of the sandbox."""

from pathlib import Path
from typing import Any

import pytest

from albireo.errors import RequestError, StartupError
from albireo.frontend.chat_template import ChatTemplate, find_template

MESSAGES = [{"role": "user", "content": "<b>&é</b>"}]


def render(source: str, **variables: Any) -> str:
    return ChatTemplate(source, {"bos_token": "<s>"}).render(MESSAGES, add_generation_prompt=True, variables=variables)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ bos_token }}{{ messages[0].content }}", "<s><b>&é</b>"),
        ("{{ messages | tojson }}", '[{"role": "user", "content": "<b>&é</b>"}]'),
        ("{{ {'b': 1, 'a': 2} | tojson(indent=1, sort_keys=true) }}", '{\n "a": 2,\n "b": 1\n}'),
        ("{% for i in range(9) %}{% if i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}", "012"),
        ("{% generation %}x{% endgeneration %}", "x"),
        ("{% set ns = namespace(n=0) %}{% set ns.n = 2 %}{{ ns.n }}", "2"),
        ("{{ strftime_now('%%') }}", "%"),
        ("  {% if add_generation_prompt %}\nyes\n  {% endif %}\n", "yes\n"),
        ("{% if tools %}t{% endif %}{% if documents %}d{% endif %}.", "."),
    ],
)
def test_templates_render_as_in_transformers(source: str, text: str) -> None:
    assert render(source) == text


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'a': 1}) }}",
        "{{ raise_exception.__globals__.json }}",
        "{{ ('%s' | format).__init__ }}{{ cycler.__init__.__globals__.os }}",
        "{% include '/etc/passwd' %}",
        "{{ range(10**9) | list }}",
        "{{ undefined_name.x }}",
        "{{ 1 / 0 }}",
    ],
)
def test_what_a_template_must_not_do_is_a_400(source: str) -> None:
    with pytest.raises(RequestError, match="cannot render"):
        render(source)


def test_its_variables_are_those_that_it_reads_and_nobody_defines() -> None:
    source = (
        "{{ bos_token }}{{ messages }}{{ tools }}{{ enable_thinking }}{{ raise_exception }}{% set x = y %}{{ x }}"
        "{% for m in messages %}{{ m.z }}{{ loop.index }}{% endfor %}{{ namespace }}{{ add_generation_prompt }}"
    )
    assert ChatTemplate(source, {"bos_token": "<s>"}).variables == {"enable_thinking", "y"}


def test_a_template_that_does_not_compile_stops_the_start() -> None:
    with pytest.raises(StartupError, match="line 2"):
        ChatTemplate("ok\n{% for %}", {})


def test_the_template_s_own_file_goes_before_the_config(tmp_path: Path) -> None:
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "named"}]
    assert find_template(tmp_path, {}) is None
    assert find_template(tmp_path, {"chat_template": "text"}) == "text"
    assert find_template(tmp_path, {"chat_template": named}) == "named"
    assert find_template(tmp_path, {"chat_template": named[:1]}) is None
    (tmp_path / "chat_template.jinja").write_text("file é", encoding="utf-8")
    assert find_template(tmp_path, {"chat_template": "text"}) == "file é"
