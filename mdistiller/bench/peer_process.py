"""The training loop of a checkout of the public mdistiller code base, in a process of its own (see `peer`).

This file is started by its path, never imported: its process knows the package `mdistiller` of the checkout and not
this project's. It says "ready" on its standard output before every step, and takes the step when it reads a line.
"""

import importlib
import importlib.util
import json
import os
import sys
import types
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image
from torch import nn
from torch.utils.data import Dataset

PACKAGE = "mdistiller"


def images_of(folder: Path) -> type[Dataset]:
    """A class that stands for torchvision.datasets.CIFAR100: the same interface, images and labels from <folder>/*.npy.
    """

    class StoredImages(Dataset):
        def __init__(self, root=None, train=True, transform=None, target_transform=None, download=False):
            split = "train" if train else "test"
            self.data, self.transform = np.load(folder / f"{split}_images.npy"), transform
            self.targets, self.target_transform = np.load(folder / f"{split}_labels.npy").tolist(), target_transform

        def __len__(self):
            return len(self.targets)

        def __getitem__(self, index):
            image, target = Image.fromarray(self.data[index]), self.targets[index]
            image = image if self.transform is None else self.transform(image)
            return image, target if self.target_transform is None else self.target_transform(target)

    return StoredImages


def take_package(checkout: Path) -> None:
    """Make the name `mdistiller` mean the checkout's package, whether or not this project is installed."""
    folder = checkout / PACKAGE
    if (folder / "__init__.py").is_file():
        spec = importlib.util.spec_from_file_location(
            PACKAGE, folder / "__init__.py", submodule_search_locations=[str(folder)])
        module = sys.modules[PACKAGE] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    else:
        module = sys.modules[PACKAGE] = types.ModuleType(PACKAGE)
        module.__path__ = [str(folder)]


def stand_in(images: type[Dataset]) -> None:
    """Replace what the machine lacks: the files of CIFAR-100, tensorboardX and CUDA."""
    torchvision.datasets.CIFAR100 = images
    if importlib.util.find_spec("tensorboardX") is None:
        writer = type("SummaryWriter", (), {"__init__": lambda self, *args: None,
                                            "add_scalar": lambda self, *args: None, "flush": lambda self: None})
        sys.modules["tensorboardX"] = types.ModuleType("tensorboardX")
        sys.modules["tensorboardX"].SummaryWriter = writer
    if not torch.cuda.is_available():
        nn.Module.cuda = torch.Tensor.cuda = lambda self, *args, **options: self


def trainer_of(settings: dict, folder: Path):
    """The code base's own trainer, with its own data loader, networks and distiller; the teacher's weights are ours."""
    module = {name: importlib.import_module(f"{PACKAGE}.{name}")
              for name in ("engine", "engine.cfg", "engine.trainer", "dataset", "models", "distillers")}
    cfg = module["engine.cfg"].CFG
    cfg.merge_from_list([
        "DISTILLER.TYPE", "KD", "DISTILLER.TEACHER", settings["pair"][0], "DISTILLER.STUDENT", settings["pair"][1],
        "SOLVER.BATCH_SIZE", settings["batch"], "LOG.PREFIX", str(folder), "LOG.WANDB", False,
    ])
    loader, test_loader, _, classes = module["dataset"].get_dataset(cfg)
    networks = module["models"].cifar_model_dict
    teacher, student = (networks[name][0](num_classes=classes) for name in settings["pair"])
    teacher.load_state_dict(torch.load(folder / "teacher.pth", weights_only=True))
    distiller = module["distillers"].distiller_dict["KD"](student, teacher, cfg)
    distiller = nn.DataParallel(distiller.to("cuda" if torch.cuda.is_available() else "cpu"))
    module["engine.trainer"].validate = lambda *args: (0.0, 0.0, 0.0)  # only steps are measured
    return module["engine"].trainer_dict["base"]("peer", distiller, loader, test_loader, cfg)


def main():
    settings = json.loads(sys.argv[1])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the code base prints is no answer
    folder = Path(settings["folder"])
    take_package(Path(settings["checkout"]))
    stand_in(images_of(folder))
    trainer = trainer_of(settings, folder)
    own_step = trainer.train_iter

    def paced(*args):
        print("ready", file=answers, flush=True)
        if not sys.stdin.readline():
            os._exit(0)  # the other end is closed
        return own_step(*args)

    trainer.train_iter = paced
    for epoch in range(1, trainer.cfg.SOLVER.EPOCHS + 1):
        trainer.train_epoch(epoch)


if __name__ == "__main__":
    main()
