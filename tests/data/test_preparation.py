"""Downloads that fail, for real: a server that is gone, refuses, or sends something else."""

import http.server
import threading
from collections.abc import Iterator

import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core import units
from tensorflow_datasets.core.download import checksums, downloader

from mobilenet.cli.main import main
from mobilenet.data import datasets
from mobilenet.data.datasets import DatasetError, DownloadError


class DownloadedByTest(tfds.core.GeneratorBasedBuilder):
    """A data set that TFDS knows in this process, whose download each test chooses."""

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = "Ask the authors."
    url = ""
    url_infos = {}  # of TFDS: URL -> what its file must be

    def _info(self):
        features = tfds.features.FeaturesDict({"label": tfds.features.ClassLabel(num_classes=2)})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        path = dl_manager.download_and_extract(self.url) if self.url else dl_manager.manual_dir
        return {"train": self._generate_examples(path)}

    def _generate_examples(self, path):
        del path
        yield 0, {"label": 0}


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/gone.zip":
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", "1000" if self.path == "/short.zip" else "5")
        self.end_headers()
        self.wfile.write(b"other")

    def log_message(self, format, *args):
        del format, args


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as found:
        threading.Thread(target=found.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{found.server_port}"
        found.shutdown()


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloader, "MAX_RETRIES", 0)  # TFDS waits minutes between its tries
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        ("gone.zip", "HTTP code: 404"),
        ("other.zip", "has wrong checksum"),
        ("short.zip", "5 bytes read, 995 more expected"),
        ("no_archive.zip", "Error while extracting"),
    ],
)
def test_what_the_network_brings_is_told_in_a_sentence(file, reason, server, tmp_path, monkeypatch):
    url = f"{server}/{file}"
    monkeypatch.setattr(DownloadedByTest, "url", url)
    if file == "other.zip":
        expected = checksums.UrlInfo(units.Size(9), "00", file)
        monkeypatch.setattr(DownloadedByTest, "url_infos", {url: expected})
    with pytest.raises(DownloadError) as caught:
        datasets.prepare("downloaded_by_test", tmp_path)
    message = str(caught.value)
    assert "'downloaded_by_test' could not be downloaded" in message and reason in message
    assert "--from_tfrecord=COPY/downloaded_by_test/VERSION" in message and "\n" not in message


def test_no_network_is_one_sentence_of_the_program(tmp_path, monkeypatch, capsys):
    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as closed:
        port = closed.server_port
    monkeypatch.setattr(DownloadedByTest, "url", f"http://127.0.0.1:{port}/a.zip")
    command = ["prepare", "--dataset=downloaded_by_test", f"--data_dir={tmp_path}"]
    assert main(command) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("mobilenet prepare: dataset 'downloaded_by_test' could not be down")
    assert "Connection refused" in error and "HTTPConnectionPool" not in error


def test_files_to_fetch_by_hand_and_folders_that_cannot_be_written(tmp_path):
    with pytest.raises(
        DatasetError, match="not downloaded by TFDS .Manual directory .*follow http"
    ):
        datasets.prepare("downloaded_by_test", tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(DatasetError, match="could not be written to .*name a writable"):
        datasets.prepare("downloaded_by_test", tmp_path / "file")
