"""The configuration keys of language models, and of the answers that they are measured by."""

from mdistiller.config.key import Key

MOST_TOKENS = 2**20

LM = {
    "TOKENIZER": Key("", path=True, help=(
        "A folder, a .gguf file or a name of the hub; empty is the tokenizer of DISTILLER.STUDENT.")),
    "TRAIN_FILE": Key("", path=True, help="JSON Lines of instruction, input and output, below DATASET.ROOT."),
    "VAL_FILE": Key("", path=True, help="The best epoch is chosen on it; empty chooses on the test file."),
    "TEST_FILE": Key("", path=True, help="JSON Lines of the test set, below DATASET.ROOT."),
    "EVAL_EXAMPLES": Key(0, least=0, most=10**9, help="First examples of VAL_FILE and TEST_FILE that count; 0 is all."),
    "MAX_PROMPT": Key(256, least=1, most=MOST_TOKENS, help="Greatest number of tokens of a prompt."),
    "MAX_LENGTH": Key(512, least=2, most=MOST_TOKENS, help=(
        "Greatest number of tokens of prompt and answer; the answer is cut.")),
    "LONG_PROMPTS": Key("drop", choices=("drop", "cut"), help=(
        "Longer prompts are left out and counted in the log, or cut to their first MAX_PROMPT tokens.")),
    "PADDING": Key("dynamic", choices=("dynamic", "fixed"), help="To the longest of a batch, or to MAX_LENGTH."),
    "DROP_LAST": Key(False, help="Leave out the incomplete last batch of an epoch."),
    "EVERY_LAYER": Key(1, least=1, most=10**4, help=(
        "Of the student: k keeps the layers 0, k, 2k, ... of the network that it names.")),
    "TEACHER_DTYPE": Key("float32", choices=("float32", "bf16"), help="Precision of the teacher's weights."),
    "TEACHER_KL": Key(False, help="Measure the KL divergence from DISTILLER.TEACHER on VAL_FILE and TEST_FILE."),
    "LOSS_CHUNK": Key(0, least=0, most=MOST_TOKENS, help=(
        "Tokens whose logits exist together, computed again in the backward pass; 0 is all.")),
    "REDUCTION": Key("token", choices=("token", "sequence"), help=(
        "Mean over supervised tokens, or over sequences of their token means.")),
    "AVERAGE": Key("step", choices=("step", "micro_batch"), help=(
        "Mean over the tokens of an update, or of each batch, in which short ones weigh more.")),
    "CHECKPOINTING": Key(False, help="Recompute the student's layers in the backward pass."),
}

GENERATION = {
    "EXAMPLES": Key(-1, least=-1, most=10**9, help=(
        "Examples of each split that are answered after an epoch; -1 is all, 0 none: token accuracy then chooses.")),
    "REPEATS": Key(1, least=1, most=10**4, help="Answers to each example of the validation split."),
    "SAMPLING": Key("per_example", choices=("per_example", "global", "greedy"), help=(
        "Noise keyed by example and step, noise of the whole batch, or none.")),
    "TEMPERATURE": Key(1.0, above=0, most=1e4, help="Temperature of sampling."),
    "TOP_P": Key(1.0, above=0, most=1, help="Least probability of the most probable tokens that are sampled from."),
    "TOP_K": Key(0, least=0, most=10**9, help="Number of tokens that are sampled from; 0 is all."),
    "MAX_NEW_TOKENS": Key(256, least=1, most=MOST_TOKENS, help="Greatest number of tokens of an answer."),
    "NO_REPEAT_NGRAM": Key(0, least=0, most=MOST_TOKENS, help=(
        "Length of the n-grams that may not come again, prompt included; 0 allows all.")),
    "BATCH_SIZE": Key(32, least=1, most=MOST_TOKENS, help="Prompts that are answered together."),
    "SEED": Key(10, least=0, most=2**32 - 1, help="Seed of the answers."),
}
