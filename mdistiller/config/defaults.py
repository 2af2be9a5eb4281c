"""Every configuration key that is not a method's own, with its default (mdistiller's, where it has one)."""

DEFAULTS = {
    "EXPERIMENT": {
        "PROJECT": "distill",
        "NAME": "",  # "" makes <dataset>_<method>_<teacher>_<student>_s<seed>; "{seed}" in a name is filled in
        "TAG": "default",
        "SEED": 0,
        "LOGIT_STAND": False,  # another spelling of DISTILLER.LS
        "DETERMINISTIC": True,  # deterministic kernels wherever the device has them
        "PLUGINS": [],  # Python files or modules, imported first: methods and networks of one's own
    },
    "DATASET": {
        "TYPE": "cifar100",
        "ROOT": "data",
        "DOWNLOAD": False,
        "NUM_WORKERS": 2,
        "TRAIN_FRACTION": 1.0,  # a fixed, class-balanced part of the training images
        "VAL_FRACTION": 0.0,  # a fixed, class-balanced part set aside; the best epoch is then chosen on it
        "AUGMENTATION": "crop_flip",  # "crop" never mirrors; "rotate_flip", for images in memory: within 20 degrees
        "IMAGE_SIZE": 224,  # of imagenet and imagefolder, pixels a side; an imagefolder of up to 64 lives in memory
        "SKIP_BROKEN": False,  # leave images out that cannot be read; otherwise they end the run before it starts
        "TEST": {"BATCH_SIZE": 64},
    },
    "DISTILLER": {
        "TYPE": "NONE",
        "TEACHER": "ResNet50",
        "STUDENT": "resnet32",
        "TEACHER_CHECKPOINT": None,  # a file, "pretrained", "random"; None looks in checkpoints/ and download_ckpts/
        "STUDENT_CHECKPOINT": None,  # where the student starts: a file, "pretrained"; None is from scratch
        "TEACHER_INPUT_SIZE": None,  # pixels a side; None: the data's, or its own for a network made for one size
        "STUDENT_INPUT_SIZE": None,
        "TEACHER_NORMALIZATION": None,  # "data" or "own"; None: own for timm and torchvision networks, else data
        "STUDENT_NORMALIZATION": None,
        "FOLD_TEACHER": False,  # batch norms of the teacher into its convolutions, where logits alone are read
        "EA": False,  # weigh samples: KD with EA: 1 is EA-KD
        "LS": False,  # standardize logits inside logit losses
        "t": None,  # another spelling of EA.TEMPERATURE
    },
    "TASK": {"TYPE": None},  # None: what the data set is for; classification, detection, language
    "EA": {
        "KIND": "ea",
        "LEVEL": "sample",  # "group": a sample has the weight of its group's mean entropies (an image's, a sequence's)
        "TEMPERATURE": 3.0,  # T' of the paper: 3 on CIFAR-100, 2 on ImageNet and for transformer teachers
        "UPPER_BOUND": None,  # None (or "log_c") is log C; a number is itself
        "LOGITS": "raw",  # which logits the weights come from
        "COMPAT": "paper",  # "release": the choices of the published code, method by method
    },
    "SOLVER": {
        "TRAINER": "base",
        "TYPE": "SGD",  # or AdamW
        "BATCH_SIZE": 64,  # global, over all processes
        "EPOCHS": 240,
        "LR": 0.05,
        "SCHEDULE": "step",  # "step": LR_DECAY_*, constant within an epoch; "cosine": down to MIN_LR, step by step
        "LR_DECAY_STAGES": [150, 180, 210],
        "LR_DECAY_RATE": 0.1,
        "MAX_ITER": 0,  # updates of the whole run, in place of EPOCHS; 0 counts epochs
        "EVAL_PERIOD": 0,  # with MAX_ITER: updates between evaluations, which an "epoch" is then; 0: all of them
        "STEPS": [],  # updates after which the rate falls by LR_DECAY_RATE, in place of LR_DECAY_STAGES
        "WARMUP_ITERS": 0,  # updates of a linear rise to the rate, from WARMUP_FACTOR of it
        "WARMUP_FACTOR": 0.0,
        "NO_DECAY": "none",  # parameters without weight decay: "norm", "norm_and_bias"
        "BETAS": [0.9, 0.999],  # of AdamW
        "EPS": 1e-8,  # of AdamW
        "WARMUP_EPOCHS": 0.0,  # of a linear rise to LR, before the cosine
        "MIN_LR": 0.0,
        "MOMENTUM": 0.9,
        "NESTEROV": False,
        "WEIGHT_DECAY": 0.0001,
        "LABEL_SMOOTHING": 0.0,
        "CLIP_NORM": 0.0,  # greatest norm of the gradient; 0 does not clip
        "ACCUMULATE": 1,  # batches whose gradients make one update: BATCH_SIZE * ACCUMULATE images
        "EMA": 0.0,  # decay of a moving average of the student, evaluated and saved beside it; 0 keeps none
        "SKIP_NONFINITE": 0,  # steps without a finite loss that are left out before the run ends; > 0 waits every step
        "SYNC_BN": False,  # batch norm over all processes (CUDA)
        "AMP": "none",  # torch.autocast of the networks; losses stay in float32
        "CHANNELS_LAST": True,
        "DOT": {"DELTA": 0.075},
    },
    "TEACHER_CACHE": {  # logits of the teacher, stored once for all runs with the same teacher and data
        "ENABLED": False,
        "DIR": "teacher_cache",
        "DTYPE": "float16",  # or float32: exact to the rounding of a forward pass, twice the size
        "CHECK": 16,  # stored rows compared with the teacher when a run starts
    },
    "COMPILE": False,  # torch.compile of student and teacher
    "DEVICE": "auto",  # auto: CUDA, else MPS, else CPU
    "LOG": {
        "PREFIX": "./output",
        "TENSORBOARD_FREQ": 500,  # steps between scalars within an epoch
        "SAVE_CHECKPOINT_FREQ": 40,  # epochs between epoch_<n>.pth and student_<n>.pth
        "SAVE_CHECKPOINT_STEPS": 0,  # steps between saves of latest.pth within an epoch; 0 saves after epochs only
        "ENTROPY_TRACE": 0,  # training images whose entropies and losses are written after each epoch, for figures
        "WANDB": True,  # read for compatibility and without effect: runs are logged to files and TensorBoard
    },
}

# Keys that set another one, unless they hold None or False; whichever is read last wins.
OTHER_SPELLINGS = {"DISTILLER.t": "EA.TEMPERATURE", "EXPERIMENT.LOGIT_STAND": "DISTILLER.LS"}

# Keys whose default is None or that admit several types: what else they may hold.
OPTIONAL = {
    **{f"DISTILLER.{role}_{key}": (kind,) for role in ("TEACHER", "STUDENT")
       for key, kind in (("CHECKPOINT", str), ("INPUT_SIZE", int), ("NORMALIZATION", str))},
    "DISTILLER.t": (float,),
    "TASK.TYPE": (str,),
    "EA.UPPER_BOUND": (float, str),
}

CHOICES = {
    "DATASET.AUGMENTATION": ("crop_flip", "crop", "rotate_flip"),
    "DISTILLER.TEACHER_NORMALIZATION": ("data", "own"),
    "DISTILLER.STUDENT_NORMALIZATION": ("data", "own"),
    "EA.KIND": (
        "none", "base", "interact", "ea", "student", "inverted_teacher", "inverted_student", "constant", "normalized",
    ),
    "EA.LOGITS": ("raw", "standardized"),
    "EA.LEVEL": ("sample", "group"),
    "EA.COMPAT": ("paper", "release"),
    "EA.UPPER_BOUND": ("log_c",),
    "SOLVER.TYPE": ("SGD", "AdamW"),
    "SOLVER.SCHEDULE": ("step", "cosine"),
    "SOLVER.NO_DECAY": ("none", "norm", "norm_and_bias"),
    "SOLVER.TRAINER": ("base", "crd", "dot", "crd_dot", "ours", "aug"),
    "SOLVER.AMP": ("none", "bf16", "fp16"),
    "TEACHER_CACHE.DTYPE": ("float16", "float32"),
}

MOST_PIXELS = 4096  # a side: a slip of the finger then meets an error before it meets the memory

# Bounds: (least, greatest, whether the least itself is allowed). Method keys are bounded by their last word.
RANGES = {
    "DISTILLER.TEACHER_INPUT_SIZE": (1, MOST_PIXELS, True),
    "DISTILLER.STUDENT_INPUT_SIZE": (1, MOST_PIXELS, True),
    "SOLVER.BATCH_SIZE": (1, None, True),
    "SOLVER.EPOCHS": (1, None, True),
    "SOLVER.LR": (0, None, False),
    "SOLVER.LR_DECAY_RATE": (0, None, False),
    "SOLVER.MOMENTUM": (0, 1, True),
    "SOLVER.WARMUP_EPOCHS": (0, None, True),
    "SOLVER.MIN_LR": (0, None, True),
    "SOLVER.LABEL_SMOOTHING": (0, 0.99, True),
    "SOLVER.CLIP_NORM": (0, None, True),
    "SOLVER.ACCUMULATE": (1, None, True),
    "SOLVER.EMA": (0, 0.99999, True),
    "SOLVER.SKIP_NONFINITE": (0, None, True),
    "SOLVER.WEIGHT_DECAY": (0, None, True),
    "SOLVER.DOT.DELTA": (-1, 1, True),
    "DATASET.TRAIN_FRACTION": (0, 1, False),
    "DATASET.VAL_FRACTION": (0, 0.9, True),
    "DATASET.NUM_WORKERS": (0, None, True),
    "DATASET.IMAGE_SIZE": (8, MOST_PIXELS, True),
    "DATASET.TEST.BATCH_SIZE": (1, None, True),
    "EXPERIMENT.SEED": (0, 2**32 - 1, True),
    "TEACHER_CACHE.CHECK": (0, None, True),
    "DISTILLER.t": (0, None, False),
    "EA.TEMPERATURE": (0, None, False),
    "EA.UPPER_BOUND": (0, None, False),
    "LOG.TENSORBOARD_FREQ": (1, None, True),
    "LOG.SAVE_CHECKPOINT_FREQ": (1, None, True),
    "LOG.SAVE_CHECKPOINT_STEPS": (0, None, True),
    "LOG.ENTROPY_TRACE": (0, None, True),
}
METHOD_RANGES = {"TEMPERATURE": (0, None, False), "T": (0, None, False), "WARMUP": (0, None, True)}
