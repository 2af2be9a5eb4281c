"""Wrong run folders, teacher caches and measurements: missing or damaged records, or those of something else."""

import io
import json
import os
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import torch
import yaml

from tests.wrong_inputs.case import folder, pipe, train, typed
from tests.wrong_inputs.weights import Evil

# --- runs -------------------------------------------------------------------------------------------------------------


def run_copy(path: Path, saved: Path, change=None, left_out="tb") -> None:
    """A copy of the run, without the files of a pattern, changed by `change(its folder)`."""
    shutil.copytree(saved / "runs/distill/ea", path, ignore=shutil.ignore_patterns(left_out))
    if change:
        change(path)


def text_of(name, text):
    return lambda run: (run / name).write_bytes(text.encode() if isinstance(text, str) else text)


def json_of(name, **changes):
    """A record with other entries; one that is None is left out."""
    def change(run):
        content = json.loads((run / name).read_text()) | changes
        (run / name).write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    return change


def config_of(**changes):
    """config.yaml with other keys: a double underscore is a dot, None leaves the key out."""
    def change(run):
        tree = yaml.safe_load((run / "config.yaml").read_text())
        for key, value in changes.items():
            *nodes, leaf = key.split("__")
            node = tree
            for name in nodes:
                node = node[name]
            node[leaf] = value
            if value is None:
                del node[leaf]
        (run / "config.yaml").write_text(yaml.safe_dump(tree))
    return change


def state_of(name, change):
    def changed(run):
        state = torch.load(run / name, weights_only=True)
        torch.save(change(state), run / name)
    return changed


def inside(path, value):
    """A state with another value at a dotted path; the value may be a function of the one before."""
    def change(state):
        *nodes, last = [int(word) if word.isdecimal() else word for word in path.split("/")]
        node = state
        for word in nodes:
            node = node[word]
        node[last] = value(node[last]) if callable(value) else value
        return state
    return change


def without(key):
    return lambda state: {name: value for name, value in state.items() if name != key}


def as_pipe(name):
    def change(run):
        (run / name).unlink()
        pipe(run / name, run)
    return change


def gone(name):
    return lambda run: (run / name).unlink()


def a_run(change, left_out="tb"):
    return {"any/ea": partial(run_copy, change=change, left_out=left_out)}


def records_of_a_run(change):
    return a_run(change, left_out="*.pth")


LISTED = {  # what is wrong with the run below any/ -> (how, what the error says)
    "a config that is cut off": (lambda run: os.truncate(run / "config.yaml", 100), "DISTILLER.TYPE is missing"),
    "a config of bytes": (text_of("config.yaml", b"\xff\xfe"), "any/ea/config.yaml"),
    "a config of a list": (text_of("config.yaml", "- a\n"), "any/ea/config.yaml"),
    "a config cut off": (text_of("config.yaml", "SOLVER: {LR: 0.1\n"), "any/ea/config.yaml"),
    "a config with a tag": (text_of("config.yaml", "a: !!python/name:os.system\n"), "any/ea/config.yaml"),
    "a method that is a list": (config_of(DISTILLER__TYPE=["KD"]), "any/ea/config.yaml: DISTILLER.TYPE"),
    "a seed that is a word": (config_of(EXPERIMENT__SEED="one"), "any/ea/config.yaml: EXPERIMENT.SEED"),
    "data that is a list": (config_of(DATASET__TYPE=["digits"]), "any/ea/config.yaml: DATASET.TYPE"),
    "epochs that are a word": (config_of(SOLVER__EPOCHS="many"), "any/ea/config.yaml: SOLVER.EPOCHS"),
    "a number beyond floats": (text_of("config.yaml", f"OWN: {{KEY: [1, 0x{'F' * 300}]}}\n"),
                               "any/ea/config.yaml: OWN.KEY: expected numbers of a usual size, found"),
    "a node that is a number": (config_of(SOLVER=3), "any/ea/config.yaml: SOLVER"),
    "a summary of a list": (text_of("summary.json", "[]"), "any/ea/summary.json"),
    "a summary of a number": (text_of("summary.json", "3"), "any/ea/summary.json"),
    "an accuracy that is a word": (json_of("summary.json", last_top1="high"), "any/ea/summary.json: last_top1"),
    "an accuracy that is a list": (json_of("summary.json", best_top1=[1]), "any/ea/summary.json: best_top1"),
    "a config that is a pipe": (as_pipe("config.yaml"), "any/ea/config.yaml: cannot be read: not a regular file"),
    "no accuracy": (json_of("summary.json", last_top1=None), "any/ea/summary.json: last_top1"),
    "no best accuracy": (json_of("summary.json", best_top1=None), "any/ea/summary.json: best_top1"),
    "a run.json of a list": (text_of("run.json", "[1]"), "any/ea/run.json"),
    "a run.json of null": (text_of("run.json", "null"), "any/ea/run.json"),
    "a teacher's accuracy that is a word": (json_of("run.json", teacher_top1="high"), "any/ea/run.json: teacher_top1"),
    "versions that are a list": (json_of("run.json", versions=["torch"]), "any/ea/run.json: versions"),
    "overridden keys that are a list": (json_of("run.json", overridden=[1]), "any/ea/run.json: overridden"),
}
READERS = (("compare", "any"), ("report", "--runs any --output a.html"), ("tables", "--table 2 --runs any"),
           ("analyze", "--figure 1 --runs any --methods EA-KD --output out"))
RUNS_LISTED = [typed(tool, line, says, records_of_a_run(change), f"{tool}: {what}")
               for what, (change, says) in LISTED.items() for tool, line in READERS]
METRICS = [
    typed("report", "--runs any --output a.html", "any/ea/metrics.jsonl",
          records_of_a_run(text_of("metrics.jsonl", text)), f"report: {what}")
    for what, text in (("metrics of numbers", "3\n"), ("metrics of lists", "[1]\n"),
                       ("metrics without an epoch", '{"test_top1": 3}\n'),
                       ("an epoch that is a word", '{"epoch": "one", "test_top1": 3}\n'),
                       ("an accuracy over epochs that is a word", '{"epoch": 1, "test_top1": "high"}\n'))
]



def kept_as(name):
    def make(path, saved):
        path.mkdir()
        row = {"name": name, "config": {}, "summary": {}, "run": {}}
        (path / "runs.jsonl").write_text(f"{json.dumps(row)}\n")
    return make


KEPT = [typed("report", "--runs kept --output a.html", "kept/runs.jsonl, line 1: expected a run's name", {
    "kept": kept_as(name)}, f"report: an archived run named {what}") for what, name in (
        ("too long", "x" * 300), ("for a place", "../a"), ("for a folder above", ".."), ("half a letter", "\ud800"),
        ("with a NUL", "a\0b"))]


def answers_of(*lines):
    def change(run):
        place = run / "answers" / "best"
        place.mkdir(parents=True)
        (place / "set_free_seed1.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return change


LINE = '{"prompt": "p", "answer": "a", "references": [], "rouge_l": %s, "index": %s}'
ANSWERS = [
    typed("report", "--runs any --output a.html", f"any/ea/answers/best/set_free_seed1.jsonl, line {number}: expected",
          records_of_a_run(answers_of(*lines)), f"report: answers with {what}")
    for what, number, lines in (("a list as index", 1, (LINE % (1, "[]"),)), ("a huge score", 2, (
        LINE % (1, 0), LINE % ("1" + "0" * 400, 1))), ("deep lists", 1, ("[" * 100_000,)))
]

OPENED = {  # what is wrong with the run that is opened -> (how, what the error says)
    "no config": (gone("config.yaml"), "not a run folder"),
    "a config that is cut off": (lambda run: os.truncate(run / "config.yaml", 100), "DISTILLER.TYPE is missing"),
    "a config of bytes": (text_of("config.yaml", b"\xff\xfe"), "config.yaml: cannot be read"),
    "a config of an unknown key": (text_of("config.yaml", "SOLVR: {}\n"), "config.yaml: unknown key SOLVR"),
    "a config of another network": (config_of(DISTILLER__STUDENT="resnet14"), "does not hold the state of the run"),
    "a config of another dataset": (config_of(DATASET__TYPE="imagefolder"), "imagefolder is missing"),
    "a config of an unknown method": (config_of(DISTILLER__TYPE="KDD"), "DISTILLER.TYPE"),
    "a plug-in of its own": (text_of("config.yaml", "EXPERIMENT: {PLUGINS: [any/ea/p.py]}\n"),
                             "is Python code, which is not run because a record names it; if you trust it, add"),
    "a network of its own": (config_of(DISTILLER__STUDENT="any/ea/p.py:Net"), "add DISTILLER.STUDENT any/ea/p.py:Net"),
    "no checkpoint": (gone("best.pth"), "best.pth: no such checkpoint"),
    "an empty checkpoint": (text_of("best.pth", b""), "best.pth: not a checkpoint"),
    "a checkpoint of text": (text_of("best.pth", "text\n"), "best.pth: not a checkpoint"),
    "a malicious checkpoint": (lambda run: torch.save({"model": Evil()}, run / "best.pth"), "best.pth: not a ch"),
    "a checkpoint without a model": (state_of("best.pth", without("model")), "does not hold the state of the run"),
    "a model that is a list": (state_of("best.pth", lambda s: {**s, "model": [1]}), "does not hold the state"),
    "a model that is null": (state_of("best.pth", lambda s: {**s, "model": None}), "does not hold the state"),
    "a model of texts": (state_of("best.pth", lambda s: {"model": dict.fromkeys(s["model"], "x")}), "does not hold"),
    "a weight of booleans": (state_of("best.pth", inside("model/student.fc.bias", torch.Tensor.bool)),
                             "describes: student.fc.bias is of torch.bool in the file"),
    "a model with numbered weights": (state_of("best.pth", lambda s: {"model": dict(enumerate(s["model"].values()))}),
                                      "does not hold"),
    "a list as checkpoint": (state_of("best.pth", lambda s: list(s.items())), "best.pth: expected a dict"),
    "a student's file as checkpoint": (lambda run: shutil.copy(run / "student_best.pth", run / "best.pth"),
                                       "does not hold the state"),
}
OPENERS = (("export", "--run any/ea --formats pth --output out"), ("eval", "--run any/ea"))


def everywhere(change):
    """The change of best.pth, also applied to latest.pth."""
    def both(run):
        change(run)
        if (run / "best.pth").is_file():
            shutil.copy(run / "best.pth", run / "latest.pth")
        else:
            (run / "latest.pth").unlink()
    return both


RUNS_OPENED = [
    typed(tool, line, says.replace("best.pth", ".pth" if tool == "eval" else "best.pth"),
          a_run(everywhere(change) if tool == "eval" else change), f"{tool}: {what}")
    for what, (change, says) in OPENED.items() for tool, line in OPENERS
]
ANALYZED = [
    typed("analyze", f"--figure {figure} --runs any --methods EA-KD --output out", says, a_run(change), name)
    for name, figure, says, change in (
        ("analyze: no trace", "3", "no entropy_trace", lambda run: shutil.rmtree(run / "entropy_trace")),
        ("analyze: a trace of text", "3", "entropy_trace", text_of("entropy_trace/epoch_1.npz", "text")),
        ("analyze: an empty trace", "3", "entropy_trace", text_of("entropy_trace/epoch_1.npz", b"")),
        ("analyze: a trace without entropies", "3", "entropy_trace",
         lambda run: np.savez(run / "entropy_trace/epoch_1.npz", index=np.arange(3))),
        ("analyze: a malicious trace", "3", "entropy_trace",
         lambda run: np.savez(run / "entropy_trace/epoch_1.npz", entropy_teacher=np.array([Evil()], object))),
        ("analyze: no saved epochs", "4", "no epoch_<n>.pth", gone("epoch_1.pth")),
        ("analyze: a saved epoch of text", "4", "epoch_1.pth: not a checkpoint", text_of("epoch_1.pth", "text")),
        ("analyze: another teacher", "4", "not the teacher", json_of("run.json", teacher_sha256="0" * 64)),
        ("analyze: a teacher that is gone", "4", "no such file", config_of(DISTILLER__TEACHER_CHECKPOINT="none.pth")),
        ("analyze: a random teacher", "4", "random weights", config_of(DISTILLER__TEACHER_CHECKPOINT="random")),
        ("analyze: no speed", "1", "summary.json: images_per_second", json_of("summary.json", images_per_second=None)),
    )
]
ANALYZED.append(typed(
    "analyze", "--figure 8 --runs any --methods EA-KD --key KD.TEMPERATURE --output out",
    "2 configurations of EA-KD, KD.TEMPERATURE left out",
    {f"any/{rate}": partial(run_copy, change=config_of(SOLVER__LR=rate, KD__TEMPERATURE=rate)) for rate in (0.25, 0.5)},
    "analyze: runs that differ in more than the key"))


def resumed(name, says, change):
    """A run without a teacher, which is sooner there, that --resume would continue."""
    def prepare(path, saved):
        shutil.copytree(saved / "teachers/t", path)
        change(path)

    opts = ("LOG.PREFIX", ".", "EXPERIMENT.PROJECT", "teachers", "EXPERIMENT.NAME", "t", "DISTILLER.TYPE", "NONE")
    return train(f"resume: {name}", *opts, says=says, files={"teachers/t": prepare}, resume=True)


RESUMED = [
    resumed("a config of bytes", "config.yaml: cannot be read", text_of("config.yaml", b"\xff\xfe")),
    resumed("a config of a list", "config.yaml: expected a mapping", text_of("config.yaml", "- a\n")),
    resumed("a config of another rate", "other settings: SOLVER.LR", config_of(SOLVER__LR=9.0)),
    resumed("an empty checkpoint", "latest.pth: not a checkpoint", text_of("latest.pth", b"")),
    resumed("a checkpoint of text", "latest.pth: not a checkpoint", text_of("latest.pth", "text")),
    resumed("a checkpoint cut off", "latest.pth: not a checkpoint",
            lambda run: (run / "latest.pth").write_bytes((run / "latest.pth").read_bytes()[:5000])),
    resumed("a malicious checkpoint", "latest.pth: not a checkpoint",
            lambda run: torch.save({"model": Evil()}, run / "latest.pth")),
    resumed("a student's file", "latest.pth", lambda run: shutil.copy(run / "student_best.pth", run / "latest.pth")),
    *(resumed(f"a checkpoint without {key}", "latest.pth", state_of("latest.pth", without(key)))
      for key in ("model", "updater", "epoch", "step", "best", "metrics", "meters", "wall_seconds")),
    *(resumed(f"a checkpoint whose {key} is a text", "latest.pth",
              state_of("latest.pth", lambda state, key=key: {**state, key: "x"}))
      for key in ("model", "updater", "epoch", "step", "best", "metrics", "meters", "wall_seconds")),
    resumed("a checkpoint of epoch -1", "latest.pth", state_of("latest.pth", lambda state: {**state, "epoch": -1})),
    resumed("a checkpoint of step 999", "latest.pth", state_of("latest.pth", lambda state: {**state, "step": 999})),
    *(resumed(f"a checkpoint whose {what}", f"latest.pth: does not hold the state of this run ({says}",
              state_of("latest.pth", inside(path, value)))
      for what, says, path, value in (
          ("best epoch lacks the headline", "best has no test_top1", "best", {"epoch": 1}),
          ("best accuracy is a tensor", "best: 'test_top1': expected a number, found tensor(", "best/test_top1",
           torch.tensor),
          ("metrics hold a text", "metrics: 'lr': expected a number, found 'x'", "metrics",
           {"test_top1": 9.0, "lr": "x"}),
          ("weight is of booleans", "student.fc.bias is of torch.bool in the file and of torch.float32",
           "model/student.fc.bias", torch.Tensor.bool),
          ("momentum is of int16", "momentum_buffer of parameter 0 is of torch.int16",
           "updater/optimizer/state/0/momentum_buffer", lambda value: value.to(torch.int16)),
          ("momentum has another shape", "momentum_buffer of parameter 0 is (3,) in the file",
           "updater/optimizer/state/0/momentum_buffer", torch.zeros(3)),
          ("measurements are of another size", "its measurements are no numbers", "meters/names", ["loss"]))),
    resumed("metrics of numbers", "metrics.jsonl", text_of("metrics.jsonl", "3\n")),
    resumed("metrics without an epoch", "metrics.jsonl", text_of("metrics.jsonl", '{"test_top1": 3}\n')),
    resumed("a run.json of a list", "run.json", text_of("run.json", "[1]")),
    resumed("sessions that are a number", "run.json", json_of("run.json", sessions=3)),
]

# --- caches -----------------------------------------------------------------------------------------------------------


def cache_copy(path: Path, saved: Path, change) -> None:
    shutil.copytree(saved / "cache", path)
    change(path)


def flip_rows(cache):
    content = bytearray((cache / "logits.bin").read_bytes())
    content[5:2000:40] = bytes(255 - value for value in content[5:2000:40])
    (cache / "logits.bin").write_bytes(content)


CACHES = [
    typed("cache", f"{verb} c", says, {"c": partial(cache_copy, change=change)}, f"cache {verb}: {what}")
    for what, change, says in (
        ("no metadata", gone("metadata.json"), "not a teacher cache"),
        ("metadata of text", text_of("metadata.json", "text"), "not a teacher cache"),
        ("metadata of a list", text_of("metadata.json", "[]"), "not a teacher cache"),
        ("metadata of a later format", json_of("metadata.json", format=99), "c: a teacher cache of format 99, of a"),
        ("metadata of no format", json_of("metadata.json", format=None), "not a teacher cache"),
        ("metadata without classes", json_of("metadata.json", num_classes=None), "c"),
        ("metadata without a key", json_of("metadata.json", key=None), "c"),
        ("metadata of an unknown type", json_of("metadata.json", dtype="float8"), "c"),
        ("classes that are a word", json_of("metadata.json", num_classes="ten"), "c"),
        ("a negative number of records", json_of("metadata.json", num_records=-5), "c"),
        ("no rows", gone("logits.bin"), "c"),
        ("rows cut off", lambda cache: (cache / "logits.bin").write_bytes(b"\0" * 99), "c/logits.bin: 99 bytes"),
        ("no entries", gone("entries.bin"), "c"),
        ("damaged rows", flip_rows, "rows are damaged"),
    ) for verb in ("verify",)
] + [
    typed("cache", f"inspect {place}", "c", {"d/c": partial(cache_copy, change=change)}, f"cache inspect: {what}")
    for what, change, place in (("rows cut off", lambda cache: (cache / "logits.bin").write_bytes(b""), "d"),
                                ("metadata without a key", json_of("metadata.json", key=None), "d/c"),
                                ("a key that is a list", json_of("metadata.json", key=[1]), "d"))
]

# --- measurements -----------------------------------------------------------------------------------------------------

SPEED = "method,ms_per_batch,top1,std,seeds,device\nKD,1.0,70.0,,1,cpu\nEA-KD,1.1,71.0,,1,cpu\n"
BOXES = "method,network,epoch,low,q1,median,q3,high,samples\nKD,KD,1,0,1,2,3,4,5\nKD,Teacher,1,0,1,2,3,4,5\n"
SEGMENTS = "network,method,segment,from_entropy,to_entropy,top1,std,seeds\nTeacher,Teacher,1,0,1,70,,1\n"


def measured(figure, **files):
    """figure_<n>.json, and other files of a figure by the end of their names: speed_csv is figure_1_speed.csv."""
    content = {f"m/figure_{figure}.json": '{"figure": "", "files": []}'}
    for name, text in files.items():
        name, _, kind = name.rpartition("_")
        content[f"m/figure_{figure}{'_' if name else ''}{name}.{kind}"] = text
    return content


def npz(path: Path, saved: Path, **arrays) -> None:
    text = io.BytesIO()
    np.savez(text, **{name.replace("__", "|"): array for name, array in arrays.items()})
    path.write_bytes(text.getvalue())


POINTS = {"Teacher__0__points": np.zeros((4, 2)), "Teacher__0__target": np.arange(4),
          "Teacher__0__top": np.arange(4) > 2, "Teacher__0__index": np.ones(2)}


def of_points(content=None, **arrays):
    """Files of Figure 2 with these points."""
    return "2", {"segments_csv": SEGMENTS, "tsne_npz": partial(npz, **arrays) if content is None else content}



DRAWN = {
    "no speeds": ("1", {}),
    "speeds of nothing": ("1", {"speed_csv": ""}),
    "speeds of bytes": ("1", {"speed_csv": b"\xff\xfe\x00"}),
    "a head alone": ("1", {"speed_csv": SPEED.splitlines()[0] + "\n"}),
    "no column of accuracies": ("1", {"speed_csv": SPEED.replace("top1", "top")}),
    "an accuracy that is a word": ("1", {"speed_csv": SPEED.replace("70.0", "high")}),
    "a time that is a word": ("1", {"speed_csv": SPEED.replace("1.1", "fast")}),
    "a line cut off": ("1", {"speed_csv": SPEED[:-10]}),
    "a device cut off": ("1", {"speed_csv": SPEED[:-2]}),
    "seeds that are a word": ("1", {"speed_csv": SPEED.replace(",1,cpu", ",one,cpu")}),
    "a folder of speeds": ("1", {"speed_csv": folder}),
    "metadata of text": ("1", {"json": "text", "speed_csv": SPEED}),
    "metadata of bytes": ("1", {"json": b"\xff", "speed_csv": SPEED}),
    "no points": ("2", {"segments_csv": SEGMENTS}),
    "points of text": of_points("text"),
    "empty points": of_points(b""),
    "malicious points": of_points(Teacher__0__points=np.array([Evil()], object)),
    "a pickle as points": of_points(b"\x80\x04\x95cos\nsystem\n"),
    "points without names": of_points(points=np.zeros(3)),
    "points without targets": of_points(Teacher__0__points=np.zeros((4, 2))),
    "two networks": of_points(**POINTS, **{f"KD{key.removeprefix('Teacher')}": POINTS[key] for key in POINTS}),
    "flat points": of_points(**{**POINTS, "Teacher__0__points": np.zeros(4)}),
    "no boxes of the teacher": ("3", {"boxes_csv": BOXES.replace("Teacher", "Techer")}),
    "boxes of words": ("3", {"boxes_csv": BOXES.replace(",0,1,2", ",a,b,c")}),
    "an epoch without a number": ("3", {"boxes_csv": BOXES.replace("KD,KD,1", "KD,KD,")}),
    "no samples": ("4", {"samples_csv": "sample,method\n"}),
    "a quartile of nine": ("5", {"shares_csv": "method,epoch,quartile,share,std,seeds\nKD,1,9,25,,1\n"}),
    "no shown students": ("6", {"tsne_npz": partial(npz)}),
    "no grids": ("7", {"surfaces_csv": "network,epoch,mean,variance,area,level,images,area_difference\n"
                                        "Teacher,0,1,1,1,1.6,5,0\n", "surfaces_grid_npz": partial(npz)}),
    "values of nothing": ("8", {"values_csv": "method,key,value,top1,std,seeds,variance\n"}),
    "no values": ("8", {}),
    "no segments of students": ("B1", {"segments_csv": "", "tsne_npz": partial(npz, **POINTS)}),
    "no grids of B2": ("B2", {}),
    "no students of B3": ("B3", {}),
}
FIGURES = [typed("figures", f"--figure {figure} --analysis m --output out", "figure_" + figure,
                 measured(figure, **files), f"figures: {what}") for what, (figure, files) in DRAWN.items()]

CASES = [*RUNS_LISTED, *METRICS, *ANSWERS, *KEPT, *RUNS_OPENED, *ANALYZED, *RESUMED, *CACHES, *FIGURES]
