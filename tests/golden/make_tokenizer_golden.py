#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes tokenizers.json: small tokenizers of every kind we read, and the ids that the reference
libraries give for texts that go wrong easily.

Oracles: `tokenizers` for the tokenizer.json forms, `sentencepiece` for GGUF "llama" vocabularies,
whose file is written by `gguf`, `jinja2` for chats, `unicodedata` for composition.
The vocabularies are trained here on the sentences of tokenizer_texts.py; a variant shares the
vocabulary of its base and changes some keys.
  ids      special tokens in the text are tokens      plain   special tokens are text, if different
  with_bos what add_special_tokens puts around        decoded the text of ids, if different
Run: python3 -m venv V
     V/bin/pip install tokenizers==0.23.3 sentencepiece==0.2.3 gguf==0.19.0 jinja2
     V/bin/python tests/golden/make_tokenizer_golden.py     (same output on every run)
"""

import base64
import io
import json
import pathlib
import random
import tempfile
import unicodedata

import gguf
import jinja2
import sentencepiece
import tokenizers
from tokenizer_chats import TEMPLATES
from tokenizer_texts import CORPUS, TALKS, TEXTS
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace("{1,3}", "")
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
HEAD, CONTRACTION = r"[^\r\n\p{L}\p{N}]?", r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
GPT4O = (
    HEAD
    + UPPER
    + "*"
    + LOWER
    + "+"
    + CONTRACTION
    + "|"
    + HEAD
    + UPPER
    + "+"
    + LOWER
    + "*"
    + CONTRACTION
    + r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Escapes that mean other things in PCRE2, and forms that no known family uses.
FOREIGN = r"\w+?_|[\w\-]+|\u0031|\v|[^\S\n]{,3}|\d{2,}|\D"
MARK = "\u2581"
BYTES = [f"<0x{b:02X}>" for b in range(256)]
SPECIAL = {
    "id": 0,
    "content": "",
    "single_word": False,
    "lstrip": False,
    "rstrip": False,
    "normalized": False,
    "special": True,
}


def lines():
    return [line for line in CORPUS.split("\n") if line] + [CORPUS]


def added(first, *contents, special=True, **flags):
    return [
        SPECIAL | {"id": first + i, "content": c, "special": special} | flags
        for i, c in enumerate(contents)
    ]


def split(pattern, behavior="Isolated", invert=False, kind="Regex"):
    return {"type": "Split", "pattern": {kind: pattern}, "behavior": behavior, "invert": invert}


def byte_level(use_regex, prefix=False):
    return {
        "type": "ByteLevel",
        "add_prefix_space": prefix,
        "trim_offsets": True,
        "use_regex": use_regex,
    }


def sequence(*steps):
    return {"type": "Sequence", "pretokenizers": list(steps)}


def template(name, number):
    return {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": name, "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {name: {"id": name, "ids": [number], "tokens": [name]}},
    }


def train_bytes(pre_tokenizer, n_merges):
    """Vocabulary and merges of a byte-level tokenizer."""
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizer
    t.train_from_iterator(
        lines(),
        trainers.BpeTrainer(
            vocab_size=256 + n_merges,
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    return json.loads(t.to_str())


def byte_files():
    gpt2 = train_bytes(pre_tokenizers.ByteLevel(add_prefix_space=False), 150)
    n = len(gpt2["model"]["vocab"])
    vocab = gpt2["model"]["vocab"]
    for character in "\u0101\u0121":  # 0x01 and 0x7F, as in vocabularies trained on clean text
        vocab["<none_%x>" % ord(character)] = vocab.pop(character)
    gpt2["pre_tokenizer"] = byte_level(True)
    gpt2["decoder"] = byte_level(True)
    gpt2["post_processor"] = byte_level(True)
    gpt2["added_tokens"] = added(n, "<|endoftext|>") + added(n + 1, "<extra>", special=False)

    llama3 = train_bytes(
        pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(LLAMA3), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        ),
        150,
    )
    vocab = llama3["model"]["vocab"]
    for word in ["zj", "\u0120qz", "Fran\u00c3\u00a7ais"]:  # no merge gives them
        vocab[word] = len(vocab)
    llama3["model"]["ignore_merges"] = True
    llama3["pre_tokenizer"] = sequence(split(LLAMA3), byte_level(False))
    llama3["decoder"] = byte_level(True)
    names = [
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eot_id|>",
    ]
    n = len(vocab)
    llama3["added_tokens"] = added(n, *names) + added(n + 5, "<extra>", special=False)
    llama3["post_processor"] = {
        "type": "Sequence",
        "processors": [byte_level(True), template(names[0], n)],
    }

    chat = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    n = len(gpt2["model"]["vocab"])
    tokens = {"added_tokens": added(n, *chat) + added(n + 3, "<extra>", special=False)}
    return {
        "gpt2": gpt2,
        "llama3": llama3,
        "qwen2": {"base": "gpt2"}
        | tokens
        | {
            "normalizer": {"type": "NFC"},
            "pre_tokenizer": sequence(split(QWEN2), byte_level(False)),
        },
        "smollm": {"base": "gpt2"}
        | tokens
        | {
            "pre_tokenizer": sequence(
                {"type": "Digits", "individual_digits": True}, byte_level(True)
            )
        },
        "digits": {"base": "gpt2"}
        | tokens
        | {
            "pre_tokenizer": sequence(
                {"type": "Digits", "individual_digits": False},
                {"type": "Punctuation", "behavior": "Contiguous"},
                split(" ", kind="String"),
                byte_level(False),
            )
        },
        "punctuation": {"base": "gpt2"}
        | {
            "pre_tokenizer": sequence(
                {"type": "Punctuation", "behavior": "Isolated"},
                split(r"\w+|^ |\W$|\p{Sc}|.", "Removed", True),
                byte_level(False),
            )
        },
        "foreign": {"base": "gpt2"}
        | {"pre_tokenizer": sequence(split(FOREIGN), byte_level(False))},
        "gpt4o": {"base": "gpt2"} | {"pre_tokenizer": sequence(split(GPT4O), byte_level(False))},
        "prefixed": {"base": "gpt2"} | {"pre_tokenizer": byte_level(True, True)},
        "trimmed": {
            "base": "gpt2",
            "added_tokens": added(n, "<|endoftext|>", "<|eot_id|>", lstrip=True)
            + added(n + 2, "<extra>", special=False, lstrip=True, rstrip=True),
        },
    }


def mark_files():
    """The SentencePiece form of Llama 2, trained as words, used on whole texts."""
    t = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    t.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    names = ["<unk>", "<s>", "</s>"]
    t.train_from_iterator(
        lines()[:10],
        trainers.BpeTrainer(
            vocab_size=3 + 256 + 230,
            limit_alphabet=75,
            show_progress=False,
            special_tokens=names + BYTES,
        ),
    )
    llama2 = json.loads(t.to_str())
    llama2["added_tokens"] = added(0, *names) + added(
        len(llama2["model"]["vocab"]), "<extra>", special=False
    )
    last = llama2["added_tokens"][-1]["id"] - 1
    mark, replace = {"type": "Prepend", "prepend": MARK}, {
        "type": "Replace",
        "pattern": {"String": " "},
        "content": MARK,
    }
    llama2["normalizer"] = {"type": "Sequence", "normalizers": [mark, replace]}
    llama2["pre_tokenizer"] = None
    llama2["post_processor"] = template("<s>", 1)
    back = [
        {"type": "Replace", "pattern": {"String": MARK}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}]
    llama2["decoder"] = {"type": "Sequence", "decoders": back + strip}

    def metaspace(scheme):
        return {
            "normalizer": None,
            "pre_tokenizer": {
                "type": "Metaspace",
                "replacement": MARK,
                "prepend_scheme": scheme,
                "split": False,
            },
        }

    def model(**changes):
        return {"model": changes}

    return {
        "llama2": llama2,
        "first": {"base": "llama2"} | metaspace("first"),
        "always": {"base": "llama2"} | metaspace("always"),
        "never": {"base": "llama2"}
        | metaspace("never")
        | {"post_processor": None, "decoder": {"type": "Sequence", "decoders": back}},
        "gemma": {
            "base": "llama2",
            "normalizer": replace,
            "pre_tokenizer": split(" ", "MergedWithPrevious", kind="String"),
            "decoder": {"type": "Sequence", "decoders": back},
        },
        "unknown_fused": {"base": "llama2"} | model(byte_fallback=False),
        "unknown_each": {"base": "llama2"} | model(byte_fallback=False, fuse_unk=False),
        "unknown_lost": {"base": "llama2"} | model(byte_fallback=False, unk_token=None),
        "mistral3": {"base": "llama2"}
        | metaspace("first")
        | {"added_tokens": llama2["added_tokens"][:3] + added(last + 1, "[INST]", "[/INST]")},
        "whole": {"base": "llama2"} | model(ignore_merges=True),
    }


def resolved(files, name):
    """A variant's whole tokenizer.json."""
    changes = dict(files[name])
    if "base" not in changes:
        return changes
    whole = dict(files[changes.pop("base")])
    whole["model"] = whole["model"] | changes.pop("model", {})
    return whole | changes


def hf_cases(file):
    t = Tokenizer.from_str(json.dumps(file))
    cases = []
    for text in TEXTS:
        t.encode_special_tokens = False
        case = {"ids": t.encode(text, add_special_tokens=False).ids}
        decoded = t.decode(case["ids"], skip_special_tokens=False)
        if t.encode(text).ids != case["ids"]:
            case["with_bos"] = t.encode(text).ids
        t.encode_special_tokens = True
        plain = t.encode(text, add_special_tokens=False).ids
        if plain != case["ids"]:
            case["plain"] = plain
        if decoded != text:
            case["decoded"] = decoded
        cases.append(case)
    return cases


def train_pieces(folder, **options):
    text = pathlib.Path(folder, "corpus.txt")
    text.write_text("\n".join(lines()))
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        input=str(text),
        model_writer=model,
        model_type="bpe",
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=True,
        minloglevel=2,
        num_threads=1,
        character_coverage=0.995,
        allow_whitespace_only_pieces=True,
        split_digits=True,
        **options,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def piece_type(sp, i):
    for test, number in (
        (sp.is_unknown, 2),
        (sp.is_control, 3),
        (sp.is_unused, 5),
        (sp.is_byte, 6),
    ):
        if test(i):
            return number
    return 1


def gguf_vocabulary(folder, sp):
    """A GGUF file with this vocabulary and nothing else, written by the reference writer."""
    n = range(sp.get_piece_size())
    path = pathlib.Path(folder, "vocabulary.gguf")
    out = gguf.GGUFWriter(path, "llama")
    out.add_tokenizer_model("llama")
    out.add_tokenizer_pre("default")
    out.add_token_list([sp.id_to_piece(i).encode() for i in n])
    out.add_token_scores([sp.get_score(i) for i in n])
    out.add_token_types([piece_type(sp, i) for i in n])
    out.add_bos_token_id(sp.bos_id())
    out.add_eos_token_id(sp.eos_id())
    out.add_unk_token_id(sp.unk_id())
    out.add_add_bos_token(True)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.close()
    return base64.b64encode(path.read_bytes()).decode()


def piece_files():
    files = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, options in {
            "bytes": {"vocab_size": 256 + 400, "byte_fallback": True},
            "unknown": {"vocab_size": 350},
        }.items():
            sp = train_pieces(folder, **options)
            cases = []
            for text in TEXTS:
                case = {"ids": sp.encode(text)}
                if sp.decode(case["ids"]) != text:
                    case["decoded"] = sp.decode(case["ids"])
                cases.append(case)
            files[name] = {"gguf": gguf_vocabulary(folder, sp), "cases": cases}
    return files


def composed_texts():
    """Random strings over characters that compose, decompose or reorder, and their NFC form."""
    rng = random.Random(7)
    pool = (
        "aeoAKc\u0300\u0301\u0308\u030a\u0323\u0327\u0345\u05b0\u0653\u064b"
        "\u0f71\u0f72\u1100\u1161\u1175\u11a8\uac00\uac01"
        "\u212b\u2126\u0958\u0344\u1ea5\u1e9b\ufb1f"
        "\uf900\U0002f800\u0930\u093c\u3099\u304b\U0001d15e\U0001109a\U000110ba"
    )
    texts = ["".join(rng.choice(pool) for _ in range(rng.randint(1, 12))) for _ in range(150)]
    return [[t, unicodedata.normalize("NFC", t)] for t in texts]


def chat_cases(whole):
    """Each template rendered by Jinja as transformers does it, and the ids of that text."""
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    cases = []
    for name, source in TEMPLATES.items():
        shared = {"mistral1": "first", "mistral2": "first", "zephyr": "llama2"}
        file = (shared | {"llama3.1": "llama3"}).get(name, name)
        t = Tokenizer.from_str(json.dumps(whole[file]))
        bos = {"llama3": "<|begin_of_text|>"}.get(file, "<s>")
        for talk in TALKS:
            messages = [{"role": role, "content": content} for role, content in talk]
            text = environment.from_string(source).render(
                messages=messages, bos_token=bos, eos_token="</s>", add_generation_prompt=True
            )
            cases.append(
                {
                    "template": source,
                    "file": file,
                    "messages": messages,
                    "text": text,
                    "ids": t.encode(text, add_special_tokens=False).ids,
                }
            )
    return cases


# Each kind of expression that is rewritten for PCRE2, and those in use.
PATTERNS = [LLAMA3, GPT4O, FOREIGN, r"\w+", r"\W", r"[^\w ]+", r"\s+", r"\S+", r"[^\s]", r"[\s,]+"]
PATTERNS += [r"[^\S\n]+", r"[\S]+", r"\d+", r"\D+", r"[\d.]+", r"\v", r"[\va]", r"^.", r".$", r".+"]
PATTERNS += [
    r"\p{Han}+",
    r"\P{L}+",
    r"\p{^L}",
    r"(?i:THE|\u017f)",
    r"a{,2}b",
    r"x{1,2}|{",
    r"[\]\-a-c]+",
]
PATTERNS += [r"(?<=a)b+", r"(?<!\s)\w", r"a++|o*+", r"(\()+", r"\x41|\x{e9}|\t"]


def split_cases():
    """A text of all sorts and the UTF-8 lengths of the parts that each expression cuts it into."""
    text = (
        "".join(TEXTS[:60:3])
        + " \u180e\u0085\v\f_\u203f\u0301\u00b2\u2167\u0663\u2028 a\u180eb ſK THE {xx} ab]-c((aab"
    )
    cuts = []
    for pattern in PATTERNS:
        parts = pre_tokenizers.Split(Regex(pattern), "isolated").pre_tokenize_str(text)
        cuts.append([pattern, [len(part.encode()) for part, _ in parts]])
    return {"text": text, "cuts": cuts}


def main():
    files = byte_files() | mark_files()
    whole = {name: resolved(files, name) for name in files}
    out = {
        "tokenizers": tokenizers.__version__,
        "sentencepiece": sentencepiece.__version__,
        "texts": TEXTS,
        "nfc": composed_texts(),
        "files": {n: {"file": f, "cases": hf_cases(whole[n])} for n, f in files.items()},
        "pieces": piece_files(),
        "chats": chat_cases(whole),
        "splits": split_cases(),
    }
    path = pathlib.Path(__file__).with_name("tokenizers.json")
    path.write_text(json.dumps(out, ensure_ascii=True, separators=(",", ":")) + "\n")
    print(path, path.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
