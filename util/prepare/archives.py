"""Official archives: found by name or content, unpacked safely, downloaded where they are public.

Unpacking goes on where it was interrupted. Nothing leaves the target folder: a path that tries to
is refused, and only regular files are written, each one whole or not at all.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import lzma
import os
import re
import stat
import tarfile
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple

from tqdm import tqdm

from util.prepare.steps import write_whole
from util.runtime.errors import FewShotError
from util.runtime.files import appending

ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".zip")
# RuntimeError: an encrypted zip, or one packed in a way that Python cannot read.
BROKEN = (
    *(tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, lzma.LZMAError),
    *(EOFError, ValueError, RuntimeError),
)
CHUNK = 1 << 20


class Download(NamedTuple):
    """A public address; ``md5`` where the publisher gives one."""

    url: str
    md5: str | None = None


class Source(NamedTuple):
    """One part of a data set.

    title: what a message calls it.
    names: official archive names.
    member: regular expression over an archive's paths; its group ``path`` is where the file goes
        below ``folder``; paths that do not match are left in the archive.
    needed: a regular expression that some of those must match; else it is the wrong archive.
    folder: where it is unpacked, relative to the data root.
    unpacked: glob patterns of the folder in a tree unpacked by hand (``.``: that tree itself).
    marker: a glob pattern that must find something in such a folder.
    where: where to get it.
    download: how to fetch it, if it has a public address.
    """

    title: str
    names: tuple[str, ...]
    member: str
    needed: str
    folder: str
    unpacked: tuple[str, ...]
    marker: str
    where: str
    download: Download | None = None


class Member(NamedTuple):
    """A regular file in an archive."""

    path: str
    size: int
    handle: tarfile.TarInfo | zipfile.ZipInfo


def locate(source: Source, root: Path, out: Path, download: bool) -> Path:
    """The folder that holds ``source``: unpacked below ``root``, or else made from its archive.

    Raises:
        FewShotError: it is nowhere, or an archive is the wrong one or damaged.
    """
    target = out / source.folder
    for folder in _unpacked(source, root):
        if folder.resolve() != target.resolve():
            return folder
    archive = _find_archive(source, root, out)
    if archive is None:
        # Without an archive to compare with, a folder in place is taken as it is.
        for folder in _unpacked(source, out):
            return folder
        if not download:
            raise FewShotError(_missing(source, root))
        if source.download is None:
            raise FewShotError(f"{source.title} has no public address to fetch: {source.where}")
        archive = fetch(source.download, out / source.names[0])
    unpack(archive, source, target)
    return target


def unpack(archive: Path, source: Source, target: Path) -> None:
    """Unpack what ``source`` wants of ``archive`` into ``target``; files that are there stay.

    A manifest beside the files lets a later call see that nothing is missing without reading the
    archive again.

    Raises:
        FewShotError: damaged archive, a path that leaves the folder, or nothing wanted in it.
    """
    manifest = target / ".unpacked" / f"{archive.name}.json"
    state = archive.stat()
    mark = [state.st_size, state.st_mtime_ns]
    if _is_complete(manifest, mark, target):
        return
    files: dict[str, int] = {}
    with _opened(archive) as opened:
        for member in tqdm(_members(opened), desc=f"unpack {archive.name}", unit="file"):
            matched = re.fullmatch(source.member, member.path)
            if not matched:
                continue
            path = matched["path"]
            files[path] = member.size
            if not _has_size(target / path, member.size):
                _write_member(opened, member, target / path, archive)
    if not any(re.fullmatch(source.needed, path) for path in files):
        raise FewShotError(_wrong(archive, source))
    write_whole(manifest, json.dumps({"archive": mark, "files": files}).encode())


def fetch(download: Download, path: Path) -> Path:
    """Download to ``path``, going on where an earlier try stopped; checks length and MD5.

    Raises:
        FewShotError: no connection, or what arrived is not what was published.
    """
    part = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(download.url, headers={"Range": f"bytes={have}-"})
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            if reply.status != 206:  # the server sends everything, whatever was asked for
                have = 0
            length = reply.headers.get("Content-Length")
            total = have + int(length) if length else None
            bar = tqdm(total=total, initial=have, unit="B", unit_scale=True, desc=path.name)
            with part.open("ab" if have else "wb") as file, bar:
                while chunk := reply.read(CHUNK):
                    with appending(path):
                        file.write(chunk)
                        file.flush()
                    bar.update(len(chunk))
    except urllib.error.HTTPError as error:
        if error.code != 416 or not have:  # 416: nothing is left to send
            raise FewShotError(f"{download.url} answers {error.code} {error.reason}") from error
        total = have
    except (urllib.error.URLError, HTTPException, TimeoutError, ConnectionError) as error:
        raise FewShotError(
            f"{download.url} cannot be fetched ({getattr(error, 'reason', error)}); "
            f"run again to go on, or put the file at {path} yourself"
        ) from error
    if total is not None and part.stat().st_size != total:
        raise FewShotError(f"{download.url}: the connection ended early; run again to go on")
    if download.md5 is not None and _md5(part) != download.md5:
        part.unlink()
        raise FewShotError(
            f"{download.url}: what arrived has another MD5 than the published {download.md5}"
        )
    os.replace(part, path)
    return path


def _unpacked(source: Source, root: Path) -> Iterator[Path]:
    for pattern in source.unpacked:
        for folder in [root] if pattern == "." else sorted(root.glob(pattern)):
            if next(folder.glob(source.marker), None):
                yield folder


def _archives(*folders: Path) -> list[Path]:
    found = [p for folder in folders if folder.is_dir() for p in sorted(folder.iterdir())]
    return list(dict.fromkeys(p for p in found if p.name.lower().endswith(ENDINGS)))


def _find_archive(source: Source, root: Path, out: Path) -> Path | None:
    """The archive of ``source``: by its official name, which must hold true, else by content."""
    archives = _archives(root, out)
    for archive in archives:
        if archive.name in source.names:
            if not _fits(archive, source):
                raise FewShotError(_wrong(archive, source))
            return archive
    return next((archive for archive in archives if _fits(archive, source)), None)


def _fits(archive: Path, source: Source) -> bool:
    with _opened(archive) as opened:
        for member in _members(opened):
            matched = re.fullmatch(source.member, member.path)
            if matched and re.fullmatch(source.needed, matched["path"]):
                return True
    return False


def _wrong(archive: Path, source: Source) -> str:
    return f"{archive} is not {source.title}: {_holds(archive)}; {source.where}"


def _holds(archive: Path) -> str:
    with _opened(archive) as opened:
        first = next(_members(opened), None)
    return f"it holds {first.path}" if first else "it holds no file"


def _missing(source: Source, root: Path) -> str:
    others = _archives(root)[:3]
    seen = "".join(f"; {p.name} is another archive ({_holds(p)})" for p in others)
    fetched = "; --download fetches it" if source.download else ""
    return f"{root} holds no {source.title}, packed or unpacked{seen}; {source.where}{fetched}"


@contextmanager
def _opened(archive: Path) -> Iterator[tarfile.TarFile | zipfile.ZipFile]:
    """Open an archive; damage met while it is open is the user's to know in one sentence."""
    kind = zipfile.ZipFile if archive.name.lower().endswith(".zip") else tarfile.open
    try:
        with kind(archive) as opened:
            yield opened
    except BROKEN as error:
        raise FewShotError(f"{archive} is damaged or no archive ({error})") from error


def _members(opened: tarfile.TarFile | zipfile.ZipFile) -> Iterator[Member]:
    """The regular files of an archive, in order; refuses paths that leave the folder."""
    for handle in opened.infolist() if isinstance(opened, zipfile.ZipFile) else opened:
        if isinstance(handle, zipfile.ZipInfo):
            # The upper half of a zip's attributes is the Unix mode, 0 where it is not known.
            kind = stat.S_IFMT(handle.external_attr >> 16)
            regular = not handle.is_dir() and kind in (0, stat.S_IFREG)
            path, size = handle.filename, handle.file_size
        else:
            regular, path, size = handle.isreg(), handle.name, handle.size
        parts = PurePosixPath(path.replace("\\", "/"))
        if parts.is_absolute() or ".." in parts.parts or re.match(r"[A-Za-z]:", path):
            raise FewShotError(
                f"{opened.filename if isinstance(opened, zipfile.ZipFile) else opened.name} "
                f"holds the path {path!r}, which leaves the folder: refused"
            )
        if regular:
            yield Member(str(parts), size, handle)


def _write_member(
    opened: tarfile.TarFile | zipfile.ZipFile, member: Member, path: Path, archive: Path
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with _reader(opened, member) as packed, part.open("wb") as file:
        while chunk := packed.read(CHUNK):
            with appending(path):
                file.write(chunk)
                file.flush()
    if not _has_size(part, member.size):
        raise FewShotError(f"{archive} is damaged: {member.path} ends early")
    os.replace(part, path)


def _reader(opened: tarfile.TarFile | zipfile.ZipFile, member: Member) -> BinaryIO:
    if isinstance(opened, zipfile.ZipFile):
        return opened.open(member.handle)
    return opened.extractfile(member.handle)


def _has_size(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except OSError:
        return False


def _is_complete(manifest: Path, mark: list[int], target: Path) -> bool:
    try:
        noted = json.loads(manifest.read_bytes())
        return noted["archive"] == mark and all(
            _has_size(target / path, size) for path, size in noted["files"].items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _md5(path: Path) -> str:
    digest = hashlib.md5()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
