"""Where the files that come along are: configs and small teachers, of the checkout or of the installed package."""

import os
from pathlib import Path

_ABOVE = Path(__file__).resolve().parents[1]
CHECKOUT = _ABOVE if (_ABOVE / "pyproject.toml").is_file() else None  # None: installed from a wheel
SHIPPED = CHECKOUT or Path(__file__).resolve().parent / "shipped"  # holds configs/ and checkpoints/
CONFIGS, CHECKPOINTS = SHIPPED / "configs", SHIPPED / "checkpoints"
HOME = CHECKOUT or Path()  # where commands put what belongs to the project: the checkout, else the working folder


def find_config(path: str | Path) -> Path:
    """A config file as it is written, else that of the ones that come along: "configs/digits/kd/res20_res8.yaml", or
    without "configs/". One that is nowhere comes back as it is written."""
    for place in (Path(), SHIPPED, CONFIGS):
        if os.path.isfile(place / path):  # False for a name that no file can have, too
            return place / path
    return Path(path)
