# SPDX-License-Identifier: Apache-2.0
"""What SECURITY.md promises of the package, and what it relies on in MONAI."""

from __future__ import annotations

import ast
import io
import json
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from monai.apps.utils import extractall
from monai.bundle import download_large_files, run

import monai_attn

PACKAGE = Path(monai_attn.__file__).parent
# they open connections, run what a file says, or start programs
DANGEROUS = {
    "asyncio", "cloudpickle", "ctypes", "dill", "ftplib", "http", "joblib", "marshal", "multiprocessing", "pickle",
    "requests", "shelve", "smtplib", "socket", "socketserver", "subprocess", "urllib", "webbrowser", "xmlrpc", "yaml",
}  # fmt: skip
REVIEWED = {
    ("blocks/scse_kernels.py", "ctypes"),  # the library that was compiled with this package, by its fixed name
    ("demo.py", "socket"),  # a time limit for MONAI's checksummed download
    ("reproduce/cells.py", "subprocess"),  # monai.bundle, with a list of arguments and no shell
    ("weights/files.py", "pickle"),  # an error's type
    ("weights/pickled.py", "pickle"),  # its errors
    ("weights/records.py", "pickle"),  # an unpickler that neither imports nor calls anything
    ("workflow/manifest.py", "subprocess"),  # git, with fixed arguments
}
CALLS = {"__import__", "compile", "eval", "exec", "execfile", "input"}
ATTRIBUTES = {
    "extract",
    "extractall",
    "hub",
    "popen",
    "startfile",
    "system",
    "load_state_dict_from_url",
    "download_url",
}


def modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path.relative_to(PACKAGE).as_posix(), ast.parse(path.read_text())


def test_no_module_connects_unpickles_unpacks_or_runs_what_a_file_says():
    found = set()
    for name, tree in modules():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                found |= {(name, alias.name.split(".")[0]) for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found.add((name, (node.module or "").split(".")[0]))
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in CALLS:
                found.add((name, node.func.id))
            elif isinstance(node, ast.Attribute) and node.attr in ATTRIBUTES:
                found.add((name, node.attr))
    assert {(name, what) for name, what in found if what in DANGEROUS | CALLS | ATTRIBUTES} == REVIEWED


def test_weights_are_always_read_as_weights_only():
    loads = [
        node
        for _, tree in modules()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "load"
        if isinstance(node.func.value, ast.Name) and node.func.value.id == "torch"
    ]
    assert loads
    for node in loads:
        assert {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}["weights_only"] == "True"


def test_no_module_uses_the_network_when_it_is_imported():
    code = (
        "import importlib, pkgutil, socket\n"
        "def refuse(*args, **kwargs):\n    raise AssertionError(f'the network is used: {args}')\n"
        "socket.socket.connect = socket.socket.connect_ex = socket.create_connection = socket.getaddrinfo = refuse\n"
        "import monai_attn\n"
        "for module in pkgutil.walk_packages(monai_attn.__path__, 'monai_attn.'):\n"
        "    if not module.name.endswith('__main__'):\n        importlib.import_module(module.name)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.fault(68)
@pytest.mark.parametrize("name", ["../evil.txt", "/evil.txt", "bundle/../../evil.txt"])
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_a_bundle_archive_cannot_write_outside_of_its_folder(tmp_path, name, kind):
    archive = tmp_path / f"bundle.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(archive, "w") as file:
            file.writestr(name, "evil")
    else:
        with tarfile.open(archive, "w") as file:
            file.addfile(tarfile.TarInfo(name), io.BytesIO())
    with pytest.raises(ValueError, match="Unsafe path"):
        extractall(archive, tmp_path / "out")
    assert not list(tmp_path.rglob("evil.txt"))


@pytest.mark.fault(68)
def test_a_link_in_a_bundle_archive_is_refused(tmp_path):
    with tarfile.open(tmp_path / "bundle.tar", "w") as file:
        link = tarfile.TarInfo("bundle/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc"
        file.addfile(link)
    with pytest.raises(ValueError, match="link"):
        extractall(tmp_path / "bundle.tar", tmp_path / "out")


@pytest.mark.fault(68)
def test_a_list_of_large_files_cannot_write_outside_of_its_bundle(tmp_path):
    listing = {"large_files": [{"path": "../../evil.pt", "url": "https://localhost/evil.pt"}]}
    (tmp_path / "large_files.json").write_text(json.dumps(listing))
    with pytest.raises(ValueError, match="Unsafe path"):
        download_large_files(str(tmp_path))


@pytest.mark.fault(69)
@pytest.mark.parametrize(
    "field",
    ["class=__import__('pathlib').Path('{file}').touch()", "class=StreamHandler\nargs=(open('{file}', 'w'),)"],
)
def test_a_logging_file_cannot_run_code(tmp_path, monkeypatch, field):
    monkeypatch.chdir(tmp_path)
    evil = tmp_path / "configs" / "logging.conf"
    evil.parent.mkdir()
    good = next((PACKAGE.parent / "bundles").glob("*/configs/logging.conf")).read_text()
    kept = [line for line in good.splitlines() if not line.startswith(("class=", "args="))]
    index = kept.index("[handler_consoleHandler]") + 1
    evil.write_text("\n".join([*kept[:index], field.format(file=tmp_path / "touched"), *kept[index:]]))
    (evil.parent / "train.json").write_text(json.dumps({"run": "$1 + 1"}))
    with pytest.raises(ValueError, match="refusing to apply logging config"):
        run(config_file=str(evil.parent / "train.json"))
    assert not (tmp_path / "touched").exists()
