"""The packages that are installed; everything else is said in pyproject.toml."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["mdistiller", "mdistiller.*"]), "mdistiller_tools"],
    package_dir={"mdistiller_tools": "tools"},
)
