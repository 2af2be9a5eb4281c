"""The measurements for each figure of the EA-KD paper: runs -> named tables (rows) and arrays.

Each raises UserError, naming the run, where one lacks what the figure needs, such as a trace or a saved epoch.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
import torch

from mdistiller.analysis import arithmetic, networks
from mdistiller.analysis.surface import loss_surface
from mdistiller.analysis.token_weights import token_weights
from mdistiller.engine.trace import balanced_subset, measure
from mdistiller.errors import UserError
from mdistiller.registry import split_ea
from mdistiller.traces import read_trace

LEVEL = 1.6  # of Area@1.6
BATCH = 64  # samples of Figure 4
CLASSES, PER_CLASS = 10, 100  # of a t-SNE: more colours are hard to distinguish; CIFAR-100 has 100 images per class
BOXES = 8  # largest number of epochs shown in Figure 3
TEACHER = "Teacher"

Methods = Mapping[str, Sequence]  # name of a method -> its `RunRecord`s, one per seed
Content = dict[str, list[dict] | dict[str, np.ndarray]]  # name of a file -> rows of a table, or arrays


@dataclass(frozen=True)
class Options:
    """Options of the command line: config overrides, points and images of a loss surface, key of Figure 8."""

    opts: tuple = ()
    points: int = 21
    images: int = 1000
    key: str = "DKD.BETA"


def speed(methods: Methods, options: Options) -> Content:
    """Figure 1: time per batch (ms, the median over seeds of the last epoch's mean) and accuracy of every method."""
    rows = []
    for name, runs in methods.items():
        rates = [run.rate or 0.0 for run in runs]
        for run, rate in zip(runs, rates, strict=True):
            if not rate > 0:
                raise UserError(f"{run.path}/summary.json: images_per_second: expected a number above 0")
        accuracy, deviation = _accuracy(runs)
        milliseconds = 1000 * runs[0].config["SOLVER.BATCH_SIZE"] / median(rates)
        rows.append({"method": name, "ms_per_batch": milliseconds, "top1": accuracy, "std": deviation,
                     "seeds": len(runs), "device": runs[0].metadata.get("device")})
    return {"speed": rows}


def high_entropy_teacher(methods: Methods, options: Options) -> Content:
    """Figure 2: accuracy by segment of teacher entropy on the test images, and t-SNE of the teacher's features."""
    teacher, students = None, {}
    for name, run in _every(methods):
        cfg, data, distiller = networks.open_with_teacher(run.path, "latest", options.opts)
        if teacher is None:
            teacher = _outputs(distiller.teacher, cfg, data)
        students.setdefault(name, []).append(_outputs(distiller.deployed(), cfg, data).correct)
    accuracy = {TEACHER: [teacher.correct], **students}
    rows = []
    for name, correct in accuracy.items():
        rows += _segment_rows(name, name, [(teacher.entropy, one) for one in correct])
    return {"segments": rows, "tsne": _tsne([(TEACHER, 0, teacher, teacher.entropy)])}


def high_entropy_students(methods: Methods, options: Options) -> Content:
    """Figure B1: accuracy of student and teacher by segment of the student's entropy; t-SNE over epochs."""
    rows = []
    for name, runs in methods.items():
        pairs = []
        for run in runs:
            cfg, data, distiller = networks.open_with_teacher(run.path, "latest", options.opts)
            pairs.append((_outputs(distiller.deployed(), cfg, data), _outputs(distiller.teacher, cfg, data)))
        rows += _segment_rows(name, name, [(student.entropy, student.correct) for student, _ in pairs])
        rows += _segment_rows(TEACHER, name, [(student.entropy, teacher.correct) for student, teacher in pairs])
    return {"segments": rows, "tsne": _tsne(_students(methods, options, every_epoch=True))}


def entropy_boxes(methods: Methods, options: Options) -> Content:
    """Figure 3: boxes of student and teacher entropy over epochs, for the top 10 % of teacher entropy (first seed)."""
    rows = []
    for name, runs in methods.items():
        trace = read_trace(runs[0].path)
        epochs = list(trace)
        for epoch in sorted({epochs[round(place)] for place in np.linspace(0, len(epochs) - 1, BOXES)}):
            top = arithmetic.top_share(trace[epoch]["entropy_teacher"])
            for network, key in ((name, "entropy_student"), (TEACHER, "entropy_teacher")):
                boxed = arithmetic.box(trace[epoch][key][top])
                rows.append({"method": name, "network": network, "epoch": epoch, **boxed, "samples": int(top.sum())})
    return {"boxes": rows}


def sample_losses(methods: Methods, options: Options) -> Content:
    """Figure 4: loss of each sample of a batch of training images before and after weighting, early in training."""
    weighted = [runs for name, runs in methods.items() if split_ea(name)[1]]
    if not weighted:
        raise UserError(f"no run of a weighted method among {', '.join(methods)}; Figure 4 shows its weights")
    run = weighted[0][0]
    epoch = networks.saved_epochs(run.path)[0]
    cfg, data, distiller = networks.open_with_teacher(run.path, f"epoch_{epoch}", options.opts)
    rows = measure(cfg, distiller, data.plain_batches(balanced_subset(data.labels, BATCH)))
    weighted_loss = rows["weight"] * rows["kd_loss"]
    order = np.argsort(rows["entropy_teacher"], kind="stable")
    keys = ("entropy_teacher", "entropy_student", "kd_loss", "weight")
    table = [
        {"sample": place, "method": run.method, "epoch": epoch, **{key: float(rows[key][i]) for key in keys},
         "loss_share": float(100 * rows["kd_loss"][i] / rows["kd_loss"].sum()),
         "weighted_share": float(100 * weighted_loss[i] / weighted_loss.sum())}
        for place, i in enumerate(order, start=1)
    ]
    return {"samples": table}


def loss_shares(methods: Methods, options: Options) -> Content:
    """Figure 5: percent of the weighted loss in each quartile of teacher entropy, over epochs; mean over seeds."""
    rows = []
    for name, runs in methods.items():
        traces = [read_trace(run.path) for run in runs]
        for epoch in sorted(set.intersection(*(set(trace) for trace in traces))):
            at = [trace[epoch] for trace in traces]
            shares = [arithmetic.quartile_shares(t["entropy_teacher"], t["weight"] * t["kd_loss"]) for t in at]
            mean, deviation = arithmetic.mean_and_std(shares)
            for number in range(arithmetic.QUARTILES):
                rows.append({"method": name, "epoch": epoch, "quartile": number + 1, "share": mean[number],
                             "std": deviation[number], "seeds": len(runs)})
    return {"shares": rows}


def students(methods: Methods, options: Options) -> Content:
    """Figures 6 and B3: t-SNE of students and teacher; marked: the top 10 % in entropy (of EA variants in weight)."""
    shown = _students(methods, options)
    first = next(iter(methods.values()))[0]
    cfg, data, distiller = networks.open_with_teacher(first.path, "latest", options.opts)
    teacher = _outputs(distiller.teacher, cfg, data)
    return {"tsne": _tsne([*shown, (TEACHER, 0, teacher, teacher.entropy)])}


def surfaces(methods: Methods, options: Options) -> Content:
    """Figures 7 and B2: loss surfaces at the saved epochs on a class-balanced subset of the training images."""
    arrays, rows, images = {}, [], None
    epochs = {name: networks.saved_epochs(runs[0].path) for name, runs in methods.items()}
    for name, runs in methods.items():
        for epoch in epochs[name]:
            cfg, data, distiller = networks.open_with_teacher(runs[0].path, f"epoch_{epoch}", options.opts)
            if images is None:
                images = list(data.plain_batches(balanced_subset(data.labels, options.images)))
                arrays[TEACHER, 0] = loss_surface(distiller.teacher, images, options.points)
            arrays[name, epoch] = loss_surface(distiller.deployed(), images, options.points)
    for (name, epoch), surface in arrays.items():
        rows.append({"network": name, "epoch": epoch, "mean": surface.mean(), "variance": surface.var(),
                     "area": arithmetic.area_below(surface, LEVEL), "level": LEVEL,
                     "images": sum(len(batch["target"]) for batch in images)})
    for row in rows:
        row["area_difference"] = rows[0]["area"] - row["area"]
    grids = {f"{name}|{epoch}": surface for (name, epoch), surface in arrays.items()}
    return {"surfaces": rows, "surfaces_grid": grids}


def accuracy_over(methods: Methods, options: Options) -> Content:
    """Figure 8: accuracy over a key of the config (DKD.BETA), mean and deviation over seeds, variance over the key."""
    rows = []
    for name, runs in methods.items():
        by_value: dict[float, list] = {}
        for run in runs:
            if options.key not in run.config:
                raise UserError(f"{run.path}/config.yaml: {options.key} is not among its settings")
            value = run.config[options.key]
            if not isinstance(value, int | float):
                raise UserError(f"{run.path}/config.yaml: {options.key}: Figure 8 varies a number, found {value!r}")
            by_value.setdefault(float(value), []).append(run)
        accuracy = {value: _accuracy(same) for value, same in sorted(by_value.items())}
        means = [mean for mean, _ in accuracy.values()]
        variance = float(np.var(means, ddof=1)) if len(means) > 1 else float("nan")
        for value, (mean, deviation) in accuracy.items():
            rows.append({"method": name, "key": options.key, "value": value, "top1": mean, "std": deviation,
                         "seeds": len(by_value[value]), "variance": variance})
    return {"values": rows}


@dataclass(frozen=True)
class Figure:
    """How a figure is measured, and for which methods (empty: all)."""

    measure: Callable[[Methods, Options], Content]
    methods: tuple[str, ...] = ()
    several: bool = False  # whether the figure compares several configurations of a method


FIGURES = {
    "1": Figure(speed),
    "2": Figure(high_entropy_teacher, ("KD", "EA-KD")),
    "3": Figure(entropy_boxes, ("KD", "EA-KD")),
    "4": Figure(sample_losses, ("EA-KD",)),
    "5": Figure(loss_shares, ("KD", "EA-KD")),
    "6": Figure(students, ("KD", "EA-KD")),
    "7": Figure(surfaces, ("DKD", "EA-DKD")),
    "8": Figure(accuracy_over, ("DKD", "EA-DKD"), several=True),
    "B1": Figure(high_entropy_students, ("KD", "EA-KD")),
    "B2": Figure(surfaces, ("KD", "EA-KD")),
    "B3": Figure(students),
    "weights": Figure(token_weights, ("EA-FKL",)),
}


def _every(methods):
    return [(name, run) for name, runs in methods.items() for run in runs]


def _outputs(network, cfg, data):
    return networks.outputs_of(network, data.eval_batches("test"), cfg.EA.TEMPERATURE)


def _accuracy(runs):
    mean, deviation = arithmetic.mean_and_std([run.result("last") for run in runs])
    return float(mean), float(deviation)


def _segment_rows(network, method, pairs):
    """Rows of accuracies by segment, over seeds: pairs of (entropy, correct)."""
    mean, deviation = arithmetic.mean_and_std([arithmetic.accuracy_by_segment(*pair) for pair in pairs])
    parts = [pairs[0][0][part] for part in arithmetic.segments_by(pairs[0][0])]
    edges = [(part.min(), part.max()) if len(part) else (np.nan, np.nan) for part in parts]  # of few images
    return [
        {"network": network, "method": method, "segment": number + 1, "from_entropy": float(low),
         "to_entropy": float(high), "top1": mean[number], "std": deviation[number], "seeds": len(pairs)}
        for number, (low, high) in enumerate(edges)
    ]


def _students(methods, options, every_epoch=False):
    """(method, epoch or 0, outputs, values that are ranked) for the first seed of each method."""
    shown = []
    for name, runs in methods.items():
        path = runs[0].path
        names = {epoch: f"epoch_{epoch}" for epoch in networks.saved_epochs(path)} if every_epoch else {0: "latest"}
        for epoch, checkpoint in names.items():
            cfg, data, distiller = networks.open_with_teacher(path, checkpoint, options.opts)
            student = _outputs(distiller.deployed(), cfg, data)
            ranked = student.entropy
            if distiller.weighted:
                teacher = _outputs(distiller.teacher, cfg, data)
                weight = distiller.sample_weight(*(torch.from_numpy(out.logits) for out in (student, teacher)))
                ranked = weight.numpy()
            shown.append((name, epoch, student, ranked))
    return shown


def _tsne(shown):
    """Arrays `<name>|<epoch>|points`, `|target`, `|top` and `|index` of the first test images of ten classes."""
    arrays = {}
    for name, epoch, outputs, ranked in shown:
        kept = arithmetic.first_of_classes(outputs.target, CLASSES, PER_CLASS)
        points, index = networks.embed(outputs.feats[kept], outputs.target[kept])
        values = {"points": points, "target": outputs.target[kept], "top": arithmetic.top_share(ranked[kept]),
                  "index": np.array([index["embedding"], index["features"]])}
        arrays |= {f"{name}|{epoch}|{key}": value for key, value in values.items()}
    return arrays
