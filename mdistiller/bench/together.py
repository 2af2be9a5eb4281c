"""Runs that train together, with one pass of their teacher, beside the same runs one by one."""

from mdistiller.bench.measure import Contestant, Settings, Table, ratios, spread, take_turns
from mdistiller.bench.ours import OurStep, make_data, make_teacher, shortened
from mdistiller.data.memory import ImageSource
from mdistiller.engine.setup import ALONE
from mdistiller.engine.sharing import Together
from mdistiller.engine.together import random_state, set_random_state
from mdistiller.registry import ea_name

FEATURES = ("FITNET", "AT", "SP", "VID")  # light methods, with a weighted variant each
GROUPS = (  # of methods whose teacher no cache replaces
    ("EA-REVIEWKD", "REVIEWKD", "EA-FCFD", "FCFD"),
    ("EA-REVIEWKD", "REVIEWKD"),
    FEATURES,
    (*map(ea_name, FEATURES), *FEATURES),
)


def bench_together(settings: Settings, source: ImageSource) -> list[Table]:
    """A training step of each method of a group, with everything its own, and with shared batches and passes."""
    pair = settings.pairs[-1]
    table = Table(
        f"Together: a step of each run, {' -> '.join(pair)}, batch {settings.batch}",
        ["runs", "one by one, ms", "together, ms", "times as fast"],
        notes=[
            "Together includes the exchange of the runs' random numbers. FCFD has its teacher in train mode, and "
            "therefore cannot read the passes of ReviewKD, whose teacher is in eval mode."
        ],
    )
    source = shortened(source, settings.images)
    data = make_data(source, settings)
    teacher = make_teacher(pair[0], data, settings)
    for methods in GROUPS:
        alone, together = (
            Steps([OurStep(data, teacher, pair, name, settings, shared=shared) for name in methods])
            for shared in (ALONE, Together())
        )
        seconds = take_turns([Contestant("one by one", alone), Contestant("together", together)], settings)
        table.rows.append([
            ", ".join(methods), *(spread(values, 1e3, 0) for values in seconds.values()),
            ratios(seconds["together"], seconds["one by one"]),
        ])
        table.seconds |= {f"{', '.join(methods)}, {name}": values for name, values in seconds.items()}
    return [table]


class Steps:
    """Each call is one step of every run, with the random numbers of each, as in `train_together`."""

    def __init__(self, runs: list[OurStep]):
        self.runs, self.states = runs, [random_state() for _ in runs]

    def __call__(self) -> None:
        for number, run in enumerate(self.runs):
            set_random_state(self.states[number])
            run()
            self.states[number] = random_state()
