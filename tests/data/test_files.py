"""Finding images in folders, and handling broken ones."""

import logging
import os
import re
import shutil
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from mdistiller import distributed
from mdistiller.config import load_cfg
from mdistiller.data import build_data
from mdistiller.data.files import (
    class_names,
    decode_all,
    find_folder,
    image_files,
    open_image,
    problem_of,
    quick_check,
    scan_classes,
    sound_positions,
)
from mdistiller.errors import UserError
from tests.data.support import write_folders, write_image

CLASSES = ("ant", "bee", "cat")


def truncate(path, keep=0.6):
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])


def test_classes_and_images_are_sorted_and_other_files_are_ignored(tmp_path):
    train = write_folders(tmp_path) / "train"
    for name in ("ant/notes.txt", "ant/.hidden.png", "boxes.txt"):
        (train / name).write_text("no image")
    (train / ".cache").mkdir()
    write_image(train / "cat" / "more" / "PICTURE.JPEG", 8, 8)
    assert class_names(train) == CLASSES
    files = scan_classes(train, CLASSES)
    assert [files.name(position) for position in (0, 3, 4, -1)] == [
        "ant/0.png", "ant/3.png", "bee/0.png", "cat/more/PICTURE.JPEG",
    ]
    assert files.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 5
    part = files.take(np.array([12, 0]))
    assert part.path(0) == train / "cat/more/PICTURE.JPEG" and part.labels.tolist() == [2, 0]


def test_images_are_listed_with_a_few_path_operations_for_each_folder(tmp_path, monkeypatch):
    train, counted = write_folders(tmp_path) / "train", []
    relpath = os.path.relpath
    monkeypatch.setattr(os.path, "relpath", lambda *args: counted.append(args) or relpath(*args))
    assert len(scan_classes(train, CLASSES)) > len(counted) == len(CLASSES)


def test_file_names_that_are_not_valid_text_are_read(tmp_path):
    folder = tmp_path / "train" / "a"
    folder.mkdir(parents=True)
    name = b"\xff\xfe.png".decode("utf-8", "surrogateescape")
    write_image(tmp_path / "plain.png", 8, 8)
    shutil.copy(tmp_path / "plain.png", folder / name)
    files = scan_classes(tmp_path / "train", ("a",))
    assert open_image(files.path(0)).size == (8, 8)


@pytest.mark.parametrize("inside", ["imagenet", "imagenet-1k", "."])
def test_a_data_set_lies_below_the_root_or_is_the_root(tmp_path, inside):
    write_folders(tmp_path / inside)
    assert find_folder(tmp_path, "imagenet", "imagenet*") == tmp_path / inside


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda root: shutil.rmtree(root / "val"), "val is missing"),
        (lambda root: shutil.rmtree(root / "val" / "bee"), r"val lacks class folders of train/ \(1\): bee"),
        (lambda root: (root / "val" / "dog").mkdir(), r"val has class folders that train/ lacks \(1\): dog"),
        (lambda root: [file.unlink() for file in (root / "train" / "cat").iterdir()], "train/cat: no images"),
        (lambda root: [shutil.rmtree(root / "train" / name) for name in CLASSES], "train: no class folders"),
        (lambda root: [(root / split / "zoo").symlink_to(root / "gone") for split in ("train", "val")],
         r"train has links that lead nowhere \(1\): zoo"),
        (lambda root: (root / "val" / "zoo").symlink_to("zoo"), r"val has links that lead nowhere \(1\): zoo"),
    ],
)
def test_folders_that_do_not_fit_are_named_in_one_line(tmp_path, damage, message):
    root = write_folders(tmp_path)
    damage(root)
    with pytest.raises(UserError, match=message) as error:
        classes = class_names(root / "train")
        scan_classes(root / "train", classes), scan_classes(root / "val", classes)
    assert "\n" not in str(error.value)


def test_a_root_without_the_data_set_says_what_was_expected(tmp_path):
    with pytest.raises(UserError, match=r"DATASET.ROOT .*: imagenet is missing, expected imagenet/ with train/"):
        find_folder(tmp_path / "nowhere", "imagenet", "imagenet", "imagenet*")


# ---- broken images


def write_formats(folder):
    image = Image.fromarray(write_image(folder / "whole.png", 40, 50))
    for mode, name in (
        ("RGB", "colour.jpg"), ("L", "gray.jpg"), ("CMYK", "cmyk.jpg"), ("P", "palette.png"), ("RGBA", "alpha.png"),
        ("RGB", "picture.webp"), ("RGB", "picture.bmp"), ("RGB", "picture.tif"), ("RGB", "picture.ppm"),
    ):
        image.convert(mode).save(folder / name)
    image.save(folder / "progressive.jpg", progressive=True)
    (folder / "padded.jpg").write_bytes((folder / "colour.jpg").read_bytes() + b"\0" * 100)
    return sorted(folder.iterdir())


def test_whole_images_of_every_kind_pass_the_check_and_are_read_as_rgb(tmp_path):
    for path in write_formats(tmp_path):
        assert problem_of(quick_check, path) is None, path
        assert open_image(path).mode == "RGB" and open_image(path).size == (50, 40)


@pytest.mark.filterwarnings("ignore:Truncated File Read")
@pytest.mark.parametrize("keep", [0.97, 0.6, 0.02, 0.0])
def test_truncated_images_of_every_kind_fail_the_check_and_cannot_be_read(tmp_path, keep):
    for path in write_formats(tmp_path):
        if path.name == "padded.jpg" and keep > 0.6:
            continue  # still whole
        truncate(path, keep)
        assert problem_of(quick_check, path), path
        assert problem_of(open_image, path), path


def test_a_file_that_is_not_an_image_fails_with_a_short_reason(tmp_path):
    path = tmp_path / "page.jpg"
    path.write_text("<html>404</html>")
    assert problem_of(quick_check, path) == "not an image"
    assert problem_of(quick_check, tmp_path / "gone.jpg") == "No such file or directory"


def test_images_of_more_than_eight_bits_are_not_cut_off_at_255(tmp_path):
    Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(tmp_path / "deep.png")
    for action in (quick_check, open_image):
        assert re.search("mode I(;16)?, expected 8 bits", problem_of(action, tmp_path / "deep.png"))  # I: Pillow 10


def png(data, height=8):
    """A PNG of 8 x `height` gray pixels with valid checksums and the given compressed data."""
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", 8, height, 8, 0, 0, 0, 0)), (b"IDAT", data),
        (b"IEND", b""),
    )
    parts = (struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
             for name, data in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_a_png_with_valid_checksums_but_too_little_data_is_broken(tmp_path):
    data = zlib.compress(bytes(9 * 8))
    (tmp_path / "whole.png").write_bytes(png(data))
    (tmp_path / "short.png").write_bytes(png(data[:6]))
    assert problem_of(quick_check, tmp_path / "whole.png") is None
    assert problem_of(quick_check, tmp_path / "short.png")


def test_other_programs_are_not_started_for_an_image(tmp_path):
    for name in ("page.png", "page.jpg"):  # PostScript, which Pillow would hand to Ghostscript
        (tmp_path / name).write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n")
        assert problem_of(quick_check, tmp_path / name) == problem_of(open_image, tmp_path / name) == "not an image"


def test_a_pipe_or_a_device_named_as_an_image_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "zero.jpg").symlink_to("/dev/zero")
    for name in ("pipe.jpg", "zero.jpg"):
        for action in (quick_check, open_image):
            assert problem_of(action, tmp_path / name) == "not a regular file"


@pytest.mark.filterwarnings("ignore:Image size")
def test_an_image_of_too_many_pixels_is_refused_without_decoding_it(tmp_path):
    (tmp_path / "a.png").write_bytes(png(b"", height=12_000_000))
    for action in (quick_check, open_image):
        assert "8x12000000 pixels, expected at most 89478485" in problem_of(action, tmp_path / "a.png")


def test_pillow_s_warnings_do_not_reach_the_user(tmp_path):
    Image.new("P", (8, 8)).save(tmp_path / "a.png", transparency=bytes([0, 255]))
    code = f"from mdistiller.data.files import open_image; print(open_image({str(tmp_path / 'a.png')!r}).mode)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("RGB\n", "")


@pytest.fixture
def damaged(tmp_path):
    """train/ and val/; images 1 and 4 of train/ and 0 of val/ are broken."""
    root = write_folders(tmp_path, suffix=".jpg")
    sets = [scan_classes(root / split, CLASSES) for split in ("train", "val")]
    for files, position in ((sets[0], 1), (sets[0], 4), (sets[1], 0)):
        truncate(files.path(position))
    return sets


def check(sets, skip_broken):
    return sound_positions(sets, lambda number, place: quick_check(sets[number].path(place)), "checking", skip_broken)


def test_broken_images_of_all_splits_give_one_error_with_a_count_and_examples(damaged):
    with pytest.raises(UserError) as error:
        check(damaged, False)
    message = str(error.value)
    assert "3 broken images" in message and "DATASET.SKIP_BROKEN True" in message and "\n" not in message
    for files, position in ((damaged[0], 1), (damaged[0], 4), (damaged[1], 0)):
        assert str(files.path(position)) in message
    truncate(damaged[1].path(1))
    with pytest.raises(UserError, match="4 broken images.* and 1 more"):
        check(damaged, False)


def test_broken_images_are_left_out_by_name_when_asked(damaged, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("mdistiller"), "propagate", True)
    train, val = check(damaged, True)
    assert train.tolist() == [0, 2, 3, 5, 6, 7, 8, 9, 10, 11] and val.tolist() == [1, 2, 3, 4, 5]
    named = list(dict.fromkeys(record.getMessage() for record in caplog.records))  # pytest may capture a line twice
    assert len(named) == 3 and all("truncated" in line for line in named)
    assert str(damaged[0].path(4)) in named[1]


def test_processes_of_a_machine_divide_a_check_and_all_know_of_every_broken_image(damaged, monkeypatch):
    examined, found = [], []

    def examine(number, position):
        examined.append((number, position))
        quick_check(damaged[number].path(position))

    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr("mdistiller.data.files.gather", lambda own: found.append(own) or [{4: "broken"}, own])
    monkeypatch.setenv("LOCAL_RANK", "1")
    for processes, number in (("2", 9), ("1", 18)):  # the other process is on this machine, or on another one
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
        examined.clear(), found.clear()
        train, _ = sound_positions(damaged, examine, "checking", True, divided=True)
        assert len(examined) == number and train.tolist()[:4] == [0, 2, 3, 5]
        assert [*found[0]] == ([1] if number == 9 else [1, 4])


def test_a_class_with_only_broken_images_is_an_error_even_when_they_are_left_out(damaged):
    truncate(damaged[1].path(1))
    with pytest.raises(UserError, match="val/ant: every image of the class is broken"):
        check(damaged, True)


def test_decoding_leaves_out_broken_images_and_keeps_labels_aligned(damaged):
    (train, labels), (val, val_labels) = decode_all(damaged, 24, lambda image: image.resize((24, 24)), True)
    assert labels.tolist() == [0] * 3 + [1] * 3 + [2] * 4 and val_labels.tolist() == [0, 1, 1, 2, 2]
    assert train.shape == (10, 24, 24, 3) and train.dtype == np.uint8
    expected = open_image(damaged[0].path(5)).resize((24, 24))
    assert (train[3] == np.asarray(expected)).all()


def test_a_data_set_without_broken_images_is_not_copied(tmp_path):
    write_image(tmp_path / "a.png", 8, 8)
    files = image_files(tmp_path, ["a.png"], np.zeros(1))
    ((images, _),) = decode_all([files], 8, lambda image: image, False)
    assert images.base is None


def test_unreadable_folders_are_an_error(tmp_path):
    train = write_folders(tmp_path) / "train"
    (train / "ant" / "itself").symlink_to(".")
    with pytest.raises(UserError, match="ant/itself: a link to a folder of the same class"):
        scan_classes(train, CLASSES)


@pytest.mark.parametrize("name", ["validation", "test"])
def test_test_images_in_a_folder_of_another_name_are_found_by_the_key_that_the_error_names(tmp_path, name):
    (write_folders(tmp_path) / "val").rename(tmp_path / name)
    opts = ["DATASET.TYPE", "imagefolder", "DATASET.ROOT", str(tmp_path), "DATASET.IMAGE_SIZE", "32"]
    with pytest.raises(UserError, match=f"val is missing.*{name}, set DATASET.VAL_FOLDER {name}"):
        build_data(load_cfg(None, opts), "cpu")
    data = build_data(load_cfg(None, [*opts, "DATASET.VAL_FOLDER", name]), "cpu")
    assert sum(len(batch["target"]) for batch in data.eval_batches("test")) == 6
