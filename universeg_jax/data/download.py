"""Files of public datasets: downloaded, and unpacked without leaving their folder."""

import shutil
import tarfile
import zipfile
from pathlib import Path

from universeg_jax.data.source import Download, Source, SourceError
from universeg_jax.download import DownloadError, download
from universeg_jax.reports.files import lock


def fetch(source: Source, folder: str | Path) -> Path:
    """Returns the folder with a source's files, and downloads and unpacks them if they are missing.

    Raises SourceError, and UserError where another process is downloading them.
    """
    if not source.downloads:
        raise SourceError(
            f"{source.name}: its publisher gives the files by hand only: get them at {source.page}, then give --path"
        )
    folder = Path(folder) / source.name
    with lock(folder):
        for each in source.downloads:
            name = each.url.rpartition("/")[2]
            unpacked = folder / f"{name}.unpacked"
            if not unpacked.exists():
                archive = folder / name
                if not archive.exists():
                    _download(each, archive)
                _unpack(archive, unpacked)
                archive.unlink()
    return folder


def _download(source: Download, target: Path) -> None:
    try:
        download(source.url, target, source.checksum)
    except DownloadError as error:
        raise SourceError(f"{error}; or give --path") from error


def _unpack(archive: Path, target: Path) -> None:
    """Unpacks to `target`, which appears only whole. Raises SourceError for an unsafe or too large archive."""
    temporary = target.with_name(target.name + ".part")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as opened:
                _check(archive, sum(each.file_size for each in opened.infolist()), opened.namelist())
                opened.extractall(temporary)
        else:
            with tarfile.open(archive) as opened:
                members = opened.getmembers()
                _check(archive, sum(each.size for each in members), [each.name for each in members])
                opened.extractall(temporary, filter="data")
    except (tarfile.TarError, zipfile.BadZipFile, EOFError) as error:
        raise SourceError(f"{archive} cannot be unpacked: {error}") from error
    temporary.replace(target)


def _check(archive: Path, size: int, names: list[str]) -> None:
    """Raises SourceError for a member outside the folder and for more bytes than the disk has."""
    for name in names:
        if name.startswith(("/", "\\")) or ".." in Path(name).parts:
            raise SourceError(f"{archive}: its member {name!r} would lie outside the folder; nothing was unpacked")
    free = shutil.disk_usage(archive.parent).free
    if size > free:
        raise SourceError(f"{archive}: unpacked it has {size:,} bytes; the disk has {free:,}")
