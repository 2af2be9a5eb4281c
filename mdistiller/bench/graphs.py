"""Training steps recorded as CUDA graphs beside plain ones."""

from mdistiller.bench.cases import cache_folder
from mdistiller.bench.measure import Contestant, Settings, Table, rates, ratios, spread, take_turns
from mdistiller.bench.ours import OurStep, make_data, make_teacher, shortened
from mdistiller.data.memory import ImageSource
from mdistiller.errors import UserError

KINDS = {"teacher live": ("EA-KD", False), "from the cache": ("EA-KD", True), "student alone": ("NONE", False)}


def bench_graphs(settings: Settings, source: ImageSource) -> list[Table]:
    """EA-KD of every pair: plain steps in turns with recorded ones. Raises UserError on other devices than CUDA's."""
    if settings.device.type != "cuda":
        raise UserError(f"graphs: CUDA graphs need --device cuda; found {settings.device.type}")
    table = Table(
        f"Graphs: training steps recorded as CUDA graphs, batch {settings.batch}",
        ["teacher -> student", "EA-KD", "plain, ms", "recorded, ms", "recorded, images a second", "times as fast"],
    )
    source = shortened(source, settings.images)
    data = make_data(source, settings)
    for pair in settings.pairs:
        teacher = make_teacher(pair[0], data, settings)
        for name, (method, cached) in KINDS.items():
            with cache_folder() as folder:
                seconds = take_turns(
                    [Contestant(way, OurStep(data, teacher, pair, method, settings, cache=folder if cached else None,
                                             **{"SOLVER.CUDA_GRAPH": way})) for way in ("never", "auto")],
                    settings,
                )
            plain, recorded = seconds["never"], seconds["auto"]
            table.rows.append([
                " -> ".join(pair), name, spread(plain, 1e3), spread(recorded, 1e3), rates(recorded, settings.batch),
                ratios(recorded, plain),
            ])
            table.seconds |= {f"{' -> '.join(pair)}, {name}, {way}": values for way, values in seconds.items()}
    return [table]
