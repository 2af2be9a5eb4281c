"""Archives made for tests."""

import io
import tarfile


def archive(path, members, mode="w"):
    """A tar file of (name, bytes) pairs or TarInfo objects."""
    with tarfile.open(path, mode) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
                continue
            name, content = member
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path
