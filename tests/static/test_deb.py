# SPDX-License-Identifier: MPL-2.0
"""scripts/deb: what the Debian packages have in them, what their scripts do, that they are the same whenever they are
made, and where none is made. tests/install installs them."""

import os
import re
import shutil
import stat
import subprocess

import pytest

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
WITHIN = 300
SECONDS = "1767323045"
PACKAGES = {"3.10": "rabbitmq-delay-wheel-3.10", "3.13-4.x": "rabbitmq-delay-wheel"}


def run(*argv, **more):
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=WITHIN, **more)


def output(*argv):
    done = run(*argv)
    assert done.returncode == 0, done
    return done.stdout


def make(directory, version, seconds=SECONDS, **more):
    return run(os.path.join(TOP, "scripts", "deb"), str(directory), version, seconds, **more)


@pytest.fixture(scope="session")
def version(built):
    return re.search(r"-([0-9.]+)\.ez$", built).group(1)


@pytest.fixture(scope="session")
def made(both, version, tmp_path_factory):
    place = tmp_path_factory.mktemp("debs") / "dist"
    shutil.copytree(both, place)
    done = make(place, version)
    assert done.returncode == 0, done
    return {folder: place / folder / f"{package}_{version}_all.deb" for folder, package in PACKAGES.items()}


@pytest.mark.parametrize("folder", PACKAGES)
def test_it_has_the_archive_and_its_papers(made, version, folder, tmp_path):
    listed = {}
    for line in output("dpkg-deb", "--contents", str(made[folder])).splitlines():
        mode, owner, _, _, _, name = line.split(maxsplit=5)
        listed[name] = mode
        assert owner == "root/root" and mode in ("drwxr-xr-x", "-rw-r--r--"), line
    papers = f"./usr/share/doc/{PACKAGES[folder]}/"
    archive = f"rabbitmq_delay_wheel-{version}.ez"
    assert {name for name, mode in listed.items() if mode[0] == "-"} == {
        f"./usr/lib/rabbitmq/plugins/{archive}", papers + "README.Debian", papers + "changelog.gz", papers + "copyright"}
    output("dpkg-deb", "--extract", str(made[folder]), str(tmp_path))
    assert ((tmp_path / "usr/lib/rabbitmq/plugins" / archive).read_bytes()
            == (made[folder].parent / archive).read_bytes())
    copyright_ = (tmp_path / papers / "copyright").read_text()
    assert "@" not in copyright_ and "Samy Al Bahra" in copyright_ and "Redistributions in binary form" in copyright_


@pytest.mark.parametrize("folder, depends", [
    ("3.10", "rabbitmq-server (>= 3.10), rabbitmq-server (<< 3.11~)"),
    ("3.13-4.x", "rabbitmq-server (>= 3.13), rabbitmq-server (<< 4.4~)")])
def test_it_depends_on_the_series_of_its_archive(made, version, folder, depends):
    fields = dict(re.findall(r"^(\S+): (.*)$", output("dpkg-deb", "--field", str(made[folder])), re.M))
    other, = set(PACKAGES.values()) - {PACKAGES[folder]}
    assert (fields["Package"], fields["Version"], fields["Architecture"]) == (PACKAGES[folder], version, "all")
    assert (fields["Depends"], fields["Conflicts"], fields["Replaces"]) == (depends, other, other)


def test_it_is_the_same_at_another_time_and_place(made, both, version, tmp_path):
    shutil.copytree(both, tmp_path / "another")
    for path in (tmp_path / "another").rglob("*"):
        os.utime(path, (1, 1))
    done = make(tmp_path / "another", version, env={**os.environ, "TZ": "Asia/Tokyo", "LC_ALL": "C"},
                preexec_fn=lambda: os.umask(0o077))
    assert done.returncode == 0, done
    for folder, path in made.items():
        again = tmp_path / "another" / folder / path.name
        assert again.read_bytes() == path.read_bytes()
        assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_none_is_made_of_an_archive_for_one_machine(both, version, tmp_path):
    shutil.copytree(both, tmp_path / "dist")
    one = tmp_path / "dist" / "3.10" / f"rabbitmq_delay_wheel-{version}.ez"
    one.rename(one.with_name(f"rabbitmq_delay_wheel-{version}+x86_64-gnu.ez"))
    done = make(tmp_path / "dist", version)
    assert done.returncode == 1 and "+x86_64-gnu.ez is in " in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("*.deb"))


# ------------------------------------------------------------------------- what its scripts do


class Machine:
    """A directory in which the package's scripts see /usr, /etc and /var. What starts, enables or restarts
    something is there to be caught."""

    def __init__(self, path, package, version):
        self.path, self.name = path, f"rabbitmq_delay_wheel-{version}.ez"
        output("dpkg-deb", "--raw-extract", str(package), str(path))
        self.caught = path / "caught"
        (path / "bin").mkdir()
        for name in ("rabbitmq-plugins", "rabbitmqctl", "rabbitmq-server", "systemctl", "service", "invoke-rc.d",
                     "deb-systemd-invoke"):
            (path / "bin" / name).write_text(f'#!/bin/sh\necho "$0 $@" >>{self.caught}\n')
            (path / "bin" / name).chmod(0o755)

    def broker(self, version, wrapper):
        home = self.path / f"usr/lib/rabbitmq/lib/rabbitmq_server-{version}"
        (home / "plugins").mkdir(parents=True)
        (home / "sbin").mkdir()
        shutil.copy(self.path / "bin" / "rabbitmq-plugins", home / "sbin")
        (self.path / "usr/sbin").mkdir(exist_ok=True)
        (self.path / "usr/sbin/rabbitmq-plugins").write_text(wrapper)
        return home

    def script(self, name, *arguments):
        text = re.sub(r"(?<![\w.}])/(?=(?:usr|etc|var)/)", f"{self.path}/", (self.path / "DEBIAN" / name).read_text())
        done = run("sh", "-c", text.replace("#!/bin/sh", "", 1), name, *arguments,
                   env={"PATH": f"{self.path}/bin:/usr/bin:/bin"})
        assert done.returncode == 0, done
        assert not self.caught.exists(), self.caught.read_text()
        return done.stdout + done.stderr


PLAIN, ONE_FOLDER = "#!/bin/sh\n", "#!/bin/sh\nexport RABBITMQ_PLUGINS_DIR=/usr/lib\n"


@pytest.fixture
def machine(made, version, tmp_path):
    return Machine(tmp_path / "machine", made["3.13-4.x"], version)


def link_in(home, machine):
    return home / "plugins" / machine.name


def test_a_tool_that_looks_in_one_folder_finds_it_by_a_link(machine):
    home = machine.broker("4.0.5", ONE_FOLDER)
    assert machine.script("postinst", "configure") == ""
    link = link_in(home, machine)
    assert link.is_symlink()
    assert link.read_bytes() == (machine.path / "usr/lib/rabbitmq/plugins" / machine.name).read_bytes()

    # RabbitMQ becomes another version: dpkg takes its files, and leaves folders that are not empty.
    for name in ("sbin/rabbitmq-plugins", "sbin"):
        (home / name).unlink() if "/" in name else (home / name).rmdir()
    later = machine.broker("4.0.6", ONE_FOLDER)
    assert machine.script("postinst", "triggered", "/usr/lib/rabbitmq/lib") == ""
    assert not home.exists() and link_in(later, machine).is_symlink()

    assert machine.script("prerm", "upgrade", "9.0.0") == ""
    assert not link_in(later, machine).is_symlink()
    assert machine.script("postinst", "abort-upgrade", "9.0.0") == ""
    assert link_in(later, machine).is_symlink()
    assert machine.script("prerm", "remove") == ""
    assert not link_in(later, machine).is_symlink() and later.exists()


def test_where_it_is_found_without_there_is_none(machine):
    home = machine.broker("4.2.0", PLAIN)
    machine.script("postinst", "configure")
    assert not list((home / "plugins").iterdir())


def test_what_somebody_else_put_there_stays(machine):
    home = machine.broker("4.0.5", ONE_FOLDER)
    link_in(home, machine).write_text("theirs")
    for script, argument in (("postinst", "configure"), ("prerm", "upgrade"), ("prerm", "remove"), ("postrm", "purge")):
        machine.script(script, argument)
        assert link_in(home, machine).read_text() == "theirs"


def test_without_a_broker_there_is_nothing_to_do(machine):
    for script, argument in (("postinst", "configure"), ("prerm", "remove"), ("postrm", "remove"), ("postrm", "purge")):
        assert machine.script(script, argument) == ""


@pytest.mark.parametrize("file", ["rabbitmq.conf", "conf.d/90-delays.conf"])
def test_removing_it_warns_of_keys_without_which_no_broker_starts(machine, file):
    conf = machine.path / "etc/rabbitmq" / file
    conf.parent.mkdir(parents=True)
    conf.write_text("# delayed_message.sync = x\nlisteners.tcp.default = 5672\n")
    assert machine.script("prerm", "remove") == ""
    conf.write_text("listeners.tcp.default = 5672\n delayed_message.wal_size = 2MB\n")
    said = machine.script("prerm", "remove")
    assert "does not start" in said and str(conf) in said
    assert machine.script("prerm", "upgrade", "9.0.0") == ""


def test_a_purge_keeps_what_is_pending_and_says_where(machine):
    kept = machine.path / "var/lib/rabbitmq/mnesia/rabbit@here/quorum/delayed"
    kept.mkdir(parents=True)
    (kept / "meta.dets").write_text("x")
    assert machine.script("postrm", "remove") == ""
    said = machine.script("postrm", "purge")
    assert str(kept) in said and (kept / "meta.dets").read_text() == "x"
