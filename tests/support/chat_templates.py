"""Chat templates that behave as those of well-known families do, in words of our own."""

from __future__ import annotations

CHATML = (
    "{% if messages[0].role != 'system' %}<|turn|>system\nYou are a friendly helper.<|end|>\n"
    "{% endif %}{% for m in messages %}<|turn|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)
"""A default system message of its own, nothing stripped (SmolLM2, Qwen2.5)."""

STRIPPING = (
    "{{ bos_token }}{% for m in messages %}<|turn|>{{ m.role }}\n{{ m.content | trim }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)
"""BOS written by the template, messages stripped (Llama 3)."""

NO_SYSTEM = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}"
    "{{ raise_exception('A system role is not known here') }}{% endif %}{% for m in messages %}"
    "<|turn|>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<|end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|turn|>model\n{% endif %}"
)
"""Refuses a system message, names the assistant otherwise (Gemma)."""

FOLDING = (
    "{% if messages[0].role == 'system' %}{% set system = messages[0].content + '\n\n' %}"
    "{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}{{ bos_token }}"
    "{% for m in messages %}[INST] {{ (system if loop.first else '') + m.content | trim }} [/INST]"
    "{% endfor %}"
)
"""The system message folded into the user's turn; no generation prompt of its own (Mistral)."""

DROPPING = (
    "{% for m in messages if m.role != 'system' %}<|turn|>{{ m.role }}\n{{ m.content }}<|end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)
"""Leaves a system message out without a word."""

PLAIN = (
    "{% for m in messages %}{{ m.role[0] }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}a: {% endif %}"
)
"""Short, without marks of its own: for models of few positions."""

SWITCHED_THINKING = CHATML + (
    "{% if add_generation_prompt and enable_thinking is defined and enable_thinking is false %}"
    "<think>\n\n</think>\n\n{% endif %}"
)
"""Thinks unless told otherwise, then with an empty block (Qwen3)."""

ALWAYS_THINKING = CHATML + "{% if add_generation_prompt %}<think>\n{% endif %}"
"""Opens a block of thoughts whatever it is told (distilled R1)."""

SHOUTING = "{% for m in messages %}<|turn|>{{ m.content | upper }}<|end|>{% endfor %}"
"""Changes what the user said."""
