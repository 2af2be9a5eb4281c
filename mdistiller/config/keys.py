"""Every configuration key that is not a method's own: default (mdistiller's, where it has one), range and meaning."""

from mdistiller.config.key import MOST_FLOAT, Key, flat_keys
from mdistiller.config.language import GENERATION, LM

MOST_PIXELS = 4096  # a side: a slip of the finger then meets an error before it meets the memory
MOST_IMAGES = 2**20  # of a batch
MOST_STEPS = 10**9
MOST_EPOCHS = 10**6


def _network(role, default, start):
    """The keys of a teacher or a student. `start` says what its checkpoint may be."""
    return {
        role: Key(default, path=True, help=f"Network of the {role.lower()}: a name of mdistiller.models, timm:<name>, "
                                           "torchvision:<name> or <file>.py:<class>."),
        f"{role}_CHECKPOINT": Key(None, types=(str,), path=True, help=start),
        f"{role}_WEIGHTS": Key(None, types=(str,), help=(
            "Which weights of a checkpoint with several, by their key (state_dict_ema); None: those not averaged.")),
        f"{role}_INPUT_SIZE": Key(None, types=(int,), least=1, most=MOST_PIXELS, help=(
            "Pixels a side of its images; None is the data's size, or its own for a network made for one size.")),
        f"{role}_NORMALIZATION": Key(None, types=(str,), choices=("data", "own"), help=(
            "Whose mean and deviation normalise its images; None is own for timm and torchvision, else data.")),
    }


EXPERIMENT = {
    "PROJECT": Key("distill", help="Folder of the run folder, below LOG.PREFIX."),
    "NAME": Key("", help='Name of the run folder; "{seed}" in it is filled in. Empty makes '
                         "<dataset>_<method>_<teacher>_<student>_s<seed>."),
    "TAG": Key("default", help="A note; nothing depends on it."),
    "SEED": Key(0, least=0, most=2**32 - 1, help="Seed of everything that is random."),
    "LOGIT_STAND": Key(False, sets="DISTILLER.LS", help="Another spelling of DISTILLER.LS."),
    "DETERMINISTIC": Key(True, help="Deterministic kernels wherever the device has them."),
    "PLUGINS": Key([], item=str, path=True, help=(
        "Python files or modules that are imported first: methods and networks of one's own.")),
}

DATASET = {
    "TYPE": Key("cifar100", help=(
        "digits, cifar10, cifar100, tiny_imagenet, imagenet, imagefolder; of text words, dolly, instructions; of boxes "
        "coco, coco_tiny, digits_detection.")),
    "ROOT": Key("data", path=True, help="Folder that holds the data."),
    "DOWNLOAD": Key(False, help="Download data that is not there (CIFAR)."),
    "VAL_FOLDER": Key("val", path=True, help="Folder of the test images of an imagefolder, below DATASET.ROOT."),
    "SEED": Key(None, types=(int,), least=0, most=2**32 - 1, help=(
        "Seed of the order and the augmentation of the images; None is EXPERIMENT.SEED.")),
    "NUM_WORKERS": Key(2, least=0, most=1024, help="Processes that read images which do not live in memory."),
    "TRAIN_FRACTION": Key(1.0, above=0, most=1, help="Fixed, class-balanced part of the training images that is used."),
    "VAL_FRACTION": Key(0.0, least=0, most=0.9, help=(
        "Fixed, class-balanced part of the training images that is set aside; the best epoch is then chosen on it.")),
    "AUGMENTATION": Key("crop_flip", choices=("crop_flip", "crop", "rotate_flip"), help=(
        "How training images vary; crop never mirrors, rotate_flip (images in memory) turns by up to 20 degrees.")),
    "IMAGE_SIZE": Key(224, least=8, most=MOST_PIXELS, help=(
        "Pixels a side of imagenet and imagefolder; an imagefolder of up to 64 lives in memory.")),
    "SKIP_BROKEN": Key(False, help="Leave out images that cannot be read, which otherwise end the run at its start."),
    "TEST": {
        "BATCH_SIZE": Key(64, least=1, most=MOST_IMAGES, help="Images of a batch in evaluation."),
        "MIN_SIZE": Key(800, least=8, most=MOST_PIXELS, help="As MIN_SIZES, in evaluation."),
    },
    "MIN_SIZES": Key([640, 672, 704, 736, 768, 800], item=int, least=8, most=MOST_PIXELS, help=(
        "Pixels of the shorter side of images with boxes, drawn for each image.")),
    "MAX_SIZE": Key(1333, least=8, most=MOST_PIXELS, help="Pixels of the longer side of images with boxes at most."),
    "RELEASED_PIXEL_MEAN": Key(False, help=(
        "Detection: the pixel means of a ResNet-18 student in the order of the published code, a slip of it.")),
    "DRAWN_SEED": Key(0, least=0, most=2**32 - 1, help="Seed of the images of digits_detection, which are drawn."),
}

MODEL = {
    "PRESET": Key("detectron2", choices=("detectron2", "torchvision"), help=(
        "Whose pooling, anchors, box losses and strides a detector has.")),
    "NORM": Key("frozen", choices=("frozen", "bn", "sync", "gn"), help=(
        "Norms of a detector's body: frozen as trained on ImageNet; bn, sync or gn to train from random weights.")),
    "FREEZE": Key(2, least=0, most=5, help=(
        "The stem and the stages of a ResNet with frozen norms up to this one do not learn; 0: all learn.")),
    "CHANNELS": Key(256, least=1, most=4096, help="Channels of a detector's feature pyramid."),
    "HEAD_CHANNELS": Key(1024, least=1, most=16384, help="Width of the two layers of a detector's box head."),
    "STUDENT_WIDTH": Key(1.0, above=0, most=8, help="Factor on the channels of a detector's body."),
    "TEACHER_WIDTH": Key(1.0, above=0, most=8, help="Factor on the channels of a detector's body."),
    "ANCHOR_SIZES": Key([32.0, 64.0, 128.0, 256.0, 512.0], item=float, least=1, most=MOST_PIXELS, help=(
        "Pixels of the anchors' sides, one size for each level of the pyramid.")),
}

DETECTION = {
    "RPN_BATCH": Key(256, least=1, most=MOST_IMAGES, help=(
        "Anchors of an image that the region proposal network is trained on.")),
    "ROI_BATCH": Key(512, least=1, most=MOST_IMAGES, help=(
        "Proposals of an image that the box head is trained on, and distilled on.")),
    "ANCHORS_KEPT": Key([2000, 1000], item=int, least=1, most=MOST_IMAGES, help=(
        "Anchors of a level and image before overlaps are removed, in training and in evaluation.")),
    "PROPOSALS": Key([1000, 1000], item=int, least=1, most=MOST_IMAGES, help=(
        "Proposals of an image, in training and in evaluation.")),
    "SCORE_THRESHOLD": Key(0.05, least=0, most=1, help="Least score of a detection."),
    "NMS": Key(0.5, least=0, most=1, help="Overlap above which the lower of two detections of a class is dropped."),
    "DETECTIONS": Key(100, least=1, most=MOST_IMAGES, help="Detections of an image at most."),
    "FOREGROUND_ONLY": Key(False, help="Distil on the foreground among the sampled proposals alone."),
}

DISTILLER = {
    "TYPE": Key("NONE", help="The method; EA-<method> weighs its samples (docs/methods.md lists them)."),
    **_network("TEACHER", "ResNet50", (
        "Weights of the teacher: a file, pretrained or random; None looks in checkpoints/ and download_ckpts/.")),
    **_network("STUDENT", "resnet32", (
        "Weights that the student starts from: a file or pretrained; None is from scratch.")),
    "FOLD_TEACHER": Key(False, help=(
        "Fold batch norms of the teacher into its convolutions, where a method reads its logits alone.")),
    "EA": Key(False, help="Weigh samples by their entropy: KD with EA is EA-KD."),
    "LS": Key(False, help="Standardize the logits inside logit losses."),
    "t": Key(None, types=(float,), above=0, most=1e4, sets="EA.TEMPERATURE", help=(
        "Another spelling of EA.TEMPERATURE.")),
}

LEVELS = ("sample", "group", "token", "sequence", "mean_weight", "prompt_and_response")
EA = {
    "KIND": Key("ea", choices=("none", "base", "interact", "ea", "student", "inverted_teacher", "inverted_student",
                               "constant", "normalized"), help="Formula of the weight (paper, Eqs. 8 to 12)."),
    "TEMPERATURE": Key(3.0, above=0, most=1e4, help=(
        "Temperature T' of the entropies: 3 on CIFAR-100, 2 on ImageNet and for transformer teachers.")),
    "UPPER_BOUND": Key(None, types=(float, str), choices=("log_c",), above=0, most=1e6, help=(
        "Upper bound of the entropy; None or log_c is the logarithm of the number of classes.")),
    "LOGITS": Key("raw", choices=("raw", "standardized"), help="Which logits the weights come from."),
    "COMPAT": Key("paper", choices=("paper", "release"), help=(
        "release makes the choices of the published code, method by method.")),
    "LEVEL": Key("sample", choices=LEVELS, help=(
        "Whether each sample has a weight of its own (token says the same of text), or all samples of an image or "
        "sequence share that of their mean entropies (group, sequence; prompt_and_response: of all tokens) or their "
        "mean weight.")),
}

SOLVER = {
    "TRAINER": Key("base", choices=("base", "crd", "dot", "crd_dot", "ours", "aug"), help=(
        "Trainer of mdistiller's files; dot and crd_dot choose the optimiser DOT, the others change nothing.")),
    "TYPE": Key("SGD", choices=("SGD", "AdamW"), help="The optimiser."),
    "BATCH_SIZE": Key(64, least=1, most=MOST_IMAGES, help="Images of a batch, over all processes."),
    "EPOCHS": Key(240, least=1, most=MOST_EPOCHS, help="Passes over the training images."),
    "MAX_ITER": Key(0, least=0, most=MOST_STEPS, help="Updates of the whole run, in place of EPOCHS; 0 counts epochs."),
    "EVAL_PERIOD": Key(0, least=0, most=MOST_STEPS, help=(
        "With MAX_ITER: updates between evaluations, which an epoch then is; 0 is all of them.")),
    "LR": Key(0.05, above=0, most=MOST_FLOAT, help="Learning rate."),
    "SCHEDULE": Key("step", choices=("step", "cosine"), help=(
        "step lowers the rate at LR_DECAY_STAGES (or STEPS), cosine lowers it to MIN_LR step by step.")),
    "LR_DECAY_STAGES": Key([150, 180, 210], item=int, least=0, most=MOST_EPOCHS, help=(
        "Epochs after which the rate is multiplied by LR_DECAY_RATE.")),
    "STEPS": Key([], item=int, least=1, most=MOST_STEPS, help=(
        "Updates after which the rate is multiplied by LR_DECAY_RATE, in place of LR_DECAY_STAGES.")),
    "LR_DECAY_RATE": Key(0.1, above=0, most=1e4, help="Factor of the rate at each stage."),
    "WARMUP_EPOCHS": Key(0.0, least=0, most=MOST_EPOCHS, help="Epochs of a linear rise of the rate before the cosine."),
    "WARMUP_ITERS": Key(0, least=0, most=MOST_STEPS, help="Updates of a linear rise of the rate, of every schedule."),
    "WARMUP_FACTOR": Key(0.0, least=0, most=1, help="Start of the rise of WARMUP_ITERS, as a part of LR."),
    "MIN_LR": Key(0.0, least=0, most=MOST_FLOAT, help="Where the cosine ends."),
    "MOMENTUM": Key(0.9, least=0, most=1, help="Momentum of SGD."),
    "NESTEROV": Key(False, help="Nesterov's momentum."),
    "BETAS": Key([0.9, 0.999], item=float, least=0, below=1, help="Decays of the two moments of AdamW."),
    "EPS": Key(1e-8, above=0, most=1, help="Added to the denominator of AdamW."),
    "WEIGHT_DECAY": Key(0.0001, least=0, most=MOST_FLOAT, help="Weight decay."),
    "NO_DECAY": Key("none", choices=("none", "norm", "norm_and_bias"), help=(
        "Parameters without weight decay: none, those of normalisation layers, or those and all biases.")),
    "LABEL_SMOOTHING": Key(0.0, least=0, most=0.99, help="Label smoothing of the cross-entropy."),
    "CLIP_NORM": Key(0.0, least=0, most=MOST_FLOAT, help="Greatest norm of the gradient; 0 does not clip."),
    "ACCUMULATE": Key(1, least=1, most=MOST_IMAGES, help=(
        "Batches whose gradients make one update, of BATCH_SIZE * ACCUMULATE images.")),
    "EMA": Key(0.0, least=0, most=0.99999, help=(
        "Decay of a moving average of the student, evaluated and saved beside it; 0 keeps none.")),
    "SKIP_NONFINITE": Key(0, least=0, most=MOST_STEPS, help=(
        "Steps without a finite loss that are left out before the run ends; above 0, each waits for the device.")),
    "SYNC_BN": Key(False, help="Batch norm over all processes (CUDA)."),
    "AMP": Key("none", choices=("none", "bf16", "fp16"), help="torch.autocast of the networks; losses are in float32."),
    "CHANNELS_LAST": Key(True, help="Memory format of the networks."),
    "DOT": {"DELTA": Key(0.075, least=-1, most=1, help=(
        "Momentum that DOT adds for the distillation loss and takes from the cross-entropy."))},
}

TEACHER_CACHE = {
    "ENABLED": Key(False, help="Store the teacher's logits once for all runs with the same teacher and data."),
    "DIR": Key("teacher_cache", path=True, help="Folder of the caches."),
    "DTYPE": Key("float16", choices=("float16", "float32"), help=(
        "Precision of the stored logits; float32 is exact to the rounding of a forward pass, and twice the size.")),
    "CHECK": Key(16, least=0, most=MOST_IMAGES, help="Stored rows compared with the teacher when a run starts."),
}

LOG = {
    "PREFIX": Key("./output", path=True, help="Folder of all run folders."),
    "TENSORBOARD_FREQ": Key(500, least=1, most=MOST_STEPS, help="Steps between the scalars within an epoch."),
    "SAVE_CHECKPOINT_FREQ": Key(40, least=1, most=MOST_EPOCHS, help=(
        "Epochs between saves of epoch_<n>.pth and student_<n>.pth.")),
    "SAVE_CHECKPOINT_STEPS": Key(0, least=0, most=MOST_STEPS, help=(
        "Steps between saves of latest.pth within an epoch; 0 saves after epochs only.")),
    "ENTROPY_TRACE": Key(0, least=0, most=10**8, help=(
        "Training images whose entropies and losses are written after each epoch, for figures.")),
    "WANDB": Key(True, help="Read for compatibility and without effect: runs are logged to files and TensorBoard."),
}

KEYS = {
    "EXPERIMENT": EXPERIMENT,
    "TASK": {"TYPE": Key(None, types=(str,), choices=("classification", "detection", "language"), help=(
        "What a sample is: an image, a box proposal or a token; None is what DATASET.TYPE says."))},
    "DATASET": DATASET,
    "MODEL": MODEL,
    "DETECTION": DETECTION,
    "DISTILLER": DISTILLER,
    "EA": EA,
    "SOLVER": SOLVER,
    "TEACHER_CACHE": TEACHER_CACHE,
    "LM": LM,
    "GENERATION": GENERATION,
    "COMPILE": Key(False, help="torch.compile of student and teacher."),
    "DEVICE": Key("auto", help="Device of the networks; auto is CUDA, else MPS, else CPU."),
    "LOG": LOG,
}
GENERAL = flat_keys(KEYS)
OTHER_SPELLINGS = {name: key.sets for name, key in GENERAL.items() if key.sets}
