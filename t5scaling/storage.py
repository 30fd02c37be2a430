"""Files of run directories, local or gs://: what `etils.epath` does not give."""

import os

from etils import epath


def create(path: str | epath.Path, data: bytes) -> bool:
    """Makes a file that must not exist yet; returns False if it does. One process can win."""
    import fsspec

    system, name = fsspec.core.url_to_fs(os.fspath(path))
    try:
        system.pipe_file(name, data, mode="create")
    except FileExistsError:
        return False
    return True


def write(path: str | epath.Path, text: str) -> None:
    """The file is there whole or not at all."""
    path = epath.Path(path)
    if os.fspath(path).startswith("gs://"):  # an object is
        path.write_text(text)
        return
    temporary = f"{os.fspath(path)}.{os.getpid()}.tmp"
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(temporary, path)
