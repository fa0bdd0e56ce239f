"""Chat templates in the manners of well-known families, written for these tests."""

from __future__ import annotations

LLAMA3 = """{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] | trim %}
    {%- set turns = messages[1:] %}
{%- else %}
    {%- set system = '' %}
    {%- set turns = messages %}
{%- endif %}
{%- if system or tools is not none %}
    {{- '<|start_header_id|>system<|end_header_id|>\\n\\n' + system + '<|eot_id|>' }}
{%- endif %}
{%- for turn in turns %}
    {{- '<|start_header_id|>' + turn['role'] + '<|end_header_id|>\\n\\n' + turn.content | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

CHATML = """{% for message in messages %}
{% if loop.first and message.role != 'system' %}
<|im_start|>system
Be brief.<|im_end|>
{% endif %}
<|im_start|>{{ message.role }}
{% generation %}{{ message.content }}{% endgeneration %}<|im_end|>
{% endfor %}
{% if add_generation_prompt %}
<|im_start|>assistant
{% endif %}
"""

GEMMA = """{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('no system role here') }}{% endif %}
{%- for message in messages %}
    {%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('roles must take turns: ' ~ message.role) }}
    {%- endif %}
    {%- set role = 'model' if message.role == 'assistant' else message.role %}
<start_of_turn>{{ role }}
{{ message.content | trim }}<end_of_turn>
{% endfor %}
{% if add_generation_prompt %}<start_of_turn>model
{% endif %}"""

MISTRAL = """{%- set state = namespace(system='', count=0) %}
{%- macro ask(text) %}[INST] {% if state.system %}{{ state.system }}\n\n{% endif %}{{ text }} [/INST]{% endmacro %}
{{- bos_token }}
{%- for message in messages %}
    {%- if message['role'] == 'system' %}
        {%- set state.system = message['content'] %}
        {%- continue %}
    {%- elif message['role'] == 'user' %}
        {{- ask(message['content']) }}
    {%- elif message['role'] == 'assistant' %}
        {{- ' ' + message['content'].strip() + eos_token }}
    {%- else %}
        {%- break %}
    {%- endif %}
    {%- set state.count = state.count + 1 %}
{%- endfor %}
{%- if state.count > 99 %}{{ 'long' }}{% endif %}"""

JSON = """{{ strftime_now('%Y').isdigit() }} {{ messages | tojson }} {{ messages | tojson(indent=2) }}
{{ dict(a=1, **{'b': 2}) | items | list }} {{ missing }} {{ unk_token is defined }} {{ pad_token }}
{% for message in messages | selectattr('role', 'equalto', 'user') %}{{ '%-6s|' | format(message.role) }}{{ message.get('x', '-') }}{% endfor %}"""

TEMPLATES = {"llama3": LLAMA3, "chatml": CHATML, "gemma": GEMMA, "mistral": MISTRAL, "json": JSON}

CONVERSATIONS = (
    [("user", "Hi")],
    [("user", "  Wie heißt <du> & 'ich'?\n"), ("assistant", " 🙂 \n"), ("user", '{{ no }} {% if %} "quoted"')],
    [("system", "Sing."), ("user", "La")],
    [("system", ""), ("user", ""), ("assistant", "a"), ("user", "b"), ("tool", "c")],
)
"""Roles and contents."""
