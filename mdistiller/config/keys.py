"""All configuration keys outside the methods' nodes, with default (that of mdistiller, if any), range and meaning."""

from mdistiller.config.key import MOST_FLOAT, Key, flat_keys
from mdistiller.config.language import GENERATION, LM

MOST_PIXELS = 4096  # of a side: a typing error gives an error message before it fills the memory
MOST_IMAGES = 2**20  # in a batch
MOST_STEPS = 10**9
MOST_EPOCHS = 10**6
MOST_CLASSES = 10**6


def _network(role, default, start):
    """The keys of a teacher or a student. `start` is the help text of its checkpoint."""
    return {
        role: Key(default, path=True, help=f"Network of the {role.lower()}: a name of mdistiller.models, timm:<name>, "
                                           "torchvision:<name> or <file>.py:<class>."),
        f"{role}_CHECKPOINT": Key(None, types=(str,), path=True, help=start),
        f"{role}_WEIGHTS": Key(None, types=(str,), help=(
            "Key of the weights in a checkpoint with several, such as state_dict_ema; None: those without averaging.")),
        f"{role}_INPUT_SIZE": Key(None, types=(int,), least=1, most=MOST_PIXELS, help=(
            "Image size in pixels; None is that of the data, or that of the network if it accepts only one size.")),
        f"{role}_NORMALIZATION": Key(None, types=(str,), choices=("data", "own"), help=(
            "Normalisation of its images: its own or that of the data; None is own for timm and torchvision only.")),
    }


EXPERIMENT = {
    "PROJECT": Key("distill", help="Folder of the run folder, below LOG.PREFIX."),
    "NAME": Key("", help='Name of the run folder; "{seed}" in it is replaced by the seed. Empty means '
                         "<dataset>_<method>_<teacher>_<student>_s<seed>."),
    "TAG": Key("default", help="A note without effect."),
    "SEED": Key(0, least=0, most=2**32 - 1, help="Seed of all random numbers."),
    "LOGIT_STAND": Key(False, sets="DISTILLER.LS", help="Alternative name of DISTILLER.LS."),
    "DETERMINISTIC": Key(True, help="Use deterministic kernels if the device has them."),
    "PLUGINS": Key([], item=str, path=True, help=(
        "Python files or modules with your own methods and networks, which are imported first.")),
}

DATASET = {
    "TYPE": Key("cifar100", help=(
        "digits, cifar10, cifar100, tiny_imagenet, imagenet, imagefolder; for text words, dolly, instructions; for "
        "detection coco, coco_tiny, digits_detection.")),
    "ROOT": Key("data", path=True, help="Folder of the data."),
    "DOWNLOAD": Key(False, help="Download missing data (CIFAR)."),
    "VAL_FOLDER": Key("val", path=True, help="Folder of the test images of imagenet and imagefolder, beside train/."),
    "SEED": Key(None, types=(int,), least=0, most=2**32 - 1, help=(
        "Seed of the order and the augmentation of the images; None is EXPERIMENT.SEED.")),
    "NUM_WORKERS": Key(2, least=0, most=1024, help="Processes that read images, if these are not kept in memory."),
    "TRAIN_FRACTION": Key(1.0, above=0, most=1, help="Fixed, class-balanced part of the training images to use."),
    "VAL_FRACTION": Key(0.0, least=0, most=0.9, help=(
        "Fixed, class-balanced part of the training images for validation; the best epoch is then chosen on it.")),
    "AUGMENTATION": Key("crop_flip", choices=("crop_flip", "crop", "rotate_flip"), help=(
        "Augmentation; crop does not mirror, rotate_flip (images in memory only) rotates by up to 20 degrees.")),
    "IMAGE_SIZE": Key(224, least=8, most=MOST_PIXELS, help=(
        "Image size of imagenet and imagefolder in pixels; an imagefolder of up to 64 is kept in memory.")),
    "SKIP_BROKEN": Key(False, help="Skip images that cannot be read, instead of ending with an error."),
    "TEST": {
        "BATCH_SIZE": Key(64, least=1, most=MOST_IMAGES, help="Batch size of the evaluation."),
        "ENABLED": Key(True, help="Measure the test images after each epoch; False needs validation images."),
        "MIN_SIZE": Key(800, least=8, most=MOST_PIXELS, help="The same as MIN_SIZES for evaluation."),
    },
    "MIN_SIZES": Key([640, 672, 704, 736, 768, 800], item=int, least=8, most=MOST_PIXELS, help=(
        "Detection: shorter side of an image in pixels, drawn from this list for each image.")),
    "MAX_SIZE": Key(1333, least=8, most=MOST_PIXELS, help="Detection: maximum of the longer side, in pixels."),
    "RELEASED_PIXEL_MEAN": Key(False, help=(
        "Detection: the pixel means of a ResNet-18 student in the order of the published code (a mistake).")),
    "DRAWN_SEED": Key(0, least=0, most=2**32 - 1, help="Seed of the generated images of digits_detection."),
}

MODEL = {
    "PRESET": Key("detectron2", choices=("detectron2", "torchvision"), help=(
        "Library whose pooling, anchors, box losses and strides a detector uses.")),
    "NORM": Key("frozen", choices=("frozen", "bn", "sync", "gn"), help=(
        "Norm layers of a detector's backbone: frozen (trained on ImageNet), or bn, sync or gn for random weights.")),
    "FREEZE": Key(2, least=0, most=5, help=(
        "Parts of a ResNet with frozen norms that are frozen: the stem, then its stages in order; 0: none.")),
    "CHANNELS": Key(256, least=1, most=4096, help="Channels of a detector's feature pyramid."),
    "HEAD_CHANNELS": Key(1024, least=1, most=16384, help="Width of the two layers of a detector's box head."),
    "STUDENT_WIDTH": Key(1.0, above=0, most=8, help="Factor of the student backbone's channels (detection)."),
    "TEACHER_WIDTH": Key(1.0, above=0, most=8, help="Factor of the teacher backbone's channels (detection)."),
    "ANCHOR_SIZES": Key([32.0, 64.0, 128.0, 256.0, 512.0], item=float, least=1, most=MOST_PIXELS, help=(
        "Side of the anchors in pixels, one size for each level of the pyramid.")),
}

DETECTION = {
    "RPN_BATCH": Key(256, least=1, most=MOST_IMAGES, help=(
        "Number of anchors per image on which the region proposal network is trained.")),
    "ROI_BATCH": Key(512, least=1, most=MOST_IMAGES, help=(
        "Number of proposals per image on which the box head is trained and distilled.")),
    "ANCHORS_KEPT": Key([2000, 1000], item=int, least=1, most=MOST_IMAGES, help=(
        "Anchors kept per level and image before non-maximum suppression, in training and in evaluation.")),
    "PROPOSALS": Key([1000, 1000], item=int, least=1, most=MOST_IMAGES, help=(
        "Number of proposals per image, in training and in evaluation.")),
    "SCORE_THRESHOLD": Key(0.05, least=0, most=1, help="Minimum score of a detection."),
    "NMS": Key(0.5, least=0, most=1, help="Overlap (IoU) of non-maximum suppression of detections of a class."),
    "DETECTIONS": Key(100, least=1, most=MOST_IMAGES, help="Maximum number of detections per image."),
    "FOREGROUND_ONLY": Key(False, help=(
        "Distil only on the foreground proposals among the sampled ones. The loss is then their mean, not that of all "
        "proposals, and greater by about the ratio of the two numbers.")),
}

DISTILLER = {
    "TYPE": Key("NONE", help="The method, see docs/methods.md; EA-<method> adds entropy-adaptive sample weights."),
    **_network("TEACHER", "ResNet50", (
        "Weights of the teacher: a file, pretrained or random; None searches checkpoints/ and download_ckpts/.")),
    "TEACHER_AMP": Key("same", choices=("same", "none", "bf16"), help=(
        "Precision of the teacher's passes; same is that of SOLVER.AMP.")),
    **_network("STUDENT", "resnet32", (
        "Initial weights of the student: a file or pretrained; None trains from scratch.")),
    "FOLD_TEACHER": Key(False, help=(
        "Fold the teacher's batch norms into its convolutions, if the method reads only its logits.")),
    "EA": Key(False, help="Weight samples by entropy: KD with EA is EA-KD."),
    "LS": Key(False, help="Logit standardization: standardize the logits in logit losses."),
    "t": Key(None, types=(float,), above=0, most=1e4, sets="EA.TEMPERATURE", help=(
        "Alternative name of EA.TEMPERATURE.")),
}

LEVELS = ("sample", "group", "token", "sequence", "mean_weight", "image", "prompt_and_response")
EA = {
    "KIND": Key("ea", choices=("none", "base", "interact", "ea", "student", "inverted_teacher", "inverted_student",
                               "constant", "normalized", "max_logit", "random"), help=(
        "Formula of the weight (paper, Eqs. 8 to 12), or a control: constant only rescales the loss, normalized only "
        "reweights, max_logit uses the greatest probability instead of the entropy, and random gives the weights of "
        "the batch to its samples in a random order.")),
    "TEMPERATURE": Key(3.0, above=0, most=1e4, help=(
        "Temperature T' of the entropies: 3 on CIFAR-100, 2 on ImageNet and for transformer teachers.")),
    "UPPER_BOUND": Key(None, types=(float, str), choices=("log_c",), above=0, most=1e6, help=(
        "Upper bound of the entropy; log_c is the logarithm of the number of classes, and so is None, or with COMPAT "
        "release the bound of the published code. A stated bound wins over that.")),
    "LOGITS": Key("raw", choices=("raw", "standardized"), help=(
        "Logits from which the weights are computed. With COMPAT release those of the published code; standardized, if "
        "it is stated, wins over them.")),
    "COMPAT": Key("paper", choices=("paper", "release"), help=(
        "release uses the settings of the published code, which differ between methods.")),
    "LEVEL": Key("sample", choices=LEVELS, help=(
        "sample (token): each sample has its own weight. group (sequence): the samples of an image or sequence have "
        "the weight of their mean entropies; prompt_and_response includes all tokens in the mean. mean_weight (image): "
        "they have the mean of their weights. For images each is the same as sample.")),
}

SOLVER = {
    "TRAINER": Key("base", choices=("base", "crd", "dot", "crd_dot", "ours", "aug", "crld", "mlld"), help=(
        "Trainer in the files of mdistiller and its forks; dot and crd_dot select the optimiser DOT, the others have "
        "no effect.")),
    "TYPE": Key("SGD", choices=("SGD", "AdamW"), help="The optimiser."),
    "BATCH_SIZE": Key(64, least=1, most=MOST_IMAGES, help="Samples in a batch, over all processes."),
    "EPOCHS": Key(240, least=1, most=MOST_EPOCHS, help="Number of passes over the training data."),
    "MAX_ITER": Key(0, least=0, most=MOST_STEPS, help="Updates of the whole run, in place of EPOCHS; 0 uses EPOCHS."),
    "EVAL_PERIOD": Key(0, least=0, most=MOST_STEPS, help=(
        "With MAX_ITER: number of updates between evaluations, which then form an epoch; 0 means MAX_ITER.")),
    "LR": Key(0.05, above=0, most=MOST_FLOAT, help="Learning rate."),
    "SCHEDULE": Key("step", choices=("step", "cosine"), help=(
        "step lowers the rate at LR_DECAY_STAGES (or STEPS), cosine lowers it to MIN_LR in every step.")),
    "LR_DECAY_STAGES": Key([150, 180, 210], item=int, least=0, most=MOST_EPOCHS, help=(
        "Epochs after which the rate is multiplied by LR_DECAY_RATE.")),
    "STEPS": Key([], item=int, least=1, most=MOST_STEPS, help=(
        "Updates after which the rate is multiplied by LR_DECAY_RATE, in place of LR_DECAY_STAGES.")),
    "LR_DECAY_RATE": Key(0.1, above=0, most=1e4, help="Factor by which the rate is multiplied at each stage."),
    "WARMUP_EPOCHS": Key(0.0, least=0, most=MOST_EPOCHS, help="Epochs of a linear rise of the rate (all schedules)."),
    "WARMUP_ITERS": Key(0, least=0, most=MOST_STEPS, help="Updates of a linear rise of the rate (all schedules)."),
    "WARMUP_FACTOR": Key(0.0, least=0, most=1, help="Rate at the start of WARMUP_ITERS, as a fraction of LR."),
    "MIN_LR": Key(0.0, least=0, most=MOST_FLOAT, help="Rate at the end of a cosine schedule."),
    "MOMENTUM": Key(0.9, least=0, most=1, help="Momentum of SGD."),
    "NESTEROV": Key(False, help="Use Nesterov momentum."),
    "BETAS": Key([0.9, 0.999], item=float, least=0, below=1, help="Decay rates of the two moments of AdamW."),
    "EPS": Key(1e-8, above=0, most=1, help="Added to the denominator of AdamW."),
    "WEIGHT_DECAY": Key(0.0001, least=0, most=MOST_FLOAT, help="Weight decay."),
    "NO_DECAY": Key("none", choices=("none", "norm", "norm_and_bias"), help=(
        "Parameters without weight decay: none, those of normalisation layers, or those and all biases.")),
    "LABEL_SMOOTHING": Key(0.0, least=0, most=0.99, help="Label smoothing of the cross-entropy."),
    "CLIP_NORM": Key(0.0, least=0, most=MOST_FLOAT, help="Maximum norm of the gradient; 0 does not clip."),
    "ACCUMULATE": Key(1, least=1, most=MOST_IMAGES, help=(
        "Number of batches whose gradients form one update, of BATCH_SIZE * ACCUMULATE samples.")),
    "EMA": Key(0.0, least=0, most=0.99999, help=(
        "Decay of a moving average of the student, which is evaluated and saved in addition to it; 0 means none.")),
    "SKIP_NONFINITE": Key(0, least=0, most=MOST_STEPS, help=(
        "Number of steps with a non-finite loss that are skipped before the run fails; above 0, every step waits for "
        "the device.")),
    "SYNC_BN": Key(False, help="Batch norm over all processes (CUDA)."),
    "AMP": Key("none", choices=("none", "bf16", "fp16", "auto"), help=(
        "torch.autocast of the networks; losses are float32. auto is bf16 on NVIDIA GPUs from Ampere on, on AMD's GPUs "
        "and on CPUs with AMX, else none; a run records and keeps what it was.")),
    "CUDA_GRAPH": Key("never", choices=("never", "auto"), help=(
        "auto records the training step as a CUDA graph, which saves the launches of its kernels, wherever it can.")),
    "CHANNELS_LAST": Key(True, help="Use the memory format channels_last."),
    "DOT": {"DELTA": Key(0.075, least=-1, most=1, help=(
        "DOT: added to the momentum of the distillation loss, subtracted from that of the cross-entropy."))},
}

TEACHER_CACHE = {
    "ENABLED": Key(False, help="Store the teacher's logits once for all runs with the same teacher and data."),
    "DIR": Key("teacher_cache", path=True, help="Folder of the caches."),
    "DTYPE": Key("float16", choices=("float16", "float32"), help=(
        "Precision of the stored logits; float32 equals a forward pass up to rounding, at twice the size.")),
    "KIND": Key("views", choices=("views", "replay"), help=(
        "views stores the logits of the 162 crops and flips of each image; replay those of every view by epoch and "
        "image, for any augmentation and for methods with two views, shared by runs with the same DATASET.SEED.")),
    "TOPK": Key(0, least=0, most=MOST_CLASSES, help=(
        "Store only this many of the largest logits and spread the remaining probability evenly over the other "
        "classes; 0 stores all logits.")),
    "CHECK": Key(16, least=0, most=MOST_IMAGES, help="Stored rows compared with the teacher at the start of a run."),
}

LOG = {
    "PREFIX": Key("./output", path=True, help="Folder that contains all run folders."),
    "TENSORBOARD_FREQ": Key(500, least=1, most=MOST_STEPS, help="Steps between scalars logged within an epoch."),
    "SAVE_CHECKPOINT_FREQ": Key(40, least=1, most=MOST_EPOCHS, help=(
        "Epochs between saves of epoch_<n>.pth and student_<n>.pth.")),
    "SAVE_CHECKPOINT_STEPS": Key(0, least=0, most=MOST_STEPS, help=(
        "Steps between saves of latest.pth within an epoch; 0 saves after epochs only.")),
    "ENTROPY_TRACE": Key(0, least=0, most=10**8, help=(
        "Number of training images whose entropies and losses are written after each epoch, for figures.")),
    "WANDB": Key(True, help="Accepted without effect: runs are logged to files and TensorBoard."),
}

KEYS = {
    "EXPERIMENT": EXPERIMENT,
    "TASK": {"TYPE": Key(None, types=(str,), choices=("classification", "detection", "language"), help=(
        "classification, detection or language (a sample is an image, a box proposal or a token); None follows "
        "DATASET.TYPE."))},
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
