#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Chat templates of make_tokenizer_golden.py, in the forms of the published ones."""


def inst_template(user, answer, first, system):
    """A template in the form of the published ones for [INST] turns."""
    return (
        "{% if messages[0]['role'] == 'system' %}{% set system_message = messages[0]['content'] %}"
        "{% set turns = messages[1:] %}{% else %}{% set turns = messages %}{% endif %}"
        + first
        + "{% for message in turns %}{% if "
        + system
        + " and system_message is defined %}"
        "{% set content = WITH %}{% else %}{% set content = message['content'] %}{% endif %}"
        "{% if message['role'] == 'user' %}{{ " + user + " }}{% else %}{{ " + answer + " }}"
        "{% endif %}{% endfor %}"
    )


PLAIN_SYSTEM = "system_message + '\\n\\n' + message['content']"
TEMPLATES = {
    "llama2": inst_template(
        "bos_token + '[INST] ' + content.strip() + ' [/INST]'",
        "' '  + content.strip() + ' ' + eos_token",
        "",
        "loop.first",
    ).replace("WITH", r"'<<SYS>>\n' + system_message + '\n<</SYS>>\n\n' + message['content']"),
    "mistral1": inst_template(
        "'[INST] ' + content + ' [/INST]'",
        "message['content'] + eos_token + ' '",
        "{{ bos_token }}",
        "loop.first",
    ).replace("WITH", PLAIN_SYSTEM),
    "mistral2": inst_template(
        '" [INST] " + content + " [/INST]"',
        '" " + content + eos_token',
        "{{ bos_token }}",
        "loop.first",
    ).replace("WITH", PLAIN_SYSTEM),
    "mistral3": inst_template(
        "'[INST] ' + content + '[/INST]'",
        "' ' + message['content']|trim + eos_token",
        "{{ bos_token }}",
        "loop.last and system_message is defined",
    ).replace("WITH", PLAIN_SYSTEM),
    "zephyr": "{% for message in messages %}\n{% if message['role'] == 'user' %}\n"
    r"{{ '<|user|>\n' + message['content'] + eos_token }}"
    "\n{% elif message['role'] == 'system' %}\n"
    r"{{ '<|system|>\n' + message['content'] + eos_token }}"
    "\n{% else %}\n"
    r"{{ '<|assistant|>\n'  + message['content'] + eos_token }}"
    "\n{% endif %}\n"
    "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n"
    "{% endfor %}",
    "qwen2": "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    r"{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    r"{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}"
    r"{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "llama3": "{% for message in messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + "
    r"'<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}"
    r"{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
    "llama3.1": "{{- bos_token }}\n{%- if not date_string is defined %}\n"
    '    {%- set date_string = "26 Jul 2024" %}\n{%- endif %}\n'
    "{%- if messages[0]['role'] == 'system' %}\n"
    "    {%- set system_message = messages[0]['content']|trim %}\n"
    "    {%- set messages = messages[1:] %}\n"
    '{%- else %}\n    {%- set system_message = "" %}\n{%- endif %}\n'
    r'{{- "<|start_header_id|>system<|end_header_id|>\n\n" }}'
    "\n"
    r'{{- "Cutting Knowledge Date: December 2023\n" }}'
    "\n"
    r'{{- "Today Date: " + date_string + "\n\n" }}'
    '\n{{- system_message }}\n{{- "<|eot_id|>" }}\n'
    "{%- for message in messages %}\n"
    "    {{- '<|start_header_id|>' + message['role'] + "
    r"'<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' }}"
    "\n{%- endfor %}\n{%- if add_generation_prompt %}\n"
    r"    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
    "\n{%- endif %}\n",
}
