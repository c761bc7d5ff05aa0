# SPDX-License-Identifier: MPL-2.0
"""scripts/release and scripts/sbom: what a release has in it is what its sums and its SBOM say, it is the same
whenever it is made, and it is refused where it would not be what it says."""

import glob
import hashlib
import json
import os
import re
import runpy
import shutil
import subprocess
import zipfile

import pytest

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
WITHIN = 300
LIBRARIES = ["aarch64-gnu", "aarch64-musl", "x86_64-gnu", "x86_64-musl"]
WHEN = "2026-01-02T03:04:05Z"
CHANGES = """# Changes

What users notice.

## {0}

### One

- It is [new](docs/delays.md).

## 0.0.1

The first.
"""
NOTES = """# rabbitmq_delay_wheel {0}

Commit {1}, in whose tree the links are. See `docs/internals/releases.md` there for how to check these files.

### One

- It is [new](docs/delays.md).
"""
MAKEFILE = """
broker-4.0:
dist:
\t@mkdir -p dist && cp -r "$(ARCHIVES)"/* dist
"""


def run(*argv, **more):
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=WITHIN, **more)


def version_of(archive):
    return re.search(r"-([0-9.]+)(?:\+|\.ez$)", os.path.basename(archive)).group(1)


class Checkout:
    """A small one, whose `make dist` takes the archives that are there."""

    def __init__(self, path, archives, version):
        self.path, self.archives, self.version = path, archives, version

    def begin(self):
        path = self.path
        for name in ("scripts/release", "scripts/sbom", "scripts/deb", "LICENSE-concurrency-kit", "tests/static/dist.py",
                     ".gitignore", *glob.glob("packaging/debian/*", root_dir=TOP)):
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(os.path.join(TOP, name), path / name)
        (path / "c_src").mkdir()
        for name in glob.glob(os.path.join(TOP, "c_src", "*.c")):
            (path / "c_src" / os.path.basename(name)).write_text("// of " + name[len(TOP):])
        (path / "Makefile").write_text(MAKEFILE)
        self.git("init", "-q")
        self.changes(CHANGES.format(self.version))

    def git(self, *argv):
        done = run("git", "-C", str(self.path), "-c", "user.name=a", "-c", "user.email=a@example.org", *argv,
                   env={**os.environ, "GIT_COMMITTER_DATE": WHEN, "GIT_AUTHOR_DATE": WHEN})
        assert done.returncode == 0, done
        return done.stdout.strip()

    def changes(self, text):
        (self.path / "CHANGELOG.md").write_text(text)
        self.commit()

    def commit(self):
        self.git("add", "--all")
        self.git("commit", "-q", "--allow-empty", "--message", "A step")

    def make(self, *missing, version=None, **environment):
        return run(str(self.path / "scripts" / "release"), version or self.version, *missing,
                   env={**os.environ, "ARCHIVES": str(self.archives), **environment,
                        "SYSROOT": os.environ.get("SYSROOT") or os.path.join(TOP, "_build", "sysroot")})

    def made(self):
        """{file: its bytes} of all releases."""
        top = self.path / "release"
        return {str(file.relative_to(top)): file.read_bytes() for file in top.rglob("*") if file.is_file()}


@pytest.fixture(scope="session")
def with_release(both, built, tmp_path_factory):
    """One in which a release was made."""
    checkout = Checkout(tmp_path_factory.mktemp("checkout"), both, version_of(built))
    checkout.begin()
    done = checkout.make()
    assert done.returncode == 0, done
    return checkout


@pytest.fixture
def checkout(with_release, tmp_path):
    """A copy of that, with archives of its own."""
    shutil.copytree(with_release.path, tmp_path / "checkout", symlinks=True)
    shutil.copytree(with_release.archives, tmp_path / "archives")
    return Checkout(tmp_path / "checkout", tmp_path / "archives", with_release.version)


@pytest.fixture
def release(checkout):
    return checkout.path / "release" / checkout.version


def test_a_release_has_all_and_the_sums_are_right(checkout, release):
    v = checkout.version
    files = {name[len(v) + 1:]: data for name, data in checkout.made().items()}
    archive = f"rabbitmq_delay_wheel-{v}.ez"
    assert set(files) == {f"3.10/{archive}", f"3.13-4.x/{archive}", f"3.10/rabbitmq-delay-wheel-3.10_{v}_all.deb",
                          f"3.13-4.x/rabbitmq-delay-wheel_{v}_all.deb", "NOTES.md", "sbom.cdx.json", "SHA256SUMS"}
    sums = dict(reversed(line.split("  ")) for line in files["SHA256SUMS"].decode().splitlines())
    assert sums == {name: hashlib.sha256(data).hexdigest() for name, data in files.items() if name != "SHA256SUMS"}
    for folder in ("3.10", "3.13-4.x"):
        assert files[f"{folder}/{archive}"] == (checkout.archives / folder / archive).read_bytes()

    assert run("sha256sum", "--strict", "--check", "SHA256SUMS", cwd=release).returncode == 0
    damaged = bytearray(files[f"3.10/{archive}"])
    damaged[len(damaged) // 2] ^= 1
    (release / "3.10" / archive).write_bytes(damaged)
    assert f"3.10/{archive}: FAILED" in run("sha256sum", "--check", "SHA256SUMS", cwd=release).stdout


def test_it_is_the_same_at_another_time_and_place(checkout, release, tmp_path):
    first = checkout.made()
    run("git", "clone", "-q", str(checkout.path), str(tmp_path / "another"))
    checkout.path = tmp_path / "another"
    assert not checkout.made()
    assert checkout.make(TZ="Asia/Tokyo", LC_ALL="C").returncode == 0
    assert checkout.made() == first
    assert oct(release.stat().st_mode & 0o777) == "0o755"


def test_the_sbom_says_what_is_in_archives_and_packages(checkout, release):
    bom = json.loads((release / "sbom.cdx.json").read_text())
    commit = checkout.git("rev-parse", "HEAD")
    assert (bom["bomFormat"], bom["specVersion"]) == ("CycloneDX", "1.5")
    assert bom["metadata"]["timestamp"] == WHEN
    plugin = bom["metadata"]["component"]
    assert (plugin["version"], plugin["licenses"]) == (checkout.version, [{"license": {"id": "MPL-2.0"}}])
    assert plugin["properties"] == [{"name": "rabbitmq_delay_wheel:commit", "value": commit}]

    components = {component["bom-ref"]: component for component in bom["components"]}
    depends = {one["ref"]: one["dependsOn"] for one in bom["dependencies"]}
    refs = [f"{folder}/rabbitmq_delay_wheel-{checkout.version}.ez" for folder in ("3.10", "3.13-4.x")]
    assert depends.pop(plugin["bom-ref"]) == refs
    for ref in refs:
        archive = components.pop(ref)
        assert archive["hashes"] == [hashed((release / ref).read_bytes())]
        with zipfile.ZipFile(release / ref) as file:
            libraries = {f"{ref}!/{name}": hashed(file.read(name)) for name in file.namelist()
                         if name.endswith(".so")}
            assert f"{os.path.basename(ref)[:-3]}/LICENSE-concurrency-kit" in file.namelist()
        assert len(libraries) == len(LIBRARIES)
        assert {so["bom-ref"]: so["hashes"] for so in archive["components"]} == {
            name: [hash_] for name, hash_ in libraries.items()}
        assert depends.pop(ref) == sorted(libraries)
        for name in libraries:
            parts = depends.pop(name)
            assert "concurrency-kit" in parts and set(parts) <= set(components)
            # What gcc links into musl's is told by hand; glibc's start files are never in it.
            assert ("glibc-start-files" in parts) == ("-gnu/" in name)
    for ref, package in zip(refs, (f"3.10/rabbitmq-delay-wheel-3.10_{checkout.version}_all.deb",
                                   f"3.13-4.x/rabbitmq-delay-wheel_{checkout.version}_all.deb")):
        assert components.pop(package)["hashes"] == [hashed((release / package).read_bytes())]
        assert depends.pop(package) == [ref]
    assert not depends
    assert set(components) == {"concurrency-kit", "gcc-runtime", "glibc-start-files"}
    assert components["concurrency-kit"]["licenses"] == [{"license": {"id": "BSD-2-Clause"}}]
    assert all(re.fullmatch(r"[0-9.]+", part["version"]) for part in components.values())


def hashed(data):
    return {"alg": "SHA-256", "content": hashlib.sha256(data).hexdigest()}


@pytest.mark.parametrize("name, said", [("{0}", "{0}"), ("Unreleased", "{0}, unreleased")])
def test_the_notes_are_of_the_changelogs_first_section(checkout, name, said):
    checkout.changes(CHANGES.format(name.format(checkout.version)))
    done = checkout.make()
    assert done.returncode == 0, done
    assert ("not a release" in done.stdout) == (name == "Unreleased")
    assert checkout.made()[f"{checkout.version}/NOTES.md"].decode() == NOTES.format(
        said.format(checkout.version), checkout.git("rev-parse", "HEAD"))


def changed(checkout):
    (checkout.path / "CHANGELOG.md").write_text("x")


def staged(checkout):
    changed(checkout)
    checkout.git("add", "--all")


def new(checkout):
    (checkout.path / "c_src" / "new.c").write_text("x")


def of_another_version(checkout):
    checkout.changes(CHANGES.format("99.0.0"))


def without_a_section(checkout):
    checkout.changes("# Changes\n\nNone.\n")


def with_nothing_new(checkout):
    checkout.changes(f"# Changes\n\n## {checkout.version}\n\n## 0.0.1\n\nThe first.\n")


def no_git(checkout):
    shutil.rmtree(checkout.path / ".git")


def does_not_build(checkout):
    (checkout.path / "Makefile").write_text("broker-4.0:\ndist:\n\t@echo it breaks >&2; false\n")
    checkout.commit()


def no_broker(checkout):
    (checkout.path / "Makefile").write_text("broker-4.0:\n\t@echo no mirror >&2; false\n" + MAKEFILE)
    checkout.commit()


def one_archive(checkout):
    shutil.rmtree(checkout.archives / "3.13-4.x")


def for_one_machine(checkout):
    for folder in checkout.archives.iterdir():
        for file in folder.iterdir():
            file.rename(str(file)[:-len(".ez")] + "+x86_64-gnu.ez")


def for_the_wrong_series(checkout):
    for file in (checkout.archives / "3.10").iterdir():
        shutil.copy(file, checkout.archives / "3.13-4.x")


@pytest.mark.parametrize("spoil, why", [
    (changed, "the tree is not clean: commit or remove CHANGELOG.md"),
    (staged, "the tree is not clean: commit or remove CHANGELOG.md"),
    (new, "the tree is not clean: commit or remove c_src/new.c"),
    (of_another_version, r'CHANGELOG.md has no section "[0-9.]+", nor "Unreleased", at its top, which is "99.0.0"'),
    (without_a_section, r'CHANGELOG.md has no section "[0-9.]+", nor "Unreleased", at its top'),
    (with_nothing_new, r'the section "[0-9.]+" of CHANGELOG.md is empty'),
    (no_git, "it is made of a commit, and .* is no git checkout"),
    (does_not_build, "it breaks(.|\n)*the archives cannot be built"),
    (no_broker, "no mirror(.|\n)*there is no broker to compile with"),
    (one_archive, r"dist/3\.10/\S+\.ez was built, not dist/3\.10/\S+, dist/3\.13-4\.x/"),
    (for_one_machine, r"\+x86_64-gnu\.ez was built, not "),
    (for_the_wrong_series, "an archive is not as it has to be"),
], ids=lambda value: getattr(value, "__name__", ""))
def test_it_is_refused_and_the_one_before_stays(checkout, spoil, why):
    before = checkout.made()
    spoil(checkout)
    done = checkout.make()
    assert done.returncode == 1 and re.search(why, done.stderr), done
    assert "no release: " in done.stderr and "Traceback" not in done.stderr
    assert checkout.made() == before


def test_it_is_refused_where_a_library_cannot_be_built(checkout):
    shutil.rmtree(checkout.path / "release")
    done = checkout.make("x86_64-musl", "aarch64-gnu")
    assert done.returncode == 1
    assert done.stderr == ("no release: this machine cannot build the native library for x86_64-musl, aarch64-gnu: "
                           "make deps-release fetches what that takes\n")
    assert not checkout.made()


@pytest.mark.parametrize("version", ["1.0", "01.0.0", "1.0.0-rc.1", "v1.0.0", "../1.0.0"])
def test_a_version_is_three_numbers(checkout, version):
    checkout.changes(CHANGES.format(version))
    done = checkout.make(version=version)
    assert (done.returncode, done.stderr.startswith(f'no release: "{version}" is no version')) == (1, True), done


# ------------------------------------------------------------------------------- what is linked in


@pytest.fixture
def linked(tmp_path):
    """linked(source...) is what scripts/sbom says of an archive whose library is linked of these."""
    def made(*names, strip=False):
        for name in names:
            (tmp_path / name).write_text(f"int in_{name[:-2]}(void) {{ return 1; }}\n")
        so = tmp_path / "rabbit_delay_store.so"
        done = run("gcc", "-shared", "-fPIC", *(["-s"] if strip else []), "-o", str(so), *names, cwd=tmp_path)
        assert done.returncode == 0, done
        (tmp_path / "folder" / "3.10").mkdir(parents=True)
        with zipfile.ZipFile(tmp_path / "folder" / "3.10" / "a.ez", "w") as archive:
            archive.write(so, "a/priv/x86_64-gnu/rabbit_delay_store.so")
        return run(os.path.join(TOP, "scripts", "sbom"), str(tmp_path / "folder"), "1.0.0", "0" * 40, "0")
    return made


def test_what_is_ours_is_listed(linked):
    done = linked("dw_heap.c", "dw_wheel.c")
    assert done.returncode == 0, done
    assert "gcc-runtime" in {component["bom-ref"] for component in json.loads(done.stdout)["components"]}


def test_what_nobody_knows_is_an_error(linked):
    done = linked("dw_heap.c", "foreign.c")
    assert done.returncode == 1 and "rabbit_delay_store.so: foreign.c is in it" in done.stderr, done


def test_what_cannot_be_told_is_an_error(linked):
    done = linked("dw_heap.c", strip=True)
    assert done.returncode == 1 and "was it stripped?" in done.stderr, done


def test_a_folder_without_archives_is_an_error(tmp_path):
    done = run(os.path.join(TOP, "scripts", "sbom"), str(tmp_path), "1.0.0", "0" * 40, "0")
    assert done.returncode == 1 and "no archive is there" in done.stderr


def test_headers_of_others_are_known():
    """What is inlined leaves no name in a library; so the sources are looked at."""
    own = run("dpkg-query", "--listfiles", "libc6-dev").stdout.splitlines()
    compilers = run("gcc", "-print-file-name=include").stdout.strip()
    known = {**runpy.run_path(os.path.join(TOP, "scripts", "sbom"))["HEADERS"],
             "erl_nif.h": "Erlang's interface", "arm_acle.h": "gcc's, on arm64"}
    seen = set()
    for path in glob.glob(os.path.join(TOP, "c_src", "*")) + glob.glob(os.path.join(TOP, "include", "*.h")):
        with open(path, encoding="utf-8") as f:
            seen |= set(re.findall(r"^ *# *include <(.+?)>", f.read(), re.M))
    assert "ck_sequence.h" in seen and "string.h" in seen
    unknown = {name for name in seen - set(known)
               if not os.path.exists(os.path.join(compilers, name))
               and not any(file.endswith(f"/include/{name}") or re.search(rf"/include/[\w-]+/{name}$", file)
                           for file in own)}
    assert not unknown
