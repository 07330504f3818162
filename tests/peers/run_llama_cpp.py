#!/usr/bin/env python3
"""Runs a GGUF file with llama.cpp (package llama-cpp-python) on token ids, without its tokenizer or sampler.

  run_llama_cpp.py logits MODEL IDS OUT   logits of each position of IDS (whole numbers), as raw float32
  run_llama_cpp.py greedy MODEL IDS COUNT                  the ids that greedy decoding appends, one step at a time
  run_llama_cpp.py tokens MODEL TEXTS                      the ids of each string of a JSON list, a JSON list a line
"""
import ctypes
import json
import sys

import llama_cpp as api
import numpy as np


@api.llama_log_callback
def log(level, text, _):
    if level >= 3:  # warnings and errors
        sys.stderr.write(text.decode(errors="replace"))


class Model:
    def __init__(self, path, context=4096):
        api.llama_log_set(log, ctypes.c_void_p(0))
        api.llama_backend_init()
        parameters = api.llama_model_default_params()
        parameters.n_gpu_layers = 0
        self.model = api.llama_model_load_from_file(path.encode(), parameters)
        if not self.model:
            sys.exit(f"llama.cpp can not load {path}")
        self.vocabulary = api.llama_model_get_vocab(self.model)
        self.size = api.llama_vocab_n_tokens(self.vocabulary)
        options = api.llama_context_default_params()
        options.n_ctx = options.n_batch = context
        options.n_threads = options.n_threads_batch = 1  # more would wait for a busy machine
        self.context = api.llama_init_from_model(self.model, options)
        if not self.context:
            sys.exit(f"llama.cpp can not make a context for {path}")
        self.reached = 0

    def logits(self, ids):
        """Goes on by these ids; logits (len(ids), vocabulary)."""
        batch = api.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            batch.token[i], batch.pos[i], batch.logits[i] = token, self.reached + i, 1
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
        if api.llama_decode(self.context, batch) != 0:
            sys.exit("llama_decode failed")
        rows = [np.ctypeslib.as_array(api.llama_get_logits_ith(self.context, i), (self.size,)).copy()
                for i in range(len(ids))]
        api.llama_batch_free(batch)
        self.reached += len(ids)
        return np.stack(rows)

    def tokens(self, text):
        data = text.encode()
        out = (api.llama_token * (len(data) + 8))()
        count = api.llama_tokenize(self.vocabulary, data, len(data), out, len(out), True, True)
        if count < 0:
            sys.exit("llama_tokenize failed")
        return list(out[:count])


def main(command, path, *rest):
    model = Model(path)
    if command == "tokens":
        for text in json.load(open(rest[0])):
            print(json.dumps(model.tokens(text)))
        return
    ids = [int(word) for word in open(rest[0]).read().split()]
    if command == "logits":
        model.logits(ids).astype(np.float32).tofile(rest[1])
    elif command == "greedy":
        out = []
        for _ in range(int(rest[1])):
            out.append(int(model.logits(ids)[-1].argmax()))
            ids = out[-1:]
        print(*out)
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
