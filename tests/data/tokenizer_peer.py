#!/usr/bin/env python3
"""What the Python package tokenizers makes of texts, for tests/data/tokenizer_peer_test.cpp.

    tokenizer_peer.py train TOKENIZER...             small tokenizers like GPT-2's, each with other options
    tokenizer_peer.py code-points TOKENIZER OUT      every code point, among others
    tokenizer_peer.py random TOKENIZER OUT COUNT SEED
    tokenizer_peer.py files TOKENIZER OUT FILE...    whole texts (.txt) and all strings of .jsonl files, also as .xz

OUT gets records: kind, bytes of the text, count of ids (three uint32), the text, the ids (uint32 each). Kinds: 0 encode,
1 encode with special tokens as text, 2 decode, 3 decode without special tokens.
"""
import json
import lzma
import random
import struct
import sys
import unicodedata

import tokenizers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

ENCODE, ENCODE_AS_TEXT, DECODE, DECODE_PLAIN = range(4)
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
CODE_POINTS = [code for code in range(0x110000) if not 0xD800 <= code < 0xE000]


class Writer:
    def __init__(self, tokenizer, path):
        self.tokenizer = tokenizer
        self.file = open(path, "wb")

    def record(self, kind, text, ids):
        data = text.encode()
        self.file.write(struct.pack("<III", kind, len(data), len(ids)) + data + struct.pack(f"<{len(ids)}I", *ids))

    def encode(self, texts, kinds=(ENCODE, ENCODE_AS_TEXT)):
        for kind in kinds:
            self.tokenizer.encode_special_tokens = kind == ENCODE_AS_TEXT
            for text, encoding in zip(texts, self.tokenizer.encode_batch(texts, add_special_tokens=False)):
                self.record(kind, text, encoding.ids)

    def decode(self, lists):
        for kind in (DECODE, DECODE_PLAIN):
            for ids, text in zip(lists, self.tokenizer.decode_batch(lists, skip_special_tokens=kind == DECODE_PLAIN)):
                self.record(kind, text, ids)


def train(paths):
    """Options differ from file to file; all have added tokens of every sort."""
    with open(__file__, encoding="utf-8") as file:
        source = file.read()
    text = [source, "the cat's 12345 cats aren't here, they've gone; naïve façade Ωmega 北京 東京 русский язык\n" * 20]
    for number, path in enumerate(paths):
        tokenizer = Tokenizer(models.BPE())
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=number % 2 == 1, use_regex=number % 4 < 2)
        tokenizer.pre_tokenizer = byte_level
        if number % 4 == 2:
            split = pre_tokenizers.Split(Regex(GPT2), "isolated")
            tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
        if number % 3 == 1:
            tokenizer.normalizer = normalizers.NFC()
        elif number % 3 == 2:
            tokenizer.normalizer = normalizers.Sequence([normalizers.Sequence([]), normalizers.NFC()])
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=900, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet,
                                      show_progress=False)
        tokenizer.train_from_iterator(text, trainer)
        tokenizer.add_special_tokens([AddedToken("<s>", lstrip=True), AddedToken("</s>", rstrip=True),
                                      AddedToken("<é\u0301>", normalized=True), AddedToken("<|e", single_word=True)])
        tokenizer.add_tokens([AddedToken("  ", normalized=True), AddedToken("    ", normalized=True),
                              AddedToken("word", single_word=True), AddedToken("e\u0301", normalized=True),
                              AddedToken("ç", normalized=False), AddedToken("<< >>", lstrip=True, rstrip=True),
                              AddedToken("the", normalized=True, single_word=True, lstrip=True), AddedToken("endof"),
                              AddedToken("12"), AddedToken("123", rstrip=True), AddedToken("x"), AddedToken("\U0001F600")])
        tokenizer.save(path)


def code_points(writer):
    """Each one between words, numbers, marks, at the edge of tokens that want whole words, and in odd orders."""
    classes = ["\u0334", "\u0323", "\u0301", "\u0345"]  # marks of the classes 1, 220, 230 and 240
    texts = []
    for code in CODE_POINTS:
        c = chr(code)
        texts.append(f"a{c}b 1{c}2 !{c}! {c}{c}  {c} '{c}'s{c}word{c} word{c}")
        texts.append("".join(f"a{mark}{c}{mark} " for mark in classes) + f"{c}\u0301\u0315{c}")
        if len(texts) > 20000:
            writer.encode(texts, (ENCODE,))
            texts = []
    writer.encode(texts, (ENCODE,))
    pairs = []  # all that compose, and what precedes them
    for code in CODE_POINTS:
        parts = unicodedata.decomposition(chr(code)).split()
        if parts and not parts[0].startswith("<"):
            text = "".join(chr(int(part, 16)) for part in parts)
            pairs += [text, text + "\u0323", "\u0301" + text, text[0] + "\u0334" + text[1:], unicodedata.normalize("NFD", text)]
    for lead in range(0x1100, 0x1114):
        for vowel in range(0x1160, 0x1177, 3):
            pairs += [chr(lead) + chr(vowel) + chr(tail) for tail in range(0x11A6, 0x11C4)]
    writer.encode(pairs, (ENCODE,))


def random_text(source, assigned, contents):
    def one_of(codes):
        return lambda: chr(source.choice(codes))

    def between(low, high):
        return lambda: chr(source.randrange(low, high))

    marks = [code for code in assigned if unicodedata.combining(chr(code))]
    composed = [code for code in assigned if unicodedata.decomposition(chr(code))]
    sorts = [
        one_of(assigned), one_of(marks), one_of(composed), between(0x20, 0x7F), between(0x61, 0x7B), between(0x30, 0x3A),
        between(0, 0x20), between(0x80, 0x250), between(0x300, 0x370), between(0x370, 0x590), between(0x900, 0xE00),
        between(0x1100, 0x1200), between(0xAC00, 0xD7A4), between(0x4E00, 0x9FFF), between(0x1F300, 0x1FAFF),
        between(0x3040, 0x3100), one_of(CODE_POINTS),
        lambda: source.choice(" \t\n\r\v\f\u0085\u00a0\u2003\u2028\u3000\u200b\u200d\ufe0f"),
        lambda: " " * source.randrange(1, 30), lambda: source.choice(contents),
        lambda: source.choice(["'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "'S", "'", " '", "''", "’s", "n't"]),
        lambda: source.choice(["the", " the", "Hello", " world", "\n\n", "\r\n", "word", "e\u0301", "Å", "\u1100\u1161"]),
        lambda: source.choice(contents)[:source.randrange(1, 9)],
    ]

    def text():
        chosen = source.sample(sorts, source.randrange(1, 6))
        return "".join(source.choice(chosen)() for _ in range(source.randrange(1, 24)))

    return text


def random_cases(writer, count, seed):
    source = random.Random(seed)
    assigned = [code for code in CODE_POINTS if unicodedata.category(chr(code)) not in ("Cn", "Co")]
    added = writer.tokenizer.get_added_tokens_decoder()
    text = random_text(source, assigned, [token.content for token in added.values()])
    size = writer.tokenizer.get_vocab_size()
    special = [number for number, token in added.items() if token.special]
    while count > 0:
        texts = [text() for _ in range(min(count, 20000))]
        count -= len(texts)
        half = len(texts) // 2
        writer.encode(texts[:half], (ENCODE,))
        writer.encode(texts[half:], (ENCODE_AS_TEXT,))
        # Ids of whole characters cut apart, and ids that no token has.
        lists = [[source.randrange(size + 3) for _ in range(source.randrange(12))] for _ in range(200)]
        low = [[source.randrange(260) for _ in range(12)] + [source.choice(special)] for _ in range(200)]
        cut = [writer.tokenizer.encode(line).ids for line in texts[:400]]
        cut = [[token for token in ids if source.random() < 0.8] for ids in cut]
        writer.decode(lists + low + cut)


def strings_of(value):
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for element in value.values() if isinstance(value, dict) else value:
            yield from strings_of(element)


def files(writer, paths):
    for path in paths:
        with (lzma.open if path.endswith(".xz") else open)(path, "rt", encoding="utf-8", newline="") as file:
            text = file.read()
        texts = [text]
        if ".jsonl" in path:
            texts = [string for line in text.split("\n") if line for string in strings_of(json.loads(line))]
        writer.encode(texts, (ENCODE,))


def main():
    command, arguments = sys.argv[1], sys.argv[2:]
    if command == "train":
        return train(arguments)
    writer = Writer(Tokenizer.from_file(arguments[0]), arguments[1])
    if command == "code-points":
        code_points(writer)
    elif command == "random":
        random_cases(writer, int(arguments[2]), int(arguments[3]))
    elif command == "files":
        files(writer, arguments[2:])
    else:
        sys.exit(f"no command {command}")
    writer.file.close()
    print(f"tokenizers {tokenizers.__version__}")


if __name__ == "__main__":
    main()
