"""scripts/pack_for_gpu.py on made-up packages: what is packed, and what the machine must have."""

import importlib
import os
import zipfile
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def site(tmp_path, monkeypatch):
    """The script, in an environment of made-up packages."""
    monkeypatch.syspath_prepend(SCRIPTS)
    script = importlib.import_module("pack_for_gpu")
    folder = tmp_path / "site"
    install(folder, "project", {}, ["pure>=1", "Under_Score", "torch", "extra[more]", "gone"])
    install(folder, "pure", {"pure/a.py": b"a", "pure/tests/b.py": b"b"}, ["fast; extra == 'x'"])
    install(folder, "under-score", {"under.py": b""}, ["fast", "other; sys_platform == 'none'"])
    install(folder, "fast", {"fast/c.cpython-311.so": os.urandom(1000), "fast/d.py": b"d"})
    install(folder, "extra", {"extra.py": b""}, ["large; extra == 'more'", "other; extra == 'y'"])
    install(folder, "large", {"large.bin": os.urandom(2**20)})
    install(folder, "torch", {"torch.py": b""}, ["jinja"])
    install(folder, "jinja", {"jinja.py": b""})
    install(folder, "numpy", {"numpy.py": b""})
    install(folder, "other", {"other.py": b""})
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(script, "PROJECT", "project")
    return script


def install(folder: Path, name: str, files: dict[str, bytes], needs: list[str] | None = None):
    info = f"{name.replace('-', '_')}-1.5.dist-info"
    lines = ["Metadata-Version: 2.1", f"Name: {name}", "Version: 1.5"]
    lines += [f"Requires-Dist: {need}" for need in needs or ()]
    content = files | {f"{info}/METADATA": "\n".join(lines).encode(), f"{info}/RECORD": b""}
    for path, data in content.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    listed = [*content, "../../bin/command", f"{info}/direct_url.json"]
    (folder / info / "RECORD").write_text("".join(f"{path},,\n" for path in listed))


def packed(script, tmp_path, *words: object) -> set[str]:
    """Names of the files in the archive, without metadata."""
    output = tmp_path / "packed.zip"
    script.main(["--output", str(output), *map(str, words)])
    names = zipfile.ZipFile(output).namelist()
    assert not [name for name in names if "tests" in name or ".." in name or "url" in name]
    return {name for name in names if "dist-info" not in name}


def test_pure_packages_are_packed_and_the_others_named(site, tmp_path, capsys):
    assert packed(site, tmp_path) == {"pure/a.py", "under.py", "extra.py", "large.bin"}
    said = capsys.readouterr().out
    assert "5 packages, 1.0 MiB" in said  # the project has metadata, by which its version is found
    assert "must have 1 others itself:\n  fast 1.5: compiled, 0.0 MiB\n" in said
    names = zipfile.ZipFile(tmp_path / "packed.zip").namelist()
    assert "project-1.5.dist-info/METADATA" in names


def test_compiled_ones_are_packed_for_a_machine_of_the_same_kind(site, tmp_path):
    found = packed(site, tmp_path, "--compiled")
    assert {"fast/c.cpython-311.so", "fast/d.py"} <= found


def test_the_largest_are_left_out_over_the_limit(site, tmp_path, capsys):
    found = packed(site, tmp_path, "--limit", 0.9)
    assert found == {"pure/a.py", "under.py", "extra.py"}
    assert (tmp_path / "packed.zip").stat().st_size < 0.9 * 2**20
    assert "large 1.5: too large, 1.0 MiB" in capsys.readouterr().out


def test_a_package_is_left_out_with_what_only_it_needs(site, tmp_path):
    assert packed(site, tmp_path, "--without", "extra") == {"pure/a.py", "under.py"}


def test_what_the_machine_lists_is_left_out_if_its_version_fits(site, tmp_path):
    host = tmp_path / "host.txt"
    host.write_text("Pure==0.9\nunder_score==3.0\nfast==1.0\nlocal @ file:///x\nlarge==1.0+cu1\n")
    # pure>=1 is asked for; torch and jinja are not listed.
    assert packed(site, tmp_path, "--host", host) == {
        "pure/a.py", "extra.py", "torch.py", "jinja.py",
    }  # fmt: skip


def test_a_list_of_nothing_is_refused(site, tmp_path):
    host = tmp_path / "host.txt"
    with pytest.raises(SystemExit, match=r"--host: .*host\.txt: No such file"):
        site.main(["--host", str(host)])
    host.write_text("Package Version\n")
    with pytest.raises(SystemExit, match="no line has the form name==version"):
        site.main(["--host", str(host)])
