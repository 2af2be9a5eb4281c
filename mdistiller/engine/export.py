"""Export the deployed network of a run: state dict, safetensors, ONNX, TorchScript, or the format of its library."""

import contextlib
import importlib.util
import io
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from mdistiller import files
from mdistiller.engine import checkpoints
from mdistiller.engine.reopen import open_run
from mdistiller.errors import RunError, UserError, first_line
from mdistiller.models import AtInputSize

NEEDS = {"pth": (), "safetensors": ("safetensors",), "onnx": ("onnx", "onnxscript", "onnxruntime"), "torchscript": ()}
TOLERANCE = 1e-4  # largest allowed difference of logits, see `onnx_difference`
ONNX_LIMIT = 2**31 - 2**20  # largest size in bytes of the weights in one ONNX file
ONNX_TORCH = (2, 8)  # older exporters fail with the onnxscript that today's onnx needs
BATCHES = (1, 3)  # batch sizes used to compare ONNX with PyTorch


class Predictor(nn.Module):
    """Wraps a network that returns `Output`; returns only its logits (B, C)."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        return self.network(image).logits


def export_run(
    folder: str | Path,
    checkpoint: str = "best",
    formats: Sequence[str] | None = None,
    output: str | Path | None = None,
    opts: Sequence = (),
) -> list[Path]:
    """Write student.<format> and student.json, which describes them, to `output` (default: <folder>/export).

    `checkpoint` is "best", "latest", "epoch_40" or "ema" (the moving average of the student). The exported network is
    the method's `deployed()` network: the student, sometimes with further modules (such as the teacher's classifier).
    The ONNX model takes images of the size and normalisation of the run's data (`input` in student.json) and any batch
    size; its logits are compared with PyTorch's. A state dict belongs to the network without the conversion of size and
    normalisation that timm and torchvision models get, so that its input may differ (`state_dict_input`). With
    `formats` None all formats of the task are written; a detector becomes a TorchScript module for the data's image
    size, a language model the folder pretrained/ of transformers. Raises UserError for errors that the user can fix,
    RunError when the logits of ONNX and PyTorch differ.
    """
    for name in formats or ():
        if name not in NEEDS:
            raise UserError(f"--formats: expected one of {', '.join(NEEDS)}; found {name!r}")
    folder = Path(folder)
    opts = ["DEVICE", "cpu", "SOLVER.CHANNELS_LAST", False, *opts]
    run = open_run(folder, "latest" if checkpoint == "ema" else checkpoint, opts)
    cfg, network, info = run.cfg, run.distiller.deployed().eval(), run.data.info
    output = Path(output) if output else folder / "export"
    if checkpoint == "ema":
        checkpoints.load_network(network, folder / "student_ema.pth", cfg.DISTILLER.STUDENT)
    formats = _formats_of(run, formats)
    place = run.task.publish(network, output)
    if place is not None:  # the task has a format of its own
        return sorted(place.iterdir())
    size, metadata = info.image_size, _metadata(run, network, folder, checkpoint)
    state = {key: value.detach().clone().contiguous() for key, value in network.state_dict().items()}
    written = []
    for name in formats:
        path = output / f"student.{name}"
        if name == "pth":
            checkpoints.save(state, path)
        elif name == "safetensors":
            save_safetensors(state, path, {"network": cfg.DISTILLER.STUDENT, "dataset": info.name})
        elif name == "torchscript":
            save_script(run.task.script(network), path)
        else:
            metadata["onnx_error"] = save_onnx(Predictor(network).eval(), size, path)
        written.append(path)
    files.write_text(output / "student.json", json.dumps(metadata, indent=1) + "\n")
    return [*written, output / "student.json"]


def _metadata(run, network, folder, checkpoint):
    """The content of student.json."""
    cfg, info = run.cfg, run.data.info
    size, (mean, std) = info.image_size, (info.mean, info.std)
    return {
        "network": cfg.DISTILLER.STUDENT,
        "family": info.family,
        "method": cfg.DISTILLER.TYPE,
        "deployed": type(network).__name__,
        "run": str(folder),
        "checkpoint": checkpoint,
        "dataset": info.name,
        "num_classes": info.num_classes,
        "classes": info.classes,
        "input": {"shape": ["batch", 3, size, size], "mean": mean, "std": std},
        "state_dict_input": _bare_input(run.distiller.student, size, mean, std),
        **run.task.export_metadata(),
    }


def _bare_input(student, size, mean, std):
    """Input shape and normalisation of the student without the wrapper that converts images."""
    if isinstance(student, AtInputSize):
        size, (mean, std) = student.size or size, student.own
    return {"shape": ["batch", 3, size, size], "mean": mean, "std": std}


def _formats_of(run, formats):
    """The formats asked for, or all of the task. Raises UserError for one that the task does not have."""
    own = run.task.export_formats
    for name in formats or ():
        if name not in own:
            raise UserError(f"--formats: {name} cannot hold a network for {run.data.info.name}; expected one of "
                            f"{', '.join(own)}")
    _check_libraries(formats or own)
    return formats or own


def save_script(module: torch.jit.ScriptModule, path: Path) -> None:
    """A TorchScript module as a file, whole or not at all."""
    content = io.BytesIO()
    with _quiet():
        torch.jit.save(module, content)
    files.write_atomically(path, lambda file: file.write(content.getvalue()))


def _check_libraries(formats):
    for name in formats:
        missing = [library for library in NEEDS[name] if importlib.util.find_spec(library) is None]
        if missing:
            raise UserError(f"--formats: {name} needs {' and '.join(missing)}: pip install {' '.join(missing)}")
        if name == "onnx" and torch.__version__ < ONNX_TORCH:
            needed = ".".join(map(str, ONNX_TORCH))
            raise UserError(f"--formats: onnx needs PyTorch {needed} or newer; this is {torch.__version__}")


def save_safetensors(state: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write a state dict and its metadata atomically as a safetensors file."""
    from safetensors.torch import save

    content = save(state, metadata={"format": "pt", **metadata})
    files.write_atomically(path, lambda file: file.write(content))


def save_onnx(network: nn.Module, image_size: int, path: Path) -> float:
    """Write a network in eval mode, images (B, 3, S, S) to logits (B, C), atomically as an ONNX file.

    Returns the largest difference between the logits of onnxruntime and PyTorch. Raises UserError when the network
    cannot be exported, and RunError, without writing a file, when the difference exceeds TOLERANCE.
    """
    size = sum(value.numel() * value.element_size() for value in network.state_dict().values())
    if size > ONNX_LIMIT:
        raise UserError(f"{path}: {size} bytes of weights do not fit into one ONNX file; export pth or safetensors")
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / "student.onnx"
        try:
            with _quiet():
                torch.onnx.export(
                    network, (_images(2, image_size, network),), draft, input_names=["image"],
                    output_names=["logits"], dynamic_shapes=({0: torch.export.Dim("batch")},), dynamo=True,
                    external_data=False, verbose=False,
                )
        except Exception as error:  # the exporter raises many kinds of exceptions
            cause = error.__cause__ or error
            reason = first_line(cause, kind=False)
            raise UserError(f"{path}: this network cannot be exported to ONNX: {reason}") from error
        difference = onnx_difference(network, draft, image_size)
        if not difference <= TOLERANCE:
            raise RunError(f"{path}: ONNX differs from PyTorch by {difference:.2g}, more than {TOLERANCE}: not written")
        content = draft.read_bytes()
    files.write_atomically(path, lambda file: file.write(content))
    return difference


@contextlib.contextmanager
def _quiet():
    """Silence the exporter, which prints warnings and, when it fails, whole graphs; its exception is sufficient."""
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), open(os.devnull, "w") as null:
            warnings.simplefilter("ignore")
            with contextlib.redirect_stdout(null), contextlib.redirect_stderr(null):
                yield
    finally:
        logging.disable(logging.NOTSET)


@torch.no_grad()
def onnx_difference(network: nn.Module, path: Path, image_size: int) -> float:
    """Largest absolute difference of logits between an ONNX file and a network.

    It is divided by the largest absolute logit of the batch if that is above 1.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    differences = []
    for batch in BATCHES:
        image = _images(batch, image_size, network)
        expected = network(image)
        (found,) = session.run(["logits"], {"image": image.numpy()})
        error = (torch.from_numpy(found) - expected).abs().max()
        differences.append(float(error / expected.abs().max().clamp_min(1)))
    return max(differences)


def _images(batch, size, network):
    dtype = next(network.parameters()).dtype
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(batch)).to(dtype)
