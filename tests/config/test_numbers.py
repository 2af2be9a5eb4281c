"""Numbers and texts of a file and of the command line, as they are written."""

from functools import partial

import pytest

from mdistiller.config import dump_cfg, files, get_cfg, load_cfg
from mdistiller.config.files import read_yaml
from mdistiller.errors import UserError


def message_of(path, opts):
    with pytest.raises(UserError) as caught:
        load_cfg(path, opts)
    return str(caught.value)


@pytest.mark.parametrize(("key", "written", "expected"), [
    ("EXPERIMENT.SEED", "010", "expected a number without a leading zero, found '010'; write 10 or 0o10"),
    ("EXPERIMENT.SEED", "08", "expected a number without a leading zero, found '08'; write 8"),
    ("SOLVER.EPOCHS", "0100", "found '0100'; write 100 or 0o100"),
    ("SOLVER.BATCH_SIZE", '"064"', "found '064'; write 64 or 0o64"),
    ("SOLVER.LR", "-00.5", "found '-00.5'; write -0.5"),
    ("KD.TEMPERATURE", "04", "found '04'; write 4 or 0o4"),
    ("SOLVER.LR_DECAY_STAGES", "[010, 20]", "found '010'; write 10 or 0o10"),
    ("EA.UPPER_BOUND", "0_10", "found '0_10'; write 10 or 0o10"),
    ("SOLVER.EPOCHS", "1:30", "expected int, found '1:30'"),
    ("SOLVER.LR", "1:30.5", "expected float, found '1:30.5'"),
    ("SOLVER.LR_DECAY_STAGES", "[0x10, 0o21, 0b10010, +19, 1_000]", [16, 17, 18, 19, 1000]),
    ("SOLVER.LR", "0.10", 0.1), ("SOLVER.LR", ".5", 0.5), ("SOLVER.LR", "1e-4", 1e-4), ("SOLVER.LR", "0x10", 16.0),
    ("EA.UPPER_BOUND", "0x10", 16.0),
    *(("EXPERIMENT.NAME", text, text) for text in (
        "3_10", "12:30:45", "010", "0x10", "0o10", "1.10", "+5", "2026-11-26", "1e3", "5", ".inf")),
    ("DISTILLER.STUDENT_CHECKPOINT", "010", "010"),
])
def test_a_number_is_decimal_or_refused_and_a_text_stays_as_it_is_written(tmp_path, key, written, expected):
    node, name = key.split(".")
    path, record = tmp_path / "a.yaml", tmp_path / "record.yaml"
    path.write_text(f"{node}:\n  {name}: {written}\n")
    for source in ((path, ()), (None, [key, written]), (None, [f"{key}={written}"])):
        merged = get_cfg()
        merge = partial(merged.merge_from_file, path) if source[0] else partial(merged.merge_from_list, [key, written])
        if isinstance(expected, str) and expected.startswith(("expected", "found")):
            assert expected in message_of(*source)
            with pytest.raises(UserError, match=f"{key}: expected"):
                merge()
        else:
            merge()
            cfg = load_cfg(*source)
            assert cfg[node][name] == merged[node][name] == expected
            record.write_text(dump_cfg(cfg))
            assert load_cfg(record) == cfg


def test_a_record_keeps_the_numbers_and_texts_that_earlier_versions_wrote(tmp_path):
    record = tmp_path / "config.yaml"
    record.write_text("EXPERIMENT: {NAME: '010', TAG: 1e3, SEED: 8}\nSOLVER: {LR: 1.0e-05, MIN_LR: 5.e-4}\n")
    cfg = load_cfg(record)
    assert (cfg.EXPERIMENT.NAME, cfg.EXPERIMENT.TAG, cfg.EXPERIMENT.SEED) == ("010", "1e3", 8)
    assert (cfg.SOLVER.LR, cfg.SOLVER.MIN_LR) == (1e-5, 5e-4)
    assert read_yaml(record) == {"EXPERIMENT": {"NAME": "010", "TAG": "1e3", "SEED": 8},
                                 "SOLVER": {"LR": 1e-5, "MIN_LR": 5e-4}}


def test_libyaml_reads_a_file_as_pyyaml_does(tmp_path, monkeypatch):
    """Records are read with libyaml, which is faster; a file means the same to both, and errors are PyYAML's."""
    path = tmp_path / "record.yaml"
    texts = (
        "a: {b: 010, c: 1_000, d: 1:30, e: 0x1F, f: -0b11, g: 1e3, h: 1.0e-05, i: .inf, j: 5., k: '5'}\n",
        "a: [yes, no, null, ~, on, 2026-11-27, 2026-11-27 10:00:00, '', \"x\\ny\", a:b, 3.5 ]\n",
        "one: &one {x: 1, y: 2}\ntwo: {<<: *one, y: 3}\nlong: |\n  a\n\n  b\nfolded: >\n  c\n  d\n",
        "? [a, b]\n: 1\n", "a: 1\na: 2\n", "a: {b: 1\n", "a: !!python/name:os.system ''\n", "- 1\n", "",
        dump_cfg(get_cfg()),
    )
    for text in texts:
        path.write_text(text)
        results = []
        for quick in (files._Quick, files._Loader):
            monkeypatch.setattr(files, "_Quick", quick)
            try:
                results.append(repr(read_yaml(path)))
            except UserError as error:
                results.append(str(error))
        assert results[0] == results[1], text
