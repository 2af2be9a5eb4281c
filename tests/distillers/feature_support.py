"""Goldens of feature methods: networks with the stored outputs of the bundle, and tolerances."""

import torch
from torch import nn

from tests.distillers.support import Fixed, distiller_of
from tests.golden_files import FEATURE, close_relative, load, tensors

PRECISIONS = {"f64": torch.float64, "f32": torch.float32}
TOLERANCE = {  # of losses, and of gradients
    "f64": (FEATURE["tolerance"]["f64 losses and gradients"],) * 2,
    "f32": (FEATURE["tolerance"]["f32 losses"], FEATURE["tolerance"]["f32 gradients"]),
}
LOOSE = FEATURE["tolerance"]["f64 d_crd and d_vid"]


class FixedTeacher(Fixed):
    """With the batch norms before each activation, as the bundle gives their affine parameters."""

    def __init__(self, logits, features, norms):
        super().__init__(logits, features)
        self.norms = nn.ModuleList(norms)

    def get_bn_before_relu(self):
        return list(self.norms)


def fixed_networks(dtype):
    """(student, teacher, the student's tensors by their name in the bundle, to ask for gradients, and the target)."""
    bundle = load("feature", "bundle.npz")
    names = [f"{side}_{kind}{level}" for side in "st" for kind in ("feat", "pre") for level in range(4)]
    names += ["s_pooled", "t_pooled", "s_logits", "t_logits"]
    arrays = dict(zip(names, tensors(bundle, *names, dtype=dtype), strict=True))
    leaves = {name: array.requires_grad_() for name, array in arrays.items() if name[0] == "s"}
    features = {
        side: {
            "feats": [arrays[f"{side}_feat{level}"] for level in range(4)],
            "preact_feats": [arrays[f"{side}_pre{level}"] for level in range(4)],
            "pooled_feat": arrays[f"{side}_pooled"],
        }
        for side in "st"
    }
    norms = []
    for level in (1, 2, 3):
        weight, bias = tensors(bundle, f"t_bn{level}_weight", f"t_bn{level}_bias", dtype=torch.float32)
        norm = nn.BatchNorm2d(len(weight))
        norm.weight.data, norm.bias.data = weight, bias
        norms.append(norm)
    student = Fixed(arrays["s_logits"].detach(), features["s"])
    teacher = FixedTeacher(arrays["t_logits"], features["t"], norms)
    return student, teacher, leaves, torch.from_numpy(bundle["target"])


def fill(module, case, name):
    """Load a module's state from the arrays param_<name>.<position>.<key>, by position."""
    arrays = [case[key] for key in sorted(case) if key.startswith(f"param_{name}.")]
    state = module.state_dict()
    assert len(arrays) == len(state)
    module.load_state_dict({key: torch.as_tensor(array) for key, array in zip(state, arrays, strict=True)})


def check_step(name, file, precision, *opts, modules=(), tolerances=None):
    """One step of the method `name` on the bundle against a d_*.npz: cross-entropy, loss, and every gradient stored.

    `modules`, the distiller's own, are filled from the file. Returns the distiller and the arrays of the file.
    """
    case, dtype = load("feature", file), PRECISIONS[precision]
    loss_tolerance, gradient_tolerance = tolerances or TOLERANCE[precision]
    student, teacher, leaves, target = fixed_networks(dtype)
    distiller = distiller_of(name, student, teacher, *opts).to(dtype)
    for module in modules:
        fill(getattr(distiller, module), case, module)
    _, losses = distiller(image=torch.zeros(4, 3, 8, 8), target=target)
    distilled = sum(loss for key, loss in losses.items() if key != "ce")
    close_relative(losses["ce"], case[f"{precision}__loss_ce"], loss_tolerance, "ce")
    close_relative(distilled, case[f"{precision}__loss_kd"], loss_tolerance, "distillation loss")
    assert distilled.dtype == dtype
    distilled.backward()
    found = {f"grad_{leaf}": tensor.grad for leaf, tensor in leaves.items() if tensor.grad is not None}
    for module in modules:
        stored = [key.split(".", 2)[2] for key in sorted(case) if key.startswith(f"param_{module}.")]
        state = getattr(distiller, module).state_dict(keep_vars=True).values()
        found |= {f"gradparam_{module}.{key}": value.grad for key, value in zip(stored, state, strict=True)}
    stored = [key[5:] for key in case if key.startswith(f"{precision}__grad") and "log_scale" not in key]
    assert {key for key in found if key.startswith("grad_")} == {key for key in stored if key.startswith("grad_")}
    for key in stored:
        close_relative(found[key], case[f"{precision}__{key}"], gradient_tolerance, key)
    return distiller, case
