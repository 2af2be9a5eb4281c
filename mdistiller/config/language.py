"""The configuration keys of language models and of the generation of answers."""

from mdistiller.config.key import Key

MOST_TOKENS = 2**20

LM = {
    "TOKENIZER": Key("", path=True, help=(
        "A folder, a .gguf file or a name of the Hugging Face hub; empty: the tokenizer of DISTILLER.STUDENT.")),
    "BOS": Key("auto", choices=("auto", "none"), help=(
        "auto: each prompt begins with the tokens that the tokenizer itself puts in front of a text, such as <s> (for "
        "GPT-2 none), and they count in the lengths; none: it does not.")),
    "TRAIN_FILE": Key("", path=True, help="JSON Lines of the training set, below DATASET.ROOT."),
    "VAL_FILE": Key("", path=True, help="File on which the best epoch is chosen; empty means the test file."),
    "TEST_FILE": Key("", path=True, help="JSON Lines of the test set, below DATASET.ROOT."),
    "EVAL_EXAMPLES": Key(0, least=0, most=10**9, help="First examples of VAL_FILE and TEST_FILE to use; 0: all."),
    "MAX_PROMPT": Key(256, least=1, most=MOST_TOKENS, help=(
        "Maximum number of tokens of a prompt; MAX_LENGTH - 1 if that is less.")),
    "MAX_LENGTH": Key(512, least=2, most=MOST_TOKENS, help=(
        "Maximum number of tokens of prompt and answer together; a longer answer is cut.")),
    "LONG_PROMPTS": Key("drop", choices=("drop", "cut"), help=(
        "Longer prompts are left out, or cut to the maximum; their number is logged.")),
    "PADDING": Key("dynamic", choices=("dynamic", "fixed"), help="Pad to the longest of a batch, or to MAX_LENGTH."),
    "DROP_LAST": Key(False, help="Leave out the incomplete last batch of an epoch."),
    "EVERY_LAYER": Key(1, least=1, most=10**4, help=(
        "The student keeps the layers 0, k, 2k, ... of the network that DISTILLER.STUDENT names.")),
    "TEACHER_DTYPE": Key("float32", choices=("float32", "bf16"), help="Precision of the teacher's weights."),
    "TEACHER_KL": Key(False, help="Measure the KL divergence from DISTILLER.TEACHER on VAL_FILE and TEST_FILE."),
    "LOSS_CHUNK": Key(0, least=0, most=MOST_TOKENS, help=(
        "Number of tokens whose logits are in memory at the same time (recomputed in the backward pass); 0: all.")),
    "REDUCTION": Key("token", choices=("token", "sequence"), help=(
        "Mean over supervised tokens, or mean over sequences of the mean over their tokens.")),
    "AVERAGE": Key("step", choices=("step", "micro_batch"), help=(
        "Mean over all tokens of an update, or mean over batches of the mean over their tokens.")),
    "CHECKPOINTING": Key(False, help="Recompute the student's layers in the backward pass."),
}

GENERATION = {
    "EXAMPLES": Key(-1, least=-1, most=10**9, help=(
        "Number of examples of each split to answer after an epoch; -1: all; 0: none, token accuracy chooses then.")),
    "REPEATS": Key(1, least=1, most=10**4, help="Number of answers to each example of the validation split."),
    "SAMPLING": Key("per_example", choices=("per_example", "global", "greedy"), help=(
        "Random numbers for each example and step, random numbers for the whole batch, or greedy decoding.")),
    "TEMPERATURE": Key(1.0, above=0, most=1e4, help="Temperature of sampling."),
    "TOP_P": Key(1.0, above=0, most=1, help="Sample from the most probable tokens with this total probability."),
    "TOP_K": Key(0, least=0, most=10**9, help="Sample from this number of most probable tokens; 0: all."),
    "MAX_NEW_TOKENS": Key(256, least=1, most=MOST_TOKENS, help="Maximum number of tokens of an answer."),
    "NO_REPEAT_NGRAM": Key(0, least=0, most=MOST_TOKENS, help=(
        "Length of n-grams that must not occur twice in prompt and answer; 0 allows all.")),
    "BATCH_SIZE": Key(32, least=1, most=MOST_TOKENS, help="Number of prompts that are answered together."),
    "SEED": Key(10, least=0, most=2**32 - 1, help="Seed of the answers."),
}
