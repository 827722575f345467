"""Trains a byte-level BPE tokenizer on a folder of text files.

Usage: python train_tokenizer.py TEXT_FOLDER OUT_FOLDER VOCAB_SIZE
"""

import json
import sys
from pathlib import Path

END_OF_TEXT = "<|endoftext|>"


def train_tokenizer(texts: Path, out: Path, *, vocab_size: int, max_length: int = 2048) -> int:
    """Write a tokenizer that ``AutoTokenizer.from_pretrained(out)`` loads; return its size.

    Byte-level BPE (Sennrich et al. 2016; Radford et al. 2019): every text has a tokenization, and
    decoding gives back the very bytes.

    Args:
        texts: a folder of ``.txt`` files.
        out: is made.
        vocab_size: at most that many tokens, the 256 bytes and the end-of-text token included.
        max_length: the ``model_max_length`` that the tokenizer states.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train([str(path) for path in sorted(texts.glob("*.txt"))], trainer)
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(out / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END_OF_TEXT,
        "bos_token": END_OF_TEXT,
        "model_max_length": max_length,
        "clean_up_tokenization_spaces": False,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    return int(tokenizer.get_vocab_size())


if __name__ == "__main__":
    print(train_tokenizer(Path(sys.argv[1]), Path(sys.argv[2]), vocab_size=int(sys.argv[3])))
