"""Gather what the site is made of in build/pages: the READMEs, the pages of docs/, a page of the reference per package.

    python scripts/docs_pages.py
"""

import re
import shutil
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = REPOSITORY / "build" / "pages"
MOVED = {"README.md": "index.md", "CHANGELOG.md": "changes.md", "checkpoints/README.md": "checkpoints.md",
         "configs/README.md": "configs.md"}
LINK = re.compile(r"(\]\()([^)#\s]+)")


def moved(text: str) -> str:
    """A page of the repository's root with its links as they are in the site."""

    def target(match):
        path = match[2]
        return match[1] + (path if ":" in path else MOVED.get(path, path.removeprefix("docs/")))

    return LINK.sub(target, text)


def modules_of(package: Path) -> list[str]:
    """The dotted names of a package and of its own public modules."""
    files = sorted(path for path in package.glob("*.py") if not path.name.startswith("_"))
    dotted = ".".join(package.relative_to(REPOSITORY).parts)
    return [dotted, *(f"{dotted}.{path.stem}" for path in files)]


def reference() -> dict[str, str]:
    """Name of a package -> the text of its page."""
    packages = sorted(path.parent for path in (REPOSITORY / "mdistiller").rglob("__init__.py"))
    pages = {}
    for package in packages:
        name, *modules = modules_of(package)
        own = f"::: {name}\n    options: {{heading_level: 2, members: false}}\n"
        pages[name] = f"# {name}\n\n{own}\n" + "\n".join(f"::: {module}\n" for module in modules)
    return pages


def main():
    shutil.rmtree(PAGES, ignore_errors=True)
    shutil.copytree(REPOSITORY / "docs", PAGES)
    for source, page in MOVED.items():
        (PAGES / page).write_text(moved((REPOSITORY / source).read_text("utf-8")), "utf-8")
    pages = reference()
    (PAGES / "reference").mkdir()
    for name, text in pages.items():
        (PAGES / "reference" / f"{name}.md").write_text(text, "utf-8")
    print(f"{len(list(PAGES.rglob('*.md')))} pages, {len(pages)} of them of the reference, in {PAGES}")


if __name__ == "__main__":
    main()
