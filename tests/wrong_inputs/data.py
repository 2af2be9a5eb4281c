"""Wrong data sets: missing, of a wrong size, damaged, malicious."""

import pickle
from functools import partial
from pathlib import Path

from PIL import Image

from tests.wrong_inputs.case import folder, train
from tests.wrong_inputs.weights import Evil

RECORD = 2 + 3 * 32 * 32  # bytes of a record of CIFAR-100: coarse and fine label, pixels


def cifar_binary(path: Path, saved: Path, number: int, label: int = 0, extra: int = 0) -> None:
    """A sparse file of CIFAR-100: only zeros, and one fine label."""
    with open(path, "wb") as file:
        file.truncate(number * RECORD + extra)
        file.seek(RECORD + 1)
        file.write(bytes([label]))


def image(path: Path, saved: Path, size=(64, 64), mode="RGB", format="PNG") -> None:
    Image.new(mode, size).save(path, format)


def cut_image(path: Path, saved: Path, format="PNG") -> None:
    Image.effect_noise((64, 64), 50).save(path, format)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def dangling(path: Path, saved: Path) -> None:
    path.symlink_to("nowhere.png")


def folders(*names: str, **changes) -> dict:
    """Images data/<name>.png, and other files of the data set: a double underscore is a slash, a dot stays out."""
    files = {f"data/{name}.png": image for name in names}
    return files | {f"data/{name.replace('__', '/')}": content for name, content in changes.items()}


TWO = ("train/a/1", "train/a/2", "train/b/1", "val/a/1", "val/b/1")
TINY = {f"data/train/{name}/images/1.JPEG": partial(image, format="JPEG") for name in ("n1", "n2")}
TINY_VAL = {f"data/val/images/{name}.JPEG": partial(image, format="JPEG") for name in ("v1", "v2")}
LINES = "v1.JPEG\tn1\t0\t0\t63\t63\nv2.JPEG\tn2\t0\t0\t63\t63\n"


def of(kind, name, says, files, *opts):
    return train(f"{kind}: {name}", "DATASET.TYPE", kind, "DATASET.ROOT", "data", *opts, says=says, files=files)


def cifar(name, says, files, kind="cifar100"):
    return of(kind, name, says, {f"data/{path}": content for path, content in files.items()})


BINARY, PYTHON = "cifar-100-binary", "cifar-100-python"
WHOLE = partial(cifar_binary, number=50000)
CIFAR = [
    cifar("nothing there", "cifar100 is missing", {}),
    cifar("an empty folder", "cifar100 is missing", {"none": folder}),
    cifar("nothing there", "cifar10 is missing", {}, "cifar10"),
    of("cifar100", "a file as root", "cifar100 is missing", {"data": "a file\n"}),
    cifar("an empty binary folder", "train.bin is missing", {BINARY: folder}),
    cifar("a binary folder that is a file", "cifar100 is missing", {BINARY: "a file\n"}),
    cifar("an empty train.bin", "train.bin is damaged: 0 bytes", {f"{BINARY}/train.bin": b""}),
    cifar("a train.bin of text", "train.bin is damaged", {f"{BINARY}/train.bin": "404\n"}),
    cifar("a folder train.bin", "train.bin is missing", {f"{BINARY}/train.bin": folder}),
    cifar("half a train.bin", "train.bin is damaged: 76850000 bytes",
          {f"{BINARY}/train.bin": partial(cifar_binary, number=25000)}),
    cifar("a byte more", "train.bin is damaged", {f"{BINARY}/train.bin": partial(cifar_binary, number=50000, extra=1)}),
    cifar("a byte less", "train.bin is damaged",
          {f"{BINARY}/train.bin": partial(cifar_binary, number=50000, extra=-1)}),
    cifar("a label of 100", "train.bin is damaged: label 100",
          {f"{BINARY}/train.bin": partial(cifar_binary, number=50000, label=100)}),
    cifar("no test.bin", "test.bin is missing", {f"{BINARY}/train.bin": WHOLE}),
    cifar("half a test.bin", "test.bin is damaged",
          {f"{BINARY}/train.bin": WHOLE, f"{BINARY}/test.bin": partial(cifar_binary, number=5000)}),
    cifar("an empty python folder", "train is missing", {PYTHON: folder}),
    cifar("an empty python file", "train is damaged (wrong MD5)", {f"{PYTHON}/train": b""}),
    cifar("a python file of text", "train is damaged (wrong MD5)", {f"{PYTHON}/train": "404\n"}),
    cifar("a malicious python file", "train is damaged (wrong MD5)", {f"{PYTHON}/train": pickle.dumps(Evil())}),
    cifar("a malicious meta file", "is missing",
          {f"{PYTHON}/meta": pickle.dumps(Evil()), f"{PYTHON}/test": b""}),
    cifar("a pickle cut off", "train is damaged (wrong MD5)", {f"{PYTHON}/train": pickle.dumps({"data": [1]})[:-4]}),
    cifar("an empty python folder", "data_batch_1 is missing", {"cifar-10-batches-py": folder}, "cifar10"),
    cifar("a malicious batch", "data_batch_1 is damaged (wrong MD5)",
          {"cifar-10-batches-py/data_batch_1": pickle.dumps(Evil())}, "cifar10"),
    cifar("a binary batch too short", "data_batch_1.bin is damaged",
          {"cifar-10-batches-bin/data_batch_1.bin": b"\0" * 3073}, "cifar10"),
]

FOLDERS = [
    of("imagefolder", "nothing there", "imagefolder is missing", {}),
    of("imagefolder", "a file as root", "imagefolder is missing", {"data": "a file\n"}),
    of("imagefolder", "train is a file", "imagefolder is missing", folders(train="a file\n")),
    of("imagefolder", "no train", "train is missing", folders("val/a/1")),
    of("imagefolder", "no val", "val is missing", folders("train/a/1", "train/b/1")),
    of("imagefolder", "an empty train", "no class folders", folders(train=folder, val=folder)),
    of("imagefolder", "images without classes", "no class folders", folders("train/1", "val/1")),
    of("imagefolder", "one class", "1 class", folders("train/a/1", "val/a/1")),
    of("imagefolder", "a class without images", "b: no images", folders(*TWO[:2], *TWO[3:], train__b=folder)),
    of("imagefolder", "a class of text", "b: no images", folders(*TWO[:2], *TWO[3:], train__b__x="text\n")),
    of("imagefolder", "a class that val lacks", "lacks class folders of train/ (1): b", folders(*TWO[:4])),
    of("imagefolder", "a class that train lacks", "class folders that train/ lacks (1): c", folders(*TWO, "val/c/1")),
    of("imagefolder", "other classes", "lacks class folders", folders("train/a/1", "train/b/1", "val/c/1", "val/d/1")),
    *(of("imagefolder", f"{what} ({place})", "1 broken image", {**folders(*TWO), "data/train/b/2.png": content},
         "DATASET.IMAGE_SIZE", size)
      for size, place in ((32, "memory"), (65, "streamed")) for what, content in (
          ("an empty image", b""), ("an image of text", "404\n"), ("an image of bytes", b"\x89PNG\r\n\x1a\n\xff\xff"),
          ("half a PNG", cut_image), ("half a JPEG", partial(cut_image, format="JPEG")), ("a dangling link", dangling),
          ("16 bits", partial(image, mode="I;16")), ("floats", partial(image, mode="F", format="TIFF")),
          ("a GIF cut off", b"GIF89a\x01\x00\x01\x00"), ("a BMP cut off", b"BM\xff\xff\xff\xff\0\0\0\0"),
          ("a WebP cut off", b"RIFF\x10\0\0\0WEBPVP8 "), ("SVG", "<svg xmlns='http://www.w3.org/2000/svg'/>"),
      )),
    of("imagefolder", "all images broken", "every image of the class is broken",
       {**folders(*TWO), "data/train/b/1.png": b""}, "DATASET.SKIP_BROKEN", 1),
    of("imagefolder", "five broken images", "5 broken images", {name: b"" for name in folders(*TWO)}),
    of("imagefolder", "rotations of streamed images", "DATASET.AUGMENTATION", folders(*TWO), "DATASET.AUGMENTATION",
       "rotate_flip", "DATASET.IMAGE_SIZE", 100),
    of("imagenet", "nothing there", "imagenet is missing", {}),
    of("imagenet", "no val", "val is missing", folders("train/a/1", "train/b/1")),
    of("imagenet", "a CIFAR network", "DISTILLER.STUDENT: unknown imagenet model 'resnet8'", folders(*TWO)),
    of("imagenet", "a broken image", "1 broken image", {**folders(*TWO), "data/val/b/2.png": "404\n"}),
    of("tiny_imagenet", "nothing there", "tiny_imagenet is missing", {}),
    of("tiny_imagenet", "no val", "val_annotations.txt is missing", {**TINY}),
    of("tiny_imagenet", "no annotations", "val_annotations.txt is missing", {**TINY, **TINY_VAL}),
    of("tiny_imagenet", "no train", "train is missing", {**TINY_VAL}),
    *(of("tiny_imagenet", name, says, {**TINY, **TINY_VAL, "data/val/val_annotations.txt": text})
      for name, says, text in (
          ("empty annotations", "no images of 2 classes", ""),
          ("annotations of another class", "line 1: class 'n9'", LINES.replace("n1", "n9")),
          ("annotations between spaces", "line 1: class ''", LINES.replace("\t", " ")),
          ("annotations of one class", "no images of 1 class ", LINES.replace("n2", "n1")),
          ("an annotated image that is not there", "1 broken image", LINES.replace("v2", "v3")),
          ("annotations of bytes", "1 broken image", b"\xff\xfe" + LINES.encode()),
          ("a line alone", "line 1: class ''", "v1.JPEG\n"),
          ("a NUL in a name", "broken image", LINES.replace("v2", "v\0")),
          ("a folder", "val_annotations.txt is missing", folder),
      )),
    of("tiny_imagenet", "an image of another size", "32x32 pixels, expected 64x64",
       {**TINY, **TINY_VAL, "data/val/val_annotations.txt": LINES,
        "data/train/n1/images/2.JPEG": partial(image, size=(32, 32), format="JPEG")}),
    of("tiny_imagenet", "half an image", "1 broken image",
       {**TINY, **TINY_VAL, "data/val/val_annotations.txt": LINES,
        "data/train/n1/images/2.JPEG": partial(cut_image, format="JPEG")}),
]
ROOTS = [
    train(f"{kind}: a root with a name too long", "DATASET.TYPE", kind, "DATASET.ROOT", "x" * 300, says="DATASET.ROOT")
    for kind in ("cifar10", "cifar100", "tiny_imagenet", "imagenet", "imagefolder")
]

CASES = [*CIFAR, *FOLDERS, *ROOTS]
