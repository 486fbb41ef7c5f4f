#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Texts of make_tokenizer_golden.py: what it trains on, what goes wrong easily, conversations."""

CORPUS = """
The quick brown fox jumps over the lazy dog. The cache holds keys and values of every token.
When a token leaves the window, its key is encoded; what was read is written back in the same order.
She said: "I don't think they've seen what we'll do." He'd answered that it's fine, they're ready.
In 2024 the sum was 1,234,567.89, in 1999 it was 42; 100 per cent of 365 days and 3.14159 of pi.
for (int i = 0; i < n; ++i) { total += values[i]; }    return total / static_cast<double>(n);
def encode(text):\n    tokens = []\n    for word in text.split():\n        tokens.append(word)\n
https://example.com/path?query=one&other=two#part  someone@example.org  C++20 snake_case camelCase
Die Straße führt über die Brücke; größere Häuser stehen in der Nähe. Où est la bibliothèque, s'il
vous plaît? El niño pequeño comió una manzana. Русский текст читается слева направо. 日本語のテキスト
中文字符测试文本 한국어 텍스트 मानक हिन्दी العربية Ελληνικά γράμματα café naïve résumé coöperate
the the the and and of of to to in in that that is is was was for for with with on on as as at at
    indented line\n\tTab and tab\n\n\nthree lines further   three spaces    four spaces
"""
TEXTS = [
    "",
    " ",
    "  ",
    "   ",
    "\n",
    "\n\n\n",
    "\t",
    " \n ",
    "a",
    " a",
    "  a",
    "   a  ",
    "Hello world",
    " Hello  world ",
    "The quick brown fox jumps over the lazy dog.",
    "the the the",
    "trailing   ",
    "line1\r\nline2\r\n",
    "mixed \t \n whitespace \n\n\n end",
    "    four spaces\n\tTab\tTab",
    "don't can't we'll I'LL DON'T they'Ve 'S 's",
    "1",
    "12",
    "123",
    "1234 1234567890 007 3.14",
    "x=1;y=2;z=x+y",
    "for (int i = 0; i < n; ++i) { sum += a[i]; }",
    "!?!?...---___ ((()))",
    "Straße größere über Où bibliothèque",
    "Русский текст",
    "中文字符测试 日本語のテキスト",
    "한국어 텍스트",
    "हिन्दी العربية עברית ไทย",
    "🙂",
    "👩‍👩‍👧‍👦 family 🇩🇪🇫🇷 👍🏽",
    "é e\u0301 n\u0303o\u0308 q\u0307\u0323 " "A\u030a \u212b \u1e9b\u0323",
    "한국 \u1112\u1161\u11ab\u1100\u116e\u11a8",
    "\u00a0nbsp\u2003em\u3000ideographic\u2028line",
    "\u180e\u0085\u200b\ufeffx",
    "½ ⅓ ² Ⅷ ① ٣٤ १२",
    "ﬁ ligature 𝔘𝔫𝔦 ſ 'ſ K",
    "<s>a</s>",
    "<s> a </s> b",
    "<unk>",
    "<|begin_of_text|>hi<|eot_id|>",
    "a <|eot_id|> b",
    "<|im_start|>user\nhi<|im_end|>\n",
    "pre<extra>post",
    " <extra> <extra>x",
    "pre  <extra> \n post",
    "<ex",
    "<|eot",
    "<0x0A>",
    "▁",
    "a▁b ▁ ▁▁c",
    "word" * 20,
    "a" * 70,
    " " * 40 + "x",
    "\n" * 20,
    "ab" * 33,
    "0" * 17,
    "nul\x00ctl\x01\x7f",
    "t\x01h\x7fe t\x01\x01o",
    "q_z_j Q_Z",
    "zj qz Français",
    "\\n `x` **b**",
]

TALKS = [
    [("user", "Hello, who are you?")],
    [("user", "  What is 1+1?\n"), ("assistant", "It is 2."), ("user", "And the fox?")],
    [("system", "Be brief."), ("user", " The dog?"), ("assistant", " lazy "), ("user", "Why\nso?")],
]
