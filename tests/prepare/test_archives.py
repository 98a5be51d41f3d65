"""Archives: safe unpacking, refusals by name, downloads that go on where they stopped."""

from __future__ import annotations

import hashlib
import tarfile
import threading
import zipfile
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests import prepare_trees as trees
from util.prepare import archives
from util.prepare.archives import Download, Source, fetch, locate
from util.runtime.errors import FewShotError

SOURCE = Source(
    title="the letters",
    names=("letters.zip", "letters.tar"),
    member=r"letters/(?P<path>.*\.txt)",
    needed=r"a\.txt",
    folder="unpacked",
    unpacked=("letters",),
    marker="*.txt",
    where="get letters.zip from the post office",
)


def write_zip(path, **contents):
    with zipfile.ZipFile(path, "w") as packed:
        for name, content in contents.items():
            packed.writestr(f"letters/{name}.txt", content)
    return path


def found(tmp_path, **more):
    return locate(SOURCE, tmp_path, tmp_path, download=False, **more)


def test_only_what_is_wanted_is_unpacked(tmp_path):
    path = write_zip(tmp_path / "letters.zip", a="A", b="B")
    with zipfile.ZipFile(path, "a") as packed:
        packed.writestr("letters/c.exe", "C")
        packed.writestr("other/d.txt", "D")
    folder = found(tmp_path)
    assert sorted(p.name for p in folder.iterdir() if p.is_file()) == ["a.txt", "b.txt"]
    assert (folder / "b.txt").read_text() == "B"


def test_a_folder_unpacked_by_hand_comes_before_the_archive(tmp_path):
    write_zip(tmp_path / "letters.zip", a="A")
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "a.txt").write_text("by hand")
    assert found(tmp_path) == tmp_path / "letters"


def test_a_complete_archive_is_not_read_again_and_a_new_one_is(tmp_path, monkeypatch):
    path = write_zip(tmp_path / "letters.zip", a="A", b="B")
    folder = found(tmp_path)
    written = []
    original = archives._write_member
    monkeypatch.setattr(
        archives, "_write_member", lambda *a: (written.append(a[2].name), original(*a))
    )
    found(tmp_path)
    assert written == []
    (folder / "b.txt").unlink()
    found(tmp_path)
    assert written == ["b.txt"]
    path.unlink()
    write_zip(path, a="A", b="BBB")
    found(tmp_path)
    assert (folder / "b.txt").read_text() == "BBB"


@pytest.mark.parametrize("path", ["../a.txt", "letters/../../a.txt", "/letters/a.txt", "C:/a.txt"])
def test_paths_that_leave_the_folder_are_refused(tmp_path, path):
    trees.tar_with(tmp_path / "letters.tar", path, b"A")
    with pytest.raises(FewShotError, match="letters.tar holds the path .* leaves the folder"):
        found(tmp_path)
    (tmp_path / "letters.tar").unlink()
    with zipfile.ZipFile(tmp_path / "letters.zip", "w") as packed:
        packed.writestr(path, "A")
    with pytest.raises(FewShotError, match="letters.zip holds the path .* leaves the folder"):
        found(tmp_path)
    assert [p.name for p in tmp_path.rglob("*.txt")] == []


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_never_made(tmp_path, kind):
    trees.tar_with(tmp_path / "letters.tar", "letters/a.txt", b"", kind)
    with pytest.raises(FewShotError, match="letters.tar is not the letters: it holds no file"):
        found(tmp_path)


def test_zip_links_are_never_made(tmp_path):
    with zipfile.ZipFile(tmp_path / "letters.zip", "w") as packed:
        link = zipfile.ZipInfo("letters/a.txt")
        link.external_attr = 0o120777 << 16
        packed.writestr(link, "/etc/hostname")
    with pytest.raises(FewShotError, match="it holds no file"):
        found(tmp_path)


@pytest.mark.parametrize("name", ["letters.zip", "letters.tar"])
def test_what_is_no_archive_is_named(tmp_path, name):
    (tmp_path / name).write_bytes(b"<html>404</html>" * 100)
    with pytest.raises(FewShotError, match=f"{name} is damaged or no archive"):
        found(tmp_path)


@pytest.mark.parametrize("kind", ["zip", "tar", "tgz"])
def test_a_truncated_archive_is_named_and_leaves_no_partial_file(tmp_path, kind):
    folder = tmp_path / "source"
    folder.mkdir()
    for name in "ab":
        (folder / f"{name}.txt").write_bytes(hashlib.sha512(name.encode()).digest() * 5000)
    path = tmp_path / f"letters.{kind}"
    (trees.zip_folder if kind == "zip" else trees.tar_folder)(folder, path, "letters")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(FewShotError, match=f"letters.{kind} is damaged"):
        found(tmp_path)
    for unpacked in tmp_path.glob("unpacked/*.txt"):
        assert unpacked.stat().st_size == 320000


def test_a_changed_byte_is_found_by_the_checksum(tmp_path):
    path = write_zip(tmp_path / "letters.zip", a="a unique text")
    path.write_bytes(path.read_bytes().replace(b"unique", b"Unique", 1))
    with pytest.raises(FewShotError, match="letters.zip is damaged.*CRC"):
        found(tmp_path)
    assert not (tmp_path / "unpacked" / "a.txt").exists()


def test_an_encrypted_zip_is_one_sentence(tmp_path):
    path = write_zip(tmp_path / "letters.zip", a="A")
    content = bytearray(path.read_bytes())
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    with pytest.raises(FewShotError, match="letters.zip is damaged or no archive.*encrypted"):
        found(tmp_path)


def test_another_archive_is_named_with_what_it_holds(tmp_path):
    with zipfile.ZipFile(tmp_path / "train2017.zip", "w") as packed:
        packed.writestr("train2017/1.jpg", "")
    with pytest.raises(FewShotError) as caught:
        found(tmp_path)
    assert "train2017.zip is another archive (it holds train2017/1.jpg)" in str(caught.value)
    assert "get letters.zip from the post office" in str(caught.value)


CONTENT = bytes(range(256)) * 4096


class Server(BaseHTTPRequestHandler):
    """Serves CONTENT; ``ranges``: honours them; ``cut``: ends early the first time."""

    def __init__(self, state, *arguments):
        self.state = state
        super().__init__(*arguments)

    def do_GET(self):
        if self.path != "/file":
            self.send_error(404)
            return
        first = int(self.headers["Range"].split("=")[1][:-1]) if self.state["ranges"] else 0
        self.state["starts"].append(first)
        if first >= len(CONTENT):
            self.send_error(416)
            return
        self.send_response(206 if self.state["ranges"] else 200)
        self.send_header("Content-Length", str(len(CONTENT) - first))
        self.end_headers()
        cut = self.state["cuts"].pop(0) if self.state["cuts"] else len(CONTENT)
        self.wfile.write(CONTENT[first:cut])

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    state = {"ranges": True, "cuts": [], "starts": []}
    http = ThreadingHTTPServer(("127.0.0.1", 0), partial(Server, state))
    threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
    state["url"] = f"http://127.0.0.1:{http.server_port}/file"
    yield state
    http.shutdown()
    http.server_close()


@pytest.mark.parametrize("ranges", [True, False])
def test_a_download_goes_on_where_it_stopped(server, tmp_path, ranges):
    server.update(ranges=ranges, cuts=[1000])
    download = Download(server["url"], hashlib.md5(CONTENT).hexdigest())
    with pytest.raises(FewShotError, match="run again to go on"):
        fetch(download, tmp_path / "file")
    assert not (tmp_path / "file").exists()
    assert fetch(download, tmp_path / "file").read_bytes() == CONTENT
    assert server["starts"] == [0, 1000 if ranges else 0]


def test_a_whole_part_is_not_fetched_again(server, tmp_path):
    (tmp_path / "file.part").write_bytes(CONTENT)
    download = Download(server["url"], hashlib.md5(CONTENT).hexdigest())
    assert fetch(download, tmp_path / "file").read_bytes() == CONTENT


def test_a_wrong_checksum_is_refused_and_starts_afresh(server, tmp_path):
    with pytest.raises(FewShotError, match="another MD5"):
        fetch(Download(server["url"], "0" * 32), tmp_path / "file")
    assert list(tmp_path.iterdir()) == []


def test_an_address_that_fails_is_one_sentence(server, tmp_path):
    with pytest.raises(FewShotError, match="answers 404"):
        fetch(Download(server["url"] + "s"), tmp_path / "file")
    with pytest.raises(FewShotError, match="cannot be fetched.*put the file at"):
        fetch(Download("http://127.0.0.1:1/file"), tmp_path / "file")


def test_the_addresses_of_pascal_are_those_of_torchvision():
    from torchvision.datasets import SBDataset
    from torchvision.datasets.voc import DATASET_YEAR_DICT

    from util.prepare.pascal import SBD, VOC

    assert VOC.names[0] == DATASET_YEAR_DICT["2012"]["filename"]
    assert VOC.download.md5 == DATASET_YEAR_DICT["2012"]["md5"]
    assert (SBD.names[0], SBD.download) == (SBDataset.filename, (SBDataset.url, SBDataset.md5))
