#!/usr/bin/env python3
"""Makes tests/data/chat-templates.json: chat templates with what Hugging Face transformers renders from them.

The templates are written for this test in the ways in which published models write theirs: each uses constructs
(white space control, namespaces, loops with state, filters, methods, exceptions) on which engines disagree.

    pip install transformers==5.23.0
    tools/make-chat-goldens.py
"""
import datetime, json, os
import transformers.utils.chat_template_utils as utils

NOW = datetime.datetime(2026, 2, 3, 4, 5, 6)
class Frozen(datetime.datetime):
    @classmethod
    def now(cls, tz=None): return NOW
utils.datetime = Frozen

TOKENS = {'bos_token': '<s>', 'eos_token': '</s>'}
SHORT = [{'role': 'user', 'content': ' Hi & <bye> "x" \u00e9\n'}]
LONG = [{'role': 'system', 'content': 'Be brief.'}, {'role': 'user', 'content': 'One?'}, {'role': 'assistant', 'content': '  <think>\nhm\n</think>\n\nTwo. '}, {'role': 'user', 'content': 'Three?'}]
ODD = [{'role': 'assistant', 'content': 'I start.'}]
TEMPLATES = {
    'headers': """{{ bos_token }}{% for message in messages %}{% set content = '<|start|>' + message['role'] + '<|end|>\n\n' + message['content'] | trim + '<|eot|>' %}{{ content }}{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant<|end|>\n\n' }}{% endif %}""",
    'chatml': """{%- if messages[0]['role'] == 'system' -%}
    {{- '<|im_start|>system\n' + messages[0]['content'] + '<|im_end|>\n' }}
{%- else %}
    {{- '<|im_start|>system\nYou help.<|im_end|>\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
{%- endif %}""",
    'instructions': """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('roles must alternate') }}
    {%- endif %}
    {%- if message["role"] == "user" %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\n\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"]|trim + eos_token }}
    {%- endif %}
{%- endfor %}""",
    'white-space': """{% for m in messages %}
  {% if m.role == 'user' %}
    U: {{ m.content }}
  {% elif m.role == 'assistant' %}
    {%+ if true %}A: {% generation %}{{ m.content }}{% endgeneration %}{% endif %}
  {% endif %}
{% endfor %}
{# a comment #}
end
""",
    'state': """{%- set ns = namespace(last=-1, found=false) -%}
{%- for m in messages[::-1] -%}
  {%- set index = (messages|length - 1) - loop.index0 -%}
  {%- if not ns.found and m.role == 'user' and not(m.content.startswith('x') and m.content.endswith('y')) -%}
    {%- set ns.last = index -%}{%- set ns.found = true -%}
  {%- endif -%}
{%- endfor -%}
last {{ ns.last }};
{%- for m in messages if m.role != 'system' -%}
  {%- if loop.index0 > 5 %}{% break %}{% endif -%}
  {%- set content = m.content.split('</think>')[-1].lstrip('\n') if '</think>' in m.content else m.content -%}
  {{ loop.index }}/{{ loop.length }} {{ m.role | capitalize }} {{ m.role.title() }}: {{ content.strip().replace('T', 't').upper() }};
{%- endfor -%}
{{- messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | list | length }}""",
    'json': """{{ messages | tojson }}
{{ messages[0] | tojson(indent=2) }} {{ {'b': 1.5, 'a': [true, none, 'é<']} | tojson }} {{ 'None' if tools is none else tools }}{{ missing }} {{ strftime_now('%d %b %Y %H:%M') }}""",
    'macros': """{%- macro block(role, text='-') -%}
<{{ role }}>{{ text }}</{{ role }}>
{%- endmacro -%}
{%- for m in messages %}{{ block(m.role, m.content | trim) }}{{ ', ' if not loop.last }}{% endfor %} {{ block('x') }} {{ 7 // 2 }} {{ 7 % 4 }} {{ 'ab' * 2 }} {{ [1, 2, 3][1:] | join('-') }} {{ messages | length is even }} {{ 'a' ~ 1 }} {% for k, v in {'p': 1, 'q': 2}.items() %}{{ k }}={{ v }};{% endfor %}""",
}
cases = []
for name, template in TEMPLATES.items():
    for messages in (SHORT, LONG, ODD):
        for prompt, variables in ((True, {}), (False, {}), (True, {'enable_thinking': False})):
            try:
                rendered, _ = utils.render_jinja_template(conversations=[messages], chat_template=template, add_generation_prompt=prompt, **TOKENS, **variables)
                expected = rendered[0]
            except Exception as e:
                expected = None if 'roles must alternate' in str(e) else (_ for _ in ()).throw(e)
            cases.append(dict(name=name, template=template, messages=messages, add_generation_prompt=prompt, variables=variables, special_tokens=TOKENS, expected=expected))
out = os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', 'tests', 'data', 'chat-templates.json')
json.dump(cases, open(out, 'w'), indent=1, ensure_ascii=False)
print(len(cases), 'cases,', sum(c['expected'] is None for c in cases), 'refused by the template')
