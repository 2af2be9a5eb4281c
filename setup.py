"""The packages that are installed, and the files that come along; everything else is said in pyproject.toml."""

from setuptools import find_packages, setup

SHIPPED = "mdistiller.shipped"  # where an installed copy has the checkout's configs/ and checkpoints/ (places.py)
TEACHERS = (
    "digits/resnet20", "words/tiny_2x64", "cifar100/resnet20", "cifar100/wrn_16_2", "cifar100/wrn_16_2_30",
    "digits_detection/r18",
)

setup(
    packages=[
        *find_packages(include=["mdistiller", "mdistiller.*"]), "mdistiller_tools",
        f"{SHIPPED}.configs", f"{SHIPPED}.checkpoints",
    ],
    package_dir={
        "mdistiller_tools": "tools", f"{SHIPPED}.configs": "configs", f"{SHIPPED}.checkpoints": "checkpoints",
    },
    package_data={
        "mdistiller": ["py.typed"],
        "mdistiller.runs": ["*.yaml"],
        "mdistiller.report": ["templates/*"],
        f"{SHIPPED}.configs": ["**/*.yaml"],
        f"{SHIPPED}.checkpoints": ["index.json", "README.md", "*/README.md", *(f"{name}.pth" for name in TEACHERS)],
    },
    include_package_data=False,
)
