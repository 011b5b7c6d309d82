"""Chat templates are programs: what they may not do to a prompt, and the date that they get."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from ifedicl.backbone.encoding import Encoder
from ifedicl.backbone.load import Backbone
from ifedicl.backbone.turn import DATE, fixed_time
from ifedicl.errors import TaskError
from tests.support import tiny

TASK = tiny.TASK.model_copy(update={"turn": "chat", "separator": ""})
LOOP = "{{% for m in messages %}}[{{{{ m['role'] }}}}]{{{{ {} }}}}{{% endfor %}}[model]"
DATED = LOOP.format("strftime_now('%A %d %B %Y, %-d.%-m. %H:%M %Z %s') ~ m['content']")


def _encoder(backbone: Backbone, template: Any, *, source: str = "the-model") -> Encoder:
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = template
    return Encoder(replace(backbone, tokenizer=tokenizer, source=source), TASK)


@pytest.fixture
def _elsewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine half a day ahead."""
    monkeypatch.setenv("TZ", "Pacific/Kiritimati")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def test_a_template_that_reads_the_clock_gets_one_day_everywhere(
    backbone: Backbone, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = _encoder(backbone, DATED).prompts(["home"]).tokens
    request.getfixturevalue("_elsewhere")
    assert _encoder(backbone, DATED).prompts(["home"]).tokens == here
    text = backbone.tokenizer.decode(here[0])  # no matter when
    assert text == "[user]Friday 26 July 2024, 26.7. 00:00 UTC 1721952000Text: home\nMood:[model]"


def test_the_date_is_written_as_python_writes_it() -> None:
    at = datetime(2024, 7, 26, tzinfo=UTC)
    assert fixed_time("%d %b %Y") == DATE
    for directive in "YyCGmdejbhBaAuwUWVFDxcTXRHIMSfpZz%":
        assert fixed_time(f"<%{directive}>") == at.strftime(f"<%{directive}>"), directive
    assert fixed_time("%s") == str(int(at.timestamp()))
    assert fixed_time("%-d/%-m, %-H") == "26/7, 0"
    assert fixed_time("no directive") == "no directive"


def test_llamas_own_way_to_a_date_gives_the_day_that_it_falls_back_to(backbone: Backbone) -> None:
    template = (
        "{#- strftime_now may be missing -#}{%- if not date_string is defined %}\n    {%- if strftime_now is defined %}\n"
        '        {%- set date_string = strftime_now("%d %b %Y") %}\n    {%- else %}\n        {%- set date_string = "none" %}\n'
        "    {%- endif %}\n{%- endif %}\n{{- date_string }}: {{ messages[0]['content'] }}"
    )
    (tokens,) = _encoder(backbone, template).prompts(["home"]).tokens
    assert backbone.tokenizer.decode(tokens) == f"{DATE}: Text: home\nMood:"


def test_a_directive_that_nobody_knows_is_an_error_that_names_the_template(backbone: Backbone) -> None:
    with pytest.raises(TaskError, match="the chat template of the-model cannot be used: strftime_now does not know %Q"):
        _encoder(backbone, LOOP.format("strftime_now('%Q') ~ m['content']"))


BROKEN = {
    "a block that does not end": ("{% for m in messages %}{{ m['content'] }}", "it raises TemplateSyntaxError"),
    "a refusal of its own": ("{{ raise_exception('a system turn comes first') }}", "TemplateError: a system turn comes first"),
    "a name that is not there": (
        "{{ now().year }}{{ messages[0]['content'] }}",
        "it raises UndefinedError: 'now' is undefined",
    ),
    "an error of Python": ("{{ messages[0]['content'] + 1 }}", "it raises TypeError"),
    "a date of its own making": (LOOP.format("strftime_now('%d' ~ ' %Y') ~ m['content']"), "it reads the clock in another way"),
    "a clock under another name": (
        "{% set now = strftime_now %}{{ messages[0]['content'] ~ now('%H') }}",
        "it reads the clock in",
    ),
    "templates without a default": ({"rag": "{{ messages }}", "tool_use": "{{ messages }}"}, "no default specified"),
    "no text": ("[user] hello [model]", "it drops or changes the user's message"),
    "parts of a message": ("{% for p in messages[0]['content'] %}{{ p.text }}{% endfor %}[model]", "it drops or changes"),
    "the beginning of the text": (LOOP.format("m['content'][:80]"), "it drops or changes"),
    "capitals": (LOOP.format("m['content'] | upper"), "it drops or changes"),
    "chance": (LOOP.format("['a', 'b'] | random ~ m['content']"), "it draws at random"),
    "filler": (LOOP.format("lipsum(n=1) ~ m['content']"), "it draws at random"),
    "chance in the default of several": ({"default": "{{ [1, 2]|random }}{{ messages[0]['content'] }}"}, "it draws at random"),
}


@pytest.mark.parametrize(("template", "reason"), BROKEN.values(), ids=BROKEN)
def test_a_template_that_cannot_be_used_is_named_with_what_is_wrong(backbone: Backbone, template: Any, reason: str) -> None:
    with pytest.raises(
        TaskError, match=r"^task\.turn is 'chat', but the chat template of the-model cannot be used: "
    ) as caught:
        _encoder(backbone, template)
    assert reason in str(caught.value)
    assert "Use turn = 'raw'" in str(caught.value)


def test_the_default_of_several_templates_is_used(backbone: Backbone) -> None:
    one, several = LOOP.format("m['content']"), {"default": LOOP.format("m['content']"), "tool_use": "{{ broken"}
    assert _encoder(backbone, several).prompts(["home"]) == _encoder(backbone, one).prompts(["home"])


@pytest.mark.parametrize(
    ("condition", "reason"),
    [("{{ raise_exception(m['content']) }}", "it raises TemplateError"), ("", "it drops a text of the data")],
    ids=["raises", "drops"],
)
def test_a_template_that_fails_for_some_texts_is_blamed_and_the_text_is_not_shown(
    backbone: Backbone, condition: str, reason: str
) -> None:
    template = (
        "{% for m in messages %}{% if 'secret' in m['content'] %}" + condition + "{% else %}{{ m['content'] }}{% endif %}"
    )
    nothing = "{% if 'secret' in messages[0]['content'] %}Text: \nMood:{% endif %}"
    encoder = _encoder(backbone, template + "{% endfor %}" + nothing)
    assert encoder.prompts(["home"]).tokens
    with pytest.raises(TaskError, match=f"the chat template of the-model cannot be used: {reason}") as caught:
        encoder.prompts(["home", "my secret"])
    assert "my" not in str(caught.value).split()
