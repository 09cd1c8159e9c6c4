# SPDX-License-Identifier: Apache-2.0
"""What SECURITY.md promises of the package, and what it relies on in MONAI."""

import ast
import io
import json
import tarfile
import zipfile
from pathlib import Path

import pytest
from monai.apps.utils import extractall
from monai.bundle import download_large_files, run

import monai_attn

PACKAGE = Path(monai_attn.__file__).parent
# what opens connections, unpickles, unpacks, or runs what a file says; processes are started without a shell
BUILT_INS = {"__import__", "compile", "eval", "exec"}
OTHERS = {
    "cloudpickle", "ctypes", "dill", "download_url", "extract", "extractall", "ftplib", "http", "hub", "joblib",
    "load_state_dict_from_url", "marshal", "pickle", "popen", "requests", "shell", "shelve", "smtplib", "socket",
    "startfile", "system", "urllib", "webbrowser", "xmlrpc", "yaml",
}  # fmt: skip
REVIEWED = {
    ("run/report.py", "urllib"),  # quotes the links of a page
}


def forbidden(node: ast.AST) -> set[str]:
    """Return what of the above a node imports, names, or passes as an argument."""
    if isinstance(node, ast.Name):
        return {node.id} & BUILT_INS
    if isinstance(node, ast.ImportFrom):
        return {(node.module or "").split(".")[0], *(alias.name for alias in node.names)} & OTHERS
    if isinstance(node, ast.Import):
        return {alias.name.split(".")[0] for alias in node.names} & OTHERS
    if isinstance(node, ast.Attribute):
        return {node.attr} & OTHERS
    return {node.arg or ""} & OTHERS if isinstance(node, ast.keyword) else set()


def test_the_rule_finds_what_is_forbidden():
    evil = "import urllib.request; from pickle import loads; os.system('a'); eval('b'); subprocess.run('c', shell=True)"
    found = {name for node in ast.walk(ast.parse(evil)) for name in forbidden(node)}
    assert found == {"urllib", "pickle", "system", "eval", "shell"}


def test_no_module_connects_unpickles_unpacks_or_runs_what_a_file_says():
    loads = []
    for path in PACKAGE.rglob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        name = path.relative_to(PACKAGE).as_posix()
        found = {(name, use) for node in nodes for use in forbidden(node)}
        assert found <= REVIEWED
        loads += [node for node in nodes if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load"]
    assert loads
    assert all("weights_only=True" in ast.unparse(node) for node in loads)


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
