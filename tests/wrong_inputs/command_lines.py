"""Wrong words for each tool: options, names, places to write to, plugins, networks."""

from tests.wrong_inputs.case import BASE, RUN, SAVED, STUDENT, Case, config, folder, pipe, train, typed

RUNS = f"{SAVED}/runs"
TAKEN = {"taken": "a file where a folder is wanted\n"}

WORDS = [
    typed("train", "", "--cfg"),
    typed("train", "--cfg", "--cfg"),
    typed("train", f"--cfg {BASE} --resme", "--resme"),
    typed("train", f"--cfg {BASE} --kd-weight 9", "--kd-weight belong to --logit-stand"),
    typed("train", f"--cfg {BASE} --logit-stand --kd-weight x", "KD.LOSS.KD_WEIGHT: expected float, found 'x'"),
    typed("train", f"--cfg {BASE} --resum", "unrecognized arguments: --resum"),
    typed("train", f"--cfg {BASE} SOLVER.LR -1e-3", "SOLVER.LR: expected a number greater than 0"),
    typed("eval", "", "give either --run, or -m, or -c with --cfg"),
    typed("eval", "-m resnet8 -c pretrain -d digits", "no checkpoint of resnet8 for digits in checkpoints/"),
    typed("eval", f"-m resnet8 --ckpt {STUDENT} -d digits -bs 0", "DATASET.TEST.BATCH_SIZE: expected a number"),
    typed("eval", f"--cfg {BASE} -m resnet8", "give either --run, or -m, or -c with --cfg"),
    typed("eval", f"-c {STUDENT}", "give either --run, or -m, or -c with --cfg"),
    typed("eval", f"--run {RUN} -m resnet8 -c {STUDENT}", "give either --run, or -m, or -c with --cfg"),
    typed("eval", f"--run {RUN} -c {STUDENT}", "give either --run, or -m, or -c with --cfg"),
    typed("eval", f"--run {RUN} -d cifar100", "-d cannot be combined with --run"),
    typed("eval", f"-m resnet8 -c {STUDENT} -d digit", "nearest: digits"),
    typed("eval", f"-m resnet9 -c {STUDENT} -d digits", "DISTILLER.STUDENT: unknown"),
    typed("eval", f"-m resnet8 -c {STUDENT} -d digits DEVICE gpu", "DEVICE: 'gpu'"),
    typed("eval", f"-m resnet8 -c {STUDENT} -d digits DATASET.ROT x", "nearest: DATASET.ROOT"),
    typed("eval", f"-m resnet8 -c {STUDENT} -d cifar100 DATASET.ROOT none", "cifar100 is missing"),
    typed("eval", f"-m resnet8 -c {STUDENT} -d", "-d/--dataset"),
    typed("eval", f"--run {RUN} DATASET.TYPE", "a value must follow"),
    typed("compare", "", "runs"),
    typed("compare", "none", "runs: no such folder: none"),
    typed("compare", f"{RUNS} more", "more"),
    typed("compare", BASE, f"runs: no such folder: {BASE}"),
    typed("compare", ".", ".: no finished run below it"),
    typed("samples", "--runs none", "none: no finished run with a teacher"),
    typed("samples", "", "--runs"),
    typed("watch", "--runs none", "--runs: no such folder: none"),
    typed("watch", f"--runs {RUNS} --port 70000", "--port"),
    typed("watch", f"--runs {RUNS} --port x", "--port"),
    typed("export", "", "--run"),
    typed("export", "--run none", "none: not a run folder"),
    typed("export", f"--run {RUN} --formats tflite --output out",
          "--formats: expected one of pth, safetensors, onnx, torchscript; found 'tflite'"),
    typed("export", f"--run {RUN} --checkpoint epoch_99 --output out", "epoch_99.pth: no such checkpoint"),
    typed("export", f"--run {RUN} --checkpoint ema --output out", "student_ema.pth: no such checkpoint"),
    typed("export", f"--run {RUN} --checkpoint ../kd/best --output out",
          "--checkpoint: expected a name such as best or epoch_40; found '../kd/best'"),
    typed("export", f"--run {RUN} --formats pth --output taken", "taken", TAKEN),
    typed("export", f"--run {RUN} --formats pth --output /dev/null/x", "/dev/null/x"),
    typed("export", f"--run {RUN} --output out DISTILLER.STUDENT resnet14", "does not hold the state of the run"),
    typed("export", f"--run {RUN} --formats", "--formats"),
    typed("fetch_teachers", "", "give a set of teachers"),
    typed("fetch_teachers", "cifar10 --to out", "nearest: cifar100"),
    typed("fetch_teachers", "mnist --to out", "no teachers for 'mnist'"),
    typed("fetch_teachers", "cifar100 --to out --from none.tar", "--from: no such file: none.tar"),
    typed("fetch_teachers", "cifar100 --to out --from a.tar", "--from: no such file: a.tar", {"a.tar": folder}),
    typed("fetch_teachers", "cifar100 --to out --index none.json", "none.json: cannot be read"),
    typed("fetch_teachers", "--list --fast", "--fast"),
    typed("fetch_teachers", "cifar100 --to out --list --check", "--list cannot be combined with --check"),
    typed("fetch_teachers", "cifar100 --to out --list --from none.tar", "--list cannot be combined with --from"),
    typed("fetch_teachers", "cifar100 --to out --check --from none.tar", "--check cannot be combined with --from"),
    typed("fetch_teachers", "cifar100 --to out --data data", "--data: only with --check"),
    typed("fetch_teachers", "cifar100 --to out --convert detectron2 a.pkl", "--convert cannot be combined with NAME"),
    typed("answers", "", "--run"),
    typed("detections", "", "expected either --run, or --cfg with --checkpoint and --output"),
    typed("detections", "--run none --images 0", "--images: expected at least 1; found 0"),
    typed("detections", "--run none", "none: not a run folder"),
    typed("detections", "DEVICE cpu --run none --images 1 DATASET.ROOT data", "none: not a run folder"),
    typed("detections", "--run none --checkpoint a.pth", "--checkpoint: only with --cfg"),
    typed("answers", "--run none --sets a.jsonl", "none: not a run folder"),
    typed("answers", f"--run {RUN} --sets a.jsonl", "expected a run of language models", {"a.jsonl": "{}\n"}),
    typed("answers", f"--run {RUN} --sets a.jsonl --seeds one", "--seeds"),
    *(typed("answers", f"--run {RUN} --sets a.jsonl --{words}", f"--{words.split()[0]}: expected a number at least")
      for words in ("seeds 10 99999999999999", "seeds 10 -1", "ngram 99999999", "ngram -1", "limit 0")),
    typed("answers", f"--run {RUN} --sets a/b.jsonl c/b.jsonl", "a/b.jsonl and c/b.jsonl are both named b; give NAME="),
    typed("tune", "", "--cfg"),
    typed("tune", f"--cfg {BASE} --seeds 1 2", "--seeds takes one number N and trains seeds 0 ... N-1"),
    typed("tune", "--cfg none.yaml", "none.yaml: no such config file"),
    typed("tune", f"--cfg {BASE} --trials 0", "--trials: expected a number of trials, at least 1; found 0"),
    typed("tune", "--study moon", "unknown study 'moon'"),
    typed("sweep", "", "--table"),
    typed("sweep", "--table 2 --cfg a.yaml", "not allowed with"),
    typed("sweep", "--table 99 --dry-run", "unknown table '99'"),
    typed("sweep", "--table 2 --methods KDD --dry-run", "'KDD' names no cell of the table"),
    typed("sweep", "--table 2 --pairs resnet_resnet --dry-run", "'resnet_resnet' names no cell"),
    typed("sweep", "--table 2 --pairs nope --dry-run", "'nope' names no cell of the table; nearest: res32x4_res8x4, "),
    typed("sweep", "--table 7 --pairs res32x4_res8x4 --dry-run", "--pairs: tables of language models have one pair"),
    typed("sweep", "--table 2 --methods KD --pairs EA-KD --dry-run", "no cell is both of KD and of EA-KD"),
    typed("sweep", "--table 2 --seeds 0 --dry-run", "--seeds: expected a number of seeds, at least 1; found 0"),
    typed("sweep", "--table 2 --seeds -3 --dry-run", "--seeds"),
    typed("sweep", "--table 2 --seeds many --dry-run", "--seeds"),
    typed("sweep", "--table 2 --seeds 1 2 3 --dry-run", "--seeds takes one number N and trains seeds 0 ... N-1"),
    typed("sweep", "--table 2 --jobs -1 --dry-run", "--jobs"),
    typed("sweep", "--table 2 --jobs 0 --dry-run", "--jobs: expected a number of jobs, at least 1; found 0"),
    typed("sweep", "--table 2 --runs none --dry-run", "--runs: no such folder: none"),
    typed("sweep", "--table 2 --launcher moon --dry-run", "--launcher"),
    typed("sweep", "--table 2 --dry-run SOLVER.EPOCH=3", "nearest: SOLVER.EPOCHS"),
    typed("sweep", "--table 2 --dry-run SOLVER.EPOCHS=many", "SOLVER.EPOCHS: expected int"),
    typed("sweep", "--table 2 --dry-run EXPERIMENT.NAME=x", "names and seeds are set by the sweep"),
    typed("sweep", "--table 2 --dry-run EXPERIMENT.SEED 3", "names and seeds are set by the sweep"),
    typed("sweep", "--table 2 --dry-run SOLVER.EPOCHS", "a value must follow"),
    typed("sweep", "--cfg none.yaml --dry-run", "none.yaml: no such config file"),
    typed("sweep", f"--cfg {BASE} none.yaml --dry-run", "none.yaml: no such config file"),
    typed("sweep", f"--cfg {BASE} --methods KD --dry-run", "--methods and --pairs choose cells of --table"),
    typed("sweep", "--cfg a.yaml --dry-run", "a.yaml: expected a mapping", {"a.yaml": "- a\n"}),
    typed("sweep", "--cfg a.yaml --dry-run", "DISTILLER.TYPE", {"a.yaml": "DISTILLER: {TYPE: [KD], EA: 1}\n"},
          "sweep: a list as method"),
    typed("sweep", "--study small --smoke --dry-run", "--study cannot be combined with --smoke"),
    typed("sweep", "--study small --pairs vgg13_vgg8 --dry-run", "--study cannot be combined with --pairs"),
    *(typed("tables", line, f"{says.replace(' and ', ' cannot be combined with ')}; see") for line, says in (
        ("--study small --format latex", "--study and --format"),
        ("--study small --ranks", "--study and --ranks"),
        ("--power 1 --runs .", "--power and --runs"),
        ("--table 2 --deviation 1", "--table and --deviation"),
        ("--table 2 --ranks --check --format csv", "--format csv and --check"),
        ("--table 2 --ranks --check", "--ranks and --check"),
        ("--table 7 --ranks", "--table of language models and --ranks"),
    )),
    typed("analyze", f"--figure 2 --methods KD --output out --runs {RUNS} {RUNS} SOLVER.EPOCH 2", "SOLVER.EPOCHS"),
    typed("sweep", f"--cfg {BASE} --fork LOG.PREFIX=taken", "taken", TAKEN),
    typed("sweep", f"--cfg {BASE} --launcher slurm --cluster moon", "--launcher slurm"),
    typed("sweep", f"--cfg {BASE} --dry-run --option timeout_min=60", "--option: only with --launcher slurm"),
    typed("sweep", f"--cfg {BASE} --launcher slurm --cluster local --option timeout_min=[", "--option"),
    typed("sweep", f"--cfg {BASE} --launcher slurm --cluster local --option timeout_min", "--option"),
    typed("sweep", f"--cfg {BASE} --launcher slurm --cluster local --option no_such_thing=1", "no_such_thing"),
    typed("tables", "", "--table"),
    typed("tables", "--table 99", "unknown table '99'"),
    typed("tables", "--power 1e300", "--power: expected numbers from 0.001 to 100, in points; found 1e+300"),
    typed("tables", "--power 1 --deviation nan", "--deviation: expected numbers from 0.001 to 100"),
    typed("tables", "--table 2 --runs none", "--runs: no such folder: none"),
    typed("tables", f"--table 2 --runs {BASE}", "--runs: no such folder"),
    typed("tables", "--table 2 --format pdf", "--format"),
    typed("tables", "--table 2 --epoch first", "--epoch"),
    typed("tables", f"--table 2 --runs {RUNS} SOLVER.EPOCH 3", "nearest: SOLVER.EPOCHS"),
    typed("tables", f"--table 2 --runs {RUNS} SOLVER.EPOCHS", "a value must follow"),
    typed("tables", f"--table 2 --runs {RUNS} SOLVER.LR fast", "SOLVER.LR: expected float"),
    typed("analyze", "", "--figure"),
    typed("analyze", f"--figure 9 --runs {RUNS}", "--figure"),
    typed("analyze", "--figure 1", "--runs"),
    typed("analyze", "--figure 1 --runs none", "none: no finished run"),
    typed("analyze", f"--figure 1 --runs {RUNS} --methods DKD --output out", "no finished run of DKD"),
    typed("analyze", f"--figure 7 --runs {RUNS} --output out", "no finished run of DKD, EA-DKD"),
    typed("analyze", f"--figure 1 --runs {RUNS} --points 1", "expected --points of at least 2"),
    typed("analyze", f"--figure 1 --runs {RUNS} --images 0", "--images of at least 1"),
    typed("analyze", f"--figure 1 --runs {RUNS} --points few", "--points"),
    typed("analyze", f"--figure 8 --runs {RUNS} --methods KD --key KD.TEMP --output out", "KD.TEMP is not among"),
    typed("analyze", f"--figure 8 --runs {RUNS} --methods KD --key DATASET.TYPE --output out", "DATASET.TYPE"),
    typed("analyze", f"--figure 4 --runs {RUNS} --methods KD --output out", "no run of a weighted method"),
    typed("analyze", f"--figure 1 --runs {SAVED}/teachers --output out", "no finished run of"),
    typed("analyze", f"--figure 1 --runs {RUNS} --output taken", "taken", TAKEN),
    typed("analyze", f"--figure 2 --runs {RUNS} --output out DEVICE gpu", "DEVICE: 'gpu'"),
    typed("analyze", f"--figure 2 --runs {RUNS} --output out SOLVER.EPOCH 2", "nearest: SOLVER.EPOCHS"),
    typed("figures", "", "--figure"),
    typed("figures", "--figure 9", "--figure"),
    typed("figures", "--figure 1 --analysis none", "figure 1 is not measured yet"),
    typed("figures", "--figure all --analysis none", "none: contains no measured figure"),
    typed("figures", f"--figure 1 --analysis {SAVED}/analysis --output taken", "taken", TAKEN),
    typed("figures", f"--figure 1 --analysis {SAVED}/analysis --output /dev/null/x", "/dev/null/x"),
    typed("report", "", "--runs"),
    typed("report", "--runs none", "--runs: no such folder: none"),
    typed("report", f"--runs {RUNS} --output out", "out", {"out": folder}),
    typed("report", f"--runs {RUNS} --output .", ".: cannot be written: Is a directory"),
    typed("report", f"--runs {RUNS} --output taken/a.html", "taken", TAKEN),
    typed("report", f"--runs {RUNS} --output /dev/null/a.html", "/dev/null"),
    typed("configs", "digits ea_kdd", "digits and ea_kdd"),
    typed("configs", "digits/ea_kd/ --copy taken", "taken", TAKEN),
    typed("configs", "digits/ea_kd/ --copy out", "out/digits/base.yaml", {"out/digits/base.yaml": "SOLVER: {}"}),
    typed("configs", "--cpoy out", "--cpoy"),
    typed("methods", "--output out", "out", {"out": folder}),
    typed("methods", "--output taken/a.md", "taken", TAKEN),
    typed("methods", "--output", "--output"),
    typed("methods", "--outptu a.md", "--outptu"),
    typed("cache", "", "action"),
    typed("cache", "clean", "clean"),
    typed("cache", "prefill", "--cfg"),
    typed("cache", f"prefill --cfg {BASE} --epochs 0", "--epochs: expected at least 1"),
    typed("cache", "prefill --cfg none.yaml", "none.yaml: no such config file"),
    typed("cache", f"prefill --cfg {BASE} DISTILLER.TYPE NONE", "NONE has no teacher"),
    typed("cache", f"prefill --cfg {BASE} DISTILLER.TYPE FITNET", "FITNET reads the teacher's features"),
    typed("cache", f"prefill --cfg {BASE} TEACHER_CACHE.DIR taken", "TEACHER_CACHE.DIR", TAKEN),
    typed("cache", f"prefill --cfg {BASE} TEACHER_CACHE.DTYPE float8", "TEACHER_CACHE.DTYPE"),
    typed("cache", f"prefill --cfg {BASE} TEACHER_CACHE.KIND reply", "replay"),
    typed("cache", f"prefill --cfg {BASE} TEACHER_CACHE.TOPK 5", "TEACHER_CACHE.TOPK: expected 0 (all logits)"),
    typed("cache", "inspect none", "none: no such folder of teacher caches"),
    typed("cache", "verify", "expected folders of caches"),
    typed("cache", "verify none", "none: not a teacher cache"),
    typed("cache", f"verify {RUN}", "not a teacher cache"),
    typed("cache", f"verify --cfg {BASE} --rows -5 TEACHER_CACHE.DIR out", "--rows"),
    typed("cache", "verify none --rows 5", "--rows: only with --cfg"),
    typed("cache", f"verify --cfg {BASE} KD.T", "a value must follow"),
    typed("cache", "delete", "FOLDER"),
    typed("cache", "delete none", "none: not a teacher cache"),
    typed("cache", f"delete {RUN}", "not a teacher cache"),
    typed("cache", f"delete {SAVED}/runs", "not a teacher cache"),
    typed("cache", "delete /", "not a teacher cache"),
    typed("bench", "", "CASE"),
    typed("bench", "speed", "CASE"),
    typed("bench", "data --quick --repeats 0", "--repeats"),
    typed("bench", "data --quick --repeats -1", "--repeats"),
    typed("bench", "data --quick --batch none", "--batch"),
    typed("bench", "data --quick --images 0", "--images"),
    typed("bench", "data --quick --seconds x", "--seconds"),
    typed("bench", "data --quick --clock process", "--clock process: only for replay, ea, cache"),
    typed("bench", "data --quick --checkout none", "--checkout: only for peer"),
    typed("bench", "detection startup --quick --images 16", "--images: not for detection and startup"),
    typed("bench", "data --quick --seconds -1", "--seconds"),
    typed("bench", "data --quick --seconds nan", "--seconds"),
    typed("bench", "data --quick --device gpu", "DEVICE: 'gpu'"),
    typed("bench", "data --quick --root none", "none"),
    typed("bench", "step --quick --pairs resnet8", "--pairs"),
    typed("bench", "step --quick --pairs resnet9:resnet8 --output out", "resnet9"),
    typed("bench", "step --quick --pairs resnet8: --output out", "--pairs"),
    typed("bench", "data --quick --output taken", "taken", TAKEN),
    typed("bench", "data --quick --write none.md --output out", "none.md"),
]

EMPTY = [  # as of a variable of the shell that is not set
    Case(f"{tool}: an empty word for {name}", tool, words, f"{name}: expected a value, found an empty one")
    for tool, words, name in (
        ("compare", ("",), "runs"), ("compare", (RUNS, "--keep", ""), "--keep"), ("train", ("--cfg", ""), "--cfg"),
        ("configs", ("digits/ea_kd/", "--copy", ""), "--copy"), ("cache", ("inspect", ""), "folder"),
        ("samples", ("--runs", RUNS, ""), "--runs"), ("eval", ("--run", "", "DEVICE", ""), "--run"),
    )
]

PLACES = [
    train("a file where runs go", "LOG.PREFIX", "taken", says="taken", files=TAKEN),
    train("a file where the project goes", "LOG.PREFIX", ".", "EXPERIMENT.PROJECT", "taken", says="taken", files=TAKEN),
    train("a device where runs go", "LOG.PREFIX", "/dev/null", says="/dev/null"),
    train("a file where the run goes", "EXPERIMENT.NAME", "a", says="out/distill/a", files={"out/distill/a": "file\n"}),
    train("a run that is there", "LOG.PREFIX", f"{SAVED}/runs", "EXPERIMENT.NAME", "ea", says="already contains a run"),
    train("another config of a run", "LOG.PREFIX", f"{SAVED}/runs", "EXPERIMENT.NAME", "ea", "SOLVER.LR", 0.7,
          says="other settings: ", resume=True),
    train("a folder of something else", "EXPERIMENT.NAME", "a", says="not empty and not a run folder",
          files={"out/distill/a/thesis.txt": "precious\n"}),
    train("the same, to resume", "EXPERIMENT.NAME", "a", says="not empty and not a run folder", resume=True,
          files={"out/distill/a/thesis.txt": "precious\n"}),
    train("a pipe where the lock goes", "EXPERIMENT.NAME", "a", says="out/distill/a/.lock: cannot be written",
          files={"out/distill/a/.lock": pipe}),
    train("a file where the cache goes", "TEACHER_CACHE.ENABLED", 1, "TEACHER_CACHE.DIR", "taken",
          says="TEACHER_CACHE.DIR", files=TAKEN),
]

TAKES_KD = """
from mdistiller.distillers.base import Distiller
from mdistiller.registry import DISTILLERS

@DISTILLERS.register("kd")
class Mine(Distiller):
    pass
"""
PLUGINS = [
    train("a plugin not there", "EXPERIMENT.PLUGINS", "[none.py]", says="EXPERIMENT.PLUGINS: none.py: no such file"),
    train("a plugin module not there", "EXPERIMENT.PLUGINS", "[no_such_module]", says="'no_such_module'"),
    train("a plugin without a name", "EXPERIMENT.PLUGINS", "['']", says="EXPERIMENT.PLUGINS"),
    train("a plugin relative to nothing", "EXPERIMENT.PLUGINS", "[.a]", says="EXPERIMENT.PLUGINS"),
    train("plugins that are no list", "EXPERIMENT.PLUGINS", "a.py", says="EXPERIMENT.PLUGINS: expected a list such as"),
    train("plugins of numbers", "EXPERIMENT.PLUGINS", "[[3]]", says="EXPERIMENT.PLUGINS: expected str"),
    *(train(f"a plugin with {what}", "EXPERIMENT.PLUGINS", "[p.py]", says=says, files={"p.py": text})
      for what, text, says in (
          ("a wrong syntax", "def f(:\n", "p.py: cannot be imported: SyntaxError"),
          ("an exception", "1 / 0\n", "p.py:1: cannot be imported: ZeroDivisionError"),
          ("a missing module", "import no_such_module\n", "p.py:1: cannot be imported: ModuleNotFoundError"),
          ("sys.exit", "import sys\nsys.exit()\n", "p.py:2: cannot be imported: SystemExit"),
          ("an end without recursion", "def f():\n    f()\nf()\n", "cannot be imported: RecursionError"),
          ("a taken name", TAKES_KD, "is already registered"),
          ("bytes", b"\xff\xfe\x00", "p.py: cannot be imported"),
          ("a NUL", b"a = 1\0", "p.py"),
      )),
    train("a folder as plugin", "EXPERIMENT.PLUGINS", "[p.py]", says="p.py: no such file", files={"p.py": folder}),
    config("a plugin of a _BASE_", "_BASE_: b.yaml\n", "b.yaml: EXPERIMENT.PLUGINS: none.py",
           b="EXPERIMENT: {PLUGINS: [none.py]}\n"),
]

OWN = {"own.py": """
from torch import nn

class Needs(nn.Module):
    def __init__(self, num_classes, depth):
        super().__init__()

class Fails(nn.Module):
    def __init__(self, num_classes):
        raise IndexError("no such layer")

class Seven(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.fc = nn.Linear(3, 7)
    def forward(self, x):
        return self.fc(x.mean((2, 3)))

class Text(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.fc = nn.Linear(3, num_classes)
    def forward(self, x):
        return "logits"

class Breaks(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.fc = nn.Linear(5, num_classes)
    def forward(self, x):
        return self.fc(x)

number = 3
"""}
NAMES = [(role, name, says) for role in ("STUDENT", "TEACHER") for name, says in (
    ("resnet9", "nearest: "), ("", "DISTILLER."), ("timm:resnet9999", "DISTILLER."), ("timm:", "DISTILLER."),
    ("torchvision:resnet19", "DISTILLER."), ("torchvision:", "DISTILLER."), ("torchvision:os", "DISTILLER."),
    ("keras:vgg", "DISTILLER."), (":", "DISTILLER."), ("none.py:Net", "none.py"), ("own.py:Nett", "own.py"),
    ("own.py:", "DISTILLER."), ("own.py:number", "own.py"), ("own.py:Needs", "own.py:Needs"),
    ("own.py:Fails", "own.py:Fails"),
    ("own.py:Seven", "own.py:Seven"), ("own.py:Text", "own.py:Text"), ("own.py:Breaks", "own.py:Breaks"),
)]
NETWORKS = [
    *(train(f"{role} {name!r}", f"DISTILLER.{role}", name, says=says, files=OWN) for role, name, says in NAMES),
    train("pretrained of CIFAR", "DISTILLER.STUDENT_CHECKPOINT", "pretrained", says="no pretrained weights"),
    train("pretrained teacher of CIFAR", "DISTILLER.TEACHER_CHECKPOINT", "pretrained", says="no pretrained weights"),
    train("own pixels of a network without", "DISTILLER.STUDENT_NORMALIZATION", "own", says="STUDENT_NORMALIZATION"),
    train("one pixel", "DISTILLER.TEACHER", "vgg8", "DISTILLER.TEACHER_INPUT_SIZE", 1, says="DISTILLER.TEACHER: vgg8"),
    train("a layer that is not there", "DISTILLER.TYPE", "FITNET", "FITNET.HINT_LAYER", 99, says="FITNET.HINT_LAYER"),
]

CASES = [*WORDS, *EMPTY, *PLACES, *PLUGINS, *NETWORKS]
