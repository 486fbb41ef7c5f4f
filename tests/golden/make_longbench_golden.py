#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes tests/golden/longbench.json: scores of LongBench's metrics, by the programs it calls.

The formulas are those of THUDM/LongBench (LongBench/metrics.py, eval.py), written down again here
on top of the packages that it uses; Python itself gives character classes and case.

    python3.11 -m venv /tmp/v
    /tmp/v/bin/pip install rouge==1.0.1 fuzzywuzzy==0.18.0 python-Levenshtein==0.27.5
    /tmp/v/bin/pip download --no-deps --no-binary :all: lm_eval==0.4.9 -d /tmp/v/lm_eval
    tar xf /tmp/v/lm_eval/lm_eval-0.4.9.tar.gz -C /tmp/v/lm_eval
    /tmp/v/bin/python tests/golden/make_longbench_golden.py --published \\
        /tmp/v/lm_eval/lm_eval-0.4.9/lm_eval/tasks/longbench/_generate_config.py

The last file is a copy of LongBench's prompts and answer lengths in another project; only the
prompts' SHA-256 are kept. (lm_eval 0.4.13 has changed its prompts: not the benchmark's any more.)
"""
import argparse
import ast
import difflib
import hashlib
import json
import pathlib
import random
import re
import string
from collections import Counter

from fuzzywuzzy import fuzz
from rouge import Rouge

LEVENSHTEIN_MATCHER = fuzz.SequenceMatcher
assert LEVENSHTEIN_MATCHER is not difflib.SequenceMatcher, "install python-Levenshtein"


def words(text):
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def token_f1(prediction, reference):
    p, r = words(prediction), words(reference)
    common = sum((Counter(p) & Counter(r)).values())
    if common == 0:
        return 0.0
    precision, recall = common / len(p), common / len(r)
    return (2 * precision * recall) / (precision + recall)


def rouge_l(prediction, reference):
    try:
        return Rouge().get_scores([prediction], [reference], avg=True)["rouge-l"]["f"]
    except ValueError:  # one of them has no sentence
        return 0.0


def classification(prediction, reference, classes):
    found = [label for label in classes if label in prediction]
    for label in found:  # erases from the list it walks over, as the original does
        if label in reference and label != reference:
            found.remove(label)
    return 1.0 / len(found) if reference in found else 0.0


def numbers(prediction, number):
    found = re.findall(r"\d+", prediction)
    return sum(n == number for n in found) / len(found) if found else 0.0


def retrieval(prediction, reference):
    return numbers(prediction, re.findall(r"Paragraph (\d+)", reference)[0])


def retrieval_zh(prediction, reference):
    return numbers(prediction, re.findall(r"段落(\d+)", reference)[0])


def code(prediction, reference, matcher):
    line = next((row for row in prediction.lstrip("\n").split("\n")
                 if not any(mark in row for mark in ("`", "#", "//"))), "")
    fuzz.SequenceMatcher = matcher
    return fuzz.ratio(line, reference) / 100


def first_line(prediction):
    return prediction.lstrip("\n").split("\n")[0]


F1 = [
    ("Paris", "Paris"), ("the city of Paris", "Paris"), ("Paris, France.", "paris france"),
    ("London", "Paris"), ("", "Paris"), ("the", "a"), ("An apple a day", "apple day"),
    ("to be or not to be", "to be"), ("to be", "to be or not to be"),
    ("it's a well-known fact", "its wellknown fact"), ("$3,000.50", "300050"),
    ("the theatre and an anthem", "theatre anthem"), ("É — the café", "é café"),
    ("ÀÉÎ ŒUVRE", "àéî œuvre"), ("İstanbul", "i̇stanbul"), ("a\u0301 b", "b"),
    ("tab\tand\u00a0nbsp\u2003em", "em nbsp and tab"), ("«the»", "« »"), ("K", "k"),
    ("yes yes yes no", "yes no no"), ("Straße", "strasse"), ("snake_case_a", "snakecasea"),
    ("the-a-an", "thea an"), ("x\u200ba\u200by", "x\u200b \u200by"), ("１２ ３", "12 3"),
    ("The U.S. and the U.K.", "us and uk"),
]
ROUGE = [
    ("the cat sat", "the cat sat"), ("the cat sat.", "the cat sat"),
    ("the cat sat on the mat", "the dog sat on the log"), ("", "a"), ("...", "a b"),
    ("a b c d", "d c b a"), ("a b. c d", "a b c d"), ("a b c. d e f", "d e. a b c"),
    ("a a a b", "a b b b"), (" . a . ", "a. . b"), ("x y z", "p q r"),
    ("One. Two. Three.", "One two three."), ("a  b\tc\n d", "a b c d"),
    ("Mr. Smith paid 3.50 dollars", "Smith paid 3.5 dollars to Mr. Jones"),
    ("a x b y c", "a y b x c"), ("a b", "b a b a"), ("c a b d", "a c d b. b d a"),
    ("été déjà vu", "déjà été vu"), ("a\u3000b\u00a0c", "a b c"), (" ", "a"), (" ", " "),
]
LABELS = ["Number", "Other number", "Date", "Human", "Group", "Location", "Other location", "City"]
CLASSES = [
    ("Date", "Date", LABELS), ("Type: Date.", "Date", LABELS), ("date", "Date", LABELS),
    ("Other number", "Other number", LABELS), ("Number", "Other number", LABELS),
    ("Number or Other number", "Number", LABELS), ("Human Group City", "City", LABELS),
    ("", "Date", LABELS), ("Other location", "Other location", LABELS),
    ("Location City", "Other location", LABELS),
    ("ab abc a b", "abc", ["a", "ab", "abc", "b"]), ("ab abc a b", "abc", ["abc", "a", "ab", "b"]),
    ("a b abc", "abc", ["a", "b", "abc"]), ("Date Date", "Date", ["Date", "Date"]),
    ("x a a", "xa", ["a", "a", "xa"]), ("农业、农村", "农业、农村", ["农业、农村", "农业", "体育"]),
    ("xa a", "xa", ["a", "a", "xa"]), ("Human", "Person", LABELS),
]
RETRIEVAL = [
    ("Paragraph 7", "Paragraph 7"), ("7", "Paragraph 7"), ("Paragraph 17", "Paragraph 7"),
    ("Paragraph 7 or 8", "Paragraph 7"), ("7 7 7 8", "Paragraph 7"), ("none", "Paragraph 7"),
    ("", "Paragraph 7"), ("07", "Paragraph 7"), ("7.5", "Paragraph 7"),
    ("paragraph seven", "Paragraph 7"), ("p7q8r7", "Paragraph 7"), ("７", "Paragraph 7"),
    ("Paragraph 30", "see Paragraph x and Paragraph 30, Paragraph 4"), ("-7", "Paragraph 7"),
    ("1,007", "Paragraph 007"),
]
RETRIEVAL_ZH = [
    ("段落12", "段落12"), ("12", "段落12"), ("段落1", "段落12"), ("段落12和段落3", "段落12"),
    ("第12段", "段落12"), ("", "段落12"), ("段落十二", "段落12"), ("１２", "段落12"),
    ("12 12 5", "段落12"), ("012", "段落12"), ("答案是段落12。", "答案：段落12"), ("3 4 5", "段落4"),
]
COUNT = [
    ("5", "5"), ("The answer is 5.", "5"), ("5 of 10", "5"), ("15", "5"), ("five", "5"), ("", "5"),
    ("5 5 5", "5"), ("1 2 3 4 5", "5"), ("05", "5"), ("5.0", "5"), ("10-5", "5"), ("٥", "5"),
    ("12\n13\n12", "12"),
]
CODE = [
    ("return x", "return x"), ("\n\nreturn x\nreturn y", "return x"),
    ("# no\nreturn x", "return x"),
    ("// no\n`a`\nreturn y;", "return x;"), ("", "return x"), ("# only", "return x"),
    ("ababab", "aaaaab"), ("a/b", "a//b"), ("    return self.x", "return self.x"),
    ("\r\nx", "x"), ("   \nreturn x", "return x"), ("abcdefgh", "hgfedcba"), ("qabxcd", "abycdf"),
    ("private Thread currentThread;", "private volatile Thread current;"),
    ("été = naïve", "ete = naive"), ("变量 = 1", "变量 = 2"), ("", ""), ("#", ""), ("aab", "abbbb"),
    ("int a = b + c;", "int c = b - a;"), ("abc", "abd"), ("a" * 5 + "b" * 3, "a" * 8 + "c" * 24),
]
LINES = ["a\nb", "\n\na\nb", "", "\n", "\n\n", "a", "\r\na", " \na"]


def text(rng, vocabulary, count, stops):
    out = []
    for _ in range(count):
        word = rng.choice(vocabulary)
        out.append(word + ("." if rng.random() < stops else ""))
    return " ".join(out)


def random_pairs():
    rng = random.Random(20)
    small, large = list("abcde"), ["w%d" % i for i in range(60)] + ["The", "a", "an"]
    pairs = [(text(rng, small, rng.randint(1, 25), s), text(rng, small, rng.randint(1, 25), s))
             for s in (0.0, 0.1, 0.3) for _ in range(6)]
    pairs += [(text(rng, large, 120, 0.06), text(rng, large, 150, 0.06)) for _ in range(4)]
    return pairs


def random_lines():
    rng = random.Random(21)
    out = [("".join(rng.choices("abc =", k=rng.randint(3, 30))),
            "".join(rng.choices("abc =", k=rng.randint(3, 30)))) for _ in range(12)]
    # 200 and more characters: difflib leaves frequent ones out.
    for size in (199, 200, 230, 400):
        base = "".join(rng.choices("abcdefghijklmnopqrstuvwxyz (),._=", k=size))
        copy = "".join(c if rng.random() < 0.8 else rng.choice("xyz ") for c in base)
        out += [(copy, base), (base[: size // 2], base)]
    return out


def halves():
    """Pairs with a ratio of exactly k + 1/2 percent: rounding and the order of operations show."""
    out = []
    for total in (16, 40, 80, 200):
        for same in range(1, total // 2):
            if (200 * same) % total * 2 == total and len(out) < 60:
                rest = total - 2 * same
                out.append(("a" * same + "b" * (rest // 2), "a" * same + "c" * (rest - rest // 2)))
    return out[::4]


def unicode_hash():
    """FNV-1a over (classes, lower case as four bytes) of every code point."""
    digest = 0xcbf29ce484222325
    for c in range(0x110000):
        char = chr(c)
        lower = ord(char.lower()) if len(char.lower()) == 1 else 0xffffffff
        classes = char.isalnum() | char.isdecimal() << 1 | char.isspace() << 2
        for byte in (classes, *lower.to_bytes(4, "little")):
            digest = (digest ^ byte) * 0x100000001b3 & 0xffffffffffffffff
    return f"{digest:016x}"


def bad_utf8():
    parts = [b"a\xffb", b"\xe4\xb8", b"\xe4\xb8\xad\xe4", b"\xc0\x80", b"\xed\xa0\x80", b"ok",
             b"\xf0\x9f\x98", b"\xf0\x9f\x98\x80", b"\x80\x80", b"\xf4\x90\x80\x80",
             b"\xe0\x80\x80"]
    return [[list(p), p.decode("utf-8", errors="replace")] for p in parts]


def published(path):
    """{name: [sha256 of the prompt, answer length]} of the file's two tables."""
    tables = {node.targets[0].id: ast.literal_eval(node.value) for node in ast.parse(
        pathlib.Path(path).read_text(encoding="utf-8")).body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict)}
    return {name: [hashlib.sha256(prompt.encode()).hexdigest(), tables["dataset2maxlen"][name]]
            for name, prompt in tables["dataset2prompt"].items()}


def rows(pairs, metric, *extra):
    return [[p, r, metric(p, r, *extra)] for p, r in pairs]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--published", required=True)
    args = parser.parse_args()
    lines = CODE + random_lines() + halves()
    golden = {
        "token_f1": rows(F1 + random_pairs()[::2], token_f1),
        "rouge_l": rows(ROUGE + random_pairs(), rouge_l),
        "classification": [[p, r, c, classification(p, r, c)] for p, r, c in CLASSES],
        "retrieval": rows(RETRIEVAL, retrieval),
        "retrieval_zh": rows(RETRIEVAL_ZH, retrieval_zh),
        "count": rows(COUNT, numbers),
        "code_difflib": rows(lines, code, difflib.SequenceMatcher),
        "code_indel": rows(lines, code, LEVENSHTEIN_MATCHER),
        "first_line": [[p, first_line(p)] for p in LINES],
        "bad_utf8": bad_utf8(),
        "unicode_fnv": unicode_hash(),
        "published": published(args.published),
    }
    out = pathlib.Path(__file__).with_name("longbench.json")
    entries = []
    for key, value in golden.items():  # one case a line
        text = json.dumps(value)
        if isinstance(value, list):
            text = "[\n" + ",\n".join(json.dumps(row) for row in value) + "\n]"
        entries.append(f"{json.dumps(key)}: {text}")
    out.write_text("{\n" + ",\n".join(entries) + "\n}\n", encoding="utf-8")
    print({k: len(v) for k, v in golden.items()})


if __name__ == "__main__":
    main()
