"""The embedded model's tokenizer and architecture, before any training."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import Qwen2ForCausalLM, Qwen2Tokenizer

SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
PAD, BOS, EOS, UNK = range(4)
ANSWER = "Answer: "
SYMBOLS = (*"0123456789+-=\n", ANSWER)
BYTE_NEWLINE = "Ċ"  # how byte-level vocabularies write a newline
CONTEXT = 256  # tokens; the longest problem with its solution takes 56


def build_tokenizer() -> "Qwen2Tokenizer":
    """Build the tokenizer: one token per character, but ``Answer: `` stays whole.

    The class is Qwen2's own, byte pairs without any merge, because ``AutoTokenizer`` forces that
    class on every Qwen2 model and rebuilds its parts, whatever the folder says.

    Returns:
        A tokenizer that prepends ``<bos>``, pads on the left, and restores every text of the
        task's alphabet exactly when it decodes. Qwen2's class drops characters that the alphabet
        lacks: letters and spaces outside ``Answer: `` leave no token.
    """
    from tokenizers import AddedToken, processors
    from transformers import Qwen2Tokenizer

    alphabet = (symbol.replace("\n", BYTE_NEWLINE) for symbol in SYMBOLS if symbol != ANSWER)
    tokenizer = Qwen2Tokenizer(
        vocab={token: i for i, token in enumerate((*SPECIAL, *alphabet))},
        merges=[],
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        padding_side="left",
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.add_tokens([AddedToken(ANSWER, normalized=False)])  # pyright: ignore[reportArgumentType]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", BOS)]
    )
    return tokenizer


def build_model() -> "Qwen2ForCausalLM":
    """Build the network with random weights from torch's global generator.

    Returns:
        A float32 Qwen2 model of three layers and width 128 over the tokenizer's vocabulary. Its
        generation settings sample the model's own distribution: T = 1, no truncation of the tail.
    """
    from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=len(SPECIAL) + len(SYMBOLS),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=False,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )
    model = Qwen2ForCausalLM(config)
    model.generation_config = GenerationConfig(
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
    )
    return model
