"""Wrong checkpoints and archives of teachers: damaged, foreign, malicious."""

import io
import json
import pickle
import random
import tarfile
from functools import partial
from pathlib import Path

import torch

from tests.wrong_inputs.case import BASE, RUN, Case, folder, train, typed

OURS = "runs/distill/ea"


class Evil:
    """The content of a malicious pickle: unpickling it creates the file `harmed`."""

    def __reduce__(self):
        return open, ("harmed", "w")


def saved_bytes(saved: Path, name: str = "student_best.pth") -> bytes:
    return (saved / OURS / name).read_bytes()


def cut(path: Path, saved: Path, part: float, name: str = "student_best.pth") -> None:
    """The first part of a checkpoint."""
    content = saved_bytes(saved, name)
    path.write_bytes(content[: int(part * len(content))])


def flipped(path: Path, saved: Path, place: float) -> None:
    """A checkpoint with one changed bit in the given part."""
    content = bytearray(saved_bytes(saved))
    content[int(place * len(content))] ^= 1
    path.write_bytes(content)


def noise(path: Path, saved: Path, seed: int, length: int) -> None:
    path.write_bytes(random.Random(seed).randbytes(length))


def torch_saved(path: Path, saved: Path, change) -> None:
    """A student's state dict, changed by `change`."""
    torch.save(change(torch.load(saved / OURS / "student_best.pth", weights_only=True)["model"]), path)


def without(state, key):
    return {name: value for name, value in state.items() if name != key}


FILES = {  # what stands in the file -> (how it is made, what the error says)
    "nothing": (b"", "not a checkpoint that can be read safely"),
    "a NUL": (b"\0", "not a checkpoint that can be read safely"),
    "text": ("epoch 3: 97.1\n", "not a checkpoint that can be read safely"),
    "YAML": ("model: {a: 1}\n", "not a checkpoint that can be read safely"),
    "JSON": ('{"model": {}}', "not a checkpoint that can be read safely"),
    "a page of HTML": ("<!doctype html><title>404</title>", "it is a web page"),
    "an LFS pointer": ("version https://git-lfs.github.com/spec/v1\nsize 12\n", "it is a pointer of Git LFS"),
    "a folder": (folder, "no such checkpoint"),
    "an empty zip": (b"PK\x05\x06" + b"\0" * 18, "not a checkpoint that can be read safely"),
    **{f"{length} random bytes": (partial(noise, seed=length, length=length), "not a checkpoint that can be read")
       for length in (10, 1000, 100_000)},
    **{f"the first {100 * part:g} %": (partial(cut, part=part), "not a checkpoint that can be read safely")
       for part in (0.001, 0.1, 0.5, 0.9, 0.999)},
    "a malicious pickle": (pickle.dumps(Evil()), "not a checkpoint that can be read safely"),
    "a malicious pickle, protocol 0": (pickle.dumps(Evil(), protocol=0), "not a checkpoint that can be read safely"),
    "a malicious checkpoint": (partial(torch_saved, change=lambda state: {"model": Evil()}), "read safely"),
    "malice among weights": (partial(torch_saved, change=lambda state: {**state, "fc.bias": Evil()}), "read safely"),
    "a whole network": (partial(torch_saved, change=lambda state: torch.nn.Linear(2, 2)), "read safely"),
    "a list": (partial(torch_saved, change=lambda state: list(state.values())), "expected a dict or a state dict"),
    "a tensor": (partial(torch_saved, change=lambda state: state["fc.bias"]), "expected a dict or a state dict"),
    "None": (partial(torch_saved, change=lambda state: None), "found NoneType"),
    "a number": (partial(torch_saved, change=lambda state: 3), "found int"),
    "an empty dict": (partial(torch_saved, change=lambda state: {}), "keys missing"),
    "an empty model": (partial(torch_saved, change=lambda state: {"model": {}}), "keys missing"),
    "a list as model": (partial(torch_saved, change=lambda state: {"model": [1]}), "keys missing"),
    "None as model": (partial(torch_saved, change=lambda state: {"model": None}), "keys missing"),
    "numbered weights": (partial(torch_saved, change=lambda state: dict(enumerate(state.values()))), "keys missing"),
    "names of two kinds": (partial(torch_saved, change=lambda state: {**state, 3: state["fc.bias"]}), "1 unknown key"),
    "one weight less": (partial(torch_saved, change=lambda s: without(s, "fc.bias")), "1 key missing (fc.bias"),
    "one weight more": (partial(torch_saved, change=lambda state: {**state, "a": state["fc.bias"]}), "1 unknown key"),
    "other names": (partial(torch_saved, change=lambda s: {f"{k}.0": v for k, v in s.items()}), "keys missing"),
    "seven classes": (partial(torch_saved, change=lambda s: {**s, "fc.weight": s["fc.weight"][:7],
                                                             "fc.bias": s["fc.bias"][:7]}), "(7,"),
    "a flat weight": (partial(torch_saved, change=lambda s: {**s, "fc.weight": s["fc.weight"].flatten()}), "fc.weight"),
    "a number as weight": (partial(torch_saved, change=lambda state: {**state, "fc.bias": 3}), "fc.bias is int"),
    "a text as weight": (partial(torch_saved, change=lambda state: {**state, "fc.bias": "x"}), "fc.bias is str"),
    "a sparse weight": (partial(torch_saved, change=lambda s: {**s, "fc.weight": s["fc.weight"].to_sparse()}), "fc.w"),
    "a complex weight": (partial(torch_saved, change=lambda s: {**s, "fc.bias": s["fc.bias"].cfloat()}), "fc.bias"),
    "a weight without numbers": (partial(torch_saved, change=lambda s: {**s, "fc.bias": s["fc.bias"].to("meta")}),
                                 "fc.bias"),
}
A_PART = typed("eval", "-m resnet8 -c a.pth -d digits", "a.pth: holds only the weights fc.* of a network", {
    "a.pth": partial(torch_saved, change=lambda state: {"part": "fc.", "model": {
        key: value for key, value in state.items() if key.startswith("fc.")}})}, "eval: a part of a network")
FLIPS = {f"a bit flipped at {100 * place:g} %": (partial(flipped, place=place), "not a checkpoint that can be read")
         for place in (0.2, 0.4, 0.6, 0.7)}
FOREIGN = [
    typed("eval", f"-m {name} -c {RUN}/{file} -d digits", "does not fit the network", name=f"eval: {file} for {name}")
    for name, file in (("resnet14", "student_best.pth"), ("resnet8x4", "student_best.pth"), ("vgg8", "latest.pth"),
                       ("wrn_16_1", "best.pth"), ("MobileNetV2", "epoch_1.pth"))
]
NOT_FINITE = {
    "NaN": lambda s: {**s, "fc.bias": s["fc.bias"] * torch.nan},
    "infinity": lambda s: {**s, "fc.weight": s["fc.weight"] / 0},
    "a NaN statistic": lambda s: {**s, "bn1.running_mean": s["bn1.running_mean"] * torch.nan},
}
READERS = [  # who reads a file a.pth
    ("eval", ("-m", "resnet8", "-c", "a.pth", "-d", "digits")),
    ("train", ("--cfg", BASE, "DISTILLER.TEACHER_CHECKPOINT", "a.pth")),
    ("train", ("--cfg", BASE, "DISTILLER.STUDENT_CHECKPOINT", "a.pth")),
    ("cache", ("prefill", "--cfg", BASE, "DISTILLER.TEACHER_CHECKPOINT", "a.pth")),
]
CHECKPOINTS = []
for number, (what, (content, says)) in enumerate({**FILES, **FLIPS}.items()):
    tool, words = READERS[number % len(READERS)]  # each file is tested with one of the two
    reader = f"{tool} {words[-2] if tool != 'eval' else '-c'}"
    no_file = "no such" if what == "a folder" else says
    CHECKPOINTS.append(Case(f"{reader}: {what}", tool, words, no_file, {"a.pth": content}))
for (what, change), (tool, words) in zip(NOT_FINITE.items(), READERS[1:], strict=True):
    says = "a.pth: 1 of its weights hold NaN or infinity"
    CHECKPOINTS.append(Case(f"{tool} {words[-2]}: {what}", tool, words, says, {
        "a.pth": partial(torch_saved, change=change)}))
MISSING = [
    typed("eval", "-m resnet8 -c none.pth -d digits", "none.pth: no such checkpoint"),
    typed("eval", f"-m resnet8 -c {'x' * 300} -d digits", "no such checkpoint", name="eval: a name too long"),
    train("a missing teacher", "DISTILLER.TEACHER_CHECKPOINT", "none.pth", says="no such file: none.pth"),
    train("no teacher named", "DISTILLER.TEACHER_CHECKPOINT", "None", says="no checkpoint of resnet8 for digits"),
    train("a missing student", "DISTILLER.STUDENT_CHECKPOINT", "none.pth", says="none.pth: no such checkpoint"),
    train("a teacher's name too long", "DISTILLER.TEACHER_CHECKPOINT", "x" * 300, says="DISTILLER.TEACHER_CHECKPOINT"),
    train("a teacher of another network", "DISTILLER.TEACHER", "resnet14", "DISTILLER.TEACHER_CHECKPOINT",
          f"{RUN}/student_best.pth", says="does not fit the network resnet14"),
]

# --- archives of teachers ---------------------------------------------------------------------------------------------

INDEX = {"tiny": {
    "about": "", "family": "cifar", "num_classes": 10,
    "archive": {"file": "t.tar", "urls": ["https://127.0.0.1:9/t.tar"], "megabytes": 1, "sha256": None},
    "teachers": {"resnet8": {"file": "t/resnet8.pth", "top1": 90.0, "sha256": None}},
}}


def index(**changes) -> str:
    """An index of one teacher, with other entries: `archive__sha256` is that of the archive."""
    tree = json.loads(json.dumps(INDEX))
    for key, value in changes.items():
        *nodes, leaf = key.split("__")
        node = tree["tiny"]
        for name in nodes:
            node = node[name]
        node[leaf] = value
    return json.dumps(tree)


def archive(*members: tuple[str, bytes], kind=tarfile.REGTYPE, link="", size=None, mode="w") -> bytes:
    """A tar archive, whose members may be of another kind, or say another size."""
    text = io.BytesIO()
    with tarfile.open(fileobj=text, mode=mode) as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.type, member.linkname, member.size = kind, link, len(content)
            if size is not None:
                member.size = size
                text.write(member.tobuf())
                continue
            tar.addfile(member, io.BytesIO(content))
    return text.getvalue()


def with_teacher(path: Path, saved: Path, **how) -> None:
    path.write_bytes(archive(("t/resnet8.pth", saved_bytes(saved)), **how))


def cut_archive(path: Path, saved: Path, **how) -> None:
    with_teacher(path, saved, **how)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


ARCHIVES = {
    "nothing": (b"", "not a complete tar archive"),
    "text": ("404\n", "not a complete tar archive"),
    "random bytes": (partial(noise, seed=1, length=20_000), "not a complete tar archive"),
    "gzip alone": (b"\x1f\x8b\x08\0\0\0\0\0\0\3", "not a complete tar archive"),
    "a zip": (b"PK\x05\x06" + b"\0" * 18, "not a complete tar archive"),
    "half a tar": (cut_archive, "not a complete tar archive"),
    "half a tar.gz": (partial(cut_archive, mode="w:gz"), "not a complete tar archive"),
    "half a tar.bz2": (partial(cut_archive, mode="w:bz2"), "not a complete tar archive"),
    "half a tar.xz": (partial(cut_archive, mode="w:xz"), "not a complete tar archive"),
    "an empty tar": (archive(), "holds none of the teachers"),
    "other files": (archive(("a.txt", b"a")), "holds none of the teachers"),
    "an absolute path": (archive(("/harmed", b"a")), "leads outside"),
    "a path upwards": (archive(("../harmed", b"a")), "leads outside"),
    "a path up in the middle": (archive(("t/../../harmed", b"a")), "leads outside"),
    "a backslash": (archive(("..\\harmed", b"a")), "leads outside"),
    "a link": (archive(("t/a", b""), kind=tarfile.SYMTYPE, link="/etc/passwd"), "neither a file nor a folder"),
    "a hard link": (archive(("t/a", b""), kind=tarfile.LNKTYPE, link="/etc/passwd"), "neither a file nor a folder"),
    "a device": (archive(("t/a", b""), kind=tarfile.CHRTYPE), "neither a file nor a folder"),
    "a pipe": (archive(("t/a", b""), kind=tarfile.FIFOTYPE), "neither a file nor a folder"),
    "a terabyte": (archive(("t/a", b""), size=1 << 40), "refused"),
    "a negative size": (archive(("t/a", b""), size=0)[:124] + b"-0000000001\0" + b"\0" * 2000, "not a complete tar"),
    "a name with a NUL": (archive(("t/a\0b", b"x")), "holds none of the teachers"),
    "a name too long": (archive(("t/" + "a" * 300, b"x")), "a.tar"),
    "a teacher of text": (archive(("t/resnet8.pth", b"text")), "resnet8.pth: not a checkpoint"),
    "a malicious teacher": (archive(("t/resnet8.pth", pickle.dumps(Evil()))), "resnet8.pth: not a checkpoint"),
    "a folder as teacher": (archive(("t/resnet8.pth", b""), kind=tarfile.DIRTYPE), "holds none of the teachers"),
}
FETCH = "tiny --index i.json --to out"
FETCHED = [
    *(typed("fetch_teachers", f"{FETCH} --from a.tar", says, {"i.json": index(), "a.tar": content},
            f"fetch_teachers: {what}") for what, (content, says) in ARCHIVES.items()),
    *(typed("fetch_teachers", f"{FETCH} --from a.tar", says, {"i.json": index(**changes), "a.tar": with_teacher},
            f"fetch_teachers: {what}") for what, changes, says in (
        ("another SHA-256 of the archive", {"archive__sha256": "0" * 64}, "SHA-256"),
        ("another SHA-256 of the teacher", {"teachers__resnet8__sha256": "0" * 64}, "SHA-256"),
        ("other classes than the index says", {"num_classes": 7}, "does not fit"),
        ("an unknown network in the index", {"teachers": {"resnet9": INDEX["tiny"]["teachers"]["resnet8"]}}, "resnet9"),
        ("an unknown family in the index", {"family": "cifr"}, "cifr"),
        ("classes that are no number", {"num_classes": "ten"}, "i.json"),
        ("a negative number of classes", {"num_classes": -1}, "i.json"),
        ("a teacher outside", {"teachers__resnet8__file": "../harmed"}, "leads outside"),
        ("a teacher at a root", {"teachers__resnet8__file": "/harmed"}, "leads outside"),
        ("an archive outside", {"archive__file": "../../harmed.tar"}, "leads outside"),
        ("an accuracy that is no number", {"teachers__resnet8__top1": "high"}, "i.json"),
        ("no addresses", {"archive__urls": 3}, "i.json"),
    )),
    *(typed("fetch_teachers", FETCH, says, {"i.json": index(archive__urls=[url])}, f"fetch_teachers: {url}")
      for url, says in (("http://127.0.0.1:9/t.tar", "only https addresses"), ("file:///etc/passwd", "only https"),
                        ("ftp://127.0.0.1/t.tar", "only https"), ("t.tar", "only https"), ("", "only https"),
                        ("https://[/t.tar", "t.tar cannot be downloaded"))),
    typed("fetch_teachers", f"{FETCH} --allow-http", "only https and http", {"i.json": index(archive__urls=["file:///x"])},
          "fetch_teachers: a local file where http is allowed"),
    *(typed("fetch_teachers", FETCH, "i.json: not an index of teachers", {"i.json": text}, f"fetch_teachers: {what}")
      for what, text in (("an index of text", "tiny"), ("an index of a list", "[]"), ("an index of null", "null"),
                         ("an index of numbers", '{"tiny": 3}'), ("an index cut off", index()[:80]),
                         ("an index of bytes", b"\xff\xfe"), ("an empty index", ""))),
    typed("fetch_teachers", "tiny --index i.json --to taken --from a.tar", "taken",
          {"i.json": index(), "a.tar": with_teacher, "taken": "a file\n"}),
    typed("fetch_teachers", "tiny --index i.json --to out --check", "bad: resnet8",
          {"i.json": index(), "out/t/resnet8.pth": b"text"}),
    typed("fetch_teachers", "tiny --index i.json --to out --check --data none", "bad: resnet8",
          {"i.json": index(), "out/t/resnet8.pth": partial(cut, part=0.5)}),
    typed("fetch_teachers", "tiny --index i.json --list --index j.json", "j.json: cannot be read", {"i.json": index()}),
]

CASES = [*CHECKPOINTS, A_PART, *FOREIGN, *MISSING, *FETCHED]
